//! What every cluster has: system namespaces, default roles, priority classes, the `local-path` class of storage, the
//! `kubernetes` Service.
//!
//! Each is created when it is missing; what users changed stays as it is. Servers that start at the same time on one store come to the
//! same: what another has made meanwhile is there. Default roles get the rules, default bindings the subjects that they lack (a newer
//! version may need more), unless their annotation `rbac.authorization.kubernetes.io/autoupdate` is `false`.

mod rbac;

use std::net::IpAddr;
use std::time::Duration;

use futures::future::try_join_all;
use serde_json::{Value, json};
use skiff_api::{meta, volumes};
use tokio::time::Instant;

use crate::authentication::{MASTERS, User};
use crate::config::Config;
use crate::registry::delete::DeleteOptions;
use crate::registry::write::Update;
use crate::registry::{Options, Registry, Scope};
use crate::start::Error;

/// Namespaces that every cluster has.
pub const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// How long other servers that start at the same time may be in the way.
const OTHERS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Group and plural name of a resource.
pub(crate) type Resource = (&'static str, &'static str);

/// Creates what is missing.
pub async fn run(registry: &Registry, config: &Config) -> Result<(), Error> {
    let user = user();
    let namespaces = NAMESPACES.iter().map(|name| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(registry, &user, ("", "namespaces"), object, Present::Stays)
    });
    try_join_all(namespaces).await?;
    let classes = priority_classes()
        .into_iter()
        .map(|class| (("scheduling.k8s.io", "priorityclasses"), class));
    let objects = classes.chain([service_range(config), local_path()]);
    let objects = objects.map(|(resource, object)| (resource, object, Present::Stays));
    let roles = rbac::objects().into_iter();
    let roles = roles.map(|(resource, object)| (resource, object, Present::IsCompleted));
    // Together, so that they share a few commits.
    let all = objects.chain(roles);
    try_join_all(all.map(|(resource, object, present)| ensure(registry, &user, resource, object, present))).await?;
    ensure(registry, &user, ("", "services"), kubernetes(config), Present::Stays).await
}

/// Who makes them.
pub(crate) fn user() -> User {
    User::new("system:apiserver", [MASTERS])
}

fn priority_classes() -> [Value; 2] {
    [
        ("system-cluster-critical", 2_000_000_000_i64),
        ("system-node-critical", 2_000_001_000),
    ]
    .map(|(name, value)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        })
    })
}

/// The class of claims that ask for none: directories of the node that the first pod comes to, made by its kubelet.
fn local_path() -> (Resource, Value) {
    let object = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {volumes::IS_DEFAULT_CLASS: "true"}},
        "provisioner": volumes::LOCAL_PATH,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    (("storage.k8s.io", "storageclasses"), object)
}

/// Tells where Services get their addresses from: proxies refuse what nobody has in it.
fn service_range(config: &Config) -> (Resource, Value) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [config.service_cluster_ip_range.to_string()]},
    });
    (("networking.k8s.io", "servicecidrs"), object)
}

/// The Service under which pods reach the servers; its endpoints are kept by [`crate::servers`].
fn kubernetes(config: &Config) -> Value {
    let first = match config.service_cluster_ip_range.network() {
        IpAddr::V4(network) => IpAddr::V4((u32::from(network) + 1).into()),
        IpAddr::V6(network) => IpAddr::V6((u128::from(network) + 1).into()),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": first.to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}],
        },
    })
}

/// What becomes of an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// It is left alone.
    Stays,
    /// It gets what it lacks (roles and bindings).
    IsCompleted,
    /// It is made like the wanted one.
    Follows,
}

impl Present {
    /// What the object that is there is to become; `None` when it is well as it is.
    fn change(self, current: &Value, object: &Value) -> Option<Value> {
        match self {
            Self::Stays => None,
            Self::IsCompleted => rbac::completed(current, object),
            Self::Follows => {
                let mut wanted = object.clone();
                wanted["metadata"] = current["metadata"].clone();
                Some(wanted)
            }
        }
    }
}

/// Creates an object in the namespace that it names, unless there is one of its name.
pub(crate) async fn ensure(
    registry: &Registry,
    user: &User,
    (group, plural): Resource,
    object: Value,
    present: Present,
) -> Result<(), Error> {
    let served = registry
        .resources
        .any_version(group, plural)
        .ok_or(Error::Incomplete(plural))?;
    let name = meta::name(&object).to_owned();
    let namespace = meta::namespace(&object).to_owned();
    let scope = Scope {
        served,
        namespace: &namespace,
        user,
    };
    let begin = Instant::now();
    loop {
        let outcome = match served.cache.get(&namespace, &name).map(|current| current.value()) {
            None => registry.create(scope, object.clone(), Options::default()).await,
            Some(current) if present.change(&current, &object).is_none() => return Ok(()),
            Some(_) => {
                let update = Update {
                    name: &name,
                    subresource: None,
                    change: &mut |current| Ok(present.change(current, &object).unwrap_or_else(|| current.clone())),
                    whole: false,
                };
                registry.update(scope, update, Options::default()).await
            }
        };
        match outcome {
            Ok(_) => return Ok(()),
            Err(status) if status.reason == "AlreadyExists" && present != Present::Follows => return Ok(()),
            // Another server makes the same right now, and holds what the object needs.
            Err(_) if registry.store.is_shared() && begin.elapsed() < OTHERS => {
                tokio::time::sleep(PAUSE).await;
                // Where it cannot be asked, the next attempt says so.
                registry.caches.fresh().await.ok();
            }
            Err(source) => {
                return Err(Error::Bootstrap {
                    what: format!("{plural} {namespace}/{name}"),
                    source,
                });
            }
        }
    }
}

/// Removes an object, if it is there.
pub(crate) async fn remove(
    registry: &Registry,
    user: &User,
    (group, plural): Resource,
    (namespace, name): (&str, &str),
) -> Result<(), Error> {
    let served = registry
        .resources
        .any_version(group, plural)
        .ok_or(Error::Incomplete(plural))?;
    let scope = Scope {
        served,
        namespace,
        user,
    };
    match registry.delete(scope, name, &DeleteOptions::default()).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "NotFound" => Ok(()),
        Err(source) => Err(Error::Remove {
            what: format!("{plural} {namespace}/{name}"),
            source,
        }),
    }
}
