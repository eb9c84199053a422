//! What a kind adds to the generic registry: one [`Strategy`] a kind, over plain JSON values.
//!
//! The registry does what is the same for all kinds (names, uids, timestamps, resource versions, finalizers, storage) and asks the
//! strategy for the rest. A strategy is pure: it never reads other objects and has no effects.
//!
//! Before `prepare_create` the registry has set `apiVersion`, `kind`, `metadata.{name,namespace,uid,creationTimestamp}`.
//! Order on create: defaults -> [`Strategy::prepare_create`] -> [`Strategy::canonicalize`] -> [`Strategy::validate_create`].
//! Order on update: defaults -> [`Strategy::prepare_update`] -> [`Strategy::canonicalize`] -> [`Strategy::validate_update`].

mod autoscaler;
mod definition;
mod event;
mod generic;
mod job;
mod namespace;
mod node;
mod persistent_volume;
mod pod;
mod qos;
mod scale;
mod secret;
mod service;
mod signing_request;
mod warnings;

pub(crate) use autoscaler::V1 as AUTOSCALER_V1;
pub use generic::Generic;
pub use pod::{BindError, bind};
pub use scale::Scale;
pub(crate) use scale::selector_text;

use std::fmt::Debug;

use serde_json::Value;
use skiff_api::field;
use skiff_api::resource::Resource;

/// Who asks, and when: what a strategy may need to know beyond the object.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Name of the authenticated user.
    pub user: &'a str,
    /// Uid of the authenticated user; empty when it has none.
    pub uid: &'a str,
    /// Groups of the authenticated user.
    pub groups: &'a [String],
    /// What else is known of the authenticated user.
    pub extra: Option<&'a std::collections::BTreeMap<String, Vec<String>>>,
}

/// What happens to dependents when an object is deleted and the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes first, the garbage collector then takes its dependents.
    Background,
    /// Dependents stay, without their owner.
    Orphan,
}

/// What a kind adds to the generic registry.
pub trait Strategy: Send + Sync + Debug {
    /// Brings a new object into the state in which it may be stored: no status from users, first generation.
    fn prepare_create(&self, object: &mut Value, context: &Context<'_>);

    /// Makes `new` what an update through `subresource` (`None` = the object itself) of `old` may store: the parts that this path
    /// does not own come back from `old`, and the generation grows when the desired state changed.
    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>);

    /// Brings equal objects into one form. Runs after `prepare_*`, before validation.
    fn canonicalize(&self, _object: &mut Value) {}

    /// All that is wrong with a new object.
    fn validate_create(&self, object: &Value) -> Vec<field::Error>;

    /// All that is wrong with an update through `subresource`.
    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error>;

    /// Field paths that a field selector may name, beside `metadata.name` and `metadata.namespace`.
    fn fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Value of a selectable field, `None` when the kind does not support that field. An unset field is an empty string.
    fn field(&self, object: &Value, path: &str) -> Option<String> {
        generic::field(self.fields(), object, path)
    }

    /// Seconds that a deletion of `object` waits for its owner (the kubelet), `None` when this kind is deleted at once.
    /// `requested` is `gracePeriodSeconds` of the request.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// What happens to dependents when the request does not say.
    fn default_propagation(&self) -> Propagation {
        Propagation::Background
    }

    /// Finalizers outside of metadata that hold a deletion back (`spec.finalizers` of a namespace).
    fn has_own_finalizers(&self, _object: &Value) -> bool {
        false
    }

    /// Last change of an object whose deletion has begun but is not complete (a namespace becomes `Terminating`).
    fn begin_deletion(&self, _object: &mut Value) {}

    /// Where the `scale` subresource finds its numbers; `None` when the kind has none.
    fn scale(&self) -> Option<&'static Scale> {
        None
    }

    /// Whether an update without `metadata.resourceVersion` is allowed.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Whether a PUT of an absent object creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Warnings for the `Warning` header of a create or update.
    fn warnings(&self, object: &Value) -> Vec<String> {
        warnings::of_pods(object)
    }
}

/// The strategy of a resource; a generic one where the kind adds nothing.
pub fn for_resource(resource: &Resource) -> &'static dyn Strategy {
    lookup(resource.group, resource.plural)
}

/// As [`for_resource`], by group and plural name.
pub fn lookup(group: &str, plural: &str) -> &'static dyn Strategy {
    match (group, plural) {
        ("", "pods") => &pod::Pod,
        ("", "nodes") => &node::Node,
        ("", "namespaces") => &namespace::Namespace,
        ("", "secrets") => &secret::Secret,
        ("", "services") => &service::Service,
        ("", "persistentvolumes") => &persistent_volume::PersistentVolume,
        ("" | "events.k8s.io", "events") => &event::Event,
        ("certificates.k8s.io", "certificatesigningrequests") => &signing_request::SigningRequest,
        ("batch", "jobs") => &job::Job,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &definition::Definition,
        _ => generic::lookup(group, plural),
    }
}
