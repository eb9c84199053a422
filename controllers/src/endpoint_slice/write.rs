//! Carries plans out, and remembers what was written and has not come back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::api::DeleteParams;
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

use super::label_patch;
use super::pack::Plan;
use crate::ownership::controller_reference;
use crate::view::{Key, View};
use crate::write::{Error, Merge, Writer};

/// After this long the store is trusted again even though a write of ours has not come back.
const STALE_FOR: Duration = Duration::from_secs(30);

/// Writes one controller's slices.
pub(super) struct SliceWriter {
    writer: Writer,
    written: Written,
}

impl SliceWriter {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            written: Written::default(),
        }
    }

    /// Writes what is planned for the Service or Endpoints `owner`, whose name the Service has too.
    pub(super) async fn apply<O: View>(
        &self,
        owner: &O,
        labels: &BTreeMap<String, String>,
        plan: Plan,
    ) -> Result<(), Error> {
        let key = owner.key();
        for slice in plan.create {
            let body = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "generateName": format!("{}-", owner.name()),
                    "namespace": owner.namespace(),
                    "labels": labels,
                    "ownerReferences": [controller_reference(owner)],
                },
                "addressType": slice.address_type,
                "endpoints": slice.endpoints,
                "ports": slice.ports,
            });
            let place = Key::new(owner.namespace(), "");
            match self.writer.create::<EndpointSlice>(&place, &body).await {
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                created => self.written.note(&key, &created?),
            }
        }
        for (slice, content) in plan.update {
            let patch = json!({
                "metadata": {
                    "uid": slice.uid(),
                    "resourceVersion": slice.resource_version(),
                    "labels": label_patch(slice.labels(), labels),
                },
                "endpoints": content.endpoints,
                "ports": content.ports,
            });
            let updated = self
                .writer
                .patch::<EndpointSlice>(&slice.key(), Merge::Json, &patch)
                .await?;
            self.written.note(&key, &updated);
        }
        self.delete(&plan.delete).await
    }

    /// Deletes slices; those that changed meanwhile come round again.
    pub(super) async fn delete(&self, slices: &[Arc<EndpointSlice>]) -> Result<(), Error> {
        for slice in slices {
            match self
                .writer
                .delete::<EndpointSlice>(&slice.key(), slice.uid(), DeleteParams::default())
                .await
            {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How long to wait at most for the store to catch up with what was written, if it is behind.
    pub(super) fn stale_for(&self, service: &Key, seen: &[Arc<EndpointSlice>]) -> Option<Duration> {
        self.written.stale_for(service, seen)
    }

    /// A slice that is gone will not be seen at any version.
    pub(super) fn forget_slice(&self, uid: &str) {
        self.written.forget_slice(uid);
    }

    /// The Service is gone.
    pub(super) fn forget(&self, service: &Key) {
        self.written.forget(service);
    }
}

/// The newest version of each slice that we wrote, by Service. While the store is behind it, a plan made from the store
/// would create slices twice.
#[derive(Default)]
struct Written {
    slices: Mutex<HashMap<Key, Versions>>,
}

/// By uid: the version that we wrote, and when.
type Versions = HashMap<String, (u64, Instant)>;

impl Written {
    fn note(&self, service: &Key, slice: &EndpointSlice) {
        if let Ok(version) = slice.resource_version().parse() {
            let mut slices = self.slices.lock();
            slices
                .entry(service.clone())
                .or_default()
                .insert(slice.uid().to_owned(), (version, Instant::now()));
        }
    }

    fn stale_for(&self, service: &Key, seen: &[Arc<EndpointSlice>]) -> Option<Duration> {
        let mut slices = self.slices.lock();
        let written = slices.get_mut(service)?;
        written.retain(|uid, (version, at)| {
            let seen = seen
                .iter()
                .find(|slice| slice.uid() == uid)
                .and_then(|slice| slice.resource_version().parse::<u64>().ok());
            at.elapsed() < STALE_FOR && seen.is_none_or(|seen| seen < *version)
        });
        let left = written
            .values()
            .map(|(_, at)| STALE_FOR.saturating_sub(at.elapsed()))
            .min();
        if left.is_none() {
            slices.remove(service);
        }
        left.map(|left| left.max(Duration::from_millis(1)))
    }

    fn forget_slice(&self, uid: &str) {
        for written in self.slices.lock().values_mut() {
            written.remove(uid);
        }
    }

    fn forget(&self, service: &Key) {
        self.slices.lock().remove(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(uid: &str, version: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"uid": uid, "resourceVersion": version}, "addressType": "IPv4", "endpoints": [],
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_waits_for_our_own_writes() {
        let written = Written::default();
        let service = Key::new("ns", "web");
        assert!(written.stale_for(&service, &[]).is_none());
        written.note(&service, &slice("a", "7"));
        assert!(written.stale_for(&service, &[]).is_some());
        assert!(written.stale_for(&service, &[Arc::new(slice("a", "6"))]).is_some());
        assert!(written.stale_for(&service, &[Arc::new(slice("a", "7"))]).is_none());
        written.note(&service, &slice("b", "9"));
        tokio::time::advance(STALE_FOR).await;
        assert!(written.stale_for(&service, &[]).is_none(), "given up");
    }
}
