//! Rules that look beyond the object itself: built-in admission plugins, one a file, in upstream's order.

mod certificates;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod escalation;
mod namespace_lifecycle;
mod node_local_volumes;
mod node_restriction;
mod persistent_volume_claim_resize;
mod priority;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;

use std::fmt::Debug;
use std::sync::Arc;

use serde_json::Value;

use crate::authorization::Authorizer;
use crate::cache::Cache;
use crate::errors::Result;
use crate::registry::Scope;
use crate::resources::Resources;

/// Upstream's names of what is on in any case.
const ALWAYS_ON: [&str; 13] = [
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "NamespaceLifecycle",
    "NodeRestriction",
    "PersistentVolumeClaimResize",
    "Priority",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
];

/// What somebody is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Make a new object.
    Create,
    /// Change one.
    Update,
    /// Delete one.
    Delete,
    /// Reach into one (`pods/exec`).
    Connect,
}

/// What admission judges, beside the object.
#[derive(Debug, Clone, Copy)]
pub struct Review<'a> {
    /// What is done.
    pub operation: Operation,
    /// To which resource, where, by whom.
    pub scope: Scope<'a>,
    /// Through which subresource.
    pub subresource: Option<&'a str>,
    /// The object as it is.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

impl Review<'_> {
    /// Whether it is about objects of a resource themselves (no subresource).
    pub fn is_about(&self, group: &str, plural: &str) -> bool {
        let resource = self.scope.served.resource;
        self.subresource.is_none() && resource.group == group && resource.plural == plural
    }
}

/// One set of rules.
pub trait Plugin: Send + Sync + Debug {
    /// Completes an object, or refuses it.
    fn mutate(&self, _review: &Review<'_>, _object: &mut Value) -> Result<()> {
        Ok(())
    }

    /// Refuses an object that nobody will change any more.
    fn validate(&self, _review: &Review<'_>, _object: &Value) -> Result<()> {
        Ok(())
    }
}

/// The plugins, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Admission {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Admission {
    /// The plugins that are on by default, and those of `enabled` that are not.
    ///
    /// # Errors
    /// The name in `enabled` that no plugin has.
    pub fn builtin(
        resources: &Resources,
        authorizer: Arc<Authorizer>,
        enabled: &[String],
    ) -> std::result::Result<Self, String> {
        let cache = |group: &str, plural: &str| -> Option<Arc<Cache>> {
            resources
                .any_version(group, plural)
                .map(|served| Arc::clone(&served.cache))
        };
        let mut plugins: Vec<Box<dyn Plugin>> = Vec::new();
        if let Some(namespaces) = cache("", "namespaces") {
            plugins.push(Box::new(namespace_lifecycle::NamespaceLifecycle { namespaces }));
        }
        if let Some(accounts) = cache("", "serviceaccounts") {
            plugins.push(Box::new(service_account::ServiceAccount { accounts }));
        }
        if let Some(classes) = cache("scheduling.k8s.io", "priorityclasses") {
            plugins.push(Box::new(priority::Priority { classes }));
        }
        if let Some(classes) = cache("node.k8s.io", "runtimeclasses") {
            plugins.push(Box::new(runtime_class::RuntimeClass { classes }));
        }
        plugins.extend(node_restriction(&cache, &authorizer));
        plugins.push(Box::new(default_toleration_seconds::DefaultTolerationSeconds));
        plugins.extend(storage(&cache));
        if let Some(classes) = cache("networking.k8s.io", "ingressclasses") {
            plugins.push(Box::new(default_ingress_class::DefaultIngressClass { classes }));
        }
        plugins.push(Box::new(certificates::Certificates {
            authorizer: Arc::clone(&authorizer),
        }));
        plugins.push(Box::new(escalation::Escalation { authorizer }));
        for name in enabled {
            match name.as_str() {
                "DenyServiceExternalIPs" => plugins.push(Box::new(deny_service_external_ips::DenyServiceExternalIPs)),
                on if ALWAYS_ON.contains(&on) => {}
                unknown => return Err(unknown.to_owned()),
            }
        }
        Ok(Self { plugins })
    }

    /// Lets every plugin complete or refuse the object.
    pub fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        self.plugins.iter().try_for_each(|plugin| plugin.mutate(review, object))
    }

    /// Lets every plugin refuse the object.
    pub fn validate(&self, review: &Review<'_>, object: &Value) -> Result<()> {
        self.plugins
            .iter()
            .try_for_each(|plugin| plugin.validate(review, object))
    }
}

/// What nodes may change.
fn node_restriction(
    cache: &dyn Fn(&str, &str) -> Option<Arc<Cache>>,
    authorizer: &Arc<Authorizer>,
) -> Option<Box<dyn Plugin>> {
    Some(Box::new(node_restriction::NodeRestriction {
        authorizer: Arc::clone(authorizer),
        nodes: cache("", "nodes")?,
        pods: cache("", "pods")?,
        claims: cache("", "persistentvolumeclaims")?,
        volumes: cache("", "persistentvolumes")?,
        drivers: cache("storage.k8s.io", "csidrivers")?,
    }))
}

/// What concerns volumes and claims.
fn storage(cache: &dyn Fn(&str, &str) -> Option<Arc<Cache>>) -> Vec<Box<dyn Plugin>> {
    let mut plugins: Vec<Box<dyn Plugin>> = Vec::new();
    if let Some(claims) = cache("", "persistentvolumeclaims") {
        plugins.push(Box::new(node_local_volumes::NodeLocalVolumes { claims }));
    }
    if let Some(classes) = cache("storage.k8s.io", "storageclasses") {
        plugins.push(Box::new(default_storage_class::DefaultStorageClass {
            classes: Arc::clone(&classes),
        }));
        plugins.push(Box::new(persistent_volume_claim_resize::PersistentVolumeClaimResize {
            classes,
        }));
    }
    plugins.push(Box::new(storage_object_in_use_protection::StorageObjectInUseProtection));
    plugins
}
