//! How others reach a pod's worker: what they want of it, and what wakes it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};

use super::ended::End;
use crate::admission::Refusal;
use crate::garbage::Remains;
use crate::memory::Finish;
use crate::observed::Observed;
use crate::pod;

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) pod: Arc<Pod>,
    /// The pod's source no longer has it.
    pub(crate) gone: bool,
    /// Of a static pod: what the API shows of it.
    pub(crate) mirror: Option<Mirror>,
}

/// A static pod's mirror, as far as the watch has told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) pod: Option<Arc<Pod>>,
    /// Grows with each word about it.
    pub(crate) change: u64,
}

impl Wish {
    /// That a pod of the API runs.
    pub(crate) fn of(pod: Arc<Pod>) -> Self {
        Self {
            pod,
            gone: false,
            mirror: None,
        }
    }
}

/// What was found when the pod came.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// Why it is not taken.
    pub(crate) refusal: Option<Refusal>,
    /// Whether the node's labels and taints are still to be asked.
    pub(crate) asks_node: bool,
    /// The pods that must have ended before it begins.
    pub(crate) room: Vec<Yielding>,
    /// What they have too much of.
    pub(crate) short: Vec<String>,
    /// What is being taken away of an earlier pod of its UID.
    pub(crate) remains: Option<Remains>,
}

/// A pod that is to make room.
#[derive(Debug)]
pub(crate) struct Yielding {
    name: String,
    wake: Arc<Wake>,
    view: watch::Receiver<Arc<Observed>>,
    finish: Option<Finish>,
}

impl Yielding {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends the pod for good.
    pub(super) fn end(&mut self) {
        if let Some(finish) = self.finish.take() {
            self.wake.end(finish);
        }
    }

    /// Waits until nothing of it runs.
    pub(super) async fn ended(&mut self) {
        // Its worker may have ended with it.
        self.view
            .wait_for(|observed| observed.running().next().is_none())
            .await
            .ok();
    }
}

/// How others reach a worker.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) wish: watch::Sender<Wish>,
    pub(super) wake: Arc<Wake>,
    /// The pod was not admitted and holds nothing.
    pub(crate) refused: bool,
    /// What the runtime says, for the server on :10250.
    pub(crate) view: watch::Receiver<Arc<Observed>>,
    /// Whether the pod may still hold something of the node: volumes, a cgroup.
    pub(super) holds: watch::Receiver<bool>,
}

/// Why a worker should look again.
#[derive(Debug, Default)]
pub(super) struct Wake {
    pub(super) notify: Notify,
    /// Containers and sandboxes that have ended, as the runtime's events say: its records follow a moment later.
    pub(super) ended: Mutex<HashMap<String, End>>,
    /// Containers in which the kernel killed for want of memory, as the runtime's events say.
    pub(super) out_of_memory: Mutex<HashSet<String>>,
    /// An object that the pod names has changed.
    pub(super) objects: AtomicBool,
    /// The pod is to fail, whatever its containers do.
    pub(super) end: Mutex<Option<Finish>>,
    /// Whether it ends or has ended, by itself or by that: then nobody ends it in another way.
    pub(super) ends: AtomicBool,
    /// Whether the runtime was asked of the pod.
    pub(super) looked: AtomicBool,
    /// What is kept of a pod that has ended is to go: the disk is full.
    pub(super) clear: AtomicBool,
}

impl Wake {
    /// False when the pod ends already.
    fn end(&self, finish: Finish) -> bool {
        if self.ends.swap(true, Ordering::AcqRel) {
            return false;
        }
        *self.end.lock() = Some(finish);
        self.notify.notify_one();
        true
    }
}

impl Handle {
    /// Something of the pod has changed at the runtime.
    pub(crate) fn look(&self) {
        self.wake.notify.notify_one();
    }

    /// Whether the pod comes from a manifest of this node.
    pub(crate) fn is_static(&self) -> bool {
        self.wish.borrow().mirror.is_some()
    }

    /// Ends the pod for good; false when it ends already.
    pub(crate) fn end(&self, finish: Finish) -> bool {
        self.wake.end(finish)
    }

    /// Whether the pod ends or has ended, which the API may not know yet.
    pub(crate) fn ends(&self) -> bool {
        self.wake.ends.load(Ordering::Acquire)
    }

    /// To be ended with this when another one is taken that needs its room.
    pub(crate) fn yielding(&self, finish: Finish) -> Yielding {
        Yielding {
            name: pod::full_name(&self.wish.borrow().pod),
            wake: self.wake.clone(),
            view: self.view.clone(),
            finish: Some(finish),
        }
    }

    /// Waits until a pod that ends has given back what it held.
    pub(crate) fn emptied(&self) -> impl Future<Output = ()> + use<> {
        let mut holds = self.holds.clone();
        // Its worker may have ended with it.
        async move {
            holds.wait_for(|holds| !holds).await.ok();
        }
    }

    /// Takes away what is kept of a pod that has ended, if anything is. What comes back ends when it is gone.
    pub(crate) fn clear(&self) -> Option<impl Future<Output = ()> + use<>> {
        let ended = pod::is_terminal(&self.wish.borrow().pod);
        let (mut view, wake) = (self.view.clone(), self.wake.clone());
        let nothing_left =
            move |seen: &Arc<Observed>| wake.looked.load(Ordering::Acquire) && seen.containers.is_empty();
        if !ended || nothing_left(&view.borrow()) {
            return None;
        }
        self.wake.clear.store(true, Ordering::Release);
        self.wake.notify.notify_one();
        Some(async move {
            view.wait_for(nothing_left).await.ok();
        })
    }

    /// A container or sandbox of the pod has ended.
    pub(crate) fn ended(&self, id: &str, code: u32, at: Timestamp) {
        let code = i32::try_from(code).unwrap_or(i32::MAX);
        self.wake.ended.lock().insert(id.to_owned(), End { code, at });
        self.wake.notify.notify_one();
    }

    /// The kernel has killed in a container of the pod, for want of memory.
    pub(crate) fn out_of_memory(&self, id: &str) {
        self.wake.out_of_memory.lock().insert(id.to_owned());
        self.wake.notify.notify_one();
    }

    /// A ConfigMap or Secret that the pod names has changed.
    pub(crate) fn objects_changed(&self) {
        self.wake.objects.store(true, Ordering::Release);
        self.wake.notify.notify_one();
    }
}
