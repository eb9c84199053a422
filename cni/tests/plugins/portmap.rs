//! Ports of the node that lead to a pod: real packets, before and after.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_net::netns::Namespace;

use crate::world::{Pod, World};

/// Long enough for a packet within one machine; only what must not arrive takes so long.
const PATIENCE: Duration = Duration::from_millis(500);

/// A node with a neighbour on its uplink, and a pod behind its bridge.
struct Scene {
    world: World,
    outside: Pod,
    pod: Pod,
    attached: Value,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let (outside, pod) = (world.pod("outside"), world.pod("one"));
        world.shell("ip link set lo up; ip link add up0 type veth peer name eth0; ip addr add 192.0.2.1/24 dev up0");
        world.shell(&format!(
            "ip link set up0 up; ip link set eth0 netns {}",
            outside.path.display()
        ));
        outside.shell("ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up");
        let attached = world.add(&pod, &world.config());
        Self {
            world,
            outside,
            pod,
            attached,
        }
    }

    fn config(&self, mappings: &Value) -> Value {
        portmap_config(&self.attached, mappings)
    }

    fn call(&self, verb: &str, config: &Value) {
        let answer = self.world.call("portmap", verb, "one", &self.pod.path, config);
        assert!(answer.ok, "{verb}: {answer:?}");
    }
}

fn portmap_config(previous: &Value, mappings: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mappings}, "prevResult": previous,
    })
}

/// Says "hello" to each that connects, for as long as the test lasts.
fn serve_tcp(namespace: &Namespace, address: &str) {
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"hello").ok();
        }
    });
}

fn tcp(namespace: &Namespace, address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = namespace
        .run(|| TcpStream::connect_timeout(&address, PATIENCE))
        .unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

fn udp(namespace: &Namespace, address: &str) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn hears(server: &UdpSocket) -> bool {
    match server.recv_from(&mut [0; 16]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_host_port_answers_from_everywhere_and_is_gone_after_del() {
    let scene = Scene::new();
    serve_tcp(&scene.pod.namespace, "0.0.0.0:80");
    let config = scene.config(&json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    let answer = scene.world.call("portmap", "ADD", "one", &scene.pod.path, &config);
    assert_eq!(answer.json, scene.attached);
    // From outside, from the node by each of its addresses, and from the pod to itself.
    for (from, to) in [
        (&scene.outside.namespace, "192.0.2.1:8080"),
        (&scene.world.node, "192.0.2.1:8080"),
        (&scene.world.node, "127.0.0.1:8080"),
        (&scene.pod.namespace, "192.0.2.1:8080"),
        (&scene.pod.namespace, "10.244.1.1:8080"),
    ] {
        assert_eq!(tcp(from, to).unwrap(), "hello", "{} to {to}", from.name());
    }
    scene.call("CHECK", &config);
    scene.call("DEL", &config);
    scene.call("DEL", &config);
    assert_eq!(
        tcp(&scene.world.node, "127.0.0.1:8080").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    let rules = scene.world.shell("iptables-save; ip6tables-save");
    assert!(!rules.contains("CNI-DN-") && !rules.contains("dnat name"), "{rules}");
    assert!(!scene.world.call("portmap", "CHECK", "one", &scene.pod.path, &config).ok);
}

#[test]
fn a_host_ip_binds_to_that_address_only() {
    let scene = Scene::new();
    serve_tcp(&scene.pod.namespace, "0.0.0.0:80");
    scene.world.shell("ip addr add 192.0.2.9/24 dev up0");
    let mapping = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.9"}]);
    scene.call("ADD", &scene.config(&mapping));
    assert_eq!(tcp(&scene.outside.namespace, "192.0.2.9:8080").unwrap(), "hello");
    tcp(&scene.outside.namespace, "192.0.2.1:8080").unwrap_err();
}

#[test]
fn the_nodes_loopback_stays_closed_to_pods() {
    let scene = Scene::new();
    let secret = udp(&scene.world.node, "127.0.0.1:7777");
    scene.call(
        "ADD",
        &scene.config(&json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])),
    );
    let setting = "cat /proc/sys/net/ipv4/conf/cni0/route_localnet";
    assert_eq!(scene.world.shell(setting).trim(), "1");
    // A pod that may do anything in its namespace sends to 127.0.0.1 over the bridge, and as 127.0.0.1 to the node.
    scene
        .pod
        .shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip route add 127.0.0.1/32 via 10.244.1.1");
    let pod = udp(&scene.pod.namespace, "10.244.1.2:0");
    let send = || pod.send_to(b"x", "127.0.0.1:7777").unwrap();
    send();
    assert!(!hears(&secret), "a pod reached the node's loopback");
    // The test sees what it looks for: without the rule, the packet arrives.
    scene.world.shell("iptables -t mangle -F CNI-HOSTPORT-LOCALNET");
    send();
    assert!(hears(&secret));
    // The next pod's ADD repairs it.
    scene.call(
        "ADD",
        &scene.config(&json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}])),
    );
    send();
    assert!(!hears(&secret));
    let rules = scene.world.shell("iptables -t mangle -S");
    assert_eq!(rules.matches("-d 127.0.0.0/8 -i cni0").count(), 1, "{rules}");
}

#[test]
fn a_udp_client_that_keeps_sending_follows_the_port() {
    let scene = Scene::new();
    // Before the pod has the port, packets go to the node itself: the kernel remembers that, and later the pod.
    let node = udp(&scene.world.node, "192.0.2.1:8053");
    let pod = udp(&scene.pod.namespace, "0.0.0.0:53");
    let client = udp(&scene.outside.namespace, "192.0.2.2:5353");
    let send = || client.send_to(b"x", "192.0.2.1:8053").unwrap();
    // Connections are tracked once a rule asks for it.
    scene
        .world
        .shell("iptables -t nat -A PREROUTING -p udp --dport 9 -j ACCEPT");
    send();
    assert!(hears(&node));
    let config = scene.config(&json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]));
    scene.call("ADD", &config);
    send();
    assert!(hears(&pod), "the old way was kept at ADD");
    scene.call("DEL", &config);
    send();
    assert!(hears(&node), "the old way was kept at DEL");
}

#[test]
fn options_shape_the_rules() {
    let scene = Scene::new();
    let mut config = scene.config(&json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    config["conditionsV4"] = json!(["!", "-s", "192.0.2.2/32"]);
    config["snat"] = json!(false);
    scene.call("ADD", &config);
    serve_tcp(&scene.pod.namespace, "0.0.0.0:80");
    tcp(&scene.outside.namespace, "192.0.2.1:8080").unwrap_err();
    assert_eq!(tcp(&scene.world.node, "192.0.2.1:8080").unwrap(), "hello");
    let setting = scene.world.shell("cat /proc/sys/net/ipv4/conf/cni0/route_localnet");
    assert_eq!(setting.trim(), "0", "without masquerading nobody forwards 127.0.0.1");
    scene.call("DEL", &config);

    config["conditionsV4"] = Value::Null;
    config["snat"] = json!(true);
    config["externalSetMarkChain"] = json!("OTHERS-MARK");
    let answer = scene.world.call("portmap", "ADD", "one", &scene.pod.path, &config);
    assert!(!answer.ok && answer.json["code"] == 999, "{answer:?}");
    assert!(!scene.world.shell("iptables-save -t nat").contains("CNI-DN-"));
    scene
        .world
        .shell("iptables -t nat -N OTHERS-MARK; iptables -t nat -A OTHERS-MARK -j MARK --set-xmark 0x4000/0x4000");
    scene.call("ADD", &config);
    scene.call("CHECK", &config);
    scene.call("DEL", &config);
}

#[test]
fn garbage_is_collected_by_network_and_container() {
    let scene = Scene::new();
    let two = scene.world.pod("two");
    let previous = scene.world.add(&two, &scene.world.config());
    let mut config = scene.config(&json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    config["cniVersion"] = json!("1.1.0");
    scene.call("ADD", &config);
    let mut other = portmap_config(
        &previous,
        &json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]),
    );
    assert!(scene.world.call("portmap", "ADD", "two", &two.path, &other).ok);
    other["name"] = json!("other");
    assert!(scene.world.call("portmap", "ADD", "three", &two.path, &other).ok);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    let answer = scene.world.call("portmap", "GC", "", Path::new(""), &config);
    assert!(answer.ok, "{answer:?}");
    let rules = scene.world.shell("iptables-save -t nat");
    let has = |id: &str| rules.contains(&format!(r#"id: \"{id}\""#));
    assert_eq!([has("one"), has("two"), has("three")], [false, true, true], "{rules}");
    assert_eq!(rules.matches(":CNI-DN-").count(), 2, "{rules}");
    assert!(scene.world.call("portmap", "STATUS", "", Path::new(""), &config).ok);
}

#[test]
fn many_at_once_share_the_common_chains() {
    const CROWD: u16 = 16;
    let scene = Scene::new();
    let config =
        |index: u16| scene.config(&json!([{"hostPort": 8000 + index, "containerPort": 80, "protocol": "tcp"}]));
    let each = |verb: &str| {
        let start = |index: u16| {
            let name = format!("pod{index}");
            scene
                .world
                .start("portmap", verb, &name, &scene.pod.path, &config(index))
        };
        let children: Vec<_> = (0..CROWD).map(start).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        scene.world.shell("iptables-save")
    };
    let rules = each("ADD");
    assert_eq!(rules.matches(":CNI-DN-").count(), usize::from(CROWD));
    for once in [
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-j CNI-HOSTPORT-MASQ",
        "-j MARK --set-xmark",
        "-A PREROUTING -j CNI-HOSTPORT-LOCALNET",
        "-d 127.0.0.0/8 -i cni0",
    ] {
        assert_eq!(rules.matches(once).count(), 1, "{once}: {rules}");
    }
    let rules = each("DEL");
    assert!(!rules.contains("CNI-DN-"), "{rules}");
}
