//! What every cluster has: system namespaces, default roles, priority classes, the `local-path` class of storage, the
//! `kubernetes` Service.
//!
//! Each is created when it is missing; what users changed stays as it is. Servers that start at the same time on one store come to the
//! same: what another has made meanwhile is there.

mod rbac;

use std::net::IpAddr;
use std::time::Duration;

use futures::future::try_join_all;
use serde_json::{Value, json};
use skiff_api::{meta, volumes};
use tokio::time::Instant;

use crate::authentication::{MASTERS, User};
use crate::config::Config;
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
        ensure(registry, &user, ("", "namespaces"), "", object, false)
    });
    try_join_all(namespaces).await?;
    let classes = priority_classes()
        .into_iter()
        .map(|class| (("scheduling.k8s.io", "priorityclasses"), class));
    let objects = classes
        .chain(rbac::objects())
        .chain([service_range(config), local_path()]);
    // Together, so that they share a few commits.
    try_join_all(objects.map(|(resource, object)| ensure(registry, &user, resource, "", object, false))).await?;
    let service = kubernetes(config);
    ensure(registry, &user, ("", "services"), "default", service, false).await
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
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": first.to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}],
        },
    })
}

/// Creates an object, unless there is one of its name; that one is left alone or, on request, made like this one.
pub(crate) async fn ensure(
    registry: &Registry,
    user: &User,
    (group, plural): Resource,
    namespace: &str,
    object: Value,
    follow: bool,
) -> Result<(), Error> {
    let served = registry
        .resources
        .any_version(group, plural)
        .ok_or(Error::Incomplete(plural))?;
    let name = meta::name(&object).to_owned();
    let scope = Scope {
        served,
        namespace,
        user,
    };
    let begin = Instant::now();
    loop {
        let exists = served.cache.get(namespace, &name).is_some();
        if exists && !follow {
            return Ok(());
        }
        let outcome = if exists {
            let update = Update {
                name: &name,
                subresource: None,
                change: &mut |current| {
                    let mut wanted = object.clone();
                    wanted["metadata"] = current["metadata"].clone();
                    Ok(wanted)
                },
                whole: false,
            };
            registry.update(scope, update, Options::default()).await
        } else {
            registry.create(scope, object.clone(), Options::default()).await
        };
        match outcome {
            Ok(_) => return Ok(()),
            Err(status) if status.reason == "AlreadyExists" && !follow => return Ok(()),
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
