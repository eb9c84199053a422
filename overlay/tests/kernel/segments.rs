//! Two nodes on two segments with a router between them: real packets through the tunnel.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use skiff_net::netlink::{BridgeOptions, Netlink, Route, VethOptions};
use skiff_net::netns::Namespace;
use skiff_overlay::Mode;

use crate::scripted::{Overlay, node, shell, until};

const MEGABYTE: usize = 1 << 20;

/// A node of a segment, and a pod of it. The node forwards nothing unless it is told to, as where Docker runs.
struct Node {
    namespace: Namespace,
    pod: Namespace,
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A veth between two namespaces; the address is that of the second end.
fn connect(outside: &Namespace, port: &str, inside: &Namespace, address: IpNet, gateway: IpAddr) {
    let options = VethOptions {
        peer_namespace: Some(inside),
        up: true,
        ..VethOptions::default()
    };
    Netlink::open_in(outside)
        .unwrap()
        .add_veth(port, "eth0", &options)
        .unwrap();
    let mut inside = Netlink::open_in(inside).unwrap();
    let index = inside.need_link("eth0").unwrap().index;
    inside.set_up(index).unwrap();
    inside.add_address(index, address).unwrap();
    inside.add_route(&Route::through(net("0.0.0.0/0"), gateway)).unwrap();
}

fn address(of: &Namespace, link: &str, address: IpNet) {
    let mut links = Netlink::open_in(of).unwrap();
    let index = links.need_link(link).unwrap().index;
    links.set_up(index).unwrap();
    links.add_address(index, address).unwrap();
}

fn join(router: &Namespace, number: u8) -> Node {
    let (namespace, pod) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    let gateway = net(&format!("172.30.{number}.1/24"));
    let port = format!("segment{number}");
    let own = net(&format!("172.30.{number}.11/24"));
    connect(router, &port, &namespace, own, gateway.addr());
    address(router, &port, gateway);

    let mut inside = Netlink::open_in(&namespace).unwrap();
    inside.add_bridge("cni0", &BridgeOptions::default()).unwrap();
    let bridge = net(&format!("10.244.{number}.1/24"));
    address(&namespace, "cni0", bridge);
    let own = net(&format!("10.244.{number}.2/24"));
    connect(&namespace, "pod", &pod, own, bridge.addr());
    namespace
        .run(|| shell("ip link set pod master cni0 && iptables -P FORWARD DROP"))
        .unwrap();
    Node { namespace, pod }
}

/// The pod of a node.
fn target(number: u8) -> SocketAddr {
    SocketAddr::new(format!("10.244.{number}.2").parse().unwrap(), 8080)
}

/// Sends a megabyte to a pod; who it came from, as the pod sees it.
fn transfer(from: &Namespace, to: &Namespace, target: SocketAddr) -> std::io::Result<IpAddr> {
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
    Ok(receiver.join().unwrap()?.ip())
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
    let _overlays = [Running::start(&a.namespace, "a"), Running::start(&b.namespace, "b")];

    // Pods as the CNI configuration makes them, and pods that were there before there was a tunnel: these are told by their
    // own node what fits.
    for mtu in ["mtu 1450", ""] {
        for (number, node) in [&a, &b].into_iter().enumerate() {
            let route = format!("ip route replace default via 10.244.{number}.1 {mtu}");
            node.pod.run(|| shell(&route)).unwrap();
        }
        // Pods see each other's own addresses.
        assert_eq!(transfer(&a.pod, &b.pod, target(1)).unwrap(), target(0).ip());
        assert_eq!(transfer(&b.pod, &a.pod, target(0)).unwrap(), target(1).ip());
    }
    // The node's packets have that of its end of the tunnel.
    let from_node = transfer(&a.namespace, &b.pod, target(1)).unwrap();
    assert_eq!(from_node.to_string(), "10.244.0.0");
    // To whatever is not of the cluster a pod has the address of its node: the router knows no other.
    let outside = SocketAddr::new("172.30.0.1".parse().unwrap(), 8080);
    let seen = transfer(&a.pod, &router, outside).unwrap();
    assert_eq!(seen.to_string(), "172.30.0.11");
    for namespace in [&a.pod, &a.namespace, &router, &b.namespace, &b.pod] {
        assert_eq!(fragments(namespace), 0, "nothing is cut in the tunnel");
    }
    // A larger packet would be: the figure above is not zero because nobody counts.
    let large = vec![0; 1600];
    let send = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&large, target(1));
    a.pod.run(send).unwrap().unwrap();
    assert_ne!(fragments(&a.pod), 0);

    // The cable is pulled, and put in again.
    let port = |state: &str| router.run(|| shell(&format!("ip link set segment1 {state}"))).unwrap();
    port("down");
    assert!(transfer(&a.pod, &b.pod, target(1)).is_err());
    port("up");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = transfer(&a.pod, &b.pod, target(1)) {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
}
