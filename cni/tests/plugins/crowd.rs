//! Many containers at once.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use skiff_net::netlink::Netlink;

use crate::world::{Pod, World, answer};

const CROWD: usize = 64;

#[test]
fn sixty_four_at_once_get_an_address_each_and_leave_nothing() {
    let world = World::new();
    let config = world.config();
    let pods: Vec<_> = (0..CROWD).map(|index| world.pod(&format!("pod{index}"))).collect();
    let each = |verb: &str| {
        let children: Vec<_> = pods
            .iter()
            .map(|pod| world.start("bridge", verb, &pod.name, &pod.path, &config))
            .collect();
        children
            .into_iter()
            .map(|child| answer(&child.wait_with_output().unwrap()))
            .collect::<Vec<_>>()
    };
    let added = each("ADD");
    let addresses: HashSet<_> = added
        .iter()
        .map(|answer| {
            assert!(answer.ok, "{answer:?}");
            answer.json["ips"][0]["address"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(addresses.len(), CROWD);
    assert_eq!(world.leases("net").len(), CROWD);
    for answer in each("DEL") {
        assert!(answer.ok, "{answer:?}");
    }
    assert!(world.leases("net").is_empty());
    assert!(!world.shell("ip link").contains("veth"));
}

#[test]
fn killed_adds_leak_nothing_that_del_does_not_remove() {
    let world = World::new();
    let config = world.config();
    let pods: Vec<_> = (0..CROWD).map(|index| world.pod(&format!("pod{index}"))).collect();
    let mut children: Vec<_> = pods
        .iter()
        .map(|pod| world.start("bridge", "ADD", &pod.name, &pod.path, &config))
        .collect();
    // Every third dies wherever it happens to be.
    for child in children.iter_mut().step_by(3) {
        child.kill().unwrap();
    }
    let mut addresses = HashSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            let address = answer(&output).json["ips"][0]["address"].as_str().unwrap().to_owned();
            assert!(addresses.insert(address.clone()), "{address} was given twice");
        }
    }
    assert!(addresses.len() >= CROWD * 2 / 3, "{}", addresses.len());
    for pod in &pods {
        world.del(pod, &config);
    }
    assert!(world.leases("net").is_empty());
    assert!(!world.shell("ip link").contains("veth"));
}

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// The address that a pod has in the kernel.
fn address(pod: &Pod) -> Option<String> {
    let mut netlink = Netlink::open_in(&pod.namespace).unwrap();
    let link = netlink.link("eth0").unwrap()?;
    let addresses = netlink.addresses(Some(link.index)).unwrap();
    let found = addresses.iter().find(|address| address.net.addr().is_ipv4());
    found.map(|address| address.net.addr().to_string())
}

/// Kills some of them wherever they happen to be: each after another while. Returns which.
fn kill_some(children: &mut [Child]) -> Vec<bool> {
    let each = children.iter_mut().map(|child| {
        let kill = random(4) == 0;
        if kill {
            std::thread::sleep(Duration::from_micros(random(3_000)));
            child.kill().unwrap();
        }
        kill
    });
    each.collect()
}

#[test]
fn adds_and_dels_at_once_with_random_deaths_keep_one_owner_for_each_address() {
    let world = World::new();
    let mut config = world.config();
    // Twice as many addresses as pods: each is given several times over.
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/25"}]]);
    let pods: Vec<_> = (0..CROWD).map(|index| world.pod(&format!("pod{index}"))).collect();
    let mut attached = [false; CROWD];
    for round in 0..6 {
        let verbs: Vec<_> = attached
            .iter()
            .map(|attached| if *attached { "DEL" } else { "ADD" })
            .collect();
        let mut children: Vec<_> = pods
            .iter()
            .zip(&verbs)
            .map(|(pod, verb)| world.start("bridge", verb, &pod.name, &pod.path, &config))
            .collect();
        let killed = kill_some(&mut children);
        for (index, child) in children.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            let done = output.status.success();
            assert!(done || killed[index], "{}", String::from_utf8_lossy(&output.stdout));
            // As the runtime has it: what did not say that it was done is to be deleted.
            attached[index] = if done { verbs[index] == "ADD" } else { true };
        }
        let leases = world.leases("net");
        let found: Vec<_> = pods.iter().filter_map(address).collect();
        let unique: HashSet<_> = found.iter().collect();
        assert_eq!(unique.len(), found.len(), "round {round}: {found:?}");
        for pod in &pods {
            // Whoever has an address has its lease.
            let Some(address) = address(pod) else { continue };
            let owner = std::fs::read_to_string(world.data().join("net").join(&address)).unwrap();
            assert_eq!(
                owner,
                format!("{}\r\neth0", pod.name),
                "round {round}: {address}, {leases:?}"
            );
        }
    }
    for pod in &pods {
        world.del(pod, &config);
    }
    assert_empty(&world);
}

fn assert_empty(world: &World) {
    assert!(world.leases("net").is_empty(), "{:?}", world.leases("net"));
    let holders = std::fs::read_dir(world.data().join("net/holders")).unwrap();
    assert_eq!(holders.count(), 0);
    assert!(!world.shell("ip link").contains("veth"));
    assert!(!world.shell("iptables-save").contains("id: "));
}

/// A configuration with room for five, and rules for each container.
fn small(world: &World) -> Value {
    let mut config = world.config();
    config["ipMasq"] = json!(true);
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}]]);
    config
}

#[test]
fn addresses_of_pods_that_are_gone_are_given_again_when_none_is_left() {
    let world = World::new();
    let config = small(&world);
    let mut pods: Vec<_> = (0..5).map(|index| world.pod(&format!("pod{index}"))).collect();
    for pod in &pods {
        world.add(pod, &config);
    }
    let full = |pod: &Pod| {
        let refused = world.call("bridge", "ADD", &pod.name, &pod.path, &config);
        let message = "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.1-10.244.1.6";
        assert_eq!(refused.json["msg"], message);
    };
    let late: Vec<_> = (0..4).map(|index| world.pod(&format!("late{index}"))).collect();
    full(&late[0]);

    // Three end without a DEL, as when a runtime loses its state; a process of one of them lives on.
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000").stdout(Stdio::null());
    let mut survivor = pods[1].namespace.run(|| sleeper.spawn()).unwrap().unwrap();
    let held = address(&pods[1]).unwrap();
    pods.drain(1..4);
    let given: HashSet<_> = late[..2]
        .iter()
        .map(|pod| {
            world.add(pod, &config)["ips"][0]["address"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(given, HashSet::from(["10.244.1.4/29".into(), "10.244.1.5/29".into()]));
    full(&late[2]);
    // Nor is it given to whoever asks for it by name.
    let mut asking = config.clone();
    asking["runtimeConfig"] = json!({"ips": [held]});
    assert!(!world.call("bridge", "ADD", "late2", &late[2].path, &asking).ok);
    survivor.kill().unwrap();
    survivor.wait().unwrap();
    assert_eq!(world.add(&late[2], &asking)["ips"][0]["address"], format!("{held}/29"));
    full(&late[3]);

    // The rules of those that are gone went with their addresses.
    let rules = world.shell("iptables-save -t nat");
    for (name, there) in [
        ("pod0", true),
        ("pod1", false),
        ("pod2", false),
        ("pod3", false),
        ("late1", true),
    ] {
        assert_eq!(rules.contains(&format!(r#"id: \"{name}\""#)), there, "{name}: {rules}");
    }
    for pod in pods.iter().chain(&late) {
        world.del(pod, &config);
    }
    assert_empty(&world);
}

#[test]
fn what_killed_adds_leave_is_collected_without_their_dels() {
    let world = World::new();
    let mut config = world.config();
    config["cniVersion"] = json!("1.1.0");
    let pods: Vec<_> = (0..CROWD).map(|index| world.pod(&format!("pod{index}"))).collect();
    let mut children: Vec<_> = pods
        .iter()
        .map(|pod| world.start("bridge", "ADD", &pod.name, &pod.path, &config))
        .collect();
    kill_some(&mut children);
    let done: Vec<_> = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap().status.success())
        .collect();
    let valid: Vec<_> = pods
        .iter()
        .zip(&done)
        .filter(|(_, done)| **done)
        .map(|(pod, _)| pod)
        .collect();
    assert!(valid.len() > CROWD / 2, "{}", valid.len());
    let attachments = valid
        .iter()
        .map(|pod| json!({"containerID": pod.name, "ifname": "eth0"}));
    config["cni.dev/valid-attachments"] = attachments.collect();
    assert!(world.call("bridge", "GC", "", std::path::Path::new(""), &config).ok);
    assert_eq!(world.leases("net").len(), valid.len());
    for pod in valid {
        world.del(pod, &config);
    }
    assert!(world.leases("net").is_empty());
}
