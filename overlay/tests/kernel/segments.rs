//! Two nodes on two segments with a router between them: real packets through the tunnel.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use skiff_net::netlink::{BridgeOptions, Netlink, Route, VethOptions};
use skiff_net::netns::Namespace;
use skiff_overlay::Mode;

use crate::scripted::{Overlay, node, shell, until};

const MEGABYTE: usize = 1 << 20;

/// A node of a segment, with one address of its pods on a bridge.
fn join(router: &Namespace, number: u8) -> Namespace {
    let namespace = Namespace::anonymous().unwrap();
    let gateway = format!("172.30.{number}.1").parse().unwrap();
    let mut outside = Netlink::open_in(router).unwrap();
    let options = VethOptions {
        peer_namespace: Some(&namespace),
        up: true,
        ..VethOptions::default()
    };
    let port = format!("segment{number}");
    outside.add_veth(&port, "eth0", &options).unwrap();
    let index = outside.need_link(&port).unwrap().index;
    outside
        .add_address(index, format!("172.30.{number}.1/24").parse().unwrap())
        .unwrap();

    let mut inside = Netlink::open_in(&namespace).unwrap();
    let address = format!("172.30.{number}.11/24").parse().unwrap();
    inside
        .add_bridge(
            "cni0",
            &BridgeOptions {
                mtu: Some(1450),
                ..BridgeOptions::default()
            },
        )
        .unwrap();
    for (link, address) in [
        ("eth0", address),
        ("cni0", format!("10.244.{number}.1/24").parse().unwrap()),
    ] {
        let index = inside.need_link(link).unwrap().index;
        inside.set_up(index).unwrap();
        inside.add_address(index, address).unwrap();
    }
    inside
        .add_route(&Route::through("0.0.0.0/0".parse().unwrap(), gateway))
        .unwrap();
    namespace
}

/// Sends a megabyte from the pods of one node to those of the other.
fn transfer(from: &Namespace, to: &Namespace, target: SocketAddr) -> std::io::Result<()> {
    let listener = to.run(|| TcpListener::bind(target)).unwrap()?;
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))
        .unwrap()?;
    let receiver = std::thread::spawn(move || {
        let (mut stream, sender) = listener.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        assert_eq!(received.len(), MEGABYTE);
        Ok::<_, std::io::Error>(sender)
    });
    stream.write_all(&vec![7; MEGABYTE])?;
    drop(stream);
    let sender = receiver.join().unwrap()?;
    // The node's own packets have the tunnel's address, which is in the range of its pods.
    assert!(sender.ip().to_string().starts_with("10.244."), "{sender}");
    Ok(())
}

/// Packets that had to be cut on their way, or put together again.
fn fragments(namespace: &Namespace) -> u64 {
    let text = namespace.run(|| shell("grep ^Ip: /proc/thread-self/net/snmp")).unwrap();
    let mut rows = text.lines().map(str::split_whitespace);
    let pairs = rows.next().unwrap().zip(rows.next().unwrap());
    pairs
        .filter(|(name, _)| ["FragCreates", "ReasmReqds"].contains(name))
        .map(|(_, count)| count.parse::<u64>().unwrap())
        .sum()
}

/// Runs an overlay in a namespace, on a thread of its own, until the returned guard goes.
struct Running {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<(), skiff_net::netns::Error>>>,
}

impl Running {
    fn start(namespace: &Namespace, name: &'static str) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let same = namespace.run(Namespace::current).unwrap().unwrap();
        let thread = same
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let nodes = vec![
                        node("a", "10.244.0.0/24", "172.30.0.11"),
                        node("b", "10.244.1.0/24", "172.30.1.11"),
                    ];
                    let overlay = Overlay::start_in(tempfile::tempdir().unwrap(), name, Mode::Auto, nodes);
                    until("ready", || overlay.is_ready()).await;
                    ready.send(()).unwrap();
                    stopped.await.ok();
                    overlay.stop().await;
                });
            })
            .unwrap();
        is_ready.recv_timeout(Duration::from_secs(10)).unwrap();
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(matches!(ended, Ok(Ok(()))) || std::thread::panicking());
        }
    }
}

#[test]
fn pods_talk_across_a_router_in_full_packets() {
    let router = Namespace::anonymous().unwrap();
    router
        .run(|| skiff_net::sysctl::set("net.ipv4.ip_forward", "1").unwrap())
        .unwrap();
    let [a, b] = [0, 1].map(|number| join(&router, number));
    let target = |number: u8| SocketAddr::new(format!("10.244.{number}.1").parse().unwrap(), 8080);
    let _overlays = [Running::start(&a, "a"), Running::start(&b, "b")];

    transfer(&a, &b, target(1)).unwrap();
    transfer(&b, &a, target(0)).unwrap();
    for namespace in [&a, &b, &router] {
        assert_eq!(fragments(namespace), 0, "nothing is cut in the tunnel");
    }
    // A larger packet would be: the figure above is not zero because nobody counts.
    let large = vec![0; 1600];
    a.run(|| {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(&large, target(1))
            .unwrap()
    })
    .unwrap();
    assert_ne!(fragments(&a), 0);

    // The cable is pulled, and put in again.
    let port = |state: &str| router.run(|| shell(&format!("ip link set segment1 {state}"))).unwrap();
    port("down");
    assert!(transfer(&a, &b, target(1)).is_err());
    port("up");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = transfer(&a, &b, target(1)) {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
}
