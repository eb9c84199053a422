//! One node: what its overlay makes of the Nodes, and of what happens to its links.

use serde_json::Value;
use skiff_net::netlink;
use skiff_overlay::Mode;

use crate::scripted::{Overlay, node, on_node, shell, until};

fn routes() -> String {
    shell("ip route show proto 75")
}

fn this() -> Value {
    node("a", "10.244.0.0/24", "172.30.0.1")
}

#[test]
fn nodes_become_routes_rules_and_the_cni_configuration() {
    on_node(async {
        let nodes = vec![node("a", "", "172.30.0.1"), node("b", "10.244.1.0/24", "172.30.0.2")];
        let overlay = Overlay::start(Mode::Direct, nodes);

        // Without a range of its own the node is not ready, but reaches the others.
        until("route to b", || routes().contains("10.244.1.0/24 via 172.30.0.2")).await;
        assert!(!overlay.is_ready());
        assert!(!overlay.config.cni_config_dir.exists());

        overlay.send("MODIFIED", this());
        until("ready", || overlay.is_ready()).await;
        let text = overlay.conflist().unwrap();
        assert!(
            text.contains("10.244.0.0/24") && text.contains("\"mtu\": 1500"),
            "{text}"
        );
        let rules = shell("iptables-save -t nat");
        for rule in [
            "-d 10.244.0.0/16 -j RETURN",
            "-s 10.244.0.0/24 -j MASQUERADE --random-fully",
        ] {
            assert!(rules.contains(&format!("-A SKIFF-POSTROUTING {rule}")), "{rules}");
        }
        let rules = shell("iptables-save -t filter");
        for rule in ["-s 10.244.0.0/24 -j ACCEPT", "-d 10.244.0.0/24 -j ACCEPT"] {
            assert!(rules.contains(&format!("-A SKIFF-FORWARD {rule}")), "{rules}");
        }
        assert_eq!(
            shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables"),
            "1\n1\n"
        );

        // A node changes its address, another comes, one goes.
        overlay.send("MODIFIED", node("b", "10.244.1.0/24", "172.30.0.9"));
        overlay.send("ADDED", node("c", "10.244.2.0/24", "172.30.0.3"));
        until("b moved, c came", || {
            routes().contains("via 172.30.0.9") && routes().contains("10.244.2.0/24")
        })
        .await;
        overlay.send("DELETED", node("c", "10.244.2.0/24", "172.30.0.3"));
        until("c gone", || !routes().contains("10.244.2.0/24")).await;
        assert_eq!(routes().lines().count(), 1);

        // A node that is not on the segment does not keep the others from being routed to.
        overlay.send("ADDED", node("far", "10.244.3.0/24", "192.0.2.1"));
        until("told", || !overlay.is_ready()).await;
        overlay.send("ADDED", node("d", "10.244.4.0/24", "172.30.0.4"));
        until("d", || routes().contains("10.244.4.0/24 via 172.30.0.4")).await;

        overlay.stop().await;
        // Routes stay: pods go on talking while the process is replaced.
        assert_eq!(routes().lines().count(), 2);
    });
}

#[test]
fn a_restart_removes_what_became_stale_and_repeats_nothing() {
    on_node(async {
        for other in [
            node("b", "10.244.1.0/24", "172.30.0.2"),
            node("c", "10.244.2.0/24", "172.30.0.3"),
        ] {
            let overlay = Overlay::start(Mode::Auto, vec![this(), other]);
            until("ready", || overlay.is_ready()).await;
            overlay.stop().await;
        }
        assert_eq!(routes().trim(), "10.244.2.0/24 via 172.30.0.3 dev lan");
        let rules = shell("iptables-save -t nat");
        assert_eq!(rules.matches("-A POSTROUTING").count(), 1, "{rules}");
        assert_eq!(rules.matches("MASQUERADE").count(), 1, "{rules}");
    });
}

/// The permanent entries of the tunnel, without the kernel's own for multicast.
fn entries() -> (String, String) {
    let own = |lines: String| {
        let mut lines: Vec<_> = lines
            .lines()
            .filter(|line| line.contains("0e:73"))
            .map(str::trim)
            .collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    (
        own(shell("ip neigh show dev skiff.vxlan nud permanent")),
        own(shell("bridge fdb show dev skiff.vxlan")),
    )
}

#[test]
fn nodes_of_other_segments_become_entries_of_the_tunnel() {
    on_node(async {
        let nodes = vec![
            this(),
            node("near", "10.244.1.0/24", "172.30.0.2"),
            node("far", "10.244.2.0/24", "172.30.1.3"),
        ];
        let overlay = Overlay::start(Mode::Auto, nodes);
        until("ready", || overlay.is_ready()).await;
        assert_eq!(
            routes().trim().replace(" \n", "\n"),
            "10.244.1.0/24 via 172.30.0.2 dev lan\n10.244.2.0/24 via 10.244.2.0 dev skiff.vxlan onlink"
        );
        let link = shell("ip -d link show skiff.vxlan");
        for part in [
            "mtu 1450",
            "0e:73:0a:f4:00:00",
            "vxlan id 1 local 172.30.0.1",
            "dstport 8472",
            "nolearning",
        ] {
            assert!(link.contains(part), "{part} in {link}");
        }
        assert!(shell("ip -4 address show dev skiff.vxlan").contains("10.244.0.0/32"));
        let neighbour = "10.244.2.0 lladdr 0e:73:0a:f4:02:00 PERMANENT";
        let forwarding = |node: &str| format!("0e:73:0a:f4:02:00 dst {node} self permanent");
        assert_eq!(entries(), (neighbour.to_owned(), forwarding("172.30.1.3")));
        // Room is kept for the tunnel by the pods' routes.
        let sizes = || {
            let conflist: serde_json::Value = serde_json::from_str(&overlay.conflist().unwrap()).unwrap();
            let bridge = &conflist["plugins"][0];
            (bridge["mtu"].as_u64(), bridge["ipam"]["routes"][0]["mtu"].as_u64())
        };
        assert_eq!(sizes(), (Some(1500), Some(1450)));

        overlay.send("MODIFIED", node("far", "10.244.2.0/24", "172.30.2.9"));
        until("far moved", || entries().1 == forwarding("172.30.2.9")).await;
        overlay.send("ADDED", node("new", "10.244.3.0/24", "172.30.2.10"));
        until("new came", || {
            routes().contains("10.244.3.0/24") && entries().0.lines().count() == 2
        })
        .await;

        // A near node moves to another segment, a far one to this: the way changes, nothing is left of the former.
        overlay.send("MODIFIED", node("near", "10.244.1.0/24", "172.30.5.2"));
        overlay.send("MODIFIED", node("far", "10.244.2.0/24", "172.30.0.3"));
        until("both moved", || {
            let routes = routes();
            routes.contains("10.244.1.0/24 via 10.244.1.0 dev skiff.vxlan")
                && routes.contains("10.244.2.0/24 via 172.30.0.3 dev lan")
                && !entries().0.contains("10.244.2.0")
                && !entries().1.contains("172.30.2.9")
        })
        .await;

        overlay.send("DELETED", node("near", "10.244.1.0/24", "172.30.5.2"));
        overlay.send("DELETED", node("new", "10.244.3.0/24", "172.30.2.10"));
        until("nobody is behind the tunnel", || {
            !shell("ip link").contains("skiff.vxlan")
        })
        .await;
        until("pods may use the whole link", || sizes() == (Some(1500), None)).await;
        assert_eq!(routes().trim(), "10.244.2.0/24 via 172.30.0.3 dev lan");
        overlay.stop().await;
    });
}

#[test]
fn a_node_that_changes_its_own_address_or_mtu_is_followed() {
    on_node(async {
        let far = node("far", "10.244.2.0/24", "192.0.2.3");
        let overlay = Overlay::start(Mode::Vxlan, vec![this(), far]);
        until("ready", || overlay.is_ready()).await;

        // The address that the Node object says is gone: what works stays, and somebody is told.
        shell("ip address del 172.30.0.1/24 dev lan && ip address add 172.30.0.7/24 dev lan");
        until("told", || !overlay.is_ready()).await;
        assert!(overlay.conflist().is_some());
        assert!(routes().contains("10.244.2.0/24 via 10.244.2.0 dev skiff.vxlan"));
        overlay.send("MODIFIED", node("a", "10.244.0.0/24", "172.30.0.7"));
        until("ready with the new address", || overlay.is_ready()).await;
        assert!(shell("ip -d link show skiff.vxlan").contains("local 172.30.0.7"));
        assert!(routes().contains("10.244.2.0/24 via 10.244.2.0 dev skiff.vxlan"));

        shell("ip link set lan mtu 9000");
        until("the mtu", || {
            shell("ip link show skiff.vxlan").contains("mtu 8950")
                && overlay.conflist().unwrap().contains("\"mtu\": 8950")
        })
        .await;
        overlay.stop().await;
    });
}

#[test]
fn links_that_go_and_come_back_have_their_routes_again_at_once() {
    on_node(async {
        let nodes = vec![
            this(),
            node("near", "10.244.1.0/24", "172.30.0.2"),
            node("far", "10.244.2.0/24", "192.0.2.3"),
        ];
        let overlay = Overlay::start(Mode::Auto, nodes);
        until("ready", || overlay.is_ready()).await;
        let all = || routes().lines().count() == 2;

        // With the link the kernel takes the routes over it away.
        shell("ip link set lan down");
        until("cut off", || !overlay.is_ready()).await;
        assert!(!routes().contains("10.244.1.0/24"));
        shell("ip link set lan up");
        until("back", || overlay.is_ready() && all()).await;

        // What others remove is made again.
        shell("ip link delete skiff.vxlan");
        until("the tunnel again", || shell("ip link").contains("skiff.vxlan") && all()).await;
        assert_eq!(entries().1, "0e:73:0a:f4:02:00 dst 192.0.2.3 self permanent");
        shell("ip route delete 10.244.1.0/24");
        until("the route again", all).await;
        shell("ip link set skiff.vxlan down");
        until("the tunnel up", || {
            shell("ip link show skiff.vxlan").contains("UP") && all()
        })
        .await;
        overlay.stop().await;
    });
}

#[test]
fn another_cni_finds_nothing_of_ours() {
    on_node(async {
        let nodes = vec![this(), node("far", "10.244.2.0/24", "192.0.2.3")];
        let overlay = Overlay::start(Mode::Auto, nodes.clone());
        until("ready", || overlay.is_ready()).await;
        let folder = overlay.stop().await;
        shell("ip route add 198.51.100.0/24 dev lan && iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE");
        let others = folder.path().join("net.d/05-other.conflist");
        std::fs::write(&others, "{}").unwrap();

        let overlay = Overlay::start_in(folder, "a", Mode::None, nodes);
        until("ready", || overlay.is_ready()).await;
        assert_eq!(routes(), "");
        assert!(!shell("ip link").contains("skiff.vxlan"));
        let rules = shell("iptables-save");
        assert!(!rules.contains("SKIFF") && rules.contains("-s 192.0.2.0/24"), "{rules}");
        assert!(shell("ip route").contains("198.51.100.0/24"));
        assert_eq!(overlay.conflist(), None);
        assert!(others.exists());
        overlay.stop().await;
    });
}

#[test]
fn a_change_costs_one_entry_however_many_nodes_there_are() {
    on_node(async {
        let number = |n: usize| (n / 250, n % 250 + 2);
        let other = |n: usize, segment: &str| {
            let (high, low) = number(n);
            node(
                &format!("n{n}"),
                &format!("10.{}.{low}.0/24", 100 + high),
                &format!("{segment}{high}.{low}"),
            )
        };
        // A quarter on this segment, the others behind the tunnel.
        let mut nodes: Vec<_> = (0..1000).map(|n| other(n, "172.30.")).collect();
        nodes.push(this());
        let overlay = Overlay::start(Mode::Auto, nodes);
        until("ready", || overlay.is_ready()).await;
        assert_eq!(routes().lines().count(), 1000);
        assert_eq!(entries().1.lines().count(), 750);

        let heard = netlink::monitor().unwrap();
        overlay.send("MODIFIED", node("n7", "10.100.9.0/24", "172.30.0.254"));
        until("n7 moved", || {
            shell("ip route show 10.100.9.0/24").contains("172.30.0.254")
        })
        .await;
        overlay.send("MODIFIED", node("n900", "10.103.152.0/24", "192.0.2.1"));
        until("n900 moved", || entries().1.contains("192.0.2.1")).await;
        let mut buffer = vec![0; 64 * 1024];
        let mut events = Vec::new();
        while let Ok(length) = heard.recv(&mut buffer) {
            events.extend(netlink::events(&buffer[..length]));
        }
        // A new link's own IPv6 address comes late.
        events.retain(|event| matches!(event, netlink::Event::Route { protocol, .. } if protocol.0 == 75));
        assert_eq!(events.len(), 1, "one route, and an entry that is none: {events:?}");
        overlay.stop().await;
    });
}
