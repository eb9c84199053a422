//! The resources that are served, and where each keeps its objects.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::resource::{self, Resource};
use skiff_api::schema::{Type, schema};

use crate::cache::{Cache, Caches};
use crate::registry::events;
use crate::strategy::{self, Strategy};

/// A served resource.
#[derive(Debug)]
pub struct Served {
    /// What discovery says of it.
    pub resource: &'static Resource,
    /// `group/version`.
    pub api_version: String,
    /// Shape of its objects.
    pub kind: Arc<Type>,
    /// What the kind adds to the registry.
    pub strategy: &'static dyn Strategy,
    /// Its objects.
    pub cache: Arc<Cache>,
    /// How objects of another version of the same storage are turned into this one; `None` when they are stored as they are served.
    pub conversion: Option<Conversion>,
}

/// Between the version that is served and the one that is stored.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    /// From the one that is served.
    pub store: fn(&mut Value),
    /// To the one that is served.
    pub serve: fn(&mut Value),
}

impl Served {
    /// Whether its objects can be created, changed and deleted (else it only answers questions: reviews).
    pub fn is_stored(&self) -> bool {
        self.resource.allows("get")
    }

    /// The namespace that a request means: none for a cluster-scoped resource, whatever its path says.
    pub fn namespace<'a>(&self, namespace: &'a str) -> &'a str {
        if self.resource.namespaced { namespace } else { "" }
    }
}

type Versions = HashMap<&'static str, HashMap<&'static str, Arc<Served>>>;

/// All resources that are served.
#[derive(Debug)]
pub struct Resources {
    groups: HashMap<&'static str, Versions>,
    all: Vec<Arc<Served>>,
}

impl Resources {
    /// The built-in resources, with caches made in `caches`.
    pub fn builtin(caches: &Caches) -> Self {
        let mut resources = Self {
            groups: HashMap::new(),
            all: Vec::new(),
        };
        for resource in resource::builtin() {
            let Some(kind) = schema().kind(resource.group, resource.version, resource.kind) else {
                tracing::error!(kind = resource.kind, "a resource has no schema: it is not served");
                continue;
            };
            resources.add(served(resource, Arc::clone(kind), caches));
        }
        resources
    }

    fn add(&mut self, served: Served) {
        let served = Arc::new(served);
        let resource = served.resource;
        self.groups
            .entry(resource.group)
            .or_default()
            .entry(resource.version)
            .or_default()
            .insert(resource.plural, Arc::clone(&served));
        self.all.push(served);
    }

    /// The resource of a path.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.groups.get(group)?.get(version)?.get(plural)
    }

    /// The resource of a group in its first version.
    pub fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        self.all
            .iter()
            .find(|served| served.resource.group == group && served.resource.plural == plural)
    }

    /// All of them, in the order of discovery.
    pub fn all(&self) -> &[Arc<Served>] {
        &self.all
    }

    /// Every group with its versions, in the order of discovery.
    pub fn group_versions(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for served in &self.all {
            let Resource { group, version, .. } = *served.resource;
            match groups.iter_mut().find(|(name, _)| *name == group) {
                Some((_, versions)) if versions.contains(&version) => {}
                Some((_, versions)) => versions.push(version),
                None => groups.push((group, vec![version])),
            }
        }
        groups
    }
}

fn served(resource: &'static Resource, kind: Arc<Type>, caches: &Caches) -> Served {
    let strategy = strategy::for_resource(resource);
    // Both kinds of events are one storage, kept as core/v1; both versions of autoscalers one, kept as v2.
    let (storage, conversion) = match (resource.group, resource.version, resource.plural) {
        ("autoscaling", "v1", "horizontalpodautoscalers") => (
            resource::lookup("autoscaling", "v2", "horizontalpodautoscalers").unwrap_or(resource),
            Some(strategy::AUTOSCALER_V1),
        ),
        ("events.k8s.io", _, "events") => (
            resource::lookup("", "v1", "events").unwrap_or(resource),
            Some(events::CONVERSION),
        ),
        _ => (resource, None),
    };
    Served {
        resource,
        api_version: resource.api_version(),
        kind,
        strategy,
        cache: caches.add(storage, strategy::for_resource(storage)),
        conversion,
    }
}
