//! Objects other than pods and nodes that plugins ask for.

use std::collections::HashMap;
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::selector::LabelSelector;

use crate::model::{Labels, Pod};

/// Namespace and name.
pub(crate) type Key = (Arc<str>, Arc<str>);

/// How many pods may be disrupted.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) selector: LabelSelector,
    pub(crate) allowed: i64,
}

/// Namespaces, selectors of Services and workloads, disruption budgets, volumes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) namespaces: HashMap<Arc<str>, Labels>,
    pub(crate) services: HashMap<Key, LabelSelector>,
    /// By kind (`ReplicaSet` …), then by name.
    pub(crate) workloads: HashMap<&'static str, HashMap<Key, LabelSelector>>,
    pub(crate) budgets: HashMap<Key, Budget>,
    pub(crate) claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: HashMap<Arc<str>, Arc<PersistentVolume>>,
    pub(crate) storage_classes: HashMap<Arc<str>, Arc<StorageClass>>,
}

impl Objects {
    /// The selectors of the Services and the workload that a pod belongs to: pods that match all of them are its like.
    pub(crate) fn likeness(&self, pod: &Pod) -> Vec<&LabelSelector> {
        let services = (self.services.iter())
            .filter(|((namespace, _), selector)| *namespace == pod.namespace && selector.matches(&pod.labels))
            .map(|(_, selector)| selector);
        let owner = pod.wants.owner.as_ref().and_then(|(kind, name)| {
            let key = (Arc::clone(&pod.namespace), Arc::from(name.as_str()));
            self.workloads.get(kind.as_str())?.get(&key)
        });
        services.chain(owner).collect()
    }
}
