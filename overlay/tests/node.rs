//! The whole component in a network namespace, against a scripted API.

#![allow(clippy::unwrap_used)] // Test code throughout: a panic is a failed test.

use std::convert::Infallible;
use std::process::Command;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use skiff_net::netlink::{BridgeOptions, Netlink};
use skiff_net::netns::Namespace;
use skiff_overlay::Config;
use tokio::sync::mpsc;

type Events = mpsc::UnboundedSender<Value>;

fn node(name: &str, range: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "2"},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// An API with these nodes; what is sent afterwards comes as watch events.
fn api(nodes: Vec<Value>) -> (kube::Client, Events) {
    let (sender, receiver) = mpsc::unbounded_channel::<Value>();
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (nodes, receiver) = (nodes.clone(), receiver.clone());
        async move {
            let watch = request.uri().query().unwrap_or_default().contains("watch=true");
            let first = if watch {
                futures::stream::empty().boxed()
            } else {
                let list = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": nodes});
                futures::stream::once(async move { list }).boxed()
            };
            let later = match receiver.lock().await.take_if(|_| watch) {
                Some(receiver) => futures::stream::unfold(receiver, |mut receiver| async {
                    receiver.recv().await.map(|event| (event, receiver))
                })
                .boxed(),
                None => futures::stream::empty().boxed(),
            };
            let frames = first
                .chain(later)
                .map(|value| Ok::<_, Infallible>(http_body::Frame::data(format!("{value}\n").into())));
            let body = StreamBody::new(frames.map_err(|never| match never {}));
            Ok::<_, Infallible>(Response::new(BodyExt::map_err(body, |never: std::io::Error| never)))
        }
    });
    (kube::Client::new(service, "default"), sender)
}

fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a test on a node with an address on a segment.
fn on_node(test: impl Future<Output = ()> + Send) {
    Namespace::anonymous()
        .unwrap()
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_bridge("lan", &BridgeOptions::default()).unwrap();
            let index = netlink.need_link("lan").unwrap().index;
            netlink.set_up(index).unwrap();
            netlink.add_address(index, "172.30.0.1/24".parse().unwrap()).unwrap();
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test);
        })
        .unwrap();
}

#[test]
fn nodes_become_routes_rules_and_the_cni_configuration() {
    on_node(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new("a");
        config.cluster_cidr = vec!["10.244.0.0/16".parse().unwrap()];
        config.cni_config_dir = folder.path().join("net.d");
        let (client, events) = api(vec![
            node("a", "", "172.30.0.1"),
            node("b", "10.244.1.0/24", "172.30.0.2"),
        ]);
        let context = skiff_daemon::Context::default();
        let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
        let task = tokio::spawn(skiff_overlay::run(config.clone(), client, context));

        // Without a range of its own the node is not ready, but reaches the others.
        let routes = || shell("ip route show proto 75");
        until("route to b", || routes().contains("10.244.1.0/24 via 172.30.0.2")).await;
        assert!(!health.one("overlay").is_some_and(|report| report.ok));
        assert!(!config.cni_config_dir.exists());

        events
            .send(json!({"type": "MODIFIED", "object": node("a", "10.244.0.0/24", "172.30.0.1")}))
            .unwrap();
        until("ready", || health.one("overlay").is_some_and(|report| report.ok)).await;
        let text = std::fs::read_to_string(config.cni_config_dir.join("10-skiff.conflist")).unwrap();
        assert!(text.contains("10.244.0.0/24"), "{text}");
        let rules = shell("iptables-save -t nat");
        assert!(
            rules.contains("-A SKIFF-POSTROUTING -d 10.244.0.0/16 -j RETURN"),
            "{rules}"
        );
        assert!(
            rules.contains("-A SKIFF-POSTROUTING -s 10.244.0.0/24 -j MASQUERADE --random-fully"),
            "{rules}"
        );
        assert_eq!(
            shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/bridge-nf-call-iptables"),
            "1\n1\n"
        );

        // A node changes its address, another comes, one goes.
        events
            .send(json!({"type": "MODIFIED", "object": node("b", "10.244.1.0/24", "172.30.0.9")}))
            .unwrap();
        events
            .send(json!({"type": "ADDED", "object": node("c", "10.244.2.0/24", "172.30.0.3")}))
            .unwrap();
        until("b moved, c came", || {
            routes().contains("via 172.30.0.9") && routes().contains("10.244.2.0/24")
        })
        .await;
        events
            .send(json!({"type": "DELETED", "object": node("c", "10.244.2.0/24", "172.30.0.3")}))
            .unwrap();
        until("c gone", || !routes().contains("10.244.2.0/24")).await;
        assert_eq!(routes().lines().count(), 1);

        // A node that is not on the segment does not keep the others from being routed to.
        events
            .send(json!({"type": "ADDED", "object": node("far", "10.244.3.0/24", "192.0.2.1")}))
            .unwrap();
        until("told", || !health.one("overlay").is_some_and(|report| report.ok)).await;
        events
            .send(json!({"type": "ADDED", "object": node("d", "10.244.4.0/24", "172.30.0.4")}))
            .unwrap();
        until("d", || routes().contains("10.244.4.0/24 via 172.30.0.4")).await;

        shutdown.cancel();
        task.await.unwrap().unwrap();
        // Routes stay: pods go on talking while the process is replaced.
        assert_eq!(routes().lines().count(), 2);
    });
}

#[test]
fn a_restart_removes_what_became_stale_and_repeats_nothing() {
    on_node(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new("a");
        config.cni_config_dir = folder.path().to_owned();
        for nodes in [
            vec![
                node("a", "10.244.0.0/24", "172.30.0.1"),
                node("b", "10.244.1.0/24", "172.30.0.2"),
            ],
            vec![
                node("a", "10.244.0.0/24", "172.30.0.1"),
                node("c", "10.244.2.0/24", "172.30.0.3"),
            ],
        ] {
            let (client, _events) = api(nodes);
            let context = skiff_daemon::Context::default();
            let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
            let task = tokio::spawn(skiff_overlay::run(config.clone(), client, context));
            until("ready", || health.one("overlay").is_some_and(|report| report.ok)).await;
            shutdown.cancel();
            task.await.unwrap().unwrap();
        }
        assert_eq!(
            shell("ip route show proto 75").trim(),
            "10.244.2.0/24 via 172.30.0.3 dev lan"
        );
        let rules = shell("iptables-save -t nat");
        assert_eq!(rules.matches("-A POSTROUTING").count(), 1, "{rules}");
        assert_eq!(rules.matches("MASQUERADE").count(), 1, "{rules}");
    });
}
