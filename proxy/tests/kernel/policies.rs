//! Which packets a Service takes, from whom, and where it sends them.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use serde_json::{Value, json};
use skiff_net::netns::Namespace;
use skiff_net::sysctl;
use tokio::time::Instant;

use crate::api::{node, service, slice};
use crate::world::{NODE, OUTSIDE, World, ask, connect, get, until};

const SERVICE: &str = "10.96.0.10:80";
const CONFIG: &str = "metricsBindAddress: \":0\"\n";

/// Who answers, asked often enough that two would both be seen.
fn who(from: &Namespace, to: &str) -> BTreeSet<String> {
    (0..25)
        .filter_map(|_| ask(from, to).ok())
        .map(|(name, _)| name)
        .collect()
}

fn only(from: &Namespace, to: &str, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    until(&format!("{wanted:?} at {to}"), || {
        (who(from, to) == wanted).then_some(())
    });
}

fn is_closed(from: &Namespace, to: &str) {
    let error = connect(from, to).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
        "{error}"
    );
}

/// A slice with zones or nodes that each endpoint is meant for.
fn hinted(hints: [Value; 2]) -> Value {
    let mut slice = slice("web", "TCP", &["10.244.0.2", "10.244.0.3"]);
    for (index, hints) in hints.into_iter().enumerate() {
        slice["endpoints"][index]["hints"] = hints;
    }
    slice
}

#[test]
fn hints_choose_the_endpoints_of_the_zone_and_of_the_node() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    world.api.put("nodes", node("east", "10.244.0.0/24"));
    world.api.put(
        "services",
        service("web", "10.96.0.10", json!({"trafficDistribution": "PreferSameZone"})),
    );
    world.api.put("endpointslices", hinted([zone("east"), zone("west")]));
    let _proxy = world.start(CONFIG);
    only(&world.node, SERVICE, &["a"]);
    // The node is in another zone after all.
    world.api.put("nodes", node("west", "10.244.0.0/24"));
    only(&world.node, SERVICE, &["b"]);
    // Nobody is meant for this zone: all are taken.
    world.api.put("nodes", node("north", "10.244.0.0/24"));
    only(&world.node, SERVICE, &["a", "b"]);
    let of_node = |name: &str| json!({"forZones": [{"name": "north"}], "forNodes": [{"name": name}]});
    world
        .api
        .put("endpointslices", hinted([of_node("there"), of_node("here")]));
    only(&world.node, SERVICE, &["b"]);
}

#[test]
fn a_load_balancers_address_is_open_to_its_sources_only() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let spec = |sources: &[&str]| {
        json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}], "loadBalancerSourceRanges": sources,
               "externalIPs": ["198.51.100.7"]})
    };
    let balanced = |sources: &[&str]| {
        let mut service = service("web", "10.96.0.10", spec(sources));
        service["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}]}});
        service
    };
    world.shell_outside(&format!(
        "for net in 192.0.2.0/24 198.51.100.0/24; do ip route add $net via {NODE}; done"
    ));
    world.api.put("services", balanced(&["172.30.0.0/24"]));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    let (front, external) = ("192.0.2.1:80", "198.51.100.7:80");
    until("open", || ask(&world.outside, front).ok());
    // Masqueraded by the policy "Cluster".
    assert_eq!(
        ask(&world.outside, external).unwrap(),
        ("a".into(), "10.244.0.1".parse().unwrap())
    );
    // The load balancer's own connections come to node ports: its address is not ours.
    assert!(connect(&world.outside, "192.0.2.2:80").is_err());
    world.api.put("services", balanced(&["203.0.113.0/24"]));
    until("closed", || connect(&world.outside, front).err());
    is_closed(&world.outside, front);
    // That is about the load balancer's address alone.
    assert!(ask(&world.outside, external).is_ok() && ask(&world.outside, &format!("{NODE}:30080")).is_ok());
    world.api.put("services", balanced(&[]));
    until("open to all", || ask(&world.outside, front).ok());
}

#[test]
fn health_checks_tell_of_local_endpoints() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let mut balanced = service(
        "web",
        "10.96.0.10",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
               "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    world.api.put("services", balanced.clone());
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.1.9"]));
    let proxy = world.start(CONFIG);
    let check = format!("{NODE}:32000");
    let status = |wanted: u16| {
        until(&format!("status {wanted}"), || {
            get(&world.outside, &check, "/any")
                .ok()
                .filter(|(status, _)| *status == wanted)
        })
        .1
    };
    let body = status(200);
    for wanted in [
        "x-load-balancing-endpoint-weight: 1",
        "\"namespace\": \"test\"",
        "\"localEndpoints\": 1",
        "\"serviceProxyHealthy\": true",
    ] {
        assert!(body.contains(wanted), "{wanted} in {body}");
    }
    // The client's address is kept, and the load balancer's address leads here.
    world.shell_outside(&format!(
        "ip route add 192.0.2.0/24 via {NODE}; ip route add 10.244.0.0/24 via {NODE}"
    ));
    assert_eq!(
        ask(&world.outside, "192.0.2.1:80").unwrap(),
        ("a".into(), OUTSIDE.parse().unwrap())
    );
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.1.9"]));
    assert!(status(503).contains("\"localEndpoints\": 0"));
    is_closed(&world.outside, "192.0.2.1:80");
    until("counted", || {
        proxy
            .metrics
            .encode()
            .contains("no_local_endpoints_total{traffic_policy=\"external\"} 1")
            .then_some(())
    });
    // Another port, then none.
    balanced["spec"]["healthCheckNodePort"] = 32001.into();
    world.api.put("services", balanced);
    until("the new port", || {
        get(&world.outside, &format!("{NODE}:32001"), "/").ok()
    });
    until("the old port closed", || connect(&world.outside, &check).err());
    world.api.delete("services", "web");
    until("both closed", || {
        connect(&world.outside, &format!("{NODE}:32001")).err()
    });
}

#[test]
fn a_taken_health_check_port_is_told_and_tried_again() {
    let world = World::new();
    let taken = world
        .node
        .run(|| std::net::TcpListener::bind("0.0.0.0:32000"))
        .unwrap()
        .unwrap();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    world.api.put("services", service("web", "10.96.0.10", spec));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(&format!("{CONFIG}iptables: {{syncPeriod: 200ms}}\n"));
    let (_, message) = until("an event", || {
        let events = world.api.events();
        events
            .into_iter()
            .find(|(reason, _)| reason == "FailedToStartServiceHealthcheck")
    });
    assert!(
        message.starts_with("node here failed to start healthcheck \"test/web\" on port 32000: "),
        "{message}"
    );
    drop(taken);
    until("an answer", || get(&world.outside, &format!("{NODE}:32000"), "/").ok());
    let told = world
        .api
        .events()
        .into_iter()
        .filter(|(reason, _)| reason == "FailedToStartServiceHealthcheck");
    assert_eq!(told.count(), 1);
}

#[test]
fn a_health_check_port_goes_from_one_service_to_another() {
    let world = World::new();
    let has = |name: &str, ip: &str| {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
        world.api.put("services", service(name, ip, spec));
    };
    let has_not = |name: &str, ip: &str| world.api.put("services", service(name, ip, json!({})));
    let is_of = |name: &str| {
        let wanted = format!("\"name\": \"{name}\"");
        until(&format!("the port is {name}'s"), || {
            let asked = get(&world.outside, &format!("{NODE}:32000"), "/").ok();
            asked.filter(|(_, body)| body.contains(&wanted))
        });
    };
    let (one, other) = (("a", "10.96.0.10"), ("b", "10.96.0.11"));
    has(other.0, other.1);
    let _proxy = world.start(CONFIG);
    is_of("b");
    // To and fro: whichever comes first in a sync.
    for (from, to) in [(other, one), (one, other)] {
        has_not(from.0, from.1);
        has(to.0, to.1);
        is_of(to.0);
    }
    let mut told = world.api.events().into_iter();
    assert!(!told.any(|(reason, _)| reason == "FailedToStartServiceHealthcheck"));
}

#[test]
fn a_node_port_that_a_program_has_is_told_of_and_works() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let _program = world
        .node
        .run(|| std::net::TcpListener::bind("0.0.0.0:30080"))
        .unwrap()
        .unwrap();
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    world.api.put("services", service("web", "10.96.0.10", ports));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let _proxy = world.start(CONFIG);
    only(&world.outside, &format!("{NODE}:30080"), &["a"]);
    let (_, message) = until("an event", || {
        world
            .api
            .events()
            .into_iter()
            .find(|(reason, _)| reason == "NodePortInUse")
    });
    assert!(message.contains("30080/tcp"), "{message}");
}

#[test]
fn node_ports_answer_where_they_are_to() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    world.shell("ip addr add 172.30.0.2/24 dev lan0");
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    world.api.put("nodes", node("east", "10.244.0.0/24"));
    world.api.put("services", service("web", "10.96.0.10", ports));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let (first, second) = (format!("{NODE}:30080"), "172.30.0.2:30080");
    for (addresses, open, closed) in [
        ("\"172.30.0.2/32\"", second, first.as_str()),
        ("primary", first.as_str(), second),
    ] {
        let proxy = world.start(&format!("{CONFIG}nodePortAddresses: [{addresses}]\n"));
        only(&world.outside, open, &["a"]);
        until("closed", || connect(&world.outside, closed).err());
        // Loopback is not among them: nothing of it is opened.
        assert!(connect(&world.node, "127.0.0.1:30080").is_err());
        proxy.stop();
    }
    assert!(
        !world.rules().contains("-d 172.30.0.2/32 -m comment"),
        "{}",
        world.rules()
    );
}

#[test]
fn endpoints_on_their_way_out_answer_until_others_do() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    let leaving = |other: bool| {
        let mut slice = slice("web", "TCP", &["10.244.0.2", "10.244.0.3"]);
        slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        slice["endpoints"][1]["conditions"] = json!({"ready": other, "serving": other, "terminating": false});
        slice
    };
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
                      "ports": [{"port": 80, "nodePort": 30080}]});
    world.api.put("services", service("web", "10.96.0.10", spec));
    world.api.put("endpointslices", leaving(false));
    let _proxy = world.start(CONFIG);
    let port = format!("{NODE}:30080");
    only(&world.node, SERVICE, &["a"]);
    only(&world.outside, &port, &["a"]);
    world.api.put("endpointslices", leaving(true));
    only(&world.node, SERVICE, &["b"]);
    only(&world.outside, &port, &["b"]);
}

#[test]
fn inside_traffic_stays_on_the_node_where_it_is_to() {
    let world = World::new();
    let (client, _a) = (world.pod("c", "10.244.0.9"), world.pod("a", "10.244.0.2"));
    world.api.put(
        "services",
        service("web", "10.96.0.10", json!({"internalTrafficPolicy": "Local"})),
    );
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.1.9"]));
    let proxy = world.start(CONFIG);
    only(&client, SERVICE, &["a"]);
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.1.9"]));
    // Not refused: others serve it, just not from here.
    until("closed", || connect(&client, SERVICE).err());
    is_closed(&client, SERVICE);
    until("counted", || {
        proxy
            .metrics
            .encode()
            .contains("no_local_endpoints_total{traffic_policy=\"internal\"} 1")
            .then_some(())
    });
}

#[test]
fn ports_are_found_by_name_in_all_slices() {
    let world = World::new();
    let (_a, _b) = (world.pod("a", "10.244.0.2"), world.pod("b", "10.244.0.3"));
    let ports =
        json!({"ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}, {"name": "none", "port": 82}]});
    world.api.put("services", service("web", "10.96.0.10", ports));
    let part = |name: &str, port: &str, ip: &str| {
        let mut slice = slice("web", "TCP", &[ip]);
        slice["metadata"]["name"] = name.into();
        // Written by hand: a Service without a selector.
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = "staff".into();
        slice["ports"] = json!([{"name": port, "protocol": "TCP", "port": 8080}]);
        slice
    };
    world.api.put("endpointslices", part("web-1", "http", "10.244.0.2"));
    world.api.put("endpointslices", part("web-2", "http", "10.244.0.3"));
    world.api.put("endpointslices", part("web-3", "admin", "10.244.0.3"));
    let _proxy = world.start(CONFIG);
    only(&world.node, SERVICE, &["a", "b"]);
    only(&world.node, "10.96.0.10:81", &["b"]);
    let error = connect(&world.node, "10.96.0.10:82").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    world.api.delete("endpointslices", "web-2");
    only(&world.node, SERVICE, &["a"]);
}

#[test]
fn affinity_ends_with_its_time() {
    let world = World::new();
    // Many, so that chance seldom chooses the same twice.
    let addresses = ["10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6"];
    let names = ["a", "b", "c", "d", "e"];
    let _pods: Vec<_> = names
        .iter()
        .zip(addresses)
        .map(|(name, ip)| world.pod(name, ip))
        .collect();
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
    world.api.put("services", service("web", "10.96.0.10", spec));
    world.api.put("endpointslices", slice("web", "TCP", &addresses));
    let _proxy = world.start(CONFIG);
    until("answers", || ask(&world.node, SERVICE).ok());
    assert_eq!(who(&world.node, SERVICE).len(), 1);
    // Each pause is longer than the time: the choice is made anew until it falls on the other.
    let first = ask(&world.node, SERVICE).unwrap().0;
    let mut last = Instant::now();
    until("the other", || {
        if last.elapsed() < std::time::Duration::from_millis(1300) {
            return None;
        }
        last = Instant::now();
        ask(&world.node, SERVICE).ok().filter(|(name, _)| *name != first)
    });
}

#[test]
fn sources_are_masked_as_configured() {
    let world = World::new();
    let (client, _a) = (world.pod("c", "10.244.0.9"), world.pod("a", "10.244.0.2"));
    world.api.put("nodes", node("east", "10.244.0.0/24"));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    world.shell_outside(&format!(
        "ip route add 10.96.0.0/12 via {NODE}; ip route add 10.244.0.0/24 via {NODE}"
    ));
    let gateway = "10.244.0.1";
    for (config, pods, outsiders) in [
        ("", "10.244.0.9", gateway),
        ("iptables: {masqueradeAll: true}\n", gateway, gateway),
        ("detectLocalMode: NodeCIDR\n", "10.244.0.9", gateway),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
            "10.244.0.9",
            gateway,
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cni}\n",
            "10.244.0.9",
            gateway,
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: lan}\n",
            gateway,
            OUTSIDE,
        ),
    ] {
        let proxy = world.start(&format!("{CONFIG}{config}"));
        let seen = |from: &Namespace, wanted: &str| {
            until(&format!("{wanted} with {config:?}"), || {
                ask(from, SERVICE).ok().filter(|(_, seen)| seen.to_string() == wanted)
            });
        };
        seen(&client, pods);
        seen(&world.outside, outsiders);
        proxy.stop();
    }
}

#[test]
fn an_endpoint_at_loopback_is_as_good_as_none() {
    let world = World::new();
    let _secret = world
        .node
        .run(|| std::net::TcpListener::bind("127.0.0.1:8080"))
        .unwrap()
        .unwrap();
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["127.0.0.1", "169.254.169.254"]));
    let _proxy = world.start(CONFIG);
    until("refused", || {
        connect(&world.node, SERVICE)
            .err()
            .filter(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    let rules = world.rules();
    assert!(
        rules.contains("test/web has no endpoints") && !rules.contains("--to-destination"),
        "{rules}"
    );
    let told = || {
        let told = world.api.events().into_iter();
        let told = told.filter(|(reason, _)| reason == "EndpointAddressRefused");
        told.map(|(_, message)| message).collect::<Vec<_>>()
    };
    let message = until("an event", || told().pop());
    let addresses = "EndpointSlice test/web-1 holds 127.0.0.1, 169.254.169.254";
    assert!(message.contains(addresses), "{message}");
    // What is good beside them is used.
    let mixed = slice("web", "TCP", &["127.0.0.1", "169.254.169.254", "10.244.1.2"]);
    world.api.put("endpointslices", mixed);
    let destinations = |rules: &str| rules.matches("--to-destination").count();
    let rules = until("a rule", || {
        let rules = world.rules();
        (destinations(&rules) > 0).then_some(rules)
    });
    assert!(
        destinations(&rules) == 1 && rules.contains("10.244.1.2:8080"),
        "{rules}"
    );
}

#[test]
fn health_and_mode_are_served_under_upstreams_paths() {
    let world = World::new();
    world.api.put("nodes", node("east", "10.244.0.0/24"));
    let _proxy = world.start("");
    let health = |path: &str, wanted: u16| {
        let asked = || get(&world.outside, &format!("{NODE}:10256"), path).ok();
        until(&format!("{path} {wanted}"), || {
            asked().filter(|(status, _)| *status == wanted)
        })
        .1
    };
    assert!(health("/healthz", 200).contains("\"nodeEligible\": true}"));
    let mode = get(&world.node, "127.0.0.1:10249", "/proxyMode").unwrap();
    assert!(mode.0 == 200 && mode.1.ends_with("iptables"), "{mode:?}");
    let config = get(&world.node, "127.0.0.1:10249", "/configz").unwrap().1;
    for wanted in [
        r#"{"kubeproxy.config.k8s.io":{"#,
        r#""clusterCIDR":"10.244.0.0/16""#,
        r#""masqueradeBit":14"#,
        r#""mode":"iptables""#,
    ] {
        assert!(config.contains(wanted), "{wanted} in {config}");
    }
    assert_eq!(get(&world.node, "127.0.0.1:10249", "/healthz").unwrap().0, 200);
    assert!(connect(&world.outside, &format!("{NODE}:10249")).is_err());
    // The autoscaler is about to take the node away.
    let mut leaving = node("east", "10.244.0.0/24");
    leaving["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    world.api.put("nodes", leaving);
    assert!(health("/healthz", 503).contains("\"nodeEligible\": false}"));
    assert!(!health("/livez", 200).contains("nodeEligible"));
    let metrics = get(&world.node, "127.0.0.1:10249", "/metrics").unwrap().1;
    assert!(
        metrics.contains("kubeproxy_proxy_healthz_total{code=\"503\"}"),
        "{metrics}"
    );
}

#[test]
fn tracking_is_set_up_as_configured() {
    let world = World::new();
    let conntrack = "conntrack: {tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 30s, tcpBeLiberal: true, udpTimeout: 7s, udpStreamTimeout: 9s}\n";
    let _proxy = world.start(&format!("{CONFIG}{conntrack}"));
    let setting = |name: &str| {
        world
            .node
            .run(|| sysctl::get(&format!("net.netfilter.nf_conntrack_{name}")))
            .unwrap()
            .unwrap()
    };
    until("rules", || world.rules().contains("KUBE-FORWARD").then_some(()));
    let seen = [
        "tcp_timeout_established",
        "tcp_timeout_close_wait",
        "tcp_be_liberal",
        "udp_timeout",
        "udp_timeout_stream",
    ]
    .map(setting);
    assert_eq!(seen, ["7200", "30", "1", "7", "9"]);
    assert!(!world.rules().contains("--ctstate INVALID"));
}
