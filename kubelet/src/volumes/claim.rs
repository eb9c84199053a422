//! Volumes of persistentVolumeClaims, and of the claims that a pod brings along: what a claim is bound to, mounted.
//!
//! Which path a volume stands for is kept as a link in the pod's directory, so that a restart of the kubelet needs no API
//! server. A claim that is not bound yet is asked for again.

use std::path::{Path, PathBuf};

use kube::api::Api;
use skiff_api::k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use skiff_api::owners;

use super::local::{self, Local};
use super::mounts::is_mounted;
use super::{Error, host_path, make_dir};
use crate::admission;
use crate::events::{Recorder, Severity};
use crate::pod;

/// Why a claim's volume cannot be mounted yet; the texts are upstream's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("failed to fetch PVC from API server: {0}")]
    NoClaim(String),
    #[error("PVC is being deleted")]
    Deleted,
    #[error("PVC is not bound")]
    NotBound,
    #[error("PVC {claim} was not created for pod {pod} (pod is not owner)")]
    NotOwned { claim: String, pod: String },
    #[error("failed to fetch PV {name} from API server: {why}")]
    NoVolume { name: String, why: String },
    #[error("found PV object {0:?} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim")]
    Unclaimed(String),
    #[error(
        "found PV object {name:?} but its pv.Spec.ClaimRef.UID ({found:?}) does not point to claim.UID ({wanted:?})"
    )]
    OthersVolume {
        name: String,
        found: String,
        wanted: String,
    },
    #[error("volume {0} has volumeMode Block, but is specified in volumeMounts")]
    Block(String),
}

/// The claim that a volume names: its own, or one that was made for the pod.
pub(super) fn name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume
        .ephemeral
        .as_ref()
        .map(|_| format!("{}-{}", pod::name(pod), volume.name))
}

/// Where the link to the volume's path lies.
pub(super) fn link(pod_dir: &Path, volume: &Volume) -> PathBuf {
    pod_dir.join("claims").join(&volume.name)
}

/// Where claims are looked up.
pub(super) struct Claims {
    client: kube::Client,
    /// This node's name.
    node: String,
    events: Recorder,
    turns: local::Turns,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Claims {
    pub(super) fn new(client: kube::Client, node: &str, events: Recorder) -> Self {
        Self {
            client,
            node: node.to_owned(),
            events,
            turns: local::Turns::default(),
        }
    }

    /// Makes the volume ready.
    pub(super) async fn prepare(&self, pod: &Pod, pod_dir: &Path, volume: &Volume) -> Result<(), Error> {
        let link = link(pod_dir, volume);
        if let Ok(path) = std::fs::read_link(&link)
            && (!path.starts_with(pod_dir) || is_mounted(&path)?)
        {
            return Ok(());
        }
        let claim = name(pod, volume).unwrap_or_default();
        let bound = self.resolve(pod, volume, &claim).await;
        let bound = bound.map_err(|source| Error::Claim {
            volume: volume.name.clone(),
            claim: format!("{}/{claim}", pod::namespace(pod)),
            source,
        })?;
        self.check_node(&bound).await?;
        let read_only = volume
            .persistent_volume_claim
            .as_ref()
            .and_then(|claim| claim.read_only);
        let path = self.mount(pod, pod_dir, &bound, read_only.unwrap_or(false)).await?;
        if let Some(dir) = link.parent() {
            make_dir(dir, 0o750)?;
        }
        std::fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(&path, &link).map_err(|source| Error::file("link", &link, source))
    }

    /// Mounts the volume; where it can be found then.
    async fn mount(
        &self,
        pod: &Pod,
        pod_dir: &Path,
        volume: &PersistentVolume,
        read_only: bool,
    ) -> Result<PathBuf, Error> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let spec = volume.spec.clone().unwrap_or_default();
        let options = mount_options(volume);
        if let Some(source) = &spec.host_path {
            if !options.is_empty() {
                return Err(Error::NoMountOptions { name });
            }
            host_path::prepare(source)?;
            return Ok(PathBuf::from(&source.path));
        }
        let source = spec.local.ok_or_else(|| Error::Unsupported(kind(volume)))?;
        let path = PathBuf::from(source.path);
        let turn = self.turns.take(&path).await;
        let local = Local {
            name,
            path,
            options,
            read_only,
        };
        // Giving all of a volume to a group takes its time: not on a thread that others wait for.
        let (owned, dir) = (pod.clone(), pod_dir.to_owned());
        let mount = move || {
            let _turn = turn;
            local::mount(&owned, &dir, &local)
        };
        let (path, told) = tokio::task::spawn_blocking(mount).await??;
        if let Some(told) = told {
            self.events.pod(pod, Severity::Warning, "AlreadyMountedVolume", told);
        }
        Ok(path)
    }

    /// The volume that the claim is bound to.
    async fn resolve(&self, pod: &Pod, volume: &Volume, name: &str) -> Result<PersistentVolume, ClaimError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let claim = claims.get(name).await;
        let claim = claim.map_err(|error| ClaimError::NoClaim(text(&error)))?;
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        if volume.ephemeral.is_some() && !owners::is_controlled_by(&claim.metadata, pod::uid(pod)) {
            let (claim, pod) = (
                format!("{}/{name}", pod::namespace(pod)),
                format!("{}/{}", pod::namespace(pod), pod::name(pod)),
            );
            return Err(ClaimError::NotOwned { claim, pod });
        }
        let volume = volume_of(&claim)?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let bound = volumes.get(&volume).await.map_err(|error| ClaimError::NoVolume {
            name: volume.clone(),
            why: text(&error),
        })?;
        check(&bound, &volume, &uid)?;
        Ok(bound)
    }

    /// A pod that was bound past the scheduler must not find another node's data.
    async fn check_node(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else {
            return Ok(());
        };
        let refuse = |why: String| Error::NodeAffinity {
            name: volume.metadata.name.clone().unwrap_or_default(),
            why,
        };
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = nodes.get(&self.node).await.map_err(|error| refuse(text(&error)))?;
        let labels = found.metadata.labels.unwrap_or_default();
        if admission::any_term(&required.node_selector_terms, &self.node, &labels) {
            return Ok(());
        }
        Err(refuse("no matching NodeSelectorTerms".into()))
    }
}

/// The name of the volume that a claim is bound to.
fn volume_of(claim: &PersistentVolumeClaim) -> Result<String, ClaimError> {
    // A pod that uses a claim that is going must not be started.
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(ClaimError::Deleted);
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    let volume = volume.filter(|name| !name.is_empty() && phase == Some("Bound"));
    volume.ok_or(ClaimError::NotBound)
}

/// Whether a volume is the claim's, and can be mounted.
fn check(volume: &PersistentVolume, name: &str, claim: &str) -> Result<(), ClaimError> {
    let spec = volume.spec.as_ref();
    let reference = spec.and_then(|spec| spec.claim_ref.as_ref());
    let reference = reference.ok_or_else(|| ClaimError::Unclaimed(name.to_owned()))?;
    let found = reference.uid.as_deref().unwrap_or_default();
    if found != claim {
        return Err(ClaimError::OthersVolume {
            name: name.to_owned(),
            found: found.to_owned(),
            wanted: claim.to_owned(),
        });
    }
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err(ClaimError::Block(name.to_owned()));
    }
    Ok(())
}

/// How the volume is to be mounted: as the annotation of old says, or the spec.
fn mount_options(volume: &PersistentVolume) -> Vec<String> {
    let annotations = volume.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|annotations| annotations.get("volume.beta.kubernetes.io/mount-options"));
    let spec = volume.spec.as_ref().and_then(|spec| spec.mount_options.clone());
    let lists = annotated.map_or_else(|| spec.unwrap_or_default(), |text| vec![text.clone()]);
    let options = lists.iter().flat_map(|list| list.split(','));
    options.filter(|option| !option.is_empty()).map(str::to_owned).collect()
}

fn kind(volume: &PersistentVolume) -> &'static str {
    match volume.spec.as_ref() {
        Some(spec) if spec.csi.is_some() => "csi",
        Some(spec) if spec.nfs.is_some() => "nfs",
        Some(spec) if spec.iscsi.is_some() => "iscsi",
        Some(spec) if spec.fc.is_some() => "fc",
        _ => "unknown",
    }
}

/// The API server's own words.
fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => skiff_daemon::error_chain(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn claims_that_are_not_bound() {
        let claim = |phase: &str, volume: Value, deleted: bool| -> PersistentVolumeClaim {
            let mut claim =
                json!({"metadata": {"name": "c"}, "spec": {"volumeName": volume}, "status": {"phase": phase}});
            if deleted {
                claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            serde_json::from_value(claim).unwrap()
        };
        let cases = [
            (claim("Bound", "v".into(), false), Ok("v")),
            (claim("Pending", "v".into(), false), Err("PVC is not bound")),
            (claim("Bound", Value::Null, false), Err("PVC is not bound")),
            (claim("Bound", "v".into(), true), Err("PVC is being deleted")),
        ];
        for (claim, expected) in cases {
            let found = volume_of(&claim).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), expected);
        }
    }

    #[test]
    fn options_of_a_mount() {
        let of = |annotations: Value, options: Value| {
            let volume = json!({"metadata": {"annotations": annotations}, "spec": {"mountOptions": options}});
            mount_options(&serde_json::from_value(volume).unwrap())
        };
        assert_eq!(of(json!({}), json!([])), [""; 0]);
        assert_eq!(of(json!({}), json!(["ro", "noexec,nodev"])), ["ro", "noexec", "nodev"]);
        let annotated = json!({"volume.beta.kubernetes.io/mount-options": "rw,nosuid"});
        assert_eq!(of(annotated, json!(["ro"])), ["rw", "nosuid"]);
    }

    #[test]
    fn volumes_that_are_anothers() {
        let volume = |spec: Value| serde_json::from_value(json!({"spec": spec})).unwrap();
        let cases = [
            (json!({"claimRef": {"uid": "u"}}), ""),
            (json!({}), "nil pv.Spec.ClaimRef"),
            (json!({"claimRef": {"uid": "x"}}), "does not point to claim.UID (\"u\")"),
            (
                json!({"claimRef": {"uid": "u"}, "volumeMode": "Block"}),
                "volumeMode Block",
            ),
        ];
        for (spec, wanted) in cases {
            let found = check(&volume(spec.clone()), "v", "u").map_err(|error| error.to_string());
            match found {
                Ok(()) => assert_eq!(wanted, "", "{spec}"),
                Err(text) => assert!(!wanted.is_empty() && text.contains(wanted), "{spec}: {text}"),
            }
        }
    }
}
