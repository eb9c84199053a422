//! What every cluster has: system namespaces, default roles, priority classes, the `kubernetes` Service.
//!
//! Each is created when it is missing; what users changed stays as it is.

use serde_json::{Value, json};
use skiff_api::meta;

use crate::authentication::{MASTERS, User};
use crate::config::Config;
use crate::registry::{Options, Registry, Scope};
use crate::start::Error;

/// Namespaces that every cluster has.
pub const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing.
pub async fn run(registry: &Registry, _config: &Config) -> Result<(), Error> {
    let user = User::new("system:apiserver", [MASTERS]);
    for namespace in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        ensure(registry, &user, ("", "namespaces"), "", object).await?;
    }
    Ok(())
}

/// Creates an object, unless there is one of its name.
async fn ensure(
    registry: &Registry,
    user: &User,
    (group, plural): (&'static str, &'static str),
    namespace: &str,
    object: Value,
) -> Result<(), Error> {
    let served = registry
        .resources
        .any_version(group, plural)
        .ok_or(Error::Incomplete(plural))?;
    let name = meta::name(&object).to_owned();
    if served.cache.get(namespace, &name).is_some() {
        return Ok(());
    }
    let scope = Scope {
        served,
        namespace,
        user,
    };
    match registry.create(scope, object, Options::default()).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(source) => Err(Error::Bootstrap {
            what: format!("{plural} {namespace}/{name}"),
            source,
        }),
    }
}
