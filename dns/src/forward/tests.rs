use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::message::{ClientEdns, Request, Transport};

/// How a server of the test behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Says this address.
    Says([u8; 4]),
    /// Says this code.
    Code(ResponseCode),
    /// Says nothing.
    Silent,
    /// Sends answers to others' questions first.
    Confused,
    /// Says over UDP that the answer is too long, and tells it over TCP.
    Long,
    /// Knows no EDNS.
    Old,
}

/// A server on loopback that counts what it is asked.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        // The same port for both: the system chooses it for one, and the other may find it taken.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let server = Self {
            address: udp.local_addr().unwrap(),
            asked: Arc::default(),
            silent: Arc::new(AtomicBool::new(matches!(manner, Manner::Silent))),
        };
        let (asked, silent) = (Arc::clone(&server.asked), Arc::clone(&server.silent));
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (size, from) = udp.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..size]).unwrap();
                if !question.queries[0].name().is_root() && question.queries[0].query_type() != RecordType::HINFO {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                if silent.load(Ordering::Relaxed) {
                    continue;
                }
                if matches!(manner, Manner::Confused) {
                    let mut other = reply(&question, manner);
                    other.metadata.id ^= 1;
                    udp.send_to(&other.to_vec().unwrap(), from).await.unwrap();
                    udp.send_to(b"no message", from).await.unwrap();
                }
                udp.send_to(&reply(&question, manner).to_vec().unwrap(), from)
                    .await
                    .unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut buffer = vec![0; length.into()];
                stream.read_exact(&mut buffer).await.unwrap();
                let mut answer = reply(&Message::from_vec(&buffer).unwrap(), manner);
                answer.metadata.truncation = false;
                let name = answer.queries[0].name().clone();
                let text = TXT::new(vec!["x".repeat(250); 20]);
                answer.answers.push(Record::from_rdata(name, 60, RData::TXT(text)));
                let bytes = answer.to_vec().unwrap();
                stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        server
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn reply(question: &Message, manner: Manner) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.queries.clone_from(&question.queries);
    let ip = match manner {
        Manner::Says(ip) => ip,
        Manner::Code(code) => {
            answer.metadata.response_code = code;
            return answer;
        }
        Manner::Long => {
            answer.metadata.truncation = true;
            return answer;
        }
        Manner::Old if question.edns.is_some() => {
            answer.metadata.response_code = ResponseCode::FormErr;
            return answer;
        }
        Manner::Silent | Manner::Confused | Manner::Old => [9, 9, 9, 9],
    };
    let name = question.queries[0].name().clone();
    answer
        .answers
        .push(Record::from_rdata(name, 60, RData::A(A(ip.into()))));
    answer
}

fn key(name: &str) -> Key {
    Key {
        name: Name::from_ascii(name).unwrap(),
        kind: RecordType::A,
        dnssec_ok: false,
        checking_disabled: false,
    }
}

fn forwarder(servers: &[&Server], stubs: &[(&str, &Server)], policy: UpstreamPolicy) -> Arc<Forwarder> {
    let upstreams = Upstreams {
        servers: servers.iter().map(|server| server.address).collect(),
        resolv_conf: "/nonexistent".into(),
        stubs: stubs
            .iter()
            .map(|(domain, server)| (Name::from_ascii(domain).unwrap(), vec![server.address]))
            .collect(),
        policy,
    };
    let limits = Limits {
        attempt: Duration::from_millis(300),
        total: Duration::from_secs(2),
        concurrent: 4,
        probe_every: Duration::from_millis(20),
    };
    let metrics = Metrics::register(&skiff_daemon::Metrics::default());
    let cache = Arc::new(Cache::new(Duration::from_secs(30)));
    Forwarder::new(
        upstreams,
        vec![([10, 96, 0, 10], 53).into()],
        limits,
        cache,
        metrics,
        Shutdown::new(),
    )
}

async fn ask(forwarder: &Forwarder, name: &str) -> Result<String, ResponseCode> {
    let answer = forwarder.ask(key(name)).await;
    match answer.answers.first() {
        Some(record) => Ok(record.data.to_string()),
        None => Err(answer.code),
    }
}

#[tokio::test]
async fn each_domain_has_its_servers_and_the_longest_counts() {
    let all = Server::start(Manner::Says([1, 1, 1, 1])).await;
    let corp = Server::start(Manner::Says([2, 2, 2, 2])).await;
    let lab = Server::start(Manner::Says([3, 3, 3, 3])).await;
    let stubs = [("corp.test.", &corp), ("lab.corp.test.", &lab)];
    let forwarder = forwarder(&[&all], &stubs, UpstreamPolicy::Random);
    assert_eq!(ask(&forwarder, "example.com.").await.unwrap(), "1.1.1.1");
    assert_eq!(ask(&forwarder, "a.Corp.test.").await.unwrap(), "2.2.2.2");
    assert_eq!(ask(&forwarder, "b.lab.corp.test.").await.unwrap(), "3.3.3.3");
    assert_eq!(ask(&forwarder, "xcorp.test.").await.unwrap(), "1.1.1.1");
}

#[tokio::test]
async fn a_silent_server_is_passed_over_and_tried_again_when_it_lives() {
    let first = Server::start(Manner::Silent).await;
    let second = Server::start(Manner::Says([2, 2, 2, 2])).await;
    let forwarder = forwarder(&[&first, &second], &[], UpstreamPolicy::Sequential);
    for name in ["a.test.", "b.test."] {
        assert_eq!(ask(&forwarder, name).await.unwrap(), "2.2.2.2");
    }
    assert_eq!(first.asked(), 2);
    assert_eq!(ask(&forwarder, "c.test.").await.unwrap(), "2.2.2.2");
    assert_eq!(first.asked(), 2, "dead: the living are asked first");
    first.silent.store(false, Ordering::Relaxed);
    let server = Arc::clone(&forwarder.groups[0].servers.read()[0]);
    let alive = async {
        while !server.is_alive() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), alive).await.unwrap();
    assert_eq!(ask(&forwarder, "d.test.").await.unwrap(), "9.9.9.9");
}

#[tokio::test]
async fn nobody_answers() {
    let silent = Server::start(Manner::Silent).await;
    assert_eq!(
        ask(&forwarder(&[&silent], &[], UpstreamPolicy::Random), "a.test.").await,
        Err(ResponseCode::ServFail)
    );
    assert_eq!(silent.asked(), 2, "a datagram may be lost");
    assert_eq!(
        ask(&forwarder(&[], &[], UpstreamPolicy::Random), "a.test.").await,
        Err(ResponseCode::Refused)
    );
}

#[tokio::test]
async fn who_refuses_is_not_the_last_word() {
    let first = Server::start(Manner::Code(ResponseCode::ServFail)).await;
    let second = Server::start(Manner::Says([2, 2, 2, 2])).await;
    let both = forwarder(&[&first, &second], &[], UpstreamPolicy::Sequential);
    assert_eq!(ask(&both, "a.test.").await.unwrap(), "2.2.2.2");
    let alone = forwarder(&[&first], &[], UpstreamPolicy::Sequential);
    assert_eq!(ask(&alone, "a.test.").await, Err(ResponseCode::ServFail));
    let none = Server::start(Manner::Code(ResponseCode::NXDomain)).await;
    let denied = forwarder(&[&none, &second], &[], UpstreamPolicy::Sequential);
    assert_eq!(
        ask(&denied, "a.test.").await,
        Err(ResponseCode::NXDomain),
        "this is an answer"
    );
}

#[tokio::test]
async fn a_failure_is_kept_only_when_no_other_server_knows_better() {
    let first = Server::start(Manner::Code(ResponseCode::ServFail)).await;
    let slow = Server::start(Manner::Silent).await;
    let both = forwarder(&[&first, &slow], &[], UpstreamPolicy::Sequential);
    let asking = ask(&both, "a.test.");
    let meanwhile = async {
        while slow.asked() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(
            both.cache.get(&key("a.test.")).is_none(),
            "the other one is still asked"
        );
    };
    let (answer, ()) = tokio::join!(asking, meanwhile);
    assert_eq!(answer, Err(ResponseCode::ServFail));
    assert!(both.cache.get(&key("a.test.")).is_some(), "nobody knows");
}

#[tokio::test]
async fn servers_with_manners_of_their_own() {
    for (manner, wanted) in [(Manner::Confused, "9.9.9.9"), (Manner::Old, "9.9.9.9")] {
        let server = Server::start(manner).await;
        let forwarder = forwarder(&[&server], &[], UpstreamPolicy::Random);
        assert_eq!(ask(&forwarder, "a.test.").await.unwrap(), wanted, "{manner:?}");
    }
    let long = Server::start(Manner::Long).await;
    let answer = forwarder(&[&long], &[], UpstreamPolicy::Random)
        .ask(key("a.test."))
        .await;
    assert!(!answer.cut && answer.answers[0].data.to_string().len() > 4000);
}

#[tokio::test]
async fn many_who_ask_the_same_are_one_question() {
    let server = Server::start(Manner::Says([1, 1, 1, 1])).await;
    let forwarder = forwarder(&[&server], &[], UpstreamPolicy::Random);
    let waiting = (0..1000).map(|_| ask(&forwarder, "a.test."));
    for answer in futures::future::join_all(waiting).await {
        assert_eq!(answer.unwrap(), "1.1.1.1");
    }
    assert_eq!(server.asked(), 1);
    assert!(forwarder.waiting.lock().is_empty());
    // Who gives up leaves nothing behind.
    let (first, second) = (ask(&forwarder, "b.test."), ask(&forwarder, "b.test."));
    let mut second = Box::pin(second);
    assert!(first.now_or_never().is_none(), "no answer yet");
    assert!(forwarder.waiting.lock().is_empty());
    // Nor does who gives up take it from those who go on.
    assert!(futures::poll!(second.as_mut()).is_pending());
    assert!(ask(&forwarder, "b.test.").now_or_never().is_none());
    assert_eq!(forwarder.waiting.lock().len(), 1);
    assert_eq!(second.await.unwrap(), "1.1.1.1");
}

#[tokio::test]
async fn many_different_questions_wait_for_their_turn() {
    let server = Server::start(Manner::Says([1, 1, 1, 1])).await;
    let forwarder = forwarder(&[&server], &[], UpstreamPolicy::Random);
    let names: Vec<String> = (0..200).map(|number| format!("n{number}.test.")).collect();
    for answer in futures::future::join_all(names.iter().map(|name| ask(&forwarder, name))).await {
        assert_eq!(answer.unwrap(), "1.1.1.1");
    }
}

#[tokio::test]
async fn a_server_that_asks_us_in_turn_is_left_out() {
    let server = Server::start(Manner::Says([1, 1, 1, 1])).await;
    let forwarder = forwarder(&[&server], &[], UpstreamPolicy::Random);
    assert!(!forwarder.is_own_probe(&Name::from_ascii("1.2.").unwrap(), RecordType::HINFO));
    server.silent.store(true, Ordering::Relaxed);
    forwarder.start();
    let probe = async {
        loop {
            if let Some(name) = forwarder.probes.lock().keys().next().cloned() {
                return name;
            }
            tokio::task::yield_now().await;
        }
    };
    let name = timeout(Duration::from_secs(10), probe).await.unwrap();
    assert!(forwarder.is_own_probe(&name, RecordType::HINFO), "it came back");
    assert_eq!(ask(&forwarder, "a.test.").await, Err(ResponseCode::ServFail));
    assert_eq!(server.asked(), 0);
}

#[test]
fn the_own_address_is_no_server_and_a_known_server_keeps_its_health() {
    let own: SocketAddr = ([10, 96, 0, 10], 53).into();
    let addresses: Vec<SocketAddr> = vec![([10, 0, 0, 1], 53).into(), own, ([10, 0, 0, 2], 53).into()];
    let group = Group::new(Name::root(), &addresses, &[own], None);
    let order = |policy| -> Vec<String> {
        let order = group.order(policy);
        order.iter().map(|server| server.address.ip().to_string()).collect()
    };
    assert_eq!(order(UpstreamPolicy::Sequential), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(order(UpstreamPolicy::RoundRobin), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(order(UpstreamPolicy::RoundRobin), ["10.0.0.2", "10.0.0.1"]);
    assert_eq!(order(UpstreamPolicy::Random).len(), 2);
    let first = Arc::clone(&group.servers.read()[0]);
    assert!(!first.failed() && first.failed());
    group.set(&addresses, &[own]);
    assert_eq!(order(UpstreamPolicy::Sequential), ["10.0.0.2", "10.0.0.1"]);
    first.set_looped(true);
    assert_eq!(order(UpstreamPolicy::Sequential), ["10.0.0.2"]);
}

proptest! {
    /// What another server sends goes into the cache and out to clients: no damage to it may hurt.
    #[test]
    fn no_answer_of_another_server_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        dnssec_ok: bool,
    ) {
        let key = key("a.test.");
        let mut question = Message::new(1, hickory_proto::op::MessageType::Query, hickory_proto::op::OpCode::Query);
        question.queries.push(Query::query(key.name.clone(), key.kind));
        let mut answer = reply(&question, Manner::Says([1, 1, 1, 1]));
        let text = TXT::new(vec!["x".repeat(50); 3]);
        answer.authorities.push(Record::from_rdata(key.name.clone(), 60, RData::TXT(text)));
        answer.additionals.push(Record::from_rdata(Name::root(), 60, RData::A(A([2, 2, 2, 2].into()))));
        let mut bytes = answer.to_vec().unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(message) = Message::from_vec(&bytes) {
            let cache = Cache::new(Duration::from_secs(30));
            let answer = answer_of(message);
            cache.insert(key.clone(), &answer, bytes.len());
            let answer = cache.get(&key).map_or(answer, |(_, kept)| kept);
            let request = Request {
                id: 1,
                query: Query::query(key.name.clone(), key.kind),
                recursion_desired: true,
                checking_disabled: false,
                edns: dnssec_ok.then_some(ClientEdns { payload: 1232, dnssec_ok }),
                transport: Transport::Udp,
            };
            let written = request.write(answer, false);
            prop_assert!(written.len() <= request.limit().into());
            prop_assert!(Message::from_vec(&written).is_ok());
        }
    }
}
