//! An API whose Nodes the test decides, and what else the tests share.

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
use skiff_overlay::{Config, Mode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) type Events = mpsc::UnboundedSender<Value>;

/// A Node with one range and one address.
pub(crate) fn node(name: &str, range: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "2"},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// An API with these nodes; what is sent afterwards comes as watch events.
pub(crate) fn api(nodes: Vec<Value>) -> (kube::Client, Events) {
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

/// Runs a line of shell, which must succeed.
pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An overlay that runs, and the API that it watches.
pub(crate) struct Overlay {
    pub(crate) config: Config,
    folder: tempfile::TempDir,
    context: skiff_daemon::Context,
    events: Events,
    task: JoinHandle<Result<(), skiff_overlay::Error>>,
}

impl Overlay {
    /// Starts one for node `a`, with these nodes known.
    pub(crate) fn start(mode: Mode, nodes: Vec<Value>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "a", mode, nodes)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, name: &str, mode: Mode, nodes: Vec<Value>) -> Self {
        let config = Config {
            mode,
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
            cni_config_dir: folder.path().join("net.d"),
            ..Config::new(name)
        };
        let (client, events) = api(nodes);
        let context = skiff_daemon::Context::default();
        let task = tokio::spawn(skiff_overlay::run(config.clone(), client, context.clone()));
        Self {
            config,
            folder,
            context,
            events,
            task,
        }
    }

    /// Tells of a change of a node.
    pub(crate) fn send(&self, kind: &str, node: Value) {
        self.events.send(json!({"type": kind, "object": node})).unwrap();
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.context
            .health
            .one("readyz", "overlay")
            .is_some_and(|report| report.ok)
    }

    pub(crate) fn conflist(&self) -> Option<String> {
        std::fs::read_to_string(self.config.cni_config_dir.join("10-skiff.conflist")).ok()
    }

    /// Ends it, and hands over the folder that it wrote its configuration in.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.context.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.folder
    }
}

/// Runs a test on a node with an address on a segment.
pub(crate) fn on_node(test: impl Future<Output = ()> + Send) {
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
