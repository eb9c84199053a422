//! What the manager keeps of each kind: the fields that some controller reads, and no others.
//!
//! Informers hold every object of a kind in memory, so a full typed struct each would cost several times what the
//! controllers need. Pod templates stay JSON: what this build does not know of them still reaches the pods.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kube::core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use skiff_api::k8s_openapi::api::apps::v1::{DeploymentStatus, ReplicaSetStatus};
use skiff_api::k8s_openapi::api::core::v1::{
    LoadBalancerIngress, NamespaceCondition, NodeAddress, NodeCondition, NodeDaemonEndpoints, PersistentVolume,
    PersistentVolumeClaim, Taint, Toleration,
};
use skiff_api::k8s_openapi::api::networking::v1::IngressClass;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, MicroTime, OwnerReference, Time};
use skiff_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_api::{bootstrap_tokens::BootstrapSecret, owners, volumes};

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn cluster(name: &str) -> Self {
        Self::new("", name)
    }

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Under what an informer finds objects besides namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Index {
    /// The uid of the controller that owns the object.
    Controller(String),
    /// Objects of this namespace that no controller owns.
    Orphan(String),
    /// The node that a pod is bound to.
    Node(String),
    /// Services of a namespace by one pair of their selector.
    Selects(String, String, String),
    /// Slices of a service: namespace and service name.
    Service(String, String),
    /// Pods that use a claim: namespace and claim name.
    Claim(String, String),
    /// Claims of a class that name no volume yet.
    Unbound(String),
    /// Claims that name a volume.
    Volume(String),
}

/// A kind as the manager sees it.
pub(crate) trait View:
    kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
    /// Drops what came along and nobody reads.
    fn trim(&mut self) {}

    /// Where to find the object.
    fn index(&self) -> Vec<Index> {
        Vec::new()
    }

    fn key(&self) -> Key {
        Key::of(self.meta())
    }

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    fn resource_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.meta().labels.as_ref()?.get(name).map(String::as_str)
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        static EMPTY: BTreeMap<String, String> = BTreeMap::new();
        self.meta().labels.as_ref().unwrap_or(&EMPTY)
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn is_being_deleted(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    fn controller(&self) -> Option<&OwnerReference> {
        owners::controller_of(self.meta())
    }

    fn is_controlled_by(&self, uid: &str) -> bool {
        owners::is_controlled_by(self.meta(), uid)
    }
}

/// Finds an owned kind by its controller, or as an orphan of its namespace.
fn by_controller<K: View>(object: &K) -> Index {
    match object.controller() {
        Some(owner) => Index::Controller(owner.uid.clone()),
        None => Index::Orphan(object.namespace().to_owned()),
    }
}

macro_rules! resource {
    ($kind:ident, $group:literal, $version:literal, $plural:literal, $scope:ty) => {
        impl kube::Resource for $kind {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($kind).into()
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

/// Null means absent, wherever it stands.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

macro_rules! part {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name {
            $($(#[$attr])* #[serde(deserialize_with = "null_is_default")] pub(crate) $field: $type),*
        }
    };
}

part!(Pod {
    metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus
});
part!(PodSpec {
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    tolerations: Vec<Toleration>,
    volumes: Vec<Volume>,
});
part!(
    /// Kept only where a claim stands behind it.
    Volume { name: String, persistent_volume_claim: Option<ClaimSource>, ephemeral: Option<EphemeralSource> }
);
part!(ClaimSource { claim_name: String });
part!(EphemeralSource { volume_claim_template: Arc<Value> });
part!(
    /// Kept only where it has ports, for those that a Service names.
    Container { restart_policy: Option<String>, ports: Vec<ContainerPort> }
);
part!(ContainerPort { name: Option<String>, container_port: i32, protocol: Option<String> });
part!(PodStatus {
    phase: Option<String>,
    conditions: Vec<PodCondition>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    container_statuses: Vec<ContainerStatus>,
});
part!(PodCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    last_transition_time: Option<Time>,
});
part!(PodIp { ip: String });
part!(ContainerStatus { restart_count: i32 });
resource!(Pod, "", "v1", "pods", NamespaceResourceScope);

impl View for Pod {
    fn trim(&mut self) {
        let spec = &mut self.spec;
        spec.containers.retain(|container| !container.ports.is_empty());
        spec.init_containers
            .retain(|init| init.restart_policy.as_deref() == Some("Always") && !init.ports.is_empty());
        spec.volumes
            .retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
        spec.volumes.shrink_to_fit();
        spec.containers.shrink_to_fit();
        spec.init_containers.shrink_to_fit();
        self.status.conditions.retain(|condition| condition.type_ == "Ready");
        self.status.conditions.shrink_to_fit();
    }

    fn index(&self) -> Vec<Index> {
        let mut found = vec![by_controller(self)];
        found.extend(self.spec.node_name.clone().map(Index::Node));
        let claims = self
            .claims()
            .map(|claim| Index::Claim(self.namespace().to_owned(), claim));
        found.extend(claims);
        found
    }
}

impl Pod {
    /// The names of the claims that it uses; that of an ephemeral volume is made of the pod's name and the volume's.
    pub(crate) fn claims(&self) -> impl Iterator<Item = String> {
        self.spec
            .volumes
            .iter()
            .map(|volume| match &volume.persistent_volume_claim {
                Some(claim) => claim.claim_name.clone(),
                None => format!("{}-{}", self.name(), volume.name),
            })
    }
}

part!(ReplicaSet {
    metadata: ObjectMeta,
    spec: ReplicaSetSpec,
    status: ReplicaSetStatus
});
part!(ReplicaSetSpec {
    replicas: Option<i32>,
    min_ready_seconds: Option<i32>,
    selector: LabelSelector,
    template: Arc<Value>,
});
resource!(ReplicaSet, "apps", "v1", "replicasets", NamespaceResourceScope);

impl View for ReplicaSet {
    fn index(&self) -> Vec<Index> {
        vec![by_controller(self)]
    }
}

impl ReplicaSet {
    pub(crate) fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
}

part!(Deployment {
    metadata: ObjectMeta,
    spec: DeploymentSpec,
    status: DeploymentStatus
});
part!(DeploymentSpec {
    replicas: Option<i32>,
    selector: LabelSelector,
    template: Arc<Value>,
    strategy: DeploymentStrategy,
    min_ready_seconds: Option<i32>,
    revision_history_limit: Option<i32>,
    paused: bool,
    progress_deadline_seconds: Option<i32>,
});
part!(DeploymentStrategy {
    #[serde(rename = "type")]
    type_: Option<String>,
    rolling_update: Option<RollingUpdate>,
});
part!(RollingUpdate { max_surge: Option<IntOrString>, max_unavailable: Option<IntOrString> });
resource!(Deployment, "apps", "v1", "deployments", NamespaceResourceScope);

impl View for Deployment {}

part!(Service {
    metadata: ObjectMeta,
    spec: ServiceSpec,
    status: ServiceStatus
});
part!(ServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    selector: Option<BTreeMap<String, String>>,
    ports: Vec<ServicePort>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    ip_families: Vec<String>,
    publish_not_ready_addresses: bool,
    load_balancer_class: Option<String>,
    external_traffic_policy: Option<String>,
});
part!(ServiceStatus {
    load_balancer: LoadBalancer
});
part!(LoadBalancer { ingress: Vec<LoadBalancerIngress> });
part!(ServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: i32,
    target_port: Option<IntOrString>,
    app_protocol: Option<String>,
});
resource!(Service, "", "v1", "services", NamespaceResourceScope);

impl View for Service {
    fn index(&self) -> Vec<Index> {
        // One pair is enough to find it: a pod that the selector matches carries every pair.
        let first = self.spec.selector.as_ref().and_then(|selector| selector.iter().next());
        first
            .map(|(k, v)| Index::Selects(self.namespace().to_owned(), k.clone(), v.clone()))
            .into_iter()
            .collect()
    }
}

impl Service {
    pub(crate) fn is_headless(&self) -> bool {
        self.spec.cluster_ip.as_deref() == Some("None")
    }

    /// Whether the selector picks a pod with these labels; a Service without selector picks none.
    pub(crate) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let Some(selector) = &self.spec.selector else {
            return false;
        };
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

part!(Node {
    metadata: ObjectMeta,
    spec: NodeSpec,
    status: NodeStatus
});
part!(NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    taints: Vec<Taint>,
    unschedulable: bool,
});
part!(NodeStatus {
    conditions: Vec<NodeCondition>,
    addresses: Vec<NodeAddress>,
    daemon_endpoints: Option<NodeDaemonEndpoints>,
});
resource!(Node, "", "v1", "nodes", ClusterResourceScope);

impl View for Node {}

impl Node {
    pub(crate) fn condition(&self, type_: &str) -> Option<&NodeCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

part!(Lease {
    metadata: ObjectMeta,
    spec: LeaseSpec
});
part!(LeaseSpec { renew_time: Option<MicroTime> });
resource!(Lease, "coordination.k8s.io", "v1", "leases", NamespaceResourceScope);

impl View for Lease {}

part!(Namespace {
    metadata: ObjectMeta,
    spec: NamespaceSpec,
    status: NamespaceStatus
});
part!(NamespaceSpec { finalizers: Vec<String> });
part!(NamespaceStatus { phase: Option<String>, conditions: Vec<NamespaceCondition> });
resource!(Namespace, "", "v1", "namespaces", ClusterResourceScope);

impl View for Namespace {}

part!(ServiceAccount { metadata: ObjectMeta });
resource!(ServiceAccount, "", "v1", "serviceaccounts", NamespaceResourceScope);

impl View for ServiceAccount {}

part!(ConfigMap { metadata: ObjectMeta, data: BTreeMap<String, String> });
resource!(ConfigMap, "", "v1", "configmaps", NamespaceResourceScope);

impl View for ConfigMap {}

part!(ClusterRole {
    metadata: ObjectMeta,
    rules: Vec<Value>,
    aggregation_rule: Option<AggregationRule>,
});
part!(AggregationRule { cluster_role_selectors: Vec<Value> });
resource!(
    ClusterRole,
    "rbac.authorization.k8s.io",
    "v1",
    "clusterroles",
    ClusterResourceScope
);

impl View for ClusterRole {}

/// The Secret of a bootstrap token; a Secret that is none has no `token`.
#[derive(Clone, Debug)]
pub(crate) struct TokenSecret {
    metadata: ObjectMeta,
    pub(crate) token: Option<BootstrapSecret>,
}
resource!(TokenSecret, "", "v1", "secrets", NamespaceResourceScope);

impl View for TokenSecret {}

impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = Value::deserialize(deserializer)?;
        let metadata = serde_json::from_value(secret["metadata"].clone()).map_err(serde::de::Error::custom)?;
        Ok(Self {
            metadata,
            token: BootstrapSecret::of(&secret),
        })
    }
}

part!(SigningRequest {
    metadata: ObjectMeta,
    spec: SigningRequestSpec,
    status: SigningRequestStatus
});
part!(SigningRequestSpec {
    request: String,
    signer_name: String,
    expiration_seconds: Option<i64>,
    usages: Vec<String>,
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
});
part!(
    /// Conditions stay JSON: they are written back whole.
    SigningRequestStatus { conditions: Vec<Value>, certificate: String }
);
resource!(
    SigningRequest,
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    ClusterResourceScope
);

impl View for SigningRequest {}

impl SigningRequest {
    /// A condition, if it is there: these count by being there.
    pub(crate) fn condition(&self, type_: &str) -> Option<&Value> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition["type"] == type_)
    }

    /// Whether somebody has said yes or no.
    pub(crate) fn is_decided(&self) -> bool {
        self.condition("Approved").is_some() || self.condition("Denied").is_some()
    }
}

impl View for skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice {
    fn index(&self) -> Vec<Index> {
        let service = self.label("kubernetes.io/service-name");
        service
            .map(|name| Index::Service(self.namespace().to_owned(), name.to_owned()))
            .into_iter()
            .collect()
    }
}

impl View for skiff_api::k8s_openapi::api::core::v1::Endpoints {}

impl View for PersistentVolume {}

impl View for PersistentVolumeClaim {
    fn index(&self) -> Vec<Index> {
        vec![match volumes::claimed_volume(self) {
            "" => Index::Unbound(volumes::claim_class(self).to_owned()),
            name => Index::Volume(name.to_owned()),
        }]
    }
}

impl View for StorageClass {}

impl View for IngressClass {}
