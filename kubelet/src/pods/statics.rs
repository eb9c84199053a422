//! Static pods and their mirrors: pods in the API by which others see them. A static pod's worker keeps its own mirror; a
//! mirror of no static pod is deleted here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::api::{Api, DeleteParams, Preconditions};
use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Dispatcher;
use crate::pod::{self, Key, MIRROR};
use crate::pod_worker::{Handle, Mirror, Wish};

/// What is known of static pods beside their workers.
#[derive(Debug, Default)]
pub(super) struct Statics {
    /// The mirrors that the API has.
    mirrors: HashMap<Key, Arc<Pod>>,
    /// Static pods that wait until the one that their file asked for before has ended.
    waiting: HashMap<Key, Arc<Pod>>,
    /// Counts what was heard of mirrors.
    changes: u64,
}

impl Dispatcher {
    /// What the manifests ask for now.
    pub(super) fn all_statics(&mut self, pods: Vec<Arc<Pod>>) {
        let present: HashSet<&str> = pods.iter().map(|pod| pod::uid(pod)).collect();
        self.statics.waiting.retain(|_, pod| present.contains(pod::uid(pod)));
        for handle in self
            .directory
            .handles
            .read()
            .values()
            .filter(|handle| handle.is_static())
        {
            handle.wish.send_if_modified(|wish| {
                let ends = !wish.gone && !present.contains(pod::uid(&wish.pod));
                wish.gone |= ends;
                ends
            });
        }
        for pod in pods {
            let key = pod::key(&pod);
            match self.static_uid(&key) {
                // Two pods of one name never run at once; the same pod may end and come back.
                Some((uid, gone)) if gone || uid != pod::uid(&pod) => {
                    self.statics.waiting.insert(key, pod);
                }
                Some(_) => {}
                None => self.spawn_static(pod),
            }
        }
        self.sweep_mirrors();
    }

    /// The UID of the static pod of a name that has a worker, and whether it is to end.
    fn static_uid(&self, key: &Key) -> Option<(String, bool)> {
        let handles = self.directory.handles.read();
        let mut found = handles
            .values()
            .filter(|handle| handle.is_static())
            .filter_map(|handle| {
                let wish = handle.wish.borrow();
                (pod::key(&wish.pod) == *key).then(|| (pod::uid(&wish.pod).to_owned(), wish.gone))
            });
        found.next()
    }

    fn spawn_static(&mut self, pod: Arc<Pod>) {
        let mirror = Mirror {
            pod: self.statics.mirrors.get(&pod::key(&pod)).cloned(),
            change: self.statics.changes,
        };
        self.spawn(Wish {
            mirror: Some(mirror),
            ..Wish::of(pod)
        });
    }

    /// Nothing is left of a static pod: the one that waited for its name begins, or its mirror goes.
    pub(super) fn static_ended(&mut self, handle: &Handle) {
        let key = pod::key(&handle.wish.borrow().pod);
        match self.statics.waiting.remove(&key) {
            Some(next) => self.spawn_static(next),
            None => self.sweep_mirrors(),
        }
    }

    /// A mirror is new, has changed, or is gone.
    pub(super) fn mirror(&mut self, key: Key, pod: Option<Arc<Pod>>) {
        self.statics.changes += 1;
        let change = self.statics.changes;
        match &pod {
            Some(pod) => self.statics.mirrors.insert(key.clone(), pod.clone()),
            None => self.statics.mirrors.remove(&key),
        };
        for handle in self
            .directory
            .handles
            .read()
            .values()
            .filter(|handle| handle.is_static())
        {
            handle.wish.send_if_modified(|wish| {
                let mine = pod::key(&wish.pod) == key;
                if mine {
                    let pod = pod.clone();
                    wish.mirror = Some(Mirror { pod, change });
                }
                mine
            });
        }
        if pod.is_some() {
            self.sweep_mirrors();
        }
    }

    /// The mirrors that the API has, after a list.
    pub(super) fn all_mirrors(&mut self, pods: Vec<Arc<Pod>>) {
        let present: HashMap<Key, Arc<Pod>> = pods.into_iter().map(|pod| (pod::key(&pod), pod)).collect();
        let mut gone: Vec<Key> = self.statics.mirrors.keys().cloned().collect();
        gone.retain(|key| !present.contains_key(key));
        gone.into_iter().for_each(|key| self.mirror(key, None));
        present.into_iter().for_each(|(key, pod)| self.mirror(key, Some(pod)));
    }

    /// Deletes the mirrors of pods that no manifest asks for any more.
    pub(super) fn sweep_mirrors(&self) {
        if !self.looked {
            return;
        }
        for (key, pod) in &self.statics.mirrors {
            // A pod whose manifest went while no kubelet ran ends first: until then its mirror shows it.
            let shown = pod::annotation(pod, MIRROR).unwrap_or_default();
            let ends = self.listed.contains_key(shown) || self.directory.handles.read().contains_key(shown);
            if ends || self.static_uid(key).is_some() || self.statics.waiting.contains_key(key) {
                continue;
            }
            let (client, pod) = (self.agent.client.clone(), pod.clone());
            tokio::spawn(async move {
                if let Err(error) = delete(client, &pod).await {
                    tracing::warn!(
                        pod = pod::full_name(&pod),
                        error = skiff_daemon::error_chain(&error),
                        "cannot delete the mirror of a static pod that is gone; it is tried again"
                    );
                }
            });
        }
    }
}

/// Deletes a mirror at once, if it is still that one.
async fn delete(client: kube::Client, pod: &Pod) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client, pod::namespace(pod));
    let precondition = Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    let parameters = DeleteParams::default().grace_period(0).preconditions(precondition);
    match api.delete(pod::name(pod), &parameters).await {
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
        answer => answer.map(drop),
    }
}
