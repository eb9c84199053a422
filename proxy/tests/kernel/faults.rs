//! What others do to the rules, and what a sudden end leaves.

use std::fs::File;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use skiff_net::nftables::{Batch, Nftables, Rule};

use crate::api::{service, slice};
use crate::world::{World, ask, settled, until};

const SERVICE: &str = "10.96.0.10:80";
const CONFIG: &str = "metricsBindAddress: \":0\"\n";

/// Whether packets of other machines are routed to the node's loopback.
fn loopback_is_open(world: &World) -> bool {
    let setting = "cat /proc/sys/net/ipv4/conf/all/route_localnet";
    world.shell(setting).trim() == "1"
}

#[test]
fn cleaning_up_leaves_what_was_there_before() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    world.shell(
        "iptables -t nat -N KUBERNETES-MINE; iptables -t nat -A PREROUTING -j KUBERNETES-MINE; iptables -A FORWARD -s 192.0.2.1 -j DROP; \
         iptables -t mangle -N KUBE-KUBELET-CANARY; iptables -t nat -N CNI-HOSTPORT-DNAT",
    );
    let before = settled(&world.rules());
    let spec = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"],
                      "ports": [{"port": 80, "nodePort": 30080}]});
    let mut balanced = service("web", "10.96.0.10", spec);
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    world.api.put("services", balanced);
    world.api.put("services", service("none", "10.96.0.11", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let proxy = world.start(CONFIG);
    until("answers", || ask(&world.node, SERVICE).ok());
    until("loopback is open", || loopback_is_open(&world).then_some(()));
    proxy.stop();
    // Once more: nothing is there any more, and that is no error.
    for _ in 0..2 {
        world.node.run(skiff_proxy::cleanup).unwrap().unwrap();
        assert_eq!(settled(&world.rules()), before);
        // The rule that guarded it is gone.
        assert!(!loopback_is_open(&world));
    }
}

#[test]
fn killed_amid_a_sync_the_next_one_ends_with_the_same_rules() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    let put = |generation: usize| {
        for index in 0..600 {
            let name = format!("s{index}");
            let ip = format!("10.100.{}.{}", index / 250, index % 250 + 1);
            world.api.put(
                "services",
                service(&name, &ip, json!({"ports": [{"port": 80 + generation}]})),
            );
            let far = [
                format!("10.244.1.{}", generation + 2),
                format!("10.244.1.{}", generation + 3),
            ];
            world
                .api
                .put("endpointslices", slice(&name, "TCP", &[&far[0], &far[1]]));
        }
    };
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    put(0);
    let first = world.start(CONFIG);
    until("answers", || ask(&world.node, SERVICE).ok());
    for (generation, millis) in [20, 60, 110, 170, 240].into_iter().enumerate() {
        put(generation + 1);
        let proxy = world.start(CONFIG);
        // The moment is what is tried here, not waited for.
        std::thread::sleep(Duration::from_millis(millis));
        proxy.kill();
        // Whatever was written: the old rules or the new ones lead somewhere.
        assert!(ask(&world.node, SERVICE).is_ok(), "after {millis} ms");
    }
    drop(first);
    let last = world.start(CONFIG);
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    until("all", || last.metrics.encode().contains(full).then_some(()));
    last.stop();
    let left = settled(&world.rules());
    world.node.run(skiff_proxy::cleanup).unwrap().unwrap();
    let fresh = world.start(CONFIG);
    until("all", || fresh.metrics.encode().contains(full).then_some(()));
    let fresh = settled(&world.rules());
    assert_eq!(left.len(), fresh.len());
    assert_eq!(left, fresh);
}

#[test]
fn a_lock_that_another_holds_is_waited_for() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    // Rules of the legacy kind: the one that has a lock.
    world.shell("iptables-legacy -t nat -N SOMEBODYS");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xtables.lock");
    let file = File::create(&path).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let proxy = world.start_with(CONFIG, |config| config.lock_file = Some(path));
    let failures = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 0\n";
    until("a failure", || {
        (!proxy.metrics.encode().contains(failures)).then_some(())
    });
    assert!(ask(&world.node, SERVICE).is_err());
    let told = |wanted: &str| {
        let events = world.api.events().into_iter();
        let told = events.filter(|(reason, _)| reason == wanted);
        told.map(|(_, message)| message).collect::<Vec<_>>()
    };
    let message = until("an event of the node", || told("RulesNotWritten").pop());
    assert!(message.contains("another program holds the iptables lock"), "{message}");
    assert!(!loopback_is_open(&world), "before there is a rule that guards it");
    drop(lock);
    until("answers", || ask(&world.node, SERVICE).ok());
    until("loopback is open", || loopback_is_open(&world).then_some(()));
    assert_eq!(
        told("RulesNotWritten").len(),
        1,
        "told once, however often it was tried"
    );
    assert!(world.shell("iptables-legacy-save -t nat").contains("KUBE-SVC-"));
}

#[test]
fn a_flush_of_one_table_by_another_is_repaired() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    let proxy = world.start(&format!("{CONFIG}iptables: {{syncPeriod: 200ms}}\n"));
    until("answers", || ask(&world.node, SERVICE).ok());
    let before = settled(&world.rules());
    for table in ["filter", "mangle", "nat"] {
        // The proxy may come between the two: then there is nothing to remove any more.
        world.shell(&format!("iptables -t {table} -F; iptables -t {table} -X || true"));
        until(table, || (settled(&world.rules()) == before).then_some(()));
    }
    for table in ["filter", "nat"] {
        // The chains stay, empty.
        world.shell(&format!("iptables -t {table} -F"));
        until(table, || (settled(&world.rules()) == before).then_some(()));
    }
    for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
        world.shell(&format!("iptables -t nat -F {chain}"));
        until(chain, || (settled(&world.rules()) == before).then_some(()));
    }
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        // Ours stay as they are: only the ways into them are gone.
        world.shell(&format!("iptables -F {chain}"));
        until(chain, || (settled(&world.rules()) == before).then_some(()));
    }
    // One way of several.
    world.shell("iptables -D OUTPUT -j KUBE-FIREWALL");
    until("the guard", || (settled(&world.rules()) == before).then_some(()));
    assert!(ask(&world.node, SERVICE).is_ok());
    let told = || {
        world
            .api
            .events()
            .into_iter()
            .any(|(reason, _)| reason == "RulesRemoved")
    };
    until("an event of the node", || told().then_some(()));
    let never_again = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    assert!(!proxy.metrics.encode().contains(never_again));
}

/// So many Services that changes take the quick way.
fn crowd(world: &World) {
    // What is not there yet is refused: a client waits for no lost packet.
    world.api.put(
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes", "resourceVersion": "2"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    );
    for index in 0..1300 {
        let name = format!("s{index}");
        let ip = format!("10.100.{}.{}", index / 250, index % 250 + 1);
        world.api.put("services", service(&name, &ip, json!({})));
        world
            .api
            .put("endpointslices", slice(&name, "TCP", &["10.244.1.2", "10.244.1.3"]));
    }
}

/// Whether the Service `test/web` is in the rules that it shares with all others. (To list them all takes longer than
/// the quick way lasts.)
fn is_among_the_others(world: &World) -> bool {
    let chain = skiff_proxy::chain(skiff_proxy::Kind::Service, "test/web", "tcp", "");
    let listed = world.shell(&format!("iptables -t nat -S {chain} 2>&1 || true"));
    listed.contains("test/web -> 10.244.0")
}

#[test]
fn the_quick_way_leads_to_the_same_place_and_ends() {
    let world = World::new();
    let (client, _a, _b) = (
        world.pod("c", "10.244.0.9"),
        world.pod("a", "10.244.0.2"),
        world.pod("b", "10.244.0.3"),
    );
    crowd(&world);
    let proxy = world.start(CONFIG);
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    until("all", || proxy.metrics.encode().contains(full).then_some(()));
    let is_in = || is_among_the_others(&world);
    let source = |from: &skiff_net::netns::Namespace| ask(from, SERVICE).unwrap().1.to_string();

    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    until("answers", || ask(&client, SERVICE).ok());
    assert!(!is_in(), "the rules are among the others already");
    // Sources are treated as by the other rules: of pods kept, of others masked, of the endpoint itself masked.
    assert_eq!(source(&client), "10.244.0.9");
    assert_eq!(source(&_a), "10.244.0.1");
    world.shell_outside("ip route add 10.96.0.0/12 via 172.30.0.1");
    assert_eq!(source(&world.outside), "10.244.0.1");
    // An endpoint more: both answer.
    world
        .api
        .put("endpointslices", slice("web", "TCP", &["10.244.0.2", "10.244.0.3"]));
    until("b answers too", || {
        ask(&client, SERVICE).ok().filter(|(name, _)| name == "b")
    });
    // It moves in, and answers at every moment meanwhile.
    until("moved in", || {
        assert!(ask(&client, SERVICE).is_ok());
        is_in().then_some(())
    });
    // What is gone is gone at once, whichever way it took.
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.3"]));
    until("b alone", || {
        (0..10)
            .all(|_| ask(&client, SERVICE).is_ok_and(|(name, _)| name == "b"))
            .then_some(())
    });
    world.api.put("endpointslices", slice("web", "TCP", &[]));
    until("refused", || ask(&client, SERVICE).err());
    world.api.delete("services", "web");
    until("nothing left", || (!world.rules().contains("test/web")).then_some(()));
    assert!(ask(&client, SERVICE).is_err());
}

#[test]
fn what_took_the_quick_way_answers_though_it_cannot_move_in() {
    let world = World::new();
    let (client, _a) = (world.pod("c", "10.244.0.9"), world.pod("a", "10.244.0.2"));
    crowd(&world);
    let proxy = world.start(CONFIG);
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    until("all", || proxy.metrics.encode().contains(full).then_some(()));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    until("answers", || ask(&client, SERVICE).ok());
    // The chain that it is to move into is gone.
    world.shell("iptables -t nat -F; iptables -t nat -X");
    until("all once more", || {
        assert!(ask(&client, SERVICE).is_ok());
        (!proxy.metrics.encode().contains(full)).then_some(())
    });
    let failures = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 1\n";
    assert!(proxy.metrics.encode().contains(failures));
    assert!(is_among_the_others(&world) && ask(&client, SERVICE).is_ok());
}

#[test]
fn a_quick_way_that_cannot_be_changed_is_left() {
    let world = World::new();
    let (client, _a, _b) = (
        world.pod("c", "10.244.0.9"),
        world.pod("a", "10.244.0.2"),
        world.pod("b", "10.244.0.3"),
    );
    crowd(&world);
    let proxy = world.start(CONFIG);
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    until("all", || proxy.metrics.encode().contains(full).then_some(()));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    until("answers", || ask(&client, SERVICE).ok());
    // Somebody's rule leads to a chain of it, which therefore cannot be removed.
    let endpoint = skiff_proxy::chain(skiff_proxy::Kind::Endpoint, "test/web", "tcp", "10.244.0.2:8080");
    let mut batch = Batch::new();
    batch.chain("kube-proxy-express", "MINE");
    batch.rule("kube-proxy-express", "MINE", &Rule::new("mine").jump(&endpoint));
    let apply = || Nftables::open().unwrap().apply(&batch);
    world.node.run(apply).unwrap().unwrap();
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.3"]));
    until("b alone", || {
        (0..10)
            .all(|_| ask(&client, SERVICE).is_ok_and(|(name, _)| name == "b"))
            .then_some(())
    });
    assert!(is_among_the_others(&world));
}

#[test]
fn killed_on_the_quick_way_nothing_is_lost_and_nothing_left() {
    let world = World::new();
    let _a = world.pod("a", "10.244.0.2");
    crowd(&world);
    let proxy = world.start(CONFIG);
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1\n";
    until("all", || proxy.metrics.encode().contains(full).then_some(()));
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    world.api.put("endpointslices", slice("web", "TCP", &["10.244.0.2"]));
    until("answers", || ask(&world.node, SERVICE).ok());
    proxy.kill();
    assert!(!is_among_the_others(&world));
    assert!(ask(&world.node, SERVICE).is_ok());
    // Deleted while no proxy ran: the next one takes the quick way's rules away, too.
    world.api.put("services", service("other", "10.96.0.11", json!({})));
    world.api.put("endpointslices", slice("other", "TCP", &["10.244.0.2"]));
    world.api.delete("services", "web");
    let next = world.start(CONFIG);
    until("all", || next.metrics.encode().contains(full).then_some(()));
    assert!(ask(&world.node, "10.96.0.11:80").is_ok() && ask(&world.node, SERVICE).is_err());
    world.api.put("services", service("web", "10.96.0.10", json!({})));
    until("answers again", || ask(&world.node, SERVICE).ok());
    next.kill();
    world.node.run(skiff_proxy::cleanup).unwrap().unwrap();
    assert!(ask(&world.node, SERVICE).is_err());
}
