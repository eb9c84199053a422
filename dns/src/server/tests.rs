use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::answer::Zone;
use crate::cache::Cache;
use crate::forward::{Forwarder, Limits, Upstreams};
use crate::index::{Change, Key, Kind, Service};
use crate::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server on loopback with one Service `web` in `ns`.
struct Fixture {
    address: SocketAddr,
    registry: skiff_daemon::Metrics,
    resolver: Arc<Resolver>,
    shutdown: Shutdown,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Who may ask: the first half of loopback.
fn clients() -> Vec<ipnet::IpNet> {
    vec!["127.0.0.0/9".parse().unwrap()]
}

fn start(upstream: Option<SocketAddr>) -> Fixture {
    let (registry, shutdown) = (skiff_daemon::Metrics::default(), Shutdown::new());
    let metrics = Metrics::register(&registry);
    let cache = Arc::new(Cache::new(Duration::from_secs(30)));
    let upstreams = Upstreams {
        servers: upstream.into_iter().collect(),
        resolv_conf: "/nonexistent".into(),
        stubs: Vec::new(),
        policy: skiff_api::config::UpstreamPolicy::Random,
    };
    let forwarder = Forwarder::new(
        upstreams,
        Vec::new(),
        Limits::default(),
        Arc::clone(&cache),
        metrics.clone(),
        shutdown.clone(),
    );
    let zone = Zone::new(Name::from_ascii("cluster.local.").unwrap(), 30).unwrap();
    let resolver = Arc::new(Resolver::new(zone, cache, forwarder, metrics, clients()));
    let set = |name: &str, kind| {
        let service = Service {
            kind,
            ports: Vec::new(),
            publish_not_ready: false,
        };
        resolver
            .index
            .write()
            .apply(Change::Service(Key::new("ns", name), service));
    };
    set("web", Kind::ClusterIps(vec![[10, 96, 0, 5].into()]));
    set(
        "alias",
        Kind::External(Name::from_ascii("web.ns.svc.cluster.local.").unwrap()),
    );
    set(
        "round",
        Kind::External(Name::from_ascii("round.ns.svc.cluster.local.").unwrap()),
    );
    set("away", Kind::External(Name::from_ascii("example.com.").unwrap()));
    resolver.set_synced();
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.address;
    tokio::spawn(listener.serve(Arc::clone(&resolver), shutdown.clone()));
    Fixture {
        address,
        registry,
        resolver,
        shutdown,
    }
}

fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message
        .queries
        .push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_udp(server: SocketAddr, packet: &[u8]) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(packet, server).await.unwrap();
    let mut buffer = vec![0; 65_536];
    let size = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..size]).unwrap()
}

async fn read_tcp(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len()).unwrap();
    [&length.to_be_bytes(), packet].concat()
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn datagrams_and_connections_say_the_same() {
    let server = start(None);
    let packet = question(7, "web.ns.svc.cluster.local.", RecordType::A);
    let answer = ask_udp(server.address, &packet).await;
    assert_eq!(
        (answer.metadata.id, addresses(&answer)),
        (7, vec!["10.96.0.5".to_owned()])
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // Three questions without waiting, in pieces that the wire may make of them.
    for piece in framed(&packet).repeat(3).chunks(10) {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(addresses(&read_tcp(&mut stream).await), ["10.96.0.5"]);
    }
    // A client that shuts its half still gets what it asked for, and then the end.
    stream.write_all(&framed(&packet)).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(addresses(&read_tcp(&mut stream).await), ["10.96.0.5"]);
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0; 10])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn aliases_are_followed_within_the_cluster_and_to_others() {
    let upstream = start(None);
    upstream.resolver.index.write().apply(Change::Service(
        Key::new("ns", "there"),
        Service {
            kind: Kind::ClusterIps(vec![[10, 96, 0, 9].into()]),
            ports: Vec::new(),
            publish_not_ready: false,
        },
    ));
    let server = start(Some(upstream.address));
    let ask = async |name: &str| ask_udp(server.address, &question(1, name, RecordType::A)).await;
    let alias = ask("alias.ns.svc.cluster.local.").await;
    assert_eq!(addresses(&alias), ["web.ns.svc.cluster.local.", "10.96.0.5"]);
    assert_eq!(
        ask("round.ns.svc.cluster.local.").await.metadata.response_code,
        ResponseCode::ServFail
    );
    // The other server refuses this name, and says so itself.
    let away = ask("away.ns.svc.cluster.local.").await;
    assert_eq!(addresses(&away), ["example.com."]);
    assert_eq!(away.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn wrong_questions_get_a_code_and_the_server_goes_on() {
    let server = start(None);
    let code = async |packet: &[u8]| ask_udp(server.address, packet).await.metadata.response_code;
    let mut packet = question(1, "web.ns.svc.cluster.local.", RecordType::A);
    packet.truncate(20);
    assert_eq!(code(&packet).await, ResponseCode::FormErr);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&question(1, "cluster.local.", kind)).await, ResponseCode::Refused);
    }
    let mut chaos = question(1, "version.bind.", RecordType::TXT);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(code(&chaos).await, ResponseCode::Refused);
    assert_eq!(
        code(&question(1, "example.com.", RecordType::A)).await,
        ResponseCode::Refused,
        "nobody to ask"
    );
    let answer = ask_udp(server.address, &question(2, "web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.answers.len(), 1);
    let text = server.registry.encode();
    for line in [
        r#"coredns_dns_requests_total{server="dns://:53",zone=".",view="",proto="udp",family="1",type="A"} 2"#,
        r#"coredns_dns_responses_total{server="dns://:53",zone=".",view="",rcode="NOERROR",plugin="kubernetes"} 1"#,
        r#"coredns_dns_responses_total{server="dns://:53",zone=".",view="",rcode="FORMERR",plugin=""} 1"#,
        r#"coredns_dns_request_duration_seconds_count{server="dns://:53",zone=".",view=""} 6"#,
        r#"coredns_cache_misses_total{server="dns://:53",zones=".",view=""} 1"#,
        "coredns_panics_total 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn before_the_cluster_is_known_its_names_are_a_failure_not_a_denial() {
    let server = start(None);
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    assert!(listen(listener.address).is_err(), "one server to an address");
    let zone = Zone::new(Name::from_ascii("other.local.").unwrap(), 30).unwrap();
    let cache = Arc::new(Cache::new(Duration::ZERO));
    let upstreams = Upstreams {
        servers: vec![server.address],
        resolv_conf: "/nonexistent".into(),
        stubs: Vec::new(),
        policy: skiff_api::config::UpstreamPolicy::Random,
    };
    let metrics = Metrics::register(&skiff_daemon::Metrics::default());
    let shutdown = server.shutdown.clone();
    let limits = Limits::default();
    let forwarder = Forwarder::new(
        upstreams,
        Vec::new(),
        limits,
        Arc::clone(&cache),
        metrics.clone(),
        shutdown.clone(),
    );
    let resolver = Arc::new(Resolver::new(zone, cache, forwarder, metrics, clients()));
    let address = listener.address;
    tokio::spawn(listener.serve(resolver, shutdown));
    let own = ask_udp(address, &question(1, "web.ns.svc.other.local.", RecordType::A)).await;
    assert_eq!(own.metadata.response_code, ResponseCode::ServFail);
    let others = ask_udp(address, &question(1, "web.ns.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(addresses(&others), ["10.96.0.5"]);
}

#[tokio::test]
async fn strangers_are_refused() {
    let server = start(None);
    let code = async |from: [u8; 4]| {
        let socket = UdpSocket::bind((Ipv4Addr::from(from), 0)).await.unwrap();
        let packet = question(1, "web.ns.svc.cluster.local.", RecordType::A);
        socket.send_to(&packet, server.address).await.unwrap();
        let mut buffer = vec![0; 512];
        let size = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..size]).unwrap().metadata.response_code
    };
    assert_eq!(code([127, 0, 0, 2]).await, ResponseCode::NoError);
    assert_eq!(code([127, 200, 0, 2]).await, ResponseCode::Refused);
}

#[tokio::test]
async fn a_client_that_holds_many_connections_keeps_nobody_else_out() {
    let server = start(None);
    let connect = async |from: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
        socket.connect(server.address).await.unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..101 {
        held.push(connect([127, 0, 0, 2]).await);
    }
    // Who came too many was sent away: at once, not for having said nothing.
    let last = held.last_mut().unwrap();
    let end = timeout(PATIENCE / 4, last.read(&mut [0; 10])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let mut other = connect([127, 0, 0, 3]).await;
    let packet = framed(&question(1, "web.ns.svc.cluster.local.", RecordType::A));
    other.write_all(&packet).await.unwrap();
    assert_eq!(addresses(&read_tcp(&mut other).await), ["10.96.0.5"]);
}

#[tokio::test]
async fn garbage_on_a_connection_ends_that_connection_alone() {
    let server = start(None);
    let mut good = TcpStream::connect(server.address).await.unwrap();
    let mut bad = TcpStream::connect(server.address).await.unwrap();
    // The length of a question that no name needs.
    bad.write_all(&[0xff, 0xff]).await.unwrap();
    bad.write_all(&[0; 5000]).await.unwrap();
    // The end, or a reset where bytes of ours were not read.
    let end = timeout(PATIENCE, bad.read(&mut [0; 10])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    good.write_all(&framed(&question(1, "web.ns.svc.cluster.local.", RecordType::A)))
        .await
        .unwrap();
    assert_eq!(addresses(&read_tcp(&mut good).await), ["10.96.0.5"]);
}

#[tokio::test]
async fn ten_thousand_questions_at_once_are_all_answered() {
    let server = start(None);
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
    setsockopt(&socket, sockopt::SndBufForce, &RECEIVE_BUFFER).unwrap();
    let count = 10_000_u16;
    let mut packet = question(0, "web.ns.svc.cluster.local.", RecordType::A);
    // All are on the wire before this thread, on which the server runs too, does anything else.
    for id in 0..count {
        packet[..2].copy_from_slice(&id.to_be_bytes());
        socket.send_to(&packet, server.address).unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    let mut seen = vec![false; count.into()];
    let mut buffer = vec![0; 512];
    for _ in 0..count {
        let size = timeout(PATIENCE, socket.recv(&mut buffer))
            .await
            .expect("an answer for each")
            .unwrap();
        assert!(size > 12);
        seen[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))] = true;
    }
    assert!(seen.iter().all(|seen| *seen));
}
