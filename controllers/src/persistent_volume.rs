//! Binds claims to volumes: finds or asks for a volume, writes both references, keeps both phases, and says what becomes of
//! a volume whose claim is gone.
//!
//! [`claim`] and [`volume`] decide, [`bind`] writes. Every write of a reference is conditional on the version that was
//! decided on, so several workers, the scheduler and a provisioner may all act at once: whoever comes second is refused
//! and looks again.

use std::fmt;
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes;

use crate::events::{Recorder, Regarding};
use crate::informer::{Change, Informer};
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Index, Key, Node, Pod, View};
use crate::write::{Error, Writer};

mod bind;
mod claim;
mod volume;

const WORKERS: usize = 4;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Work {
    Claim(Key),
    Volume(Key),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(key) => write!(f, "volume {key}"),
        }
    }
}

/// An event that a decision comes with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Note {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason,
            message: message.into(),
        }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: true,
            ..Self::normal(reason, message)
        }
    }
}

struct Controller {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    writer: Writer,
    recorder: Recorder,
    queue: Arc<Queue<Work>>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let informers = &shared.informers;
    let controller = Arc::new(Controller {
        claims: informers.persistent_volume_claims.want(),
        volumes: informers.persistent_volumes.want(),
        classes: informers.storage_classes.want(),
        pods: informers.pods.want(),
        nodes: informers.nodes.want(),
        writer: shared.writer("persistent-volume-binder"),
        recorder: shared.recorder("persistentvolume-controller"),
        queue: shared.queue("persistentvolume_binder"),
    });
    controller.claims.tell(&controller, Controller::claim_changed);
    controller.volumes.tell(&controller, Controller::volume_changed);
    let this = Arc::clone(&controller);
    controller.classes.on_change(move |change| {
        // A class may be the default one: claims without any wait for it, too.
        this.add_unbound(change.object().name());
        this.add_unbound("");
    });
    controller.pods.tell(&controller, Controller::pod_changed);
    controller.nodes.tell(&controller, Controller::node_changed);
    let synced = [
        controller.claims.synced(),
        controller.volumes.synced(),
        controller.classes.synced(),
        controller.pods.synced(),
        controller.nodes.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, WORKERS, synced, move |work| {
        let this = Arc::clone(&controller);
        async move {
            match work {
                Work::Claim(key) => this.sync_claim(&key).await,
                Work::Volume(key) => this.sync_volume(&key).await,
            }
        }
    })
}

// === handlers: keys only ===

impl Controller {
    fn claim_changed(&self, change: &Change<'_, PersistentVolumeClaim>) {
        let claim = change.object();
        self.queue.add(Work::Claim(claim.key()));
        let named = volumes::claimed_volume(claim);
        if !named.is_empty() {
            self.queue.add(Work::Volume(Key::cluster(named)));
        }
        let before = change.old.map(|old| volumes::claimed_volume(old));
        if change.is_deletion() || before != Some(named) {
            // A volume may name a claim that does not know of it yet, or has taken another one.
            for volume in self
                .volumes
                .list()
                .iter()
                .filter(|volume| volumes::is_for(volume, claim))
            {
                self.queue.add(Work::Volume(volume.key()));
            }
        }
    }

    fn volume_changed(&self, change: &Change<'_, PersistentVolume>) {
        let volume = change.object();
        self.queue.add(Work::Volume(volume.key()));
        self.add_claims(&Index::Volume(volume.name().to_owned()));
        if let Some(claim) = volumes::claim_ref(volume) {
            self.queue.add(Work::Claim(Key::new(
                claim.namespace.as_deref().unwrap_or_default(),
                claim.name.as_deref().unwrap_or_default(),
            )));
        } else if volumes::volume_phase(volume) == "Available" && !change.is_deletion() {
            self.add_unbound(volumes::volume_class(volume));
        }
    }

    /// A pod that waits for a node is what a claim waits for.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        if pod.spec.node_name.is_some() || (change.old.is_some() && change.new.is_some()) {
            return;
        }
        for claim in pod.claims() {
            let key = Key::new(pod.namespace(), &claim);
            let unbound = |claim: Arc<PersistentVolumeClaim>| volumes::claimed_volume(&claim).is_empty();
            if self.claims.get(&key).is_some_and(unbound) {
                self.queue.add(Work::Claim(key));
            }
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        if !change.is_deletion() {
            return;
        }
        let name = change.object().name();
        for claim in self.claims.list() {
            if volumes::claim_annotation(&claim, volumes::SELECTED_NODE) == Some(name) {
                self.queue.add(Work::Claim(claim.key()));
            }
        }
    }

    fn add_unbound(&self, class: &str) {
        self.add_claims(&Index::Unbound(class.to_owned()));
    }

    fn add_claims(&self, index: &Index) {
        for claim in self.claims.by_index(index) {
            self.queue.add(Work::Claim(claim.key()));
        }
    }

    fn tell<K: View>(&self, object: &K, note: Note) {
        let Note {
            warning,
            reason,
            message,
        } = note;
        if warning {
            self.recorder.warning(Regarding::of(object), reason, message);
        } else {
            self.recorder.normal(Regarding::of(object), reason, message);
        }
    }
}

/// A conditional write that came second changes nothing: the newer state will be looked at.
fn unless_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
