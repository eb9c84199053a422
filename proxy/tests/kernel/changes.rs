//! A Service that somebody changes while it is used.

use std::collections::BTreeSet;

use serde_json::json;
use skiff_net::netns::Namespace;

use crate::api::{service, slice};
use crate::world::{NODE, World, ask, ask_udp, udp_client, until};

const SERVICE: &str = "10.96.0.10:80";
const CONFIG: &str = "metricsBindAddress: \":0\"\n";

/// Who answers twenty times in a row; nobody while one of them fails.
fn who(from: &Namespace, to: &str) -> BTreeSet<String> {
    let answers = (0..20).map(|_| ask(from, to).map(|(name, _)| name));
    answers.collect::<Result<_, _>>().unwrap_or_default()
}

#[test]
fn affinity_is_switched_on_and_off_for_the_cluster_ip_and_the_node_port() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    let put = |affinity: &str| {
        let spec = json!({"type": "NodePort", "sessionAffinity": affinity, "ports": [{"port": 80, "nodePort": 30080}]});
        world.api.put("services", service("web", "10.96.0.10", spec));
    };
    put("ClientIP");
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.0.3"]));
    let _proxy = world.start(CONFIG);
    let node_port = format!("{NODE}:30080");
    let answer = |wanted: usize| {
        for (from, to) in [(&world.node, SERVICE), (&world.outside, &node_port)] {
            until(&format!("{wanted} answer at {to}"), || {
                (who(from, to).len() == wanted).then_some(())
            });
        }
    };
    answer(1);
    put("None");
    answer(2);
    put("ClientIP");
    answer(1);
}

#[test]
fn one_number_is_two_ports_by_two_protocols() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80});
    let both = json!({"ports": [port("TCP"), port("UDP")]});
    world.api.put("services", service("web", "10.96.0.10", both));
    let mut slice = slice("web", "TCP", &["10.244.0.2"]);
    slice["ports"] = json!([
        {"name": "tcp", "protocol": "TCP", "port": 8080},
        {"name": "udp", "protocol": "UDP", "port": 8080},
    ]);
    world.api.put("endpointslices", slice);
    let _proxy = world.start(CONFIG);
    let client = udp_client(&world.node);
    until("answers by TCP", || ask(&world.node, SERVICE).ok());
    until("answers by UDP", || ask_udp(&client, SERVICE).ok());
    // One of them goes: the other is as it was.
    let one = json!({"ports": [port("TCP")]});
    world.api.put("services", service("web", "10.96.0.10", one));
    until("no answer by UDP", || ask_udp(&client, SERVICE).err());
    assert!(ask(&world.node, SERVICE).is_ok());
}
