//! The same configurations through upstream's plugins and ours, in fresh namespaces: links, addresses, routes, rules,
//! results and errors are the same.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::{Answer, Call, Pod, UPSTREAM, World, answer};

/// A name, and how the configuration differs from skiff's own.
type Case = (&'static str, fn(&mut Value));
/// A name, and what happens to an attachment.
type Damage = (&'static str, fn(&World, &Pod));
/// A name, how the call differs from an ordinary ADD, and how the configuration does.
type BadCase = (&'static str, fn(&mut Call<'static>), fn(&mut Value));

/// A name, how the call differs from an ordinary ADD, and the whole input.
type BadInput = (&'static str, fn(&mut Call<'static>), &'static str);

/// What is random, or ours on purpose, is left out: hardware addresses, names of outer veth ends, paths of the test.
fn plain(mut result: Value, world: &World) -> Value {
    let folder = world.folder.path().display().to_string();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        interface["mac"] = json!("");
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = json!("veth");
        }
    }
    serde_json::from_str(&result.to_string().replace(&folder, "")).unwrap()
}

fn links(text: &str) -> Vec<Value> {
    let links: Vec<Value> = serde_json::from_str(text).unwrap();
    let mut links: Vec<_> = links
        .into_iter()
        .map(|link| {
            let name = link["ifname"].as_str().unwrap();
            let kind = &link["linkinfo"];
            // Link-local addresses follow from the random hardware addresses.
            let addresses = link["addr_info"].as_array().unwrap().iter();
            let addresses = addresses.filter(|address| address["family"] == "inet" || address["scope"] == "global");
            let has = |flag: &str| link["flags"].as_array().unwrap().contains(&json!(flag));
            json!({
                "name": if name.starts_with("veth") { "veth" } else { name }, "mtu": link["mtu"],
                "master": link["master"], "kind": kind["info_kind"],
                "hairpin": kind["info_slave_data"]["hairpin"], "up": has("UP"), "promisc": has("PROMISC"),
                "addresses": addresses
                    .map(|address| json!([address["local"], address["prefixlen"], address["broadcast"], address["scope"]]))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    links.sort_by_key(Value::to_string);
    links
}

fn rules(world: &World) -> Vec<String> {
    let text = world.shell("iptables-save; ip6tables-save");
    let rules = text.lines().filter(|line| line.starts_with("-A"));
    // Ours on top of upstream's: the node's loopback stays closed.
    let rules = rules.filter(|rule| !rule.contains("CNI-HOSTPORT-LOCALNET"));
    rules.map(str::to_owned).collect()
}

/// What a call left in the kernel and in files.
fn state(world: &World, pod: &Pod) -> Value {
    json!({
        "node": links(&world.shell("ip -j -d addr")),
        "pod": links(&pod.shell("ip -j -d addr")),
        "routes": pod.shell("ip route; ip -6 route show table main | grep -v ^fe80 || true"),
        "node routes": world.shell("ip route; ip -6 route show table main | grep -v ^fe80 || true"),
        "rules": rules(world),
        "forward": world.shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"),
        "leases": world.leases("net"),
    })
}

fn outcome(added: &Answer, world: &World) -> Value {
    if added.ok {
        plain(added.json.clone(), world)
    } else {
        added.json["code"].clone()
    }
}

/// Everything that a configuration leads to.
fn observe(world: &World, change: fn(&mut Value)) -> Value {
    let pod = world.pod("one");
    let mut config = world.config();
    change(&mut config);
    let added = world.call("bridge", "ADD", "one", &pod.path, &config);
    let seen = json!({"result": outcome(&added, world), "state": state(world, &pod)});
    // Upstream's CHECK fails on some of its own: without addresses, and with routes that leave the gateway out.
    if added.ok && config["cniVersion"] != "0.3.1" && world.path != UPSTREAM {
        config["prevResult"] = added.json;
        let check = world.call("bridge", "CHECK", "one", &pod.path, &config);
        assert!(check.ok, "{check:?}");
    }
    world.del(&pod, &config);
    let after = json!({
        "leases": world.leases("net"), "pod": pod.shell("ip -j link").contains("eth0"),
        "node": world.shell("ip link").contains("veth"), "rules": rules(world),
    });
    json!({"added": seen, "removed": after})
}

/// Fails with the lines that only one of them has.
fn same(name: &str, theirs: &Value, ours: &Value) {
    let (theirs, ours) = (format!("{theirs:#}"), format!("{ours:#}"));
    let only = |one: &str, other: &str| -> Vec<String> {
        let lines = one.lines().filter(|line| !other.lines().any(|there| there == *line));
        lines.map(|line| line.trim().to_owned()).collect()
    };
    let (missing, added) = (only(&theirs, &ours), only(&ours, &theirs));
    assert!(
        theirs == ours,
        "{name}: only upstream has {missing:#?}, only we have {added:#?}"
    );
}

#[test]
fn attachments_are_upstreams() {
    let cases: [Case; 23] = [
        ("as configured by skiff", |_| {}),
        ("old version", |c| c["cniVersion"] = json!("0.3.1")),
        ("0.4.0", |c| c["cniVersion"] = json!("0.4.0")),
        ("no gateway", |c| c["isGateway"] = json!(false)),
        ("default gateway", |c| {
            c["isDefaultGateway"] = json!(true);
            c["ipam"]["routes"] = json!([]);
        }),
        ("another default gateway", |c| {
            c["isDefaultGateway"] = json!(true);
            c["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.9"}]);
        }),
        ("masquerade", |c| c["ipMasq"] = json!(true)),
        ("mtu", |c| c["mtu"] = json!(1400)),
        ("negative mtu", |c| c["mtu"] = json!(-1)),
        ("promiscuous", |c| {
            c["hairpinMode"] = json!(false);
            c["promiscMode"] = json!(true);
        }),
        // On a kernel without VLAN filtering both fail alike.
        ("vlan", |c| c["vlan"] = json!(100)),
        ("vlan without gateway", |c| {
            c["vlan"] = json!(100);
            c["isGateway"] = json!(false);
        }),
        ("single range of old", |c| {
            c["ipam"]["ranges"] = json!(null);
            c["ipam"]["subnet"] = json!("10.7.0.0/16");
            c["ipam"]["rangeStart"] = json!("10.7.3.0");
            c["ipam"]["gateway"] = json!("10.7.0.9");
        }),
        ("ranges of a set", |c| {
            c["ipam"]["ranges"] = json!([[
                {"subnet": "10.7.1.0/24", "rangeStart": "10.7.1.5", "rangeEnd": "10.7.1.5"},
                {"subnet": "10.7.2.0/24", "gateway": "10.7.2.254"},
            ]]);
        }),
        ("layer 2", |c| c["ipam"] = json!({})),
        (
            "routes",
            |c| c["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8"}, {"dst": "192.168.0.0/16", "gw": "10.244.1.9"}]),
        ),
        ("a route twice", |c| {
            c["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8", "gw": "10.244.1.8"}, {"dst": "10.0.0.0/8"}]);
        }),
        ("dns", |c| {
            c["dns"] = json!({"nameservers": ["10.96.0.10"], "domain": "d", "search": ["a", "b"], "options": ["o"]});
        }),
        ("two families", |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]]);
            c["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
            c["ipMasq"] = json!(true);
        }),
        ("only the new family", |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "fd00:7::/64"}]]);
            c["ipam"]["routes"] = json!([{"dst": "::/0"}]);
        }),
        ("an address by the runtime", |c| {
            c["runtimeConfig"] = json!({"ips": ["10.244.1.77/24"]})
        }),
        ("an address by arguments", |c| {
            c["args"] = json!({"cni": {"ips": ["10.244.1.78"]}})
        }),
        ("ranges by the runtime", |c| {
            c["runtimeConfig"] = json!({"ipRanges": [[{"Subnet": "10.9.0.0/24", "RangeStart": "10.9.0.7"}]]});
            c["ipam"]["ranges"] = json!(null);
        }),
    ];
    for (name, change) in cases {
        let (theirs, ours) = (observe(&World::upstream(), change), observe(&World::new(), change));
        same(name, &theirs, &ours);
    }
}

#[test]
fn refusals_are_upstreams() {
    let usual: fn(&mut Call<'static>) = |_| {};
    let cases: [BadCase; 32] = [
        ("hairpin and promiscuous", usual, |c| c["promiscMode"] = json!(true)),
        ("no ranges", usual, |c| c["ipam"]["ranges"] = json!([])),
        ("an empty range set", usual, |c| c["ipam"]["ranges"] = json!([[]])),
        ("small range", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/31"}]])
        }),
        ("host bits", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.1/24"}]])
        }),
        ("start outside", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]])
        }),
        ("end outside", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"}]])
        }),
        (
            "backwards",
            usual,
            |c| {
                c["ipam"]["ranges"] =
                    json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]])
            },
        ),
        ("overlap of sets", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]])
        }),
        ("overlap in a set", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/16"}]])
        }),
        ("mixed families", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]])
        }),
        ("no bridge", usual, |c| c["bridge"] = json!("lo")),
        ("vlan below", usual, |c| c["vlan"] = json!(-1)),
        ("vlan above", usual, |c| c["vlan"] = json!(4095)),
        ("two subnets of IPv4", usual, |c| {
            c["ipam"]["ranges"] = json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.8.0.0/24"}]]);
        }),
        ("an address outside", usual, |c| {
            c["runtimeConfig"] = json!({"ips": ["10.9.9.9"]});
        }),
        ("the gateway's address", usual, |c| {
            c["runtimeConfig"] = json!({"ips": ["10.244.1.1"]});
        }),
        (
            "an argument's address is none",
            |call| call.arguments = "IP=10.1",
            |_| {},
        ),
        ("an argument without value", |call| call.arguments = "IP", |_| {}),
        (
            "unknown arguments",
            |call| call.arguments = "K8S_POD_NAME=web;IP=10.244.1.3",
            |_| {},
        ),
        ("no resolv.conf", usual, |c| c["ipam"]["resolvConf"] = json!("/nowhere")),
        ("unknown plugin", usual, |c| c["ipam"]["type"] = json!("nope")),
        ("no name", usual, |c| c["name"] = json!("")),
        ("a bad name", usual, |c| c["name"] = json!("../x")),
        ("unknown verb", |call| call.verb = "FROB", |_| {}),
        ("no container", |call| call.container = "", |_| {}),
        ("a bad container", |call| call.container = "a/b", |_| {}),
        (
            "two mistakes",
            |call| call.container = "a/b",
            |c| c["name"] = json!("a/b"),
        ),
        ("a long interface", |call| call.interface = "sixteen-letters0", |_| {}),
        ("a bad interface", |call| call.interface = "a b", |_| {}),
        ("CHECK of what is not there", |call| call.verb = "CHECK", |_| {}),
        (
            "CHECK of old",
            |call| call.verb = "CHECK",
            |c| c["cniVersion"] = json!("0.3.1"),
        ),
    ];
    for (name, change_call, change) in cases {
        let refusal = |world: World| {
            let pod = world.pod("one");
            let (mut config, mut call) = (world.config(), ordinary());
            change(&mut config);
            change_call(&mut call);
            let refused = refuse(&world, &pod, &call, &config.to_string());
            assert!(world.leases("net").is_empty(), "{name}");
            refused
        };
        let (theirs, mut ours) = (refusal(World::upstream()), refusal(World::new()));
        // Details that upstream does not give are ours to give.
        if theirs.get("details").is_none() {
            ours.as_object_mut().unwrap().remove("details");
        }
        same(name, &theirs, &ours);
    }
}

/// What CHECK says of an attachment to which something happened: whether it is as ADD left it.
#[test]
fn what_check_finds_is_upstreams() {
    let nothing: fn(&World, &Pod) = |_, _| {};
    let cases: [Damage; 9] = [
        ("nothing", nothing),
        ("no default route", |_, pod| drop(pod.shell("ip route del default"))),
        ("no address", |_, pod| {
            drop(pod.shell("ip addr flush dev eth0 scope global"))
        }),
        ("another address", |_, pod| {
            pod.shell("ip addr add 10.244.1.9/24 dev eth0; ip addr del 10.244.1.2/24 dev eth0");
        }),
        ("one address more", |_, pod| {
            drop(pod.shell("ip addr add 10.9.9.9/32 dev eth0"))
        }),
        ("another hardware address", |_, pod| {
            pod.shell("ip link set eth0 address 02:00:00:00:00:07");
        }),
        ("no interface", |_, pod| drop(pod.shell("ip link del eth0"))),
        ("no bridge", |world, _| drop(world.shell("ip link del cni0"))),
        ("no lease", |world, _| {
            std::fs::remove_file(world.data().join("net/10.244.1.2")).unwrap();
        }),
    ];
    for (name, damage) in cases {
        let verdict = |world: World| {
            let (pod, mut config) = (world.pod("one"), world.config());
            // Upstream's compares the gateway of each route with what the configuration says.
            config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]);
            config["prevResult"] = world.add(&pod, &config);
            damage(&world, &pod);
            let check = world.call("bridge", "CHECK", "one", &pod.path, &config);
            json!([check.ok, check.json["code"]])
        };
        same(name, &verdict(World::upstream()), &verdict(World::new()));
    }
}

/// A second network with another subnet on the same bridge: refused, or forced.
#[test]
fn another_address_of_the_bridge_is_upstreams() {
    let all = |world: World| {
        let (one, two) = (world.pod("one"), world.pod("two"));
        let mut config = world.config();
        world.add(&one, &config);
        config["name"] = json!("other");
        let mut seen = Vec::new();
        for (subnet, force) in [
            ("10.244.0.0/16", false),
            ("10.244.0.0/16", true),
            // One that lies elsewhere is added to what is there.
            ("10.99.0.0/24", false),
        ] {
            config["forceAddress"] = json!(force);
            config["ipam"]["ranges"] = json!([[{"subnet": subnet}]]);
            let added = world.call("bridge", "ADD", "two", &two.path, &config);
            let bridge = world.shell("ip -4 -brief address show cni0 | xargs -n 1 | grep / | sort");
            seen.push(json!([added.ok, outcome(&added, &world), added.json["msg"], bridge]));
            world.del(&two, &config);
        }
        json!(seen)
    };
    same("forceAddress", &all(World::upstream()), &all(World::new()));
}

fn ordinary() -> Call<'static> {
    Call {
        plugin: "bridge",
        verb: "ADD",
        container: "one",
        namespace: Path::new(""),
        interface: "eth0",
        arguments: "",
    }
}

/// The error of a call, with the folders of the test taken out.
fn refuse(world: &World, pod: &Pod, call: &Call<'_>, input: &str) -> Value {
    let call = Call {
        namespace: &pod.path,
        ..*call
    };
    let refused = answer(&world.begin(&call, input).wait_with_output().unwrap());
    assert!(!refused.ok, "{refused:?}");
    let path = &world.path;
    serde_json::from_str(&refused.json.to_string().replace(path, "PATH")).unwrap()
}

/// Where the texts hold words of the programming language's own, the codes are the same.
#[test]
fn codes_of_unreadable_input_are_upstreams() {
    let no_change: fn(&mut Call<'static>) = |_| {};
    let cases: [BadInput; 8] = [
        ("nothing", no_change, ""),
        ("no JSON", no_change, "{nonsense"),
        ("no object", no_change, "[1]"),
        (
            "a name of another type",
            no_change,
            r#"{"cniVersion":"1.0.0","name":7}"#,
        ),
        (
            "a field of another type",
            no_change,
            r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","mtu":"x","ipam":{"type":"host-local"}}"#,
        ),
        ("unknown version", no_change, r#"{"cniVersion":"9.9.9","name":"n"}"#),
        ("no version number", no_change, r#"{"cniVersion":"x","name":"n"}"#),
        (
            "unknown version and a bad container",
            |call| call.container = "a/b",
            r#"{"cniVersion":"9.9.9","name":"n"}"#,
        ),
    ];
    for (name, change, input) in cases {
        let code = |world: World| {
            let (pod, mut call) = (world.pod("one"), ordinary());
            change(&mut call);
            refuse(&world, &pod, &call, input)["code"].clone()
        };
        assert_eq!(code(World::upstream()), code(World::new()), "{name}");
    }
}

#[test]
fn addresses_alone_are_upstreams() {
    let all = |world: World| {
        let pod = world.pod("one");
        let file = world.folder.path().join("resolv.conf");
        let text =
            "# by hand\nnameserver 192.0.2.53\nnameserver fd00::53\nsearch a.b c\noptions ndots:5 rotate\ndomain d\n";
        std::fs::write(&file, text).unwrap();
        let mut config = world.config();
        // Upstream's bridge of that version drops the name servers that its address plugin found.
        config["ipam"]["resolvConf"] = json!(file);
        config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}], [{"subnet": "fd00::/120"}]]);
        let call = |verb: &str, container: &str| {
            let answer = world.call("host-local", verb, container, &pod.path, &config);
            json!([verb, container, answer.ok, answer.json, world.leases("net")])
        };
        let mut seen = vec![
            call("ADD", "a"),
            call("ADD", "a"),
            call("CHECK", "a"),
            call("CHECK", "b"),
        ];
        // The range is as large as five; what is released is given last.
        seen.extend(["b", "c", "d"].map(|container| call("ADD", container)));
        seen.push(call("DEL", "b"));
        seen.extend(["e", "f", "g"].map(|container| call("ADD", container)));
        seen.push(call("DEL", "nobody"));
        json!(seen)
    };
    same("host-local", &all(World::upstream()), &all(World::new()));
}

#[test]
fn loopback_is_upstreams() {
    let all = |world: World| {
        let pod = world.pod("one");
        let mut config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
        let call = |verb: &str, config: &Value| {
            let answer = world.call("loopback", verb, "one", &pod.path, config);
            json!([
                verb,
                answer.ok,
                plain(answer.json, &world),
                links(&pod.shell("ip -j -d addr"))
            ])
        };
        let added = call("ADD", &config);
        let checked = call("CHECK", &config);
        let removed = [call("DEL", &config), call("DEL", &config), call("CHECK", &config)];
        config["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/24"}], "dns": {}});
        let passed_on = call("ADD", &config);
        let gone = world.call("loopback", "DEL", "one", Path::new("/nowhere"), &config);
        json!([added, checked, removed, passed_on, gone.ok])
    };
    same("loopback", &all(World::upstream()), &all(World::new()));
}

#[test]
fn port_mappings_are_upstreams() {
    let mapping = |host: u16, protocol: &str, ip: &str| json!({"hostPort": host, "containerPort": 80, "protocol": protocol, "hostIP": ip});
    let many: Vec<_> = (1..=20).map(|host| mapping(8000 + host, "tcp", "")).collect();
    let cases: Vec<(&str, Value)> = vec![
        ("none", json!({})),
        (
            "one",
            json!({"runtimeConfig": {"portMappings": [mapping(8080, "tcp", "")]}}),
        ),
        ("twenty", json!({"runtimeConfig": {"portMappings": many}})),
        (
            "protocols and addresses",
            json!({"runtimeConfig": {"portMappings": [
                mapping(8080, "tcp", "0.0.0.0"), mapping(8053, "udp", "10.244.1.1"), mapping(9000, "sctp", ""),
                mapping(8081, "tcp", "::"), mapping(8082, "tcp", "fd00:7::1"), mapping(8083, "tcp", "127.0.0.1"),
            ]}}),
        ),
        (
            "containerd's spelling",
            json!({"runtimeConfig": {"portMappings": [
                {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
            ]}}),
        ),
        (
            "another bit",
            json!({"markMasqBit": 5, "runtimeConfig": {"portMappings": [mapping(8080, "tcp", "")]}}),
        ),
        (
            "no masquerading",
            json!({"snat": false, "runtimeConfig": {"portMappings": [mapping(8080, "tcp", "")]}}),
        ),
        (
            "conditions",
            json!({"conditionsV4": ["!", "-d", "192.0.2.0/24"], "conditionsV6": ["!", "-d", "fc00::/7"],
                "runtimeConfig": {"portMappings": [mapping(8080, "tcp", "")]}}),
        ),
        (
            "another's mark",
            json!({"externalSetMarkChain": "OTHERS", "runtimeConfig": {"portMappings": [mapping(8080, "tcp", "")]}}),
        ),
        ("not chained", json!({"prevResult": null})),
        (
            "no port",
            json!({"runtimeConfig": {"portMappings": [mapping(0, "tcp", "")]}}),
        ),
        ("a bit too high", json!({"markMasqBit": 32})),
        ("two marks", json!({"markMasqBit": 3, "externalSetMarkChain": "OTHERS"})),
    ];
    for (name, change) in cases {
        let all = |world: World| {
            let pod = world.pod("one");
            let mut config = world.config();
            config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:7::/64"}]]);
            let previous = world.add(&pod, &config);
            world.shell("iptables -t nat -N OTHERS; ip6tables -t nat -N OTHERS");
            let mut config = json!({
                "cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": previous,
            });
            config
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            let call = |verb: &str| {
                let answer = world.call("portmap", verb, "one", &pod.path, &config);
                let told = if answer.ok {
                    plain(answer.json, &world)
                } else {
                    answer.json
                };
                let localnet = world.shell("cat /proc/sys/net/ipv4/conf/cni0/route_localnet");
                json!([verb, answer.ok, told, rules(&world), localnet])
            };
            json!([call("ADD"), call("ADD"), call("DEL"), call("DEL")])
        };
        same(name, &all(World::upstream()), &all(World::new()));
    }
}

#[test]
fn either_removes_what_the_other_made() {
    for swap in [false, true] {
        let (mut first, mut second) = (World::upstream(), World::new());
        if swap {
            std::mem::swap(&mut first, &mut second);
        }
        let pod = first.pod("one");
        let mut config = first.config();
        config["ipMasq"] = json!(true);
        let previous = first.add(&pod, &config);
        let ports = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": previous,
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        });
        assert!(first.call("portmap", "ADD", "one", &pod.path, &ports).ok);
        assert_eq!(first.leases("net").len(), 1);
        let remover = World {
            node: first.node,
            ..second
        };
        assert!(remover.call("portmap", "DEL", "one", &pod.path, &ports).ok);
        remover.del(&pod, &config);
        let rules = remover.shell("iptables-save -t nat");
        assert!(!rules.contains("one"), "{rules}");
        let left = std::fs::read_dir(first.folder.path().join("data/net")).unwrap();
        assert_eq!(
            left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("10."))
                .count(),
            0
        );
    }
}
