//! Goldens: what is planned, as `iptables-restore` would read it.

use skiff_net::iptables::{Restore, Saved};

use super::*;
use crate::index::Key;
use crate::model::{Endpoint, Hint, Node, Outside, Protocol, SlicePort};
use crate::sync::Applied;

fn settings() -> Settings {
    Settings {
        local: LocalTraffic::Range("10.244.0.0/16".parse().unwrap()),
        service_ranges: vec!["10.96.0.0/12".parse().unwrap()],
        ..Settings::default()
    }
}

fn service(ports: &[(&str, Protocol, u16, u16)]) -> Service {
    let ports = ports.iter().map(|(name, protocol, port, node_port)| Port {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
        node_port: *node_port,
    });
    Service {
        cluster_ip: "10.96.0.10".parse().unwrap(),
        ports: ports.collect(),
        affinity: None,
        external_local: false,
        internal_local: false,
        outside: None,
    }
}

/// Endpoints written as `10.244.0.2 ready local`, all at port 8080.
fn slice(name: &str, protocol: Protocol, endpoints: &[&str]) -> Slice {
    let endpoints = endpoints.iter().map(|text| {
        let mut words = text.split(' ');
        let ip = words.next().unwrap().parse().unwrap();
        let is = |word| text.split(' ').any(|found| found == word);
        Endpoint {
            ip,
            ready: is("ready"),
            serving: is("ready") || is("draining"),
            terminating: is("draining"),
            local: is("local"),
            for_node: match (is("node"), is("othernode")) {
                (true, _) => Hint::Here,
                (_, true) => Hint::Elsewhere,
                _ => Hint::Absent,
            },
            for_zones: text
                .split(' ')
                .find_map(|word| Some(word.strip_prefix("zone=")?.split('+').map(Into::into).collect())),
        }
    });
    let port = SlicePort {
        name: name.into(),
        protocol,
        port: 8080,
    };
    Slice {
        ports: [port].into(),
        endpoints: endpoints.collect(),
    }
}

fn text(rules: &Rules) -> String {
    let mut changes = Restore::new();
    for (hub, rule) in &rules.hubs {
        changes.table(hub.table()).append(hub.chain(), rule);
    }
    for chain in &rules.chains {
        changes.table("nat").chain(&chain.name);
        chain
            .rules
            .iter()
            .for_each(|rule| changes.table("nat").append(&chain.name, rule));
    }
    changes.text()
}

fn planned(service: &Service, slices: &[Slice]) -> String {
    text(&plan(&settings(), "shop/web", service, slices.iter()))
}

#[test]
fn a_node_without_services() {
    let (_, transactions) = Applied::rebuild(
        &base(&settings()),
        std::iter::empty::<(Key, Rules)>(),
        &Saved::default(),
    );
    let text: String = transactions.iter().map(Restore::text).collect();
    insta::assert_snapshot!(text);
}

#[test]
fn a_cluster_ip_with_two_endpoints() {
    let slices = [slice(
        "",
        Protocol::Tcp,
        &["10.244.1.3 ready", "10.244.0.2 ready local", "10.244.0.9"],
    )];
    insta::assert_snapshot!(planned(&service(&[("", Protocol::Tcp, 80, 0)]), &slices));
}

#[test]
fn node_ports_and_several_protocols() {
    let service = service(&[
        ("http", Protocol::Tcp, 80, 30080),
        ("dns", Protocol::Udp, 53, 30053),
        ("sig", Protocol::Sctp, 9, 0),
    ]);
    let slices = [
        slice("http", Protocol::Tcp, &["10.244.0.2 ready"]),
        slice("dns", Protocol::Udp, &["10.244.0.2 ready"]),
        slice("sig", Protocol::Sctp, &["10.244.0.2 ready"]),
    ];
    insta::assert_snapshot!(planned(&service, &slices));
}

#[test]
fn no_endpoints() {
    let mut service = service(&[("http", Protocol::Tcp, 80, 30080)]);
    service.outside = Some(Box::new(Outside {
        external_ips: vec!["192.0.2.9".parse().unwrap()],
        ..Outside::default()
    }));
    insta::assert_snapshot!(planned(&service, &[slice("http", Protocol::Tcp, &["10.244.0.2"])]));
}

#[test]
fn endpoints_on_their_way_out_serve_when_no_other_does() {
    let service = service(&[("", Protocol::Tcp, 80, 0)]);
    let both = plan(
        &settings(),
        "shop/web",
        &service,
        [slice("", Protocol::Tcp, &["10.244.0.2 draining", "10.244.0.3 ready"])].iter(),
    );
    let last = plan(
        &settings(),
        "shop/web",
        &service,
        [slice("", Protocol::Tcp, &["10.244.0.2 draining", "10.244.0.3"])].iter(),
    );
    let names = |rules: &Rules| {
        rules
            .chains
            .iter()
            .filter(|chain| chain.name.starts_with("KUBE-SEP-"))
            .count()
    };
    assert!(text(&both).contains("10.244.0.3:8080") && !text(&both).contains("10.244.0.2:8080"));
    assert!(text(&last).contains("10.244.0.2:8080"));
    assert_eq!((names(&both), names(&last)), (1, 1));
}

/// The endpoints that a ClusterIP leads to, seen from a node in zone `a`.
fn chosen(zone: Option<&str>, endpoints: &[&str]) -> Vec<String> {
    let settings = Settings {
        zone: zone.map(Into::into),
        ..settings()
    };
    let service = service(&[("", Protocol::Tcp, 80, 0)]);
    let rules = plan(
        &settings,
        "shop/web",
        &service,
        [slice("", Protocol::Tcp, endpoints)].iter(),
    );
    let targets = rules.chains.iter().flat_map(|chain| &chain.rules);
    targets
        .filter_map(|rule| Some(rule.split_once("--to-destination ")?.1.split_once(':')?.0.to_owned()))
        .collect()
}

#[test]
fn endpoints_are_chosen_by_hints_where_all_have_them() {
    for (endpoints, wanted) in [
        (
            &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"][..],
            &["10.0.0.1"][..],
        ),
        (&["10.0.0.1 ready zone=b+a", "10.0.0.2 ready zone=b"], &["10.0.0.1"]),
        // One without a hint: the controller is about to take all hints away.
        (&["10.0.0.1 ready zone=a", "10.0.0.2 ready"], &["10.0.0.1", "10.0.0.2"]),
        // None for this zone.
        (
            &["10.0.0.1 ready zone=b", "10.0.0.2 ready zone=c"],
            &["10.0.0.1", "10.0.0.2"],
        ),
        // What is not ready has no say.
        (
            &["10.0.0.1 ready zone=a", "10.0.0.2", "10.0.0.3 ready zone=b"],
            &["10.0.0.1"],
        ),
        // The node goes before the zone, and the zone before anywhere.
        (
            &[
                "10.0.0.1 ready zone=a othernode",
                "10.0.0.2 ready zone=a node",
                "10.0.0.3 ready zone=b othernode",
            ],
            &["10.0.0.2"],
        ),
        (
            &["10.0.0.1 ready zone=a othernode", "10.0.0.3 ready zone=b othernode"],
            &["10.0.0.1"],
        ),
        (
            &["10.0.0.1 ready node", "10.0.0.3 ready zone=b"],
            &["10.0.0.1", "10.0.0.3"],
        ),
        // When all are on their way out, hints do not count.
        (
            &["10.0.0.1 draining zone=a", "10.0.0.2 draining zone=b"],
            &["10.0.0.1", "10.0.0.2"],
        ),
    ] {
        assert_eq!(chosen(Some("a"), endpoints), wanted, "{endpoints:?}");
    }
    // A node that knows no zone of its own.
    assert_eq!(
        chosen(None, &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"]).len(),
        2
    );
}

#[test]
fn hints_do_not_count_for_the_local_policy() {
    let mut service = service(&[("", Protocol::Tcp, 80, 0)]);
    service.internal_local = true;
    let endpoints = ["10.0.0.1 ready local zone=b", "10.0.0.2 ready zone=a"];
    let settings = Settings {
        zone: Some("a".into()),
        ..settings()
    };
    let rules = plan(
        &settings,
        "shop/web",
        &service,
        [slice("", Protocol::Tcp, &endpoints)].iter(),
    );
    assert!(text(&rules).contains("10.0.0.1:8080") && !text(&rules).contains("10.0.0.2:8080"));
}

#[test]
fn local_policies() {
    let mut service = service(&[("", Protocol::Tcp, 80, 30080)]);
    service.external_local = true;
    let here = [slice(
        "",
        Protocol::Tcp,
        &["10.244.0.2 ready local", "10.244.1.3 ready"],
    )];
    insta::assert_snapshot!("external_local", planned(&service, &here));
    let elsewhere = [slice("", Protocol::Tcp, &["10.244.1.3 ready"])];
    insta::assert_snapshot!("external_local_without_endpoint", planned(&service, &elsewhere));
    service.internal_local = true;
    insta::assert_snapshot!("both_local_without_endpoint", planned(&service, &elsewhere));
    insta::assert_snapshot!("both_local", planned(&service, &here));
}

#[test]
fn a_load_balancer_with_sources() {
    let mut service = service(&[("", Protocol::Tcp, 80, 30080)]);
    service.external_local = true;
    service.outside = Some(Box::new(Outside {
        external_ips: vec!["192.0.2.9".parse().unwrap()],
        load_balancer_ips: vec!["192.0.2.1".parse().unwrap()],
        source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        health_check_node_port: 32000,
    }));
    insta::assert_snapshot!(planned(
        &service,
        &[slice("", Protocol::Tcp, &["10.244.0.2 ready local"])]
    ));
}

#[test]
fn a_node_among_the_sources_reaches_a_load_balancers_address_that_it_has_itself() {
    let mut service = service(&[("", Protocol::Tcp, 80, 30080)]);
    service.outside = Some(Box::new(Outside {
        load_balancer_ips: vec!["192.0.2.1".parse().unwrap()],
        source_ranges: vec!["203.0.113.0/24".parse().unwrap(), "172.30.0.0/24".parse().unwrap()],
        ..Outside::default()
    }));
    let slices = [slice("", Protocol::Tcp, &["10.244.0.2 ready"])];
    let passes = |node: Option<&str>| {
        let settings = Settings {
            node_address: node.map(|ip| ip.parse().unwrap()),
            ..settings()
        };
        let text = text(&plan(&settings, "shop/web", &service, slices.iter()));
        let own = |line: &str| line.starts_with("-A KUBE-FW-") && line.contains("-s 192.0.2.1 -j KUBE-EXT-");
        text.lines().any(own)
    };
    for (node, wanted) in [(Some("172.30.0.1"), true), (Some("172.30.1.1"), false), (None, false)] {
        assert_eq!(passes(node), wanted, "{node:?}");
    }
}

#[test]
fn udp_flows_may_stay_with_every_endpoint_that_answers() {
    let mut service = service(&[("", Protocol::Udp, 53, 30053)]);
    service.external_local = true;
    let endpoints = [
        "10.244.0.2 ready local",
        "10.244.0.3 draining local",
        "10.244.1.4 ready",
        "10.244.0.5 local",
    ];
    for internal_local in [false, true] {
        service.internal_local = internal_local;
        let rules = plan(
            &settings(),
            "shop/dns",
            &service,
            [slice("", Protocol::Udp, &endpoints)].iter(),
        );
        let stay: Vec<_> = rules.udp[0].backends.iter().map(|to| to.ip().to_string()).collect();
        assert_eq!(stay, ["10.244.0.2", "10.244.0.3", "10.244.1.4"]);
    }
}

#[test]
fn clients_that_stay() {
    let mut service = service(&[("", Protocol::Tcp, 80, 0)]);
    service.affinity = Some(600);
    insta::assert_snapshot!(planned(
        &service,
        &[slice("", Protocol::Tcp, &["10.244.0.2 ready", "10.244.0.3 ready"])]
    ));
}

#[test]
fn shares_are_even() {
    let endpoints: Vec<_> = (2..9).map(|last| format!("10.244.0.{last} ready")).collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    let rules = plan(
        &settings(),
        "shop/web",
        &service(&[("", Protocol::Tcp, 80, 0)]),
        [slice("", Protocol::Tcp, &endpoints)].iter(),
    );
    let balancing = rules
        .chains
        .iter()
        .find(|chain| chain.name.starts_with("KUBE-SVC-"))
        .unwrap();
    let mut left = 1.0;
    for rule in &balancing.rules[1..] {
        let probability = rule
            .split("--probability ")
            .nth(1)
            .map_or(1.0, |rest| rest.split(' ').next().unwrap().parse::<f64>().unwrap());
        assert!((left * probability - 1.0 / 7.0).abs() < 1e-6, "{rule}");
        left *= 1.0 - probability;
    }
}

#[test]
fn a_node_completes_the_settings() {
    let wanted = Settings {
        local: LocalTraffic::NodeRange,
        node_ports: NodePorts::At {
            ranges: Vec::new(),
            primary: true,
        },
        ..Settings::default()
    };
    let node = Node {
        zone: Some("a".into()),
        pod_range: Some("10.244.3.0/24".parse().unwrap()),
        address: Some("172.30.0.1".parse().unwrap()),
        eligible: true,
    };
    let settings = wanted.on(&node, &["10.96.0.0/12".parse().unwrap()]);
    assert_eq!(settings.local, LocalTraffic::Range("10.244.3.0/24".parse().unwrap()));
    assert_eq!(settings.zone.as_deref(), Some("a"));
    let tails: Vec<_> = base(&settings).tails.into_iter().map(|(_, rule)| rule).collect();
    assert!(
        tails[0].contains("-d 172.30.0.1/32 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"),
        "{tails:?}"
    );
    assert!(tails[1].contains("-d 10.96.0.0/12 -j REJECT"), "{tails:?}");
    // Nothing is known of the node yet: node ports answer nowhere, and no pod is known by its source.
    let early = wanted.on(&Node::default(), &[]);
    assert_eq!((early.local.pods_match(), base(&early).tails.len()), (None, 0));
}

#[test]
fn what_tracking_calls_invalid_is_dropped_unless_told_otherwise() {
    for pass_invalid in [false, true] {
        let base = base(&Settings {
            pass_invalid,
            ..Settings::default()
        });
        let dropped = base
            .chains
            .iter()
            .flat_map(|(.., rules)| rules)
            .any(|rule| rule.contains("INVALID"));
        assert_eq!(dropped, !pass_invalid);
    }
}

#[test]
fn settings_change_what_is_masked_and_where_node_ports_answer() {
    let port = [("", Protocol::Tcp, 80, 0)];
    let slices = [slice("", Protocol::Tcp, &["10.244.0.2 ready"])];
    for (local, all, wanted) in [
        (LocalTraffic::Unknown, false, None),
        (LocalTraffic::Unknown, true, Some("--dport 80 -j KUBE-MARK-MASQ")),
        (
            LocalTraffic::Bridge("cni0".into()),
            false,
            Some("! -i cni0 -j KUBE-MARK-MASQ"),
        ),
        (
            LocalTraffic::InterfacePrefix("cali".into()),
            false,
            Some("! -i cali+ -j KUBE-MARK-MASQ"),
        ),
    ] {
        let settings = Settings {
            local,
            masquerade_all: all,
            ..Settings::default()
        };
        let text = text(&plan(&settings, "shop/web", &service(&port), slices.iter()));
        let masked = text
            .lines()
            .find(|line| line.starts_with("-A KUBE-SVC-") && line.ends_with("KUBE-MARK-MASQ"));
        assert_eq!(masked.is_some(), wanted.is_some());
        assert!(
            wanted.is_none_or(|wanted| masked.unwrap().ends_with(wanted)),
            "{masked:?}"
        );
    }
    let ranges = vec!["172.30.0.0/24".parse().unwrap()];
    let base = base(&Settings {
        node_ports: NodePorts::At { ranges, primary: false },
        ..Settings::default()
    });
    assert!(
        base.tails[0]
            .1
            .contains("-d 172.30.0.0/24 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    );
}
