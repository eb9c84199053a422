//! The scheduler on a real API server and a real store, as `system:kube-scheduler` with nothing but its roles.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use skiff_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_apiserver::ApiServer;
use skiff_daemon::Context;
use skiff_pki::{CertificateAuthority, Request, ServiceAccountKey};
use tokio::time::Instant;

struct Cluster {
    client: kube::Client,
    context: Context,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        skiff_daemon::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let store = skiff_store::sqlite::open(
            directory.path().join("state.db"),
            skiff_store::sqlite::Options::default(),
        );
        let request = Request::server("kube-apiserver", &["localhost"], &[]);
        let config = skiff_apiserver::Config::new(
            authority.issue(&request).unwrap(),
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            ("192.0.2.1".parse().unwrap(), 6443),
        );
        let context = Context::default();
        let server = ApiServer::start(config, Arc::new(store.unwrap()), context.clone())
            .await
            .unwrap();
        let client = server.client("admin", &["system:masters"]);
        let scheduler = server.client("system:kube-scheduler", &["system:authenticated"]);
        tokio::spawn(skiff_scheduler::run(
            skiff_scheduler::Config::default(),
            scheduler,
            context.clone(),
        ));
        let cluster = Self {
            client,
            context,
            _directory: directory,
        };
        cluster.namespace().await;
        cluster
    }

    /// What the controllers would make.
    async fn namespace(&self) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        if namespaces.get_opt("default").await.unwrap().is_none() {
            self.create::<Namespace>(None, json!({"metadata": {"name": "default"}}))
                .await;
        }
        let accounts = Api::<ServiceAccount>::default_namespaced(self.client.clone());
        if accounts.get_opt("default").await.unwrap().is_none() {
            self.create::<ServiceAccount>(Some("default"), json!({"metadata": {"name": "default"}}))
                .await;
        }
    }

    async fn create<K>(&self, namespace: Option<&str>, object: Value)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let resource = kube::core::ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let mut object = object;
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
    }

    async fn node(&self, name: &str, cpu: &str) {
        let status = json!({"capacity": {"cpu": cpu, "memory": "64Gi", "pods": "110"}, "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "110"}});
        self.create::<Node>(
            None,
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": status}),
        )
        .await;
    }

    async fn pod(&self, name: &str, cpu: &str) {
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}});
        self.create::<Pod>(
            Some("default"),
            json!({"metadata": {"name": name}, "spec": {"containers": [container]}}),
        )
        .await;
    }

    async fn claim(&self, name: &str, class: &str) {
        let spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": class,
        });
        let claim = json!({"metadata": {"name": name}, "spec": spec});
        self.create::<PersistentVolumeClaim>(Some("default"), claim).await;
    }

    async fn volume(&self, name: &str, class: &str, node: &str) {
        let term = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
        let spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "storageClassName": class,
            "local": {"path": "/data"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
        });
        self.create::<PersistentVolume>(None, json!({"metadata": {"name": name}, "spec": spec}))
            .await;
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let status = Patch::Merge(json!({"status": {"phase": "Available"}}));
        api.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }

    /// What the binder would write in the end.
    async fn bind_claim(&self, claim: &str, volume: &str) {
        let patch = json!({
            "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume},
        });
        let api = Api::<PersistentVolumeClaim>::default_namespaced(self.client.clone());
        api.patch(claim, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    async fn pod_with_claim(&self, name: &str, claim: &str) {
        let spec = json!({
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        });
        self.create::<Pod>(Some("default"), json!({"metadata": {"name": name}, "spec": spec}))
            .await;
    }

    async fn pods(&self) -> Vec<Pod> {
        Api::<Pod>::default_namespaced(self.client.clone())
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    /// Waits until something is true of all pods.
    async fn until(&self, what: impl Fn(&[Pod]) -> bool) -> Vec<Pod> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let pods = self.pods().await;
            if what(&pods) {
                return pods;
            }
            assert!(Instant::now() < deadline, "it does not come true: {pods:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

fn condition(pod: &Pod) -> Option<(String, String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some((
        scheduled.status.clone(),
        text(&scheduled.reason),
        text(&scheduled.message),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_waits_and_is_told_why() {
    let cluster = Cluster::start().await;
    cluster.pod("a", "2").await;
    let pods = cluster.until(|pods| condition(&pods[0]).is_some()).await;
    let unschedulable = |message: &str| Some(("False".to_owned(), "Unschedulable".to_owned(), message.to_owned()));
    assert_eq!(
        condition(&pods[0]),
        unschedulable("no nodes available to schedule pods")
    );

    cluster.node("small", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
                   1 Preemption is not helpful for scheduling.";
    // A node without room is no reason to try again by itself; a change of the pod is.
    cluster.node("large", "4").await;
    let pods = cluster.until(|pods| is_bound(&pods[0])).await;
    assert_eq!(pods[0].spec.as_ref().unwrap().node_name.as_deref(), Some("large"));
    assert_eq!(condition(&pods[0]).unwrap().0, "True");

    cluster.pod("b", "100").await;
    let only_b = |pods: &[Pod]| {
        pods.iter()
            .find(|pod| pod.metadata.name.as_deref() == Some("b"))
            .cloned()
    };
    let pods = cluster
        .until(|pods| only_b(pods).is_some_and(|pod| condition(&pod).is_some()))
        .await;
    let two = message
        .replace("0/1", "0/2")
        .replace("1 Insufficient", "2 Insufficient")
        .replace("1 Preemption", "2 Preemption");
    assert_eq!(condition(&only_b(&pods).unwrap()), unschedulable(&two));

    // What `kubectl describe pod` shows.
    let events = Api::<Event>::default_namespaced(cluster.client.clone());
    let about_b = ListParams::default().fields("involvedObject.name=b");
    let deadline = Instant::now() + Duration::from_secs(10);
    let event = loop {
        if let Some(event) = events.list(&about_b).await.unwrap().items.pop() {
            break event;
        }
        assert!(Instant::now() < deadline, "no event");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        (event.reason.as_deref(), event.message.as_deref()),
        (Some("FailedScheduling"), Some(two.as_str()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_spread_over_the_nodes() {
    const NODES: usize = 25;
    const PODS: usize = 300;
    let cluster = Arc::new(Cluster::start().await);
    for number in 0..NODES {
        cluster.node(&format!("n{number}"), "4").await;
    }
    let began = Instant::now();
    let writers = (0..8).map(|writer| {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            for number in (writer..PODS).step_by(8) {
                cluster.pod(&format!("p{number}"), "100m").await;
            }
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    let pods = cluster
        .until(|pods| pods.iter().filter(|pod| is_bound(pod)).count() == PODS)
        .await;
    println!("{PODS} pods made and bound in {:?}", began.elapsed());
    let mut each: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &pods {
        *each
            .entry(pod.spec.as_ref().unwrap().node_name.as_deref().unwrap())
            .or_default() += 1;
    }
    assert!(
        each.len() == NODES && each.values().all(|&count| count == PODS / NODES),
        "{each:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_important_pod_gets_the_room_of_another() {
    let cluster = Cluster::start().await;
    cluster.node("n1", "2").await;
    let priority = json!({"metadata": {"name": "important"}, "value": 1000});
    cluster.create::<PriorityClass>(None, priority).await;
    cluster.pod("low", "2").await;
    cluster.until(|pods| pods.iter().all(is_bound)).await;

    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}});
    let spec = json!({"priorityClassName": "important", "containers": [container]});
    cluster
        .create::<Pod>(Some("default"), json!({"metadata": {"name": "high"}, "spec": spec}))
        .await;
    let named = |pods: &[Pod], name: &str| {
        pods.iter()
            .find(|pod| pod.metadata.name.as_deref() == Some(name))
            .cloned()
    };
    let pods = cluster
        .until(|pods| named(pods, "low").is_some_and(|low| low.metadata.deletion_timestamp.is_some()))
        .await;
    let conditions = named(&pods, "low").unwrap().status.unwrap().conditions.unwrap();
    let disruption = conditions
        .iter()
        .find(|condition| condition.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(disruption.reason.as_deref(), Some("PreemptionByScheduler"));
    let is_nominated = |pod: Pod| {
        pod.status
            .is_some_and(|status| status.nominated_node_name.as_deref() == Some("n1"))
    };
    cluster
        .until(|pods| named(pods, "high").is_some_and(is_nominated))
        .await;

    // As the kubelet does once the containers are gone.
    let pods = Api::<Pod>::default_namespaced(cluster.client.clone());
    pods.delete("low", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    cluster
        .until(|pods| named(pods, "high").is_some_and(|high| is_bound(&high)))
        .await;
}

/// Waits until something is true of an object.
async fn until_object<K>(api: Api<K>, name: &str, what: impl Fn(&K) -> bool) -> K
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let object = api.get(name).await.unwrap();
        if what(&object) {
            return object;
        }
        assert!(Instant::now() < deadline, "it does not come true: {object:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_its_volume() {
    let cluster = Cluster::start().await;
    cluster.node("n1", "4").await;
    cluster.pod_with_claim("p", "data").await;
    let told = |pods: &[Pod], message: &str| condition(&pods[0]).is_some_and(|(.., told)| told.starts_with(message));
    cluster
        .until(|pods| {
            told(
                pods,
                "0/1 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/1 nodes are available: 1 \
                 Preemption is not helpful for scheduling.",
            )
        })
        .await;

    cluster.claim("data", "local-path").await;
    let claims = Api::<PersistentVolumeClaim>::default_namespaced(cluster.client.clone());
    let sent = |claim: &PersistentVolumeClaim| {
        let annotations = claim.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get("volume.kubernetes.io/selected-node"))
            .is_some_and(|node| node == "n1")
    };
    until_object(claims, "data", sent).await;
    assert!(!is_bound(&cluster.pods().await[0]), "its volume comes first");
    cluster.volume("pvc-1", "local-path", "n1").await;
    cluster.bind_claim("data", "pvc-1").await;
    cluster.until(|pods| is_bound(&pods[0])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_made_by_hand_decides_where_the_pod_goes() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2", "n3"] {
        cluster.node(node, "4").await;
    }
    for (class, mode) in [("manual", "WaitForFirstConsumer"), ("now", "Immediate")] {
        let class = json!({
            "metadata": {"name": class},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": mode,
        });
        cluster.create::<StorageClass>(None, class).await;
    }
    cluster.claim("data", "manual").await;
    cluster.pod_with_claim("p", "data").await;
    let message = "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.";
    let told = |pods: &[Pod], message: &str| condition(&pods[0]).is_some_and(|(.., told)| told.starts_with(message));
    cluster.until(|pods| told(pods, message)).await;
    cluster.volume("v2", "manual", "n2").await;
    let volumes = Api::<PersistentVolume>::all(cluster.client.clone());
    let chosen = until_object(volumes, "v2", |volume| {
        volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some())
    })
    .await;
    let claims = Api::<PersistentVolumeClaim>::default_namespaced(cluster.client.clone());
    let data = claims.get("data").await.unwrap();
    let reference = chosen.spec.unwrap().claim_ref.unwrap();
    assert_eq!((reference.name, reference.uid), (data.metadata.name, data.metadata.uid));
    cluster.bind_claim("data", "v2").await;
    let pods = cluster.until(|pods| is_bound(&pods[0])).await;
    assert_eq!(pods[0].spec.as_ref().unwrap().node_name.as_deref(), Some("n2"));

    cluster.claim("later", "now").await;
    cluster.pod_with_claim("a-second", "later").await;
    let message = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption:";
    cluster.until(|pods| told(pods, message)).await;
}
