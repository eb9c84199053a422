use std::str::FromStr as _;

use super::*;
use crate::index::{Change, Slice, Watched};

fn zone() -> Zone {
    Zone::new(Name::from_ascii("cluster.local.").unwrap(), 30).unwrap()
}

fn port(name: &str, protocol: &str, number: u16) -> Port {
    Port {
        name: name.into(),
        protocol: protocol.into(),
        number: Some(number),
    }
}

fn endpoint(ip: &str, hostname: Option<&str>, ready: bool) -> Endpoint {
    Endpoint {
        ip: ip.parse().unwrap(),
        hostname: hostname.map(Into::into),
        ready,
    }
}

fn set_service(index: &mut Index, name: &str, kind: Kind, ports: Vec<Port>, publish_not_ready: bool) {
    let service = Service {
        kind,
        ports,
        publish_not_ready,
    };
    index.apply(Change::Service(Key::new("ns", name), service));
}

fn set_slice(index: &mut Index, name: &str, service: &str, endpoints: Vec<Endpoint>, ports: Vec<Port>) {
    index.apply(Change::Slice {
        key: Key::new("ns", name),
        service: Some(service.into()),
        slice: Slice { endpoints, ports },
    });
}

fn ips(texts: &[&str]) -> Kind {
    Kind::ClusterIps(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// A cluster with one Service of each kind.
fn cluster() -> Index {
    let mut index = Index::default();
    for namespace in ["ns", "kube-system"] {
        index.apply(Change::Namespace(Key::new("", namespace)));
    }
    let web = || vec![port("http", "tcp", 80), port("dns", "udp", 53)];
    set_service(&mut index, "web", ips(&["10.96.0.5"]), web(), false);
    set_slice(
        &mut index,
        "web-1",
        "web",
        vec![endpoint("10.244.0.9", None, true)],
        vec![port("http", "tcp", 8080)],
    );
    set_service(
        &mut index,
        "dual",
        ips(&["10.96.0.6", "fd00::6"]),
        vec![port("", "tcp", 80)],
        false,
    );
    let peers = || vec![port("peer", "tcp", 7000)];
    set_service(&mut index, "db", Kind::Headless, peers(), false);
    set_slice(
        &mut index,
        "db-1",
        "db",
        vec![
            endpoint("10.244.0.1", Some("db-0"), true),
            endpoint("10.244.0.2", Some("db-1"), false),
            endpoint("fd00::3", None, true),
        ],
        peers(),
    );
    // On its way from one slice to another.
    let moving = vec![endpoint("10.244.0.1", Some("db-0"), true)];
    set_slice(&mut index, "db-2", "db", moving, peers());
    set_service(&mut index, "all", Kind::Headless, vec![], true);
    set_slice(
        &mut index,
        "all-1",
        "all",
        vec![endpoint("10.244.0.7", None, false)],
        vec![],
    );
    set_service(&mut index, "empty", Kind::Headless, vec![], false);
    let target = Name::from_ascii("db.example.com.").unwrap();
    set_service(&mut index, "away", Kind::External(target), vec![], false);
    set_service(&mut index, "nowhere", Kind::Nowhere, vec![], false);
    let dns = Service {
        kind: ips(&["10.96.0.10"]),
        ports: vec![port("dns", "udp", 53)],
        publish_not_ready: false,
    };
    index.apply(Change::Service(Key::new("kube-system", "kube-dns"), dns));
    index.serial = 7;
    index
}

fn ask_with_room(index: &Index, kind: &str, name: &str, room: usize) -> Answer {
    let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::from_str(kind).unwrap());
    answer(index, &zone(), &query, room)
}

fn told(records: &[Record]) -> Vec<String> {
    let mut texts: Vec<String> = records.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

fn ask(kind: &str, name: &str) -> Answer {
    let full = format!("{name}.cluster.local.");
    ask_with_room(&cluster(), kind, full.trim_start_matches('.'), 100)
}

/// The answers' data, sorted.
fn data(kind: &str, name: &str) -> Vec<String> {
    let answer = ask(kind, name);
    assert_eq!(answer.code, ResponseCode::NoError, "{kind} {name}");
    let mut data: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn services_with_an_address() {
    assert_eq!(data("A", "web.ns.svc"), ["10.96.0.5"]);
    assert_eq!(data("A", "WEB.Ns.svc"), ["10.96.0.5"]);
    assert_eq!(data("A", "dual.ns.svc"), ["10.96.0.6"]);
    assert_eq!(data("AAAA", "dual.ns.svc"), ["fd00::6"]);
    assert_eq!(data("A", "10-244-0-9.web.ns.svc"), ["10.244.0.9"]);
    assert_eq!(data("A", "_http._tcp.web.ns.svc"), ["10.96.0.5"]);
    let answer = ask("A", "web.ns.svc");
    assert_eq!(told(&answer.answers), ["web.ns.svc.cluster.local. 30 IN A 10.96.0.5"]);
    assert!(answer.authorities.is_empty());
}

#[test]
fn headless_services_and_their_pods() {
    assert_eq!(data("A", "db.ns.svc"), ["10.244.0.1"]);
    assert_eq!(data("AAAA", "db.ns.svc"), ["fd00::3"]);
    assert_eq!(data("A", "db-0.db.ns.svc"), ["10.244.0.1"]);
    assert_eq!(data("AAAA", "fd00--3.db.ns.svc"), ["fd00::3"]);
    assert_eq!(data("A", "all.ns.svc"), ["10.244.0.7"], "publishNotReadyAddresses");
    for name in [
        "db-1.db.ns.svc",       // not ready
        "10-244-0-1.db.ns.svc", // it has a hostname, and only that
        "empty.ns.svc",         // nobody ready
    ] {
        assert_eq!(ask("A", name).code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn ports() {
    assert_eq!(
        data("SRV", "_http._tcp.web.ns.svc"),
        ["0 100 80 web.ns.svc.cluster.local."]
    );
    assert_eq!(
        data("SRV", "web.ns.svc"),
        ["0 50 53 web.ns.svc.cluster.local.", "0 50 80 web.ns.svc.cluster.local."]
    );
    assert_eq!(
        data("SRV", "_peer._tcp.db.ns.svc"),
        [
            "0 50 7000 db-0.db.ns.svc.cluster.local.",
            "0 50 7000 fd00--3.db.ns.svc.cluster.local."
        ]
    );
    let answer = ask("SRV", "_peer._tcp.db.ns.svc");
    assert_eq!(
        told(&answer.additionals),
        [
            "db-0.db.ns.svc.cluster.local. 30 IN A 10.244.0.1",
            "fd00--3.db.ns.svc.cluster.local. 30 IN AAAA fd00::3"
        ]
    );
    for name in ["_http._udp.web.ns.svc", "_x._tcp.web.ns.svc", "_x._tcp.db.ns.svc"] {
        assert_eq!(ask("SRV", name).code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn aliases() {
    for kind in ["A", "AAAA", "SRV", "TXT"] {
        let answer = ask(kind, "away.ns.svc");
        assert_eq!(
            told(&answer.answers),
            ["away.ns.svc.cluster.local. 30 IN CNAME db.example.com."]
        );
        assert_eq!(answer.alias.unwrap().to_string(), "db.example.com.");
    }
    assert_eq!(ask("CNAME", "away.ns.svc").alias, None);
    assert_eq!(ask("SRV", "_http._tcp.away.ns.svc").code, ResponseCode::NXDomain);
    assert_eq!(data("A", "nowhere.ns.svc"), [""; 0]);
}

#[test]
fn pods() {
    assert_eq!(data("A", "10-1-2-3.ns.pod"), ["10.1.2.3"]);
    assert_eq!(data("AAAA", "fd00--7.ns.pod"), ["fd00::7"]);
    assert_eq!(data("AAAA", "10-1-2-3.ns.pod"), [""; 0]);
    assert_eq!(ask("A", "10-1-2-3.other.pod").code, ResponseCode::NXDomain);
}

#[test]
fn the_domain_itself() {
    assert_eq!(data("TXT", "dns-version"), ["1.1.0"]);
    assert_eq!(ask("TXT", "dns-version").answers[0].ttl, 28_800);
    assert_eq!(data("NS", ""), ["ns.dns.cluster.local."]);
    assert_eq!(
        told(&ask("NS", "").additionals),
        ["ns.dns.cluster.local. 30 IN A 10.96.0.10"]
    );
    assert_eq!(data("A", "ns.dns"), ["10.96.0.10"]);
    let soa = "ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30";
    assert_eq!(data("SOA", ""), [soa]);
}

#[test]
fn what_is_not_there_has_a_soa_and_the_right_code() {
    let (no_data, no_name) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let cases = [
        ("A", "", no_data),
        ("A", "svc", no_data),
        ("A", "ns.svc", no_data),
        ("A", "ns.pod", no_data),
        ("AAAA", "web.ns.svc", no_data),
        ("MX", "web.ns.svc", no_data),
        ("A", "dns-version", no_data),
        ("A", "other.svc", no_name),
        ("A", "web.other.svc", no_name),
        ("A", "other.ns.svc", no_name),
        ("A", "a.b.c.web.ns.svc", no_name),
        ("A", "1-2-3-4.web.ns.svc", no_name),
        ("A", "example", no_name),
        ("SRV", "www.example.com", no_name),
    ];
    for (kind, name, code) in cases {
        let answer = ask(kind, name);
        assert_eq!((answer.code, answer.answers.len()), (code, 0), "{kind} {name}");
        let soa = "cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30";
        assert_eq!(told(&answer.authorities), [soa], "{kind} {name}");
    }
}

#[test]
fn addresses_lead_back_to_services_and_named_endpoints() {
    let index = cluster();
    let names = |ip: &str| {
        let query = Query::query(Name::from(ip.parse::<IpAddr>().unwrap()), RecordType::PTR);
        reverse(&index, &zone(), &query).map(|answer| {
            let data = answer.answers.iter().map(|record| record.data.to_string());
            data.collect::<Vec<_>>()
        })
    };
    assert_eq!(names("10.96.0.5").unwrap(), ["web.ns.svc.cluster.local."]);
    assert_eq!(names("fd00::6").unwrap(), ["dual.ns.svc.cluster.local."]);
    assert_eq!(names("10.244.0.1").unwrap(), ["db-0.db.ns.svc.cluster.local."]);
    for unnamed in ["10.244.0.2", "10.244.0.9", "192.0.2.1", "fd00::3"] {
        assert_eq!(names(unnamed), None, "{unnamed}");
    }
    let query = Query::query(Name::from_ascii("5.0.96.10.in-addr.arpa.").unwrap(), RecordType::A);
    assert_eq!(reverse(&index, &zone(), &query), None);
}

#[test]
fn a_large_service_is_told_in_part_and_in_turn() {
    let mut index = cluster();
    for slice in 0..5_u8 {
        let endpoints = (0..100_u8).map(|host| endpoint(&format!("10.244.{slice}.{host}"), None, true));
        set_slice(
            &mut index,
            &format!("empty-{slice}"),
            "empty",
            endpoints.collect(),
            vec![],
        );
    }
    let name = "empty.ns.svc.cluster.local.";
    assert_eq!(ask_with_room(&index, "A", name, 1000).answers.len(), 500);
    let answer = ask_with_room(&index, "A", name, 20);
    assert_eq!((answer.answers.len(), answer.cut), (20, true));
    let firsts: std::collections::HashSet<String> = (0..200)
        .map(|_| ask_with_room(&index, "A", name, 20).answers[0].data.to_string())
        .collect();
    assert!(firsts.len() > 10, "clients take the first: {firsts:?}");
}

#[test]
fn a_change_is_the_next_answer() {
    let mut index = cluster();
    let a = |index: &Index| told(&ask_with_room(index, "A", "web.ns.svc.cluster.local.", 9).answers);
    set_service(&mut index, "web", ips(&["10.96.0.8"]), vec![], false);
    assert_eq!(a(&index), ["web.ns.svc.cluster.local. 30 IN A 10.96.0.8"]);
    index.apply(Change::Gone(Watched::Services, Key::new("ns", "web")));
    assert!(a(&index).is_empty());
}
