use hickory_proto::op::Edns;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

fn question(edns: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(
        Name::from_ascii("Web.ns.svc.cluster.local.").unwrap(),
        RecordType::A,
    ));
    message.edns = edns.map(|payload| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns
    });
    message
}

fn request(message: &Message, transport: Transport) -> Request {
    match read(&message.to_vec().unwrap(), transport) {
        Read::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

fn refusal(packet: &[u8]) -> ResponseCode {
    match read(packet, Transport::Udp) {
        Read::Refused(code, bytes) => {
            assert_eq!(&bytes[..2], &packet[..2], "the id");
            assert_eq!(bytes[2] & 0x80, 0x80, "a response");
            let answer = Message::from_vec(&bytes).unwrap();
            // One number is BADVERS here, and BADSIG elsewhere.
            assert_eq!(u16::from(answer.metadata.response_code), u16::from(code));
            code
        }
        other => panic!("{other:?}"),
    }
}

fn answer(count: u32, additionals: u32) -> Answer {
    let record = |bits: u32| {
        let name = Name::from_ascii("Web.ns.svc.cluster.local.").unwrap();
        Record::from_rdata(name, 30, RData::A(A(bits.into())))
    };
    Answer {
        answers: (0..count).map(record).collect(),
        additionals: (0..additionals).map(record).collect(),
        ..Answer::default()
    }
}

#[test]
fn questions_that_are_none_get_no_answer_and_wrong_ones_the_code_that_says_why() {
    let good = question(None).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    assert!(
        matches!(read(&good[..11], Transport::Udp), Read::Nothing),
        "half a header"
    );
    assert!(
        matches!(read(&with(2, 0x80), Transport::Udp), Read::Nothing),
        "an answer"
    );
    assert_eq!(refusal(&with(2, 0x28)), ResponseCode::NotImp, "UPDATE");
    assert_eq!(refusal(&with(2, 0x20)), ResponseCode::NotImp, "NOTIFY");
    assert_eq!(refusal(&with(5, 0)), ResponseCode::FormErr, "no question");
    assert_eq!(refusal(&with(5, 2)), ResponseCode::FormErr, "two questions");
    assert_eq!(refusal(&with(7, 1)), ResponseCode::FormErr, "an answer in the question");
    assert_eq!(refusal(&good[..20]), ResponseCode::FormErr, "half a question");
    assert_eq!(
        refusal(&with(12, 0xc0)),
        ResponseCode::FormErr,
        "a pointer into the header"
    );
    let mut versioned = question(Some(1232));
    versioned.edns.as_mut().unwrap().set_version(1);
    assert_eq!(refusal(&versioned.to_vec().unwrap()), ResponseCode::BADVERS);
}

#[test]
fn an_answer_repeats_the_question_as_it_was_written() {
    let request = request(&question(Some(4096)), Transport::Udp);
    let bytes = request.write(answer(1, 1), true);
    let read = Message::from_vec(&bytes).unwrap();
    assert_eq!(read.metadata.id, 4711);
    assert!(read.metadata.authoritative && read.metadata.recursion_desired && read.metadata.recursion_available);
    assert_eq!(read.queries[0].name().to_string(), "Web.ns.svc.cluster.local.");
    assert_eq!((read.answers.len(), read.additionals.len()), (1, 1));
    assert_eq!(read.edns.unwrap().max_payload(), 1232);
    let without = request_without_edns().write(answer(1, 0), false);
    assert_eq!(Message::from_vec(&without).unwrap().edns, None);
}

fn request_without_edns() -> Request {
    request(&question(None), Transport::Udp)
}

#[test]
fn what_does_not_fit_is_cut_and_said_to_be() {
    let cases = [
        (Transport::Udp, None, 512),
        (Transport::Udp, Some(100), 512),
        (Transport::Udp, Some(1000), 1000),
        (Transport::Udp, Some(4096), 1232),
        (Transport::Tcp, Some(512), 65_535),
    ];
    for (transport, edns, limit) in cases {
        let request = request(&question(edns), transport);
        assert_eq!(usize::from(request.limit()), limit);
        let bytes = request.write(answer(10_000, 0), true);
        assert!(
            bytes.len() <= limit && bytes.len() + 64 > limit,
            "{transport:?} {edns:?}: {}",
            bytes.len()
        );
        let read = Message::from_vec(&bytes).unwrap();
        assert!(read.metadata.truncation);
        assert_eq!(read.edns.is_some(), edns.is_some());
        assert!(read.answers.len() <= request.room());
        // What is merely useful goes first, and is not missed.
        let read = Message::from_vec(&request.write(answer(3, 10_000), true)).unwrap();
        assert_eq!((read.answers.len(), read.metadata.truncation), (3, false));
    }
}

/// Packets that have hurt DNS servers: pointers to themselves, to each other and beyond the end, labels that are too long,
/// lengths that lie, options that end early.
const CORPUS: &[&[u8]] = &[
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0e\xc0\x0c\x00\x01\x00\x01",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff\x00\x01\x00\x01",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x40aaa\x00\x00\x01\x00\x01",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3faaa",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\xff\xff",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x04\x00\x0a\xff\xff",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x02\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x00\x01\x00\x01\xc0\x11\x00\x2e\x00\x01\x00\x00\x00\x00\x00\x02\xc0\x1d",
    b"\x00\x01\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05a.b\x00c\x00\x00\x01\x00\x01",
    b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04\xff\xfe\xfd\xfc\x00\x00\xff\x00\xff",
];

/// Reads a packet and, when it is a question, answers it with everything that an answer can have.
fn survive(packet: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match read(packet, transport) {
            Read::Nothing => {}
            Read::Refused(_, bytes) => assert!(bytes.len() >= HEADER),
            Read::Request(request) => {
                let bytes = request.write(answer(50, 50), true);
                assert!(bytes.len() <= request.limit().into());
                Message::from_vec(&bytes).unwrap();
            }
        }
    }
}

#[test]
fn packets_that_have_hurt_others() {
    CORPUS.iter().for_each(|packet| survive(packet));
    let mut long = question(None).to_vec().unwrap();
    long.truncate(HEADER);
    long.extend([1, b'a'].repeat(200));
    long.extend([0, 0, 1, 0, 1]);
    assert_eq!(refusal(&long), ResponseCode::FormErr, "a name of 400 bytes");
}

/// Names that share endings, and sometimes differ in the case of letters alone.
fn name() -> impl Strategy<Value = Name> {
    let labels = prop::collection::vec(
        prop::sample::select(vec!["a", "B", "b", "svc", "local", "x-1", "*"]),
        0..6,
    );
    labels.prop_map(|labels| Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap())
}

fn data() -> impl Strategy<Value = RData> {
    prop_oneof![
        any::<u32>().prop_map(|bits| RData::A(A(bits.into()))),
        any::<u128>().prop_map(|bits| RData::AAAA(AAAA(bits.into()))),
        name().prop_map(|name| RData::CNAME(CNAME(name))),
        name().prop_map(|name| RData::PTR(PTR(name))),
        name().prop_map(|name| RData::NS(NS(name))),
        (any::<[u16; 3]>(), name()).prop_map(|([a, b, c], target)| RData::SRV(SRV::new(a, b, c, target))),
        (name(), name(), any::<u32>(), any::<[i32; 3]>())
            .prop_map(|(mname, rname, serial, [a, b, c])| RData::SOA(SOA::new(mname, rname, serial, a, b, c, serial))),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = (name(), any::<u32>(), data()).prop_map(|(name, ttl, data)| Record::from_rdata(name, ttl, data));
    prop::collection::vec(record, 0..8)
}

#[test]
fn names_are_written_once() {
    let request = request_without_edns();
    // The question is 12 + 26 + 4 bytes; each record has a pointer for its name, and ten bytes before its data.
    let bytes = quick::write(&request, &answer(3, 0), true, 512).unwrap();
    assert_eq!(bytes.len(), 42 + 3 * (2 + 10 + 4));
    let target = Name::from_ascii("web-0.Web.ns.svc.cluster.local.").unwrap();
    let srv = RData::SRV(SRV::new(0, 1, 80, target.clone()));
    let told = Answer {
        answers: vec![Record::from_rdata(request.query.name().clone(), 5, srv)],
        additionals: vec![Record::from_rdata(target, 5, RData::A(A([10, 0, 0, 1].into())))],
        ..Answer::default()
    };
    let bytes = quick::write(&request, &told, true, 512).unwrap();
    // The target stands there in full, and is pointed to.
    assert_eq!(bytes.len(), 42 + (2 + 10 + 6 + 32) + (2 + 10 + 4));
    assert_eq!(quick::write(&request, &told, true, bytes.len() - 1), None);
}

proptest! {
    #[test]
    fn both_ways_of_writing_say_the_same(
        asked in name(), sections in [records(), records(), records()], authoritative: bool, cut: bool, code in 0..6_u8,
    ) {
        let mut request = request(&question(None), Transport::Tcp);
        request.query.set_name(asked);
        let [answers, authorities, additionals] = sections;
        let code = ResponseCode::from(0, code);
        let told = Answer { code, answers, authorities, additionals, cut, alias: None };
        let quick = quick::write(&request, &told, authoritative, 65_535).unwrap();
        let usual = request.write_any(told, authoritative, 65_535);
        // As text: names that differ in the case of letters count as equal.
        let read = |bytes: &[u8]| format!("{:?}", Message::from_vec(bytes).unwrap());
        prop_assert_eq!(read(&quick), read(&usual));
    }

    #[test]
    fn no_packet_panics(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        survive(&packet);
    }

    #[test]
    fn no_damage_to_a_question_panics(
        base in 0..CORPUS.len() + 2,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length: prop::sample::Index,
    ) {
        let mut packet = match base {
            0 => question(None).to_vec().unwrap(),
            1 => question(Some(1232)).to_vec().unwrap(),
            other => CORPUS[other - 2].to_vec(),
        };
        for (at, byte) in damage {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        packet.truncate(length.index(packet.len()) + 1);
        survive(&packet);
    }
}
