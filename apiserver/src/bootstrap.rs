//! What every cluster has: system namespaces, default roles, priority classes, the `local-path` class of storage, the
//! `kubernetes` Service.
//!
//! Each is created when it is missing; what users changed stays as it is. Only the addresses of the `kubernetes` Service follow the
//! configuration at every start.

mod rbac;

use std::net::IpAddr;

use futures::future::try_join_all;
use serde_json::{Value, json};
use skiff_api::{meta, volumes};

use crate::authentication::{MASTERS, User};
use crate::config::Config;
use crate::registry::write::Update;
use crate::registry::{Options, Registry, Scope};
use crate::start::Error;

/// Namespaces that every cluster has.
pub const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Group and plural name of a resource.
type Resource = (&'static str, &'static str);

/// Creates what is missing.
pub async fn run(registry: &Registry, config: &Config) -> Result<(), Error> {
    let user = User::new("system:apiserver", [MASTERS]);
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
    let (service, endpoints) = kubernetes(config);
    ensure(registry, &user, ("", "services"), "default", service, false).await?;
    for (resource, object) in endpoints {
        ensure(registry, &user, resource, "default", object, true).await?;
    }
    Ok(())
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

/// The Service under which pods reach this server, and its addresses.
fn kubernetes(config: &Config) -> (Value, [(Resource, Value); 2]) {
    let first = match config.service_cluster_ip_range.network() {
        IpAddr::V4(network) => IpAddr::V4((u32::from(network) + 1).into()),
        IpAddr::V6(network) => IpAddr::V6((u128::from(network) + 1).into()),
    };
    let address = config.advertise_address.to_string();
    let family = if config.advertise_address.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let port = json!({"name": "https", "port": config.advertise_port, "protocol": "TCP"});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": first.to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}],
        },
    });
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [port]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [port],
    });
    (
        service,
        [
            (("", "endpoints"), endpoints),
            (("discovery.k8s.io", "endpointslices"), slice),
        ],
    )
}

/// Creates an object, unless there is one of its name; that one is left alone or, on request, made like this one.
async fn ensure(
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
        registry.create(scope, object, Options::default()).await
    };
    match outcome {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(source) => Err(Error::Bootstrap {
            what: format!("{plural} {namespace}/{name}"),
            source,
        }),
    }
}
