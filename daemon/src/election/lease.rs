//! The Lease in the API: seen, made, written on condition that nobody else wrote meanwhile.

use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::coordination::v1::Lease;
use tokio::time::{Duration, Instant};

use super::decision::{Record, Sighting};

/// One Lease in `kube-system`.
#[derive(Clone, Debug)]
pub(super) struct Leases {
    pub(super) api: Api<Lease>,
    pub(super) name: String,
}

impl Leases {
    pub(super) fn new(client: Client, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, super::NAMESPACE),
            name: name.to_owned(),
        }
    }

    /// The Lease as it is now; `None` when there is none.
    pub(super) async fn look(&self, before: Option<Sighting>) -> Result<Option<Sighting>, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        Ok(lease.map(|lease| sighting(before, lease)))
    }

    pub(super) async fn create(&self, record: &Record) -> Result<Sighting, kube::Error> {
        let now = Instant::now();
        let object = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": super::NAMESPACE},
            "spec": spec(record),
        });
        let lease: Lease = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        let lease = self.api.create(&PostParams::default(), &lease).await?;
        Ok(own(record, &lease, now))
    }

    /// Writes the record; a conflict when the Lease is not at `version` any more.
    pub(super) async fn write(&self, record: &Record, version: &str) -> Result<Sighting, kube::Error> {
        let now = Instant::now();
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": spec(record)}));
        let lease = self.api.patch(&self.name, &PatchParams::default(), &patch).await?;
        Ok(own(record, &lease, now))
    }
}

/// What another wrote.
pub(super) fn sighting(before: Option<Sighting>, lease: Lease) -> Sighting {
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    let record = Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds.unwrap_or_default()),
        acquired: spec.acquire_time.map(|time| text(time.0)),
        renewed: spec.renew_time.map(|time| text(time.0)),
        transitions: spec.lease_transitions.unwrap_or_default(),
    };
    let version = lease.metadata.resource_version.unwrap_or_default();
    Sighting::follow(before, record, version, Instant::now())
}

/// What we wrote: it counts from before it was sent, so never longer here than for those who saw it.
fn own(record: &Record, lease: &Lease, since: Instant) -> Sighting {
    Sighting {
        record: record.clone(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        since,
    }
}

fn spec(record: &Record) -> Value {
    json!({
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.duration.as_secs().max(1),
        "acquireTime": record.acquired,
        "renewTime": record.renewed,
        "leaseTransitions": record.transitions,
    })
}

/// Now, as `metav1.MicroTime`.
pub(super) fn now() -> String {
    text(Timestamp::now())
}

fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
