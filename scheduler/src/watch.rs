//! What the API server tells: one watch a kind, parsed into the model on its own task.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use skiff_api::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use skiff_api::k8s_openapi::api::core::v1 as core;
use skiff_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::selector::LabelSelector;
use skiff_daemon::{Tasks, error_chain};
use tokio::sync::mpsc::UnboundedSender;

use crate::cache::{Budget, Key};
use crate::model::{Labels, Node, Pod};

/// A change of one kind of object.
#[derive(Debug)]
pub(crate) enum Update<T> {
    /// Made or changed.
    Set(T),
    /// Deleted.
    Remove(T),
    /// All there are, after a (re)start of the watch.
    Replace(Vec<T>),
}

/// A change of anything that matters.
#[derive(Debug)]
pub(crate) enum Change {
    Pod(Update<Arc<Pod>>),
    Node(Update<Box<Node>>),
    Namespace(Update<(Arc<str>, Labels)>),
    Service(Update<(Key, LabelSelector)>),
    Workload(&'static str, Update<(Key, LabelSelector)>),
    Budget(Update<(Key, Budget)>),
    Claim(Update<(Key, Arc<core::PersistentVolumeClaim>)>),
    Volume(Update<(Arc<str>, Arc<core::PersistentVolume>)>),
    StorageClass(Update<(Arc<str>, Arc<StorageClass>)>),
}

/// How many kinds are watched: scheduling begins when each has been listed.
pub(crate) const KINDS: usize = 11;

/// Starts a task for each kind; they end with the others, or when nobody listens any more.
pub(crate) fn start(client: &Client, changes: &UnboundedSender<Change>, tasks: &Tasks) {
    let follower = Follower { client, changes, tasks };
    follower.follow(|pod: core::Pod| Pod::new(pod).map(Arc::new), Change::Pod);
    follower.follow(|node: core::Node| Node::new(node).map(Box::new), Change::Node);
    follower.follow(
        |namespace: core::Namespace| {
            Some((
                namespace.metadata.name?.into(),
                namespace.metadata.labels.unwrap_or_default(),
            ))
        },
        Change::Namespace,
    );
    follower.follow(
        |service: core::Service| {
            let selector = service
                .spec
                .as_ref()?
                .selector
                .as_ref()
                .filter(|selector| !selector.is_empty())?;
            let selector =
                LabelSelector::from_map(selector.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            Some((key(&service)?, selector))
        },
        Change::Service,
    );
    follower.follow(
        |set: ReplicaSet| Some((key(&set)?, LabelSelector::from_typed(Some(&set.spec?.selector)).ok()?)),
        |update| Change::Workload("ReplicaSet", update),
    );
    follower.follow(
        |set: StatefulSet| Some((key(&set)?, LabelSelector::from_typed(Some(&set.spec?.selector)).ok()?)),
        |update| Change::Workload("StatefulSet", update),
    );
    follower.follow(
        |controller: core::ReplicationController| {
            let selector = controller.spec.as_ref()?.selector.as_ref()?;
            let selector =
                LabelSelector::from_map(selector.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            Some((key(&controller)?, selector))
        },
        |update| Change::Workload("ReplicationController", update),
    );
    follower.follow(
        |budget: PodDisruptionBudget| {
            let allowed = budget
                .status
                .as_ref()
                .map_or(0, |status| i64::from(status.disruptions_allowed.unwrap_or_default()));
            let key = key(&budget)?;
            let selector = LabelSelector::from_typed(budget.spec?.selector.as_ref()).ok()?;
            Some((key, Budget { selector, allowed }))
        },
        Change::Budget,
    );
    follow_storage(&follower);
}

fn follow_storage(follower: &Follower<'_>) {
    follower.follow(
        |mut claim: core::PersistentVolumeClaim| {
            claim.metadata.managed_fields = None;
            Some((key(&claim)?, Arc::new(claim)))
        },
        Change::Claim,
    );
    follower.follow(
        |mut volume: core::PersistentVolume| {
            volume.metadata.managed_fields = None;
            Some((volume.metadata.name.as_deref()?.into(), Arc::new(volume)))
        },
        Change::Volume,
    );
    follower.follow(
        |mut class: StorageClass| {
            class.metadata.managed_fields = None;
            Some((class.metadata.name.as_deref()?.into(), Arc::new(class)))
        },
        Change::StorageClass,
    );
}

struct Follower<'a> {
    client: &'a Client,
    changes: &'a UnboundedSender<Change>,
    tasks: &'a Tasks,
}

impl Follower<'_> {
    fn follow<K, T>(&self, parse: fn(K) -> Option<T>, wrap: fn(Update<T>) -> Change)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        T: Send + 'static,
    {
        let changes = self.changes.clone();
        let events = watcher(Api::<K>::all(self.client.clone()), watcher::Config::default()).default_backoff();
        let follow = async move {
            let mut events = std::pin::pin!(events);
            let mut listed = Vec::new();
            while let Some(event) = events.next().await {
                let update = match event {
                    Ok(watcher::Event::Apply(object)) => parse(object).map(Update::Set),
                    Ok(watcher::Event::Delete(object)) => parse(object).map(Update::Remove),
                    Ok(watcher::Event::Init) => {
                        listed = Vec::new();
                        None
                    }
                    Ok(watcher::Event::InitApply(object)) => {
                        listed.extend(parse(object));
                        None
                    }
                    Ok(watcher::Event::InitDone) => Some(Update::Replace(std::mem::take(&mut listed))),
                    Err(error) => {
                        let kind = K::kind(&());
                        tracing::warn!(%kind, error = %error_chain(&error), "the watch broke; starting it again");
                        None
                    }
                };
                if let Some(update) = update
                    && changes.send(wrap(update)).is_err()
                {
                    return;
                }
            }
        };
        self.tasks.spawn(follow);
    }
}

fn key<K: Resource>(object: &K) -> Option<Key> {
    Some((object.namespace()?.into(), object.meta().name.as_deref()?.into()))
}
