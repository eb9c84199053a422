//! What a user of Services sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::UdpSocket;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{service, slice};
use crate::world::{NODE, OUTSIDE, World, ask, ask_udp, connect, settled, udp_client, until};

const SERVICE: &str = "10.96.0.10:80";
/// Ports are left to the system: tests run side by side, but each node has its own anyway.
const CONFIG: &str = "metricsBindAddress: \":0\"\n";

fn names(world: &World, from: &skiff_net::netns::Namespace, to: &str, times: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..times {
        *seen
            .entry(
                ask(from, to)
                    .unwrap_or_else(|error| panic!("{error}: {}", world.rules()))
                    .0,
            )
            .or_default() += 1;
    }
    seen
}

fn answers(from: &skiff_net::netns::Namespace, to: &str) {
    until("answers", || ask(from, to).ok());
}

#[test]
fn a_cluster_ip_answers_from_everywhere_inside() {
    let world = World::new();
    let (a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.0.3"]));
    let _proxy = world.start(CONFIG);
    answers(&world.node, SERVICE);

    let seen = names(&world, &world.node, SERVICE, 40);
    assert_eq!(
        seen.keys().map(String::as_str).collect::<Vec<_>>(),
        ["a", "b"],
        "{seen:?}"
    );
    assert!(seen.values().all(|count| *count > 5), "{seen:?}");
    // From a pod, to the other with its own address, and to itself (hairpin) with the node's.
    let mut sources = BTreeSet::new();
    for _ in 0..40 {
        sources.insert(ask(&a, SERVICE).map(|(name, from)| (name, from.to_string())).unwrap());
    }
    let wanted = [("a", "10.244.0.1"), ("b", "10.244.0.2")].map(|(name, from)| (name.to_owned(), from.to_owned()));
    assert_eq!(sources, wanted.into());
}

#[test]
fn a_node_port_answers_outside_and_at_localhost() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    world.api.put("services", service("web", "10.96.0.10", ports));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    let to = format!("{NODE}:30080");
    answers(&world.outside, &to);
    // Masqueraded: the answer must come back by this node.
    assert_eq!(
        ask(&world.outside, &to).unwrap(),
        ("a".into(), "10.244.0.1".parse().unwrap())
    );
    assert!(ask(&world.node, "127.0.0.1:30080").is_ok());
    assert!(ask(&world.node, &to).is_ok());
}

#[test]
fn loopback_of_the_node_is_closed_to_neighbours() {
    let world = World::new();
    let _proxy = world.start(CONFIG);
    until("rules", || {
        world
            .rules()
            .contains("block incoming localnet connections")
            .then_some(())
    });
    let bind = |namespace: &skiff_net::netns::Namespace, address: &str| {
        let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let secret = bind(&world.node, "127.0.0.1:7777");
    // A neighbour that may do anything on its own machine sends there over the cable.
    world.shell_outside(&format!(
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet; ip route add 127.0.0.1/32 via {NODE}"
    ));
    let neighbour = bind(&world.outside, &format!("{OUTSIDE}:0"));
    let arrives = || {
        neighbour.send_to(b"x", "127.0.0.1:7777").unwrap();
        match secret.recv_from(&mut [0; 4]) {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(!arrives(), "a neighbour reached the node's loopback");
    // The way is there: it is the rule that closes it.
    world.shell("iptables -F KUBE-FIREWALL");
    assert!(arrives());
}

#[test]
fn without_endpoints_it_refuses_at_once_and_recovers() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    world.api.put("services", service("web", "10.96.0.10", ports));
    let _proxy = world.start(CONFIG);
    let refused =
        |to: &str| (connect(&world.node, to).unwrap_err().kind() == ErrorKind::ConnectionRefused).then_some(());
    until("refused", || refused(SERVICE));
    let outside = connect(&world.outside, &format!("{NODE}:30080")).unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::ConnectionRefused);
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    answers(&world.node, SERVICE);
    answers(&world.outside, &format!("{NODE}:30080"));
    world.api.put("endpointslices", slice("web", "TCP", &[]));
    until("refused again", || {
        connect(&world.node, SERVICE)
            .err()
            .filter(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

#[test]
fn what_no_service_has_is_refused_at_once() {
    let world = World::new();
    world.api.put(
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes", "resourceVersion": "2"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    );
    let _a = world.pod("a", "10.244.0.2");
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    answers(&world.node, SERVICE);
    for nobody in ["10.96.0.10:81", "10.111.0.1:80"] {
        assert_eq!(
            connect(&world.node, nobody).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    }
    world.api.delete("servicecidrs", "kubernetes");
    until("not refused any more", || {
        connect(&world.node, "10.111.0.1:80")
            .err()
            .filter(|error| error.kind() != ErrorKind::ConnectionRefused)
    });
}

#[test]
fn endpoints_come_and_go_and_removal_leaves_nothing() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    world.shell("iptables -t nat -N FOREIGN; iptables -t nat -A PREROUTING -j FOREIGN; iptables -A FORWARD -s 192.0.2.1 -j DROP");
    let _proxy = world.start(CONFIG);
    until("rules", || world.rules().contains("KUBE-MARK-MASQ").then_some(()));
    let rules = || settled(&world.rules());
    let before = rules();
    world.api.put(
        "services",
        service(
            "web",
            "10.96.0.10",
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
        ),
    );
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    answers(&world.node, SERVICE);
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.3"]));
    until("b answers", || {
        ask(&world.node, SERVICE).ok().filter(|(name, _)| name == "b")
    });
    assert_eq!(names(&world, &world.node, SERVICE, 10), [("b".to_owned(), 10)].into());
    world.api.put(
        "services",
        service("web", "10.96.0.11", json!({"ports": [{"port": 81}]})),
    );
    answers(&world.node, "10.96.0.11:81");
    assert!(ask(&world.node, SERVICE).is_err());
    world.api.delete("services", "web");
    world.api.delete("endpointslices", "web-1");
    until("nothing left", || (rules() == before).then_some(()));
    assert!(
        world.rules().contains("-A PREROUTING -j FOREIGN")
            && world.rules().contains("-A FORWARD -s 192.0.2.1/32 -j DROP")
    );
}

#[test]
fn udp_flows_follow_the_endpoints() {
    let world = World::new();
    let (client, _a, _b) = (
        world.pod("c", "10.244.0.9"),
        world.pod("a", "10.244.0.2"),
        world.pod("b", "10.244.0.3"),
    );
    world.api.put(
        "services",
        service("dns", "10.96.0.53", json!({"ports": [{"port": 53, "protocol": "UDP"}]})),
    );
    world.api.put("endpointslices", slice("dns", "UDP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    let to = "10.96.0.53:53";
    let (inside, node) = (udp_client(&client), udp_client(&world.node));
    for socket in [&inside, &node] {
        assert_eq!(until("a answers", || ask_udp(socket, to).ok()), "a");
    }
    // The clients keep their ports: without help the kernel would send them to "a" for ever.
    world.api.put("endpointslices", slice("dns", "UDP", &["10.244.0.3"]));
    for socket in [&inside, &node] {
        until("b answers", || ask_udp(socket, to).ok().filter(|name| name == "b"));
    }
}

#[test]
fn udp_flows_stay_with_an_endpoint_that_drains() {
    let world = World::new();
    let (client, _a, _b) = (
        world.pod("c", "10.244.0.9"),
        world.pod("a", "10.244.0.2"),
        world.pod("b", "10.244.0.3"),
    );
    world.api.put(
        "services",
        service("dns", "10.96.0.53", json!({"ports": [{"port": 53, "protocol": "UDP"}]})),
    );
    world.api.put("endpointslices", slice("dns", "UDP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    let to = "10.96.0.53:53";
    let stays = udp_client(&client);
    assert_eq!(until("a answers", || ask_udp(&stays, to).ok()), "a");
    let mut drains = slice("dns", "UDP", &["10.244.0.2", "10.244.0.3"]);
    drains["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    world.api.put("endpointslices", drains);
    // New clients are sent to the other one; when they are, the change is in force.
    until("b answers", || {
        ask_udp(&udp_client(&client), to).ok().filter(|name| name == "b")
    });
    // Flows are looked at after the rules were written; whether they were is seen by what is written next.
    world.api.put("services", service("next", "10.96.0.54", json!({})));
    world.api.put("endpointslices", slice("next", "TCP", &["10.244.0.3"]));
    answers(&world.node, "10.96.0.54:80");
    assert_eq!(ask_udp(&stays, to).unwrap(), "a");
    world.api.put("endpointslices", slice("dns", "UDP", &["10.244.0.3"]));
    until("b answers", || ask_udp(&stays, to).ok().filter(|name| name == "b"));
}

#[test]
fn a_restart_disturbs_nobody_and_removes_what_is_stale() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("services", service("old", "10.96.0.11", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    world.api.put("endpointslices", slice("old", "TCP", &["10.244.0.2"]));
    let proxy = world.start(CONFIG);
    answers(&world.node, SERVICE);
    answers(&world.node, "10.96.0.11:80");
    let mut stream = connect(&world.node, SERVICE).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut echo = |text: &str| {
        writeln!(stream, "{text}").unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim() == text {
                return;
            }
        }
    };
    echo("before");
    proxy.stop();
    answers(&world.node, SERVICE);
    world.api.delete("services", "old");
    let _again = world.start(CONFIG);
    until("stale chains gone", || {
        (!world.rules().contains("test/old")).then_some(())
    });
    echo("after");
    answers(&world.node, SERVICE);
    let rules = world.rules();
    assert_eq!(rules.matches("-A PREROUTING").count(), 1, "{rules}");
    assert_eq!(rules.matches("-j KUBE-NODEPORTS").count(), 2, "{rules}");
}

#[test]
fn flushed_rules_come_back() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(&format!("{CONFIG}iptables: {{syncPeriod: 200ms}}\n"));
    answers(&world.node, SERVICE);
    world.shell("iptables -t nat -F; iptables -t nat -X");
    until("back", || ask(&world.node, SERVICE).ok());
}

#[test]
fn a_broken_transaction_leads_to_a_rebuild() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    answers(&world.node, SERVICE);
    // The removal of this rule will fail: it is gone already.
    world.shell("iptables -t nat -F KUBE-SERVICES");
    world.api.put("services", service("web", "10.96.0.12", json!({})));
    answers(&world.node, "10.96.0.12:80");
    world.api.put("services", service("new", "10.96.0.13", json!({})));
    world.api.put("endpointslices", slice("new", "TCP", &["10.244.0.3"]));
    answers(&world.node, "10.96.0.13:80");
}

#[test]
fn the_local_policy_keeps_the_clients_address() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let mut spec =
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
    world.api.put("services", service("web", "10.96.0.10", spec.clone()));
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.1.7"]));
    // Only local endpoints answer outside; the far one (there is none) would time out.
    let outside = &world.outside;
    let to = format!("{NODE}:30080");
    let _proxy = world.start(CONFIG);
    let shell = std::process::Command::new("ip")
        .args(["route", "add", "10.244.0.0/24", "via", NODE])
        .output();
    outside.run(|| shell).unwrap().unwrap();
    answers(outside, &to);
    for _ in 0..10 {
        assert_eq!(ask(outside, &to).unwrap(), ("a".into(), OUTSIDE.parse().unwrap()));
    }
    spec["externalTrafficPolicy"] = Value::from("Cluster");
    world.api.put("services", service("web", "10.96.0.10", spec));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    until("masqueraded", || {
        ask(outside, &to)
            .ok()
            .filter(|(_, from)| from.to_string() == "10.244.0.1")
    });
}

#[test]
fn the_rules_of_many_services_are_written_by_their_differences() {
    let world = World::new();
    world.api.put(
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes", "resourceVersion": "2"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    );
    let _a = world.pod("a", "10.244.0.2");
    for index in 0..1000 {
        let name = format!("s{index}");
        world.api.put(
            "services",
            service(&name, &format!("10.100.{}.{}", index / 250, index % 250 + 1), json!({})),
        );
        world
            .api
            .put("endpointslices", slice(&name, "TCP", &["10.244.1.2", "10.244.1.3"]));
    }
    let proxy = world.start(CONFIG);
    // Asked by the metrics: reading back this many rules again and again would be most of the work.
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1
";
    until("all", || proxy.metrics.encode().contains(full).then_some(()));
    let mut times: Vec<_> = (0..9)
        .map(|index| {
            let (name, ip) = (format!("new{index}"), format!("10.96.1.{}", index + 1));
            let began = Instant::now();
            world.api.put("services", service(&name, &ip, json!({})));
            world.api.put("endpointslices", slice(&name, "TCP", &["10.244.0.2"]));
            answers(&world.node, &format!("{ip}:80"));
            // Until then every try was refused at once: no packet was lost on the way out.
            began.elapsed()
        })
        .collect();

    times.sort();
    println!(
        "a new service beside 1,000 answers after {:?} (median), {:?} (worst)",
        times[4], times[8]
    );
    assert!(times[4] < Duration::from_millis(500), "{times:?}");
    let metrics = proxy.metrics.encode();
    assert!(metrics.contains(full), "{metrics}");
}
