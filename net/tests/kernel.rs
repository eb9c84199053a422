//! The clients against the real kernel, each test in network namespaces of its own.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use skiff_net::conntrack::{self, Conntrack};
use skiff_net::iptables::{Family, Iptables, Restore};
use skiff_net::netlink::{
    BridgeOptions, Event, Forwarding, LinkChange, Mac, Netlink, Protocol, Route, VethOptions, Vxlan, events, monitor,
};
use skiff_net::netns::{self, Namespace};
use skiff_net::nftables::{Batch, Hook, Nftables, Rule};
use skiff_net::sysctl;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_namespace_is_made_entered_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let made = Namespace::create(folder.path(), "one").unwrap();
    let host = Namespace::current().unwrap();
    assert_ne!(made.id().unwrap(), host.id().unwrap());
    assert!(Namespace::exists(folder.path(), "one"));
    assert!(matches!(
        Namespace::create(folder.path(), "one"),
        Err(netns::Error::Exists { .. })
    ));

    let inside = made.run(|| Namespace::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(inside, made.id().unwrap());
    let again = Namespace::open_named(folder.path(), "one").unwrap();
    assert_eq!(again.id().unwrap(), made.id().unwrap());

    // A program started inside stays there.
    let output = made
        .run(|| Command::new("ip").args(["-o", "link"]).output())
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);

    Namespace::delete(folder.path(), "one").unwrap();
    Namespace::delete(folder.path(), "one").unwrap();
    assert!(!Namespace::exists(folder.path(), "one"));
    assert!(matches!(
        Namespace::open_named(folder.path(), "one"),
        Err(netns::Error::Open { .. })
    ));
}

#[test]
fn a_visit_to_a_namespace_ends_where_it_began() {
    let here = || Namespace::current().unwrap().id().unwrap();
    let (home, other) = (here(), Namespace::anonymous().unwrap());
    assert_eq!(other.visit(here).unwrap(), other.id().unwrap());
    assert_eq!(here(), home);
    // A panic comes home too.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other.visit(|| panic!("on purpose")))).unwrap_err();
    assert_eq!(here(), home);
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = Namespace::open(file.path()).unwrap().visit(here).unwrap_err();
    assert!(refused.to_string().contains("is no network namespace"), "{refused}");
    assert_eq!(here(), home);
}

#[test]
fn a_file_without_a_mount_is_removed_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("half"), "").unwrap();
    assert!(!Namespace::exists(folder.path(), "half"));
    Namespace::delete(folder.path(), "half").unwrap();
    assert!(!Path::new(&folder.path().join("half")).exists());
}

#[test]
fn a_veth_pair_between_namespaces_carries_packets_over_a_bridge() {
    let (host, pod) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    let mut outer = Netlink::open_in(&host).unwrap();
    let mut inner = Netlink::open_in(&pod).unwrap();

    let mac: Mac = "0a:58:0a:01:00:01".parse().unwrap();
    outer
        .add_bridge(
            "br0",
            &BridgeOptions {
                mtu: Some(1400),
                mac: Some(mac),
                vlan_filtering: false,
            },
        )
        .unwrap();
    let error = outer.add_bridge("br0", &BridgeOptions::default()).unwrap_err();
    assert!(error.already_exists(), "{error}");
    let bridge = outer.need_link("br0").unwrap();
    assert_eq!(
        (bridge.kind.as_str(), bridge.mac, bridge.mtu, bridge.up),
        ("bridge", Some(mac), 1400, false)
    );
    outer.set_up(bridge.index).unwrap();
    outer.add_address(bridge.index, "10.1.0.1/24".parse().unwrap()).unwrap();

    let options = VethOptions {
        mtu: Some(1400),
        peer_namespace: Some(&pod),
        peer_mac: Mac::for_ip(ip("10.1.0.2")),
        master: Some(bridge.index),
        up: true,
        ..VethOptions::default()
    };
    outer.add_veth("veth0", "eth0", &options).unwrap();
    let port = outer.need_link("veth0").unwrap();
    outer.set_hairpin(port.index, true).unwrap();
    let port = outer.need_link("veth0").unwrap();
    assert!(port.up && port.hairpin && port.master == Some(bridge.index), "{port:?}");

    let eth = inner.need_link("eth0").unwrap();
    assert_eq!(
        (eth.mtu, eth.mac, eth.peer),
        (1400, Mac::for_ip(ip("10.1.0.2")), Some(port.index))
    );
    inner.set_up(eth.index).unwrap();
    inner.add_address(eth.index, "10.1.0.2/24".parse().unwrap()).unwrap();
    inner
        .add_route(&Route::through("0.0.0.0/0".parse().unwrap(), ip("10.1.0.1")))
        .unwrap();
    assert!(
        inner
            .add_route(&Route::through("0.0.0.0/0".parse().unwrap(), ip("10.1.0.1")))
            .unwrap_err()
            .already_exists()
    );

    let server = host.run(|| UdpSocket::bind("10.1.0.1:9")).unwrap().unwrap();
    let client = pod.run(|| UdpSocket::bind("10.1.0.2:0")).unwrap().unwrap();
    client.send_to(b"hello", "10.1.0.1:9").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"hello"[..], client.local_addr().unwrap()));
    let known = outer.neighbours().unwrap();
    assert!(
        known
            .iter()
            .any(|found| found.ip == ip("10.1.0.2") && found.mac == eth.mac)
            || known.is_empty()
    );

    assert!(outer.delete_link("veth0").unwrap());
    assert!(!outer.delete_link("veth0").unwrap());
    assert_eq!(inner.link("eth0").unwrap(), None);
    outer
        .set_link(
            bridge.index,
            &LinkChange {
                up: Some(false),
                ..LinkChange::default()
            },
        )
        .unwrap();
    assert!(!outer.link_by_index(bridge.index).unwrap().unwrap().up);
}

#[test]
fn addresses_and_routes_are_listed_replaced_and_removed() {
    let host = Namespace::anonymous().unwrap();
    let mut netlink = Netlink::open_in(&host).unwrap();
    netlink.add_bridge("br0", &BridgeOptions::default()).unwrap();
    let index = netlink.need_link("br0").unwrap().index;
    netlink.set_up(index).unwrap();
    netlink.add_address(index, "10.1.0.1/24".parse().unwrap()).unwrap();
    netlink.add_address(index, "10.1.0.9/24".parse().unwrap()).unwrap();
    let listed: Vec<_> = netlink
        .addresses(Some(index))
        .unwrap()
        .into_iter()
        .filter(|a| a.net.addr().is_ipv4())
        .collect();
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (listed[0].net, listed[1].secondary),
        ("10.1.0.1/24".parse().unwrap(), true)
    );
    assert!(netlink.delete_address(index, "10.1.0.9/24".parse().unwrap()).unwrap());
    assert!(!netlink.delete_address(index, "10.1.0.9/24".parse().unwrap()).unwrap());

    let mut route = Route::through("10.2.0.0/16".parse().unwrap(), ip("10.1.0.2"));
    route.protocol = Protocol(77);
    netlink.add_route(&route).unwrap();
    route.gateway = Some(ip("10.1.0.3"));
    netlink.replace_route(&route).unwrap();
    let own: Vec<_> = netlink
        .routes()
        .unwrap()
        .into_iter()
        .filter(|found| found.protocol == Protocol(77))
        .collect();
    assert_eq!(own.len(), 1);
    assert_eq!(
        (own[0].destination, own[0].gateway, own[0].link),
        (route.destination, route.gateway, Some(index))
    );
    assert!(netlink.delete_route(&own[0]).unwrap());
    assert!(!netlink.delete_route(&own[0]).unwrap());

    let unreachable = netlink
        .add_route(&Route::through("10.3.0.0/16".parse().unwrap(), ip("10.9.9.9")))
        .unwrap_err();
    assert!(
        unreachable
            .to_string()
            .starts_with("cannot add route 10.3.0.0/16 via 10.9.9.9"),
        "{unreachable}"
    );

    netlink
        .replace_neighbour(index, ip("10.1.0.7"), Mac([2, 0, 0, 0, 0, 7]))
        .unwrap();
    assert!(
        netlink
            .neighbours()
            .unwrap()
            .iter()
            .any(|n| n.ip == ip("10.1.0.7") && n.permanent)
    );
    assert!(netlink.delete_neighbour(index, ip("10.1.0.7")).unwrap());
}

#[test]
fn a_settings_change_stays_in_its_namespace() {
    let (one, two) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
    assert!(one.run(|| sysctl::set("net.ipv4.ip_forward", "1")).unwrap().unwrap());
    assert!(!one.run(|| sysctl::set("net.ipv4.ip_forward", "1")).unwrap().unwrap());
    assert_eq!(two.run(|| sysctl::get("net.ipv4.ip_forward")).unwrap().unwrap(), "0");
}

#[test]
fn a_transaction_of_rules_is_all_or_nothing_and_spares_the_rules_of_others() {
    let host = Namespace::anonymous().unwrap();
    host.run(|| {
        let iptables = Iptables::detect(Family::V4).unwrap();
        let mut foreign = Restore::new();
        foreign.table("nat").chain("FOREIGN");
        foreign.table("nat").append("FOREIGN", "-j RETURN");
        iptables.apply(&foreign).unwrap();

        let mut changes = Restore::new();
        changes.table("nat").chain("SKIFF-A");
        changes.table("nat").append("SKIFF-A", "-s 10.0.0.0/8 -j RETURN");
        changes.table("filter").chain("SKIFF-B");
        iptables.apply(&changes).unwrap();
        let saved = iptables.save(None).unwrap();
        assert_eq!(saved.chain("nat", "SKIFF-A").unwrap(), ["-s 10.0.0.0/8 -j RETURN"]);
        assert_eq!(saved.chain("nat", "FOREIGN").unwrap(), ["-j RETURN"]);
        assert!(saved.chain("filter", "SKIFF-B").is_some());

        let mut broken = Restore::new();
        broken.table("nat").chain("SKIFF-A");
        broken.table("nat").append("SKIFF-A", "-j NO-SUCH-CHAIN");
        let error = iptables.apply(&broken).unwrap_err().to_string();
        assert!(error.contains("NO-SUCH-CHAIN"), "{error}");
        assert_eq!(
            iptables
                .save(Some("nat"))
                .unwrap()
                .chain("nat", "SKIFF-A")
                .unwrap()
                .len(),
            1
        );

        let mut removal = Restore::new();
        removal.table("nat").delete_chain("SKIFF-A");
        iptables.apply(&removal).unwrap();
        assert_eq!(iptables.save(Some("nat")).unwrap().chain("nat", "SKIFF-A"), None);
    })
    .unwrap();
}

#[test]
fn a_small_table_translates_addresses_and_is_written_all_or_nothing() {
    let space = Namespace::anonymous().unwrap();
    let mut netlink = Netlink::open_in(&space).unwrap();
    let lo = netlink.need_link("lo").unwrap().index;
    netlink.set_up(lo).unwrap();
    let mut route = Route::through("10.96.0.0/12".parse().unwrap(), ip("127.0.0.1"));
    route.gateway = None;
    route.link = Some(lo);
    netlink.add_route(&route).unwrap();
    let listener = space
        .run(|| std::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap()
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let connects = || {
        let to = "10.96.0.1:80".parse().unwrap();
        let wait = std::time::Duration::from_millis(300);
        space
            .run(|| std::net::TcpStream::connect_timeout(&to, wait).is_ok())
            .unwrap()
    };
    assert!(!connects());

    let mut nftables = Nftables::open_in(&space).unwrap();
    let mut batch = Batch::new();
    batch.table("t");
    batch.translation_chain("t", "output", Hook::Output, -110);
    batch.chain("t", "to");
    let service = Rule::new("a service").protocol(6).to([10, 96, 0, 1].into()).to_port(80);
    batch.rule("t", "output", &service.clone().jump("to"));
    let never = Rule::new("").from([192, 0, 2, 1].into());
    batch.rule("t", "to", &never.mark(0x4000));
    batch.rule(
        "t",
        "to",
        &Rule::new("")
            .not_by_interface("eth", true)
            .not_from("10.0.0.0/8".parse().unwrap())
            .mark(0x8000),
    );
    let target = format!("127.0.0.1:{port}");
    // One in one: always.
    batch.rule(
        "t",
        "to",
        &Rule::new("").one_in(1).translate_to(target.parse().unwrap()),
    );
    nftables.apply(&batch).unwrap();
    assert!(connects());

    // The last change is refused: the first has no effect either.
    let mut wrong = Batch::new();
    wrong.flush("t", "to");
    wrong.rule("t", "absent", &service);
    let error = nftables.apply(&wrong).unwrap_err();
    assert!(error.not_found(), "{error}");
    assert!(connects());

    let mut end = Batch::new();
    end.table("t");
    end.delete_table("t");
    nftables.apply(&end).unwrap();
    assert!(!connects());
    nftables.apply(&Batch::new()).unwrap();
}

#[test]
fn tracked_connections_are_listed_and_removed() {
    let host = Namespace::anonymous().unwrap();
    host.run(|| {
        let lo = Netlink::open().unwrap().need_link("lo").unwrap().index;
        Netlink::open().unwrap().set_up(lo).unwrap();
        let iptables = Iptables::detect(Family::V4).unwrap();
        iptables
            .restore_text(
                "*nat\n-A OUTPUT -d 10.96.0.1 -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:5353\nCOMMIT\n",
            )
            .unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink
            .add_route(&Route::direct("10.96.0.0/12".parse().unwrap(), lo))
            .unwrap();

        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"?", "10.96.0.1:53").unwrap();
        let mut buffer = [0; 8];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(from, client.local_addr().unwrap());

        let mut conntrack = Conntrack::open().unwrap();
        let wanted = |entry: &conntrack::Entry| {
            entry.protocol == conntrack::UDP && entry.original.destination == ip("10.96.0.1")
        };
        let found = conntrack.list(wanted).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].reply.source, found[0].reply.source_port),
            (ip("127.0.0.1"), 5353)
        );
        assert_eq!(found[0].original.destination_port, 53);
        assert_eq!(conntrack.delete_matching(wanted).unwrap(), 1);
        assert!(!conntrack.delete(&found[0]).unwrap());
        assert!(conntrack.list(wanted).unwrap().is_empty());
    })
    .unwrap();
}

#[test]
fn a_vxlan_link_is_made_read_back_and_forwards_by_its_entries() {
    Namespace::anonymous()
        .unwrap()
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let vxlan = Vxlan {
                id: 1,
                port: 8472,
                local: Some(ip("192.0.2.1")),
                learning: false,
            };
            let mac: Mac = "0e:73:0a:f4:00:00".parse().unwrap();
            assert_eq!(netlink.vxlan("tunnel").unwrap(), None);
            netlink.add_vxlan("tunnel", &vxlan, mac, Some(1400)).unwrap();
            assert_eq!(netlink.vxlan("tunnel").unwrap(), Some(vxlan));
            assert_eq!(netlink.vxlan("lo").unwrap(), None);
            let link = netlink.need_link("tunnel").unwrap();
            assert_eq!((link.mtu, link.mac, link.kind.as_str()), (1400, Some(mac), "vxlan"));

            let mut entry = Forwarding {
                index: link.index,
                mac: "0e:73:0a:f4:01:00".parse().unwrap(),
                remote: ip("192.0.2.2"),
            };
            netlink.replace_forwarding(&entry).unwrap();
            entry.remote = ip("192.0.2.3");
            netlink.replace_forwarding(&entry).unwrap();
            assert_eq!(netlink.forwarding(link.index).unwrap(), [entry]);
            assert!(netlink.delete_forwarding(&entry).unwrap());
            assert!(!netlink.delete_forwarding(&entry).unwrap());
            assert_eq!(netlink.forwarding(link.index).unwrap(), []);
        })
        .unwrap();
}

#[test]
fn changes_of_links_addresses_and_routes_are_heard() {
    Namespace::anonymous()
        .unwrap()
        .run(|| {
            let monitor = monitor().unwrap();
            let mut buffer = vec![0; 64 * 1024];
            let mut netlink = Netlink::open().unwrap();
            let nothing = monitor.recv(&mut buffer).unwrap_err();
            assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
            netlink.add_bridge("lan", &BridgeOptions::default()).unwrap();
            let index = netlink.need_link("lan").unwrap().index;
            netlink.set_up(index).unwrap();
            let net = "192.0.2.1/24".parse().unwrap();
            netlink.add_address(index, net).unwrap();
            let mut route = Route::through("198.51.100.0/24".parse().unwrap(), ip("192.0.2.9"));
            route.protocol = Protocol(75);
            netlink.add_route(&route).unwrap();
            netlink.delete_route(&route).unwrap();
            netlink.delete_link("lan").unwrap();

            let mut heard = Vec::new();
            while let Ok(length) = monitor.recv(&mut buffer) {
                heard.extend(events(&buffer[..length]));
            }
            let link = Event::Link {
                index,
                name: "lan".to_owned(),
            };
            let address = Event::Address { index, net };
            let gone = Event::Route {
                protocol: Protocol(75),
                gone: true,
            };
            for event in [link, address, gone] {
                assert!(heard.contains(&event), "{event:?} in {heard:?}");
            }
        })
        .unwrap();
}
