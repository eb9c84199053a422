//! One container at a time.

use std::net::UdpSocket;

use serde_json::{Value, json};

use crate::world::World;

#[test]
fn add_connects_a_pod_and_del_leaves_nothing() {
    let world = World::new();
    let (one, two) = (world.pod("one"), world.pod("two"));
    let config = world.config();
    let result = world.add(&one, &config);
    assert_eq!(
        result["ips"],
        json!([{"interface": 2, "address": "10.244.1.2/24", "gateway": "10.244.1.1"}])
    );
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["interfaces"][2]["mac"], "0a:58:0a:f4:01:02");
    assert_eq!(result["interfaces"][2]["sandbox"], one.path.display().to_string());
    world.add(&two, &config);

    // Pod to pod, and node to pod.
    let server = two.namespace.run(|| UdpSocket::bind("10.244.1.3:7")).unwrap().unwrap();
    for from in [&one.namespace, &world.node] {
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        client.send_to(b"x", "10.244.1.3:7").unwrap();
        server.recv_from(&mut [0; 1]).unwrap();
    }
    assert_eq!(world.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert_eq!(world.shell("cat /proc/sys/net/ipv6/conf/cni0/accept_ra").trim(), "0");

    // A change of ports does not change the bridge's address, which pods remember.
    let mac = world.shell("cat /proc/net/dev >/dev/null; ip -j link show cni0");
    world.del(&one, &config);
    world.del(&one, &config);
    world.del(&two, &config);
    let after: Value = serde_json::from_str(&world.shell("ip -j link show cni0")).unwrap();
    let before: Value = serde_json::from_str(&mac).unwrap();
    assert_eq!(before[0]["address"], after[0]["address"]);
    assert!(!world.shell("ip link").contains("veth"));
    assert!(!one.shell("ip link").contains("eth0"));
    assert!(world.leases("net").is_empty());
}

#[test]
fn del_of_a_pod_whose_namespace_is_gone_releases_its_address() {
    let world = World::new();
    let config = world.config();
    let pod = world.pod("one");
    world.add(&pod, &config);
    let path = pod.path.clone();
    drop(pod);
    assert_eq!(world.leases("net"), ["10.244.1.2"]);
    assert!(world.call("bridge", "DEL", "one", &path, &config).ok);
    assert!(world.leases("net").is_empty());
    assert!(world.call("bridge", "DEL", "one", std::path::Path::new(""), &config).ok);
}

#[test]
fn a_failed_add_takes_everything_back() {
    let world = World::new();
    let pod = world.pod("one");
    let mut config = world.config();
    config["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let answer = world.call("bridge", "ADD", "one", &pod.path, &config);
    assert!(!answer.ok);
    assert_eq!(answer.json["code"], 999);
    let message = answer.json["msg"].as_str().unwrap();
    assert!(message.contains("10.9.0.0/16 via 192.0.2.1"), "{message}");
    assert!(world.leases("net").is_empty());
    assert!(!world.shell("ip link").contains("veth"));
    assert!(!pod.shell("ip link").contains("eth0"));
}

#[test]
fn check_finds_what_is_missing() {
    let world = World::new();
    let pod = world.pod("one");
    let mut config = world.config();
    let check = |config: &Value| world.call("bridge", "CHECK", "one", &pod.path, config);
    let result = world.add(&pod, &config);
    assert_eq!(check(&config).json["msg"], "Required prevResult missing");
    config["prevResult"] = result;
    let answer = check(&config);
    assert!(answer.ok, "{answer:?}");

    for (damage, repair, wanted) in [
        (
            "ip route del default",
            "ip route add default via 10.244.1.1",
            "the route to 0.0.0.0/0 is missing",
        ),
        (
            "ip link set eth0 down",
            "ip link set eth0 up; ip route add default via 10.244.1.1",
            "interface eth0 is down",
        ),
        (
            "ip addr del 10.244.1.2/24 dev eth0",
            "ip addr add 10.244.1.2/24 dev eth0",
            "does not have the address",
        ),
    ] {
        pod.shell(damage);
        let answer = check(&config);
        assert!(
            !answer.ok && answer.json["msg"].as_str().unwrap().contains(wanted),
            "{damage}: {answer:?}"
        );
        pod.shell(repair);
    }
}

#[test]
fn garbage_of_containers_that_are_no_more_is_collected() {
    let world = World::new();
    let (one, two) = (world.pod("one"), world.pod("two"));
    let mut config = world.config();
    config["cniVersion"] = json!("1.1.0");
    config["ipMasq"] = json!(true);
    world.add(&one, &config);
    world.add(&two, &config);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    let answer = world.call("bridge", "GC", "", std::path::Path::new(""), &config);
    assert!(answer.ok, "{answer:?}");
    assert_eq!(world.leases("net"), ["10.244.1.3"]);
    let rules = world.shell("iptables-save -t nat");
    assert!(
        rules.contains(r#"id: \"two\""#) && !rules.contains(r#"id: \"one\""#),
        "{rules}"
    );
    world.del(&two, &config);
    assert!(!world.shell("iptables-save -t nat").contains("CNI-"));
}

#[test]
fn the_version_decides_the_shape_and_the_verbs() {
    let world = World::new();
    let pod = world.pod("one");
    let none = std::path::Path::new("");
    for (version, ip_version, mtu) in [
        ("0.3.1", json!("4"), false),
        ("1.0.0", Value::Null, false),
        ("1.1.0", Value::Null, true),
    ] {
        let mut config = world.config();
        config["cniVersion"] = json!(version);
        let result = world.add(&pod, &config);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"], ip_version);
        assert_eq!(result["interfaces"][2].get("mtu").is_some(), mtu);
        world.del(&pod, &config);
        let status = world.call("bridge", "STATUS", "", none, &config);
        assert_eq!(status.ok, version == "1.1.0", "{status:?}");
    }
    let answer = world.call("bridge", "VERSION", "", none, &json!({"cniVersion": "1.0.0"}));
    assert_eq!(
        answer.json["supportedVersions"],
        json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
}

#[test]
fn status_tells_whether_add_could_work() {
    let world = World::new();
    let none = std::path::Path::new("");
    let status = |config: &Value| world.call("bridge", "STATUS", "", none, config);
    let mut config = world.config();
    config["cniVersion"] = json!("1.1.0");
    assert!(status(&config).ok);
    config["ipam"]["ranges"] = json!([]);
    assert_eq!(status(&config).json["code"], 50);
    config["ipam"] = json!({"type": "nope"});
    assert_eq!(status(&config).json["code"], 50);
}

#[test]
fn loopback_is_up() {
    let world = World::new();
    let pod = world.pod("one");
    let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let answer = world.call("loopback", "ADD", "one", &pod.path, &config);
    assert!(answer.ok, "{answer:?}");
    assert_eq!(answer.json["ips"][0]["address"], "127.0.0.1/8");
    assert!(pod.shell("ip addr show lo").contains("127.0.0.1/8"));
    assert!(world.call("loopback", "CHECK", "one", &pod.path, &config).ok);
    assert!(world.call("loopback", "DEL", "one", &pod.path, &config).ok);
    assert!(!world.call("loopback", "CHECK", "one", &pod.path, &config).ok);
}

#[test]
fn the_plugins_own_namespace_is_refused() {
    let world = World::new();
    let own = std::path::Path::new("/proc/thread-self/ns/net");
    let answer = world.call("bridge", "ADD", "one", own, &world.config());
    assert_eq!(answer.json["code"], 8, "{answer:?}");
    assert!(world.leases("net").is_empty());
}

#[test]
fn another_subnet_on_the_bridge_needs_force_address() {
    let world = World::new();
    let (one, two) = (world.pod("one"), world.pod("two"));
    let mut config = world.config();
    world.add(&one, &config);
    config["name"] = json!("other");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.0.0/16", "rangeStart": "10.244.7.7"}]]);
    let answer = world.call("bridge", "ADD", "two", &two.path, &config);
    assert!(
        !answer.ok
            && answer.json["msg"]
                .as_str()
                .unwrap()
                .contains("already has an IP address different"),
        "{answer:?}"
    );
    config["forceAddress"] = json!(true);
    // The address of the failed try rests: it is not the next to be given.
    assert_eq!(world.add(&two, &config)["ips"][0]["address"], "10.244.7.8/16");
    let addresses = world.shell("ip -4 -o addr show cni0");
    assert!(
        addresses.contains("10.244.0.1/16") && !addresses.contains("10.244.1.1/24"),
        "{addresses}"
    );
}

#[test]
fn routes_have_what_the_newest_version_adds() {
    let world = World::new();
    let pod = world.pod("one");
    let mut config = world.config();
    config["cniVersion"] = json!("1.1.0");
    config["ipam"]["routes"] = json!([
        {"dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "10.9.0.0/16", "table": 1000},
        {"dst": "10.8.0.0/16", "scope": 253},
    ]);
    let result = world.add(&pod, &config);
    assert_eq!(result["routes"], config["ipam"]["routes"]);
    let routes = pod.shell("ip route; ip route show table 1000");
    for wanted in [
        "default via 10.244.1.1 dev eth0 metric 7 mtu 1300 advmss 1200",
        "10.9.0.0/16 via 10.244.1.1 dev eth0",
        "10.8.0.0/16 dev eth0 scope link",
    ] {
        assert!(routes.lines().any(|line| line.trim() == wanted), "{wanted}: {routes}");
    }
    config["prevResult"] = result;
    let check = || world.call("bridge", "CHECK", "one", &pod.path, &config);
    assert!(check().ok, "{:?}", check());
    pod.shell("ip route flush table 1000");
    assert!(!check().ok);
}

#[test]
fn a_default_route_may_be_asked_for_twice() {
    let world = World::new();
    let pod = world.pod("one");
    let mut config = world.config();
    config["isDefaultGateway"] = json!(true);
    assert_eq!(world.add(&pod, &config)["routes"], json!([{"dst": "0.0.0.0/0"}]));
    assert_eq!(pod.shell("ip route show default").lines().count(), 1);
}

#[test]
fn two_families_and_a_requested_address() {
    let world = World::new();
    let pod = world.pod("one");
    let mut config = world.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]);
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    config["runtimeConfig"] = json!({"ips": ["10.244.1.77"]});
    let result = world.add(&pod, &config);
    assert_eq!(result["ips"][0]["address"], "10.244.1.77/24");
    assert_eq!(result["ips"][1]["address"], "fd00:1::2/64");
    let routes = pod.shell("ip -6 route show default");
    assert!(routes.contains("via fd00:1::1"), "{routes}");
    world.del(&pod, &config);
    assert!(world.leases("net").is_empty());
}
