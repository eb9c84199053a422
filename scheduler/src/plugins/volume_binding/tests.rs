use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::model::testing::{node, pod};
use crate::plugins::testing::verdicts;
use crate::testing::no_client;

/// Two nodes, and what a test adds to them.
struct Scene {
    plugin: VolumeBinding,
    snapshot: Snapshot,
}

fn user(name: &str, claims: &[&str]) -> Pod {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    pod(name, json!({"volumes": volumes}))
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            plugin: VolumeBinding::new(no_client()),
            snapshot: Snapshot::of([node("n1", json!({})), node("n2", json!({}))]),
        };
        scene
            .class("late", "p", "WaitForFirstConsumer")
            .class("manual", volumes::NO_PROVISIONER, "WaitForFirstConsumer")
            .class("now", "p", "Immediate")
    }

    fn objects(&mut self) -> &mut Objects {
        Arc::make_mut(&mut self.snapshot.objects)
    }

    fn class(mut self, name: &str, provisioner: &str, mode: &str) -> Self {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        let class = serde_json::from_value(class).unwrap();
        self.objects().storage_classes.insert(name.into(), Arc::new(class));
        self
    }

    fn claim(mut self, name: &str, class: &str, annotations: Value, volume: &str) -> Self {
        let claim = json!({
            "metadata": {"namespace": "default", "name": name, "uid": name, "annotations": annotations},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": class,
                "volumeName": volume,
            },
        });
        let claim = serde_json::from_value(claim).unwrap();
        self.objects()
            .claims
            .insert(("default".into(), name.into()), Arc::new(claim));
        self
    }

    fn bound(self, name: &str, volume: &str) -> Self {
        self.claim(name, "late", json!({volumes::BIND_COMPLETED: "yes"}), volume)
    }

    fn volume(mut self, name: &str, class: &str, on: &str) -> Self {
        let volume = json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "storageClassName": class,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [on]},
                ]}]}},
            },
            "status": {"phase": "Available"},
        });
        let volume = serde_json::from_value(volume).unwrap();
        self.objects().volumes.insert(name.into(), Arc::new(volume));
        self
    }

    /// What is said of n1 and n2; or of the pod altogether.
    fn ask(&self, pod: &Pod) -> [String; 2] {
        if let PreFiltered::Reject(rejection) = self.plugin.pre_filter(pod, &self.snapshot) {
            assert!(rejection.unresolvable);
            return [rejection.reasons.join(", "), "-".to_owned()];
        }
        let verdicts = verdicts(&self.plugin, pod, &self.snapshot);
        [0, 1].map(|at| verdicts[at].1.clone().err().unwrap_or_default())
    }
}

const AFFINITY: &str = "node(s) had volume node affinity conflict";
const BIND: &str = "node(s) didn't find available persistent volumes to bind";
const MISSING: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

#[tokio::test]
async fn nodes_are_refused_in_upstreams_words() {
    let sent = json!({volumes::SELECTED_NODE: "n2"});
    let one = |scene: Scene| scene.ask(&user("p", &["a"]));
    let cases = [
        (one(Scene::new()), ["persistentvolumeclaim \"a\" not found", "-"]),
        (
            one(Scene::new().claim("a", "now", json!({}), "")),
            [UNBOUND_IMMEDIATE, "-"],
        ),
        (
            one(Scene::new().claim("a", "", json!({}), "")),
            [UNBOUND_IMMEDIATE, "-"],
        ),
        (
            one(Scene::new().claim("a", "late", json!({}), "named")),
            [UNBOUND_IMMEDIATE, "-"],
        ),
        (
            one(Scene::new().bound("a", "v").volume("v", "late", "n2")),
            [AFFINITY, ""],
        ),
        (one(Scene::new().bound("a", "v")), [MISSING, MISSING]),
        (one(Scene::new().claim("a", "late", json!({}), "")), ["", ""]),
        (one(Scene::new().claim("a", "late", sent, "")), [BIND, ""]),
        (one(Scene::new().claim("a", "manual", json!({}), "")), [BIND, BIND]),
        (
            one(Scene::new()
                .claim("a", "manual", json!({}), "")
                .volume("v", "manual", "n1")),
            ["", BIND],
        ),
        (
            one(Scene::new()
                .claim("a", "manual", json!({}), "")
                .volume("v", "late", "n1")),
            [BIND, BIND],
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
    let both = Scene::new()
        .bound("a", "v")
        .volume("v", "late", "n2")
        .claim("b", "manual", json!({}), "")
        .ask(&user("p", &["a", "b"]));
    assert_eq!(both, [format!("{AFFINITY}, {BIND}"), BIND.to_owned()]);
}

#[tokio::test]
async fn two_claims_need_two_volumes() {
    let scene = Scene::new()
        .claim("a", "manual", json!({}), "")
        .claim("b", "manual", json!({}), "")
        .volume("v1", "manual", "n1")
        .volume("v2", "manual", "n2")
        .volume("v3", "manual", "n2");
    assert_eq!(scene.ask(&user("p", &["a", "b"])), [BIND, ""]);
}

#[tokio::test]
async fn what_is_decided_for_one_pod_is_taken_for_the_next() {
    let scene = Scene::new()
        .claim("a", "manual", json!({}), "")
        .claim("b", "manual", json!({}), "")
        .claim("c", "late", json!({}), "")
        .volume("v", "manual", "n1");
    let first = user("first", &["a", "c"]);
    scene.plugin.reserve(&first, "n1", &scene.snapshot).unwrap();
    assert_eq!(scene.ask(&user("other", &["b"])), [BIND, BIND]);
    assert_eq!(scene.ask(&user("sharing", &["a"])), ["", BIND], "it is the same volume");
    assert_eq!(scene.ask(&user("sharing", &["c"])), ["", BIND], "it will be made there");
    scene.plugin.unreserve(&first, "n1");
    assert_eq!(scene.ask(&user("other", &["b"])), ["", BIND]);
    assert_eq!(scene.ask(&user("sharing", &["c"])), ["", ""]);
}

#[tokio::test]
async fn hints_concern_pods_with_claims() {
    let plugin = VolumeBinding::new(no_client());
    let key: Key = ("default".into(), "a".into());
    assert!(plugin.hint(&user("p", &["a"]), &ClusterEvent::ClaimChanged(&key)));
    assert!(!plugin.hint(&user("p", &["b"]), &ClusterEvent::ClaimChanged(&key)));
    assert!(plugin.hint(&user("p", &["b"]), &ClusterEvent::VolumeChanged));
    assert!(!plugin.hint(&user("p", &[]), &ClusterEvent::VolumeChanged));
    assert!(plugin.hint(&user("p", &["b"]), &ClusterEvent::PodGone(&user("gone", &["a"]))));
    assert!(!plugin.hint(&user("p", &["b"]), &ClusterEvent::PodGone(&user("gone", &[]))));
}

/// An API server with one claim that was sent to n2, which refuses every older version of it; and what was written.
fn stale_claims() -> (Client, Arc<Mutex<Vec<Value>>>) {
    let written = Arc::<Mutex<Vec<Value>>>::default();
    let record = Arc::clone(&written);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let record = Arc::clone(&record);
        async move {
            let (head, body) = request.into_parts();
            if head.uri.query().is_some_and(|query| query.contains("watch=")) {
                std::future::pending::<()>().await;
            }
            let (code, reply) = if head.method == http::Method::PATCH {
                let body = body.collect_bytes().await.unwrap();
                record.lock().push(serde_json::from_slice(&body).unwrap());
                (
                    409,
                    json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "message": "", "code": 409}),
                )
            } else {
                let name = if head.uri.path().ends_with("/pods") { "p" } else { "a" };
                let metadata = json!({
                    "namespace": "default", "name": name, "uid": name, "annotations": {volumes::SELECTED_NODE: "n2"},
                });
                (
                    200,
                    json!({"metadata": {"resourceVersion": "8"}, "items": [{"metadata": metadata}]}),
                )
            };
            let reply = http::Response::builder()
                .status(code)
                .body(Body::from(reply.to_string().into_bytes()));
            Ok::<_, std::convert::Infallible>(reply.unwrap())
        }
    });
    (Client::new(service, "default"), written)
}

#[tokio::test]
async fn a_claim_is_sent_to_a_node_only_as_it_was_decided_on() {
    let mut scene = Scene::new()
        .claim("a", "late", json!({}), "")
        .claim("b", "late", json!({}), "");
    for claim in scene.objects().claims.values_mut() {
        Arc::make_mut(claim).metadata.resource_version = Some("7".to_owned());
    }
    let (client, written) = stale_claims();
    scene.plugin.client = client;
    let pod = user("p", &["a", "b"]);
    scene.plugin.reserve(&pod, "n1", &scene.snapshot).unwrap();
    let error = scene.plugin.pre_bind(&pod, "n1").await.unwrap_err();
    assert_eq!(written.lock()[0]["metadata"]["resourceVersion"], "7");
    assert_eq!(written.lock().len(), 1, "the other claim is sent there all the same");
    let Error::Volumes { source, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(source, crate::VolumesError::Reset(_)), "{source}");
}
