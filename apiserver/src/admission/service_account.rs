//! Every pod acts as a service account, and finds its token where clients look for it.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::names;
use skiff_api::pods::MIRROR;
use skiff_api::status::{Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

/// Where clients in a pod look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Upstream's life of a pod's token: an hour, and a few seconds by which such tokens are told apart.
const EXPIRATION: i64 = 3607;

/// See the module.
#[derive(Debug)]
pub(super) struct ServiceAccount {
    pub(super) accounts: Arc<Cache>,
}

impl Plugin for ServiceAccount {
    fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        if review.operation != Operation::Create || !review.is_about("", "pods") {
            return Ok(());
        }
        let forbid = |pod: &Value, why: &str| Err(Status::forbidden(Qualified::new("", "pods"), meta::name(pod), why));
        let named = pod
            .pointer("/spec/serviceAccountName")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if meta::annotation(pod, MIRROR).is_some() {
            return if named.is_empty() {
                Ok(())
            } else {
                forbid(pod, "a mirror pod may not reference service accounts")
            };
        }
        let name = if named.is_empty() { "default".to_owned() } else { named };
        let namespace = review.scope.namespace;
        let Some(account) = self.accounts.get(namespace, &name) else {
            let why =
                format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
            return forbid(pod, &why);
        };
        let account = account.value();
        if !pod["spec"].is_object() {
            return Ok(());
        }
        pod["spec"]["serviceAccountName"] = name.as_str().into();
        pod["spec"]["serviceAccount"] = name.as_str().into();
        let automount = pod["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or_else(|| account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(&mut pod["spec"]);
        }
        let has_secrets = pod["spec"]["imagePullSecrets"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if !has_secrets && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|list| !list.is_empty()) {
            pod["spec"]["imagePullSecrets"] = secrets.clone().into();
        }
        Ok(())
    }
}

/// Adds the token's volume, and its mount in each container that has nothing there yet.
fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"].as_array().into_iter().flatten().find_map(|volume| {
        let name = volume["name"].as_str()?;
        name.starts_with("kube-api-access-").then(|| name.to_owned())
    });
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("kube-api-access-{}", names::random_suffix(5)));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        // Indexing would leave `null` behind where there is no such list.
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let taken = container["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|mount| mount["mountPath"] == MOUNT_PATH);
            if taken || !container.is_object() {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
            mounted = true;
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    push(
        spec,
        "volumes",
        json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": EXPIRATION, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }),
    );
}

fn push(object: &mut Value, key: &str, item: Value) {
    match object[key].as_array_mut() {
        Some(list) => list.push(item),
        None => object[key] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::mount_token;

    #[test]
    fn the_token_is_mounted_once_in_each_container() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [
                {"name": "a"},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]},
            ],
        });
        mount_token(&mut spec);
        let volume = spec["volumes"][0]["name"].as_str().unwrap().to_owned();
        assert!(volume.starts_with("kube-api-access-"));
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["name"], volume.as_str());
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume.as_str());
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let before = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, before);
    }
}
