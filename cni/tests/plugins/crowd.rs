//! Many containers at once.

use std::collections::HashSet;

use crate::world::{World, answer};

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
