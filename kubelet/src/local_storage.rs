//! Limits of what pods keep on the node's disk: sizes of emptyDirs, `ephemeral-storage` of containers and pods. Who exceeds
//! one is evicted, as upstream's eviction manager does, with its texts. Only pods that have such a limit are measured.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use skiff_api::k8s_openapi::api::core::v1::{Pod, Volume};
use skiff_api::pods;
use skiff_api::quantity::Quantity;
use skiff_cri::ContainerFilter;
use skiff_daemon::Shutdown;

use crate::agent::Agent;
use crate::memory::Finish;
use crate::pods::{Directory, Entry};
use crate::stats::disk;
use crate::{eviction, pod};

const RESOURCE: &str = "ephemeral-storage";
/// Upstream's interval of looking.
const PERIOD: Duration = Duration::from_secs(10);
/// Seconds that the containers of an evicted pod get.
const GRACE: i64 = 1;

/// What a pod has on the node's disk, in bytes.
#[derive(Clone, Debug, Default)]
struct Used {
    /// EmptyDirs that are no memory, by volume.
    empty_dirs: BTreeMap<String, u64>,
    /// Writable layer and logs, by container.
    containers: BTreeMap<String, (u64, u64)>,
    /// What else counts: `/etc/hosts`, termination messages, volumes made from objects.
    other: u64,
}

/// Looks at all pods with limits, until shutdown.
pub(crate) async fn watch(agent: Arc<Agent>, directory: Directory, shutdown: Shutdown) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let mut limited = directory.all();
        limited.retain(|entry| may_be_evicted(&entry.pod) && eviction::may_end(entry));
        if limited.is_empty() {
            continue;
        }
        let (layers, apart) = (layers(&agent).await, eviction::has_own_image_fs(&agent).await);
        for entry in limited {
            let (by, layers, pod) = (agent.clone(), layers.clone(), entry.pod.clone());
            let measured = tokio::task::spawn_blocking(move || measure(&by, &entry, &layers)).await;
            let Some((signal, message)) = measured.ok().and_then(|used| exceeded(&pod, &used, apart)) else {
                continue;
            };
            if directory
                .evict(pod::uid(&pod), Finish::evicted(&message, GRACE))
                .is_some()
            {
                agent.measures.evicted(signal);
            }
        }
    }
}

/// Bytes of writable layers by container id.
async fn layers(agent: &Agent) -> Arc<HashMap<String, u64>> {
    let stats = agent.runtime.list_container_stats(&ContainerFilter::default()).await;
    let stats = stats.unwrap_or_default().into_iter();
    Arc::new(stats.map(|stats| (stats.id, stats.writable_layer_bytes)).collect())
}

fn measure(agent: &Agent, entry: &Entry, layers: &HashMap<String, u64>) -> Used {
    let pod = &entry.pod;
    let logs = agent.log_dir(pod);
    let mut used = Used::default();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let Some(path) = agent.volumes.path(pod, volume).filter(|_| !lies_elsewhere(volume)) else {
            continue;
        };
        let bytes = disk::contents(&path).bytes;
        if volume.empty_dir.is_some() {
            used.empty_dirs.insert(volume.name.clone(), bytes);
        } else {
            used.other += bytes;
        }
    }
    for (_, container) in pod::containers(pod) {
        let running = entry.observed.latest(&container.name);
        let layer = running
            .and_then(|running| layers.get(&running.id))
            .copied()
            .unwrap_or(0);
        let logs = disk::contents(&logs.join(&container.name)).bytes;
        used.containers.insert(container.name.clone(), (layer, logs));
    }
    let dir = agent.volumes.pod_dir(pod::uid(pod));
    used.other +=
        disk::contents(&dir.join("etc-hosts")).bytes + disk::contents(&agent.volumes.messages_dir(pod::uid(pod))).bytes;
    used
}

/// Memory, and what is not the pod's own.
fn lies_elsewhere(volume: &Volume) -> bool {
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    volume.host_path.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.secret.is_some()
        || medium.is_some_and(|medium| !medium.is_empty())
}

fn size_limit(volume: &Volume) -> Option<(Quantity, &str)> {
    let text = &volume.empty_dir.as_ref()?.size_limit.as_ref()?.0;
    let limit: Quantity = text.parse().ok()?;
    (limit.value() > 0).then_some((limit, text))
}

/// A critical pod stays, whatever it keeps.
fn may_be_evicted(pod: &Pod) -> bool {
    has_limit(pod) && !eviction::is_critical(pod)
}

fn has_limit(pod: &Pod) -> bool {
    let volumes = pod::spec(pod).volumes.iter().flatten();
    volumes
        .filter(|volume| !lies_elsewhere(volume))
        .any(|volume| size_limit(volume).is_some())
        || pod::containers(pod).any(|(_, container)| pod::limit(&container, RESOURCE).is_some())
}

/// The limit that the pod exceeds: upstream's name of it in the figures, and its words. Where images have a disk of their own, a
/// container's layer lies there, and its limit is for its logs. While that is not known, only the limits of the rest count.
fn exceeded(pod: &Pod, used: &Used, own_image_fs: Option<bool>) -> Option<(&'static str, String)> {
    let above = |bytes: u64, limit: Quantity| i128::from(bytes) > limit.value();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        if let (Some((limit, text)), Some(bytes)) = (size_limit(volume), used.empty_dirs.get(&volume.name))
            && above(*bytes, limit)
        {
            let name = &volume.name;
            let text = format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. ");
            return Some(("emptydirfs.limit", text));
        }
    }
    let containers = used.containers.values().map(|(layer, logs)| layer + logs);
    let total = used.empty_dirs.values().copied().chain(containers).sum::<u64>() + used.other;
    if let Some(limit) = pods::limits(pod::spec(pod))
        .get(RESOURCE)
        .filter(|limit| !limit.is_zero())
        && above(total, *limit)
    {
        let text = format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(("ephemeralpodfs.limit", text));
    }
    let own_image_fs = own_image_fs?;
    pod::containers(pod).find_map(|(_, container)| {
        let limit = pod::limit(&container, RESOURCE).filter(|limit| !limit.is_zero())?;
        let (layer, logs) = used.containers.get(&container.name).copied().unwrap_or_default();
        let bytes = if own_image_fs { logs } else { layer + logs };
        let name = &container.name;
        let text = || format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ");
        above(bytes, limit).then(|| ("ephemeralcontainerfs.limit", text()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn limits_and_their_texts() {
        let limited = |size: &str| json!({"limits": {"ephemeral-storage": size}});
        let spec = json!({
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}],
            "containers": [{"name": "a", "resources": limited("2Mi")}, {"name": "b", "resources": limited("4Mi")}],
        });
        let used = |v: u64, a: u64, b: u64, other: u64| Used {
            empty_dirs: BTreeMap::from([("v".into(), v << 10)]),
            containers: BTreeMap::from([("a".into(), (a << 10, 0)), ("b".into(), (0, b << 10))]),
            other: other << 10,
        };
        let p = pod(&spec);
        assert!(may_be_evicted(&p) && !may_be_evicted(&pod(&json!({}))));
        let mut critical = p.clone();
        critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
        assert!(!may_be_evicted(&critical));
        let cases = [
            (used(1024, 2048, 1024, 0), None),
            (
                used(1025, 0, 0, 0),
                Some((
                    "emptydirfs.limit",
                    "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ",
                )),
            ),
            (
                used(0, 2049, 0, 0),
                Some((
                    "ephemeralcontainerfs.limit",
                    "Container a exceeded its local ephemeral storage limit \"2Mi\". ",
                )),
            ),
            (
                used(1024, 2048, 2048, 1025),
                Some((
                    "ephemeralpodfs.limit",
                    "Pod ephemeral local storage usage exceeds the total limit of containers 6Mi. ",
                )),
            ),
        ];
        for (used, message) in cases {
            let found = exceeded(&p, &used, Some(false));
            let found = found.as_ref().map(|(signal, text)| (*signal, text.as_str()));
            assert_eq!(found, message, "{used:?}");
        }
        for (apart, why) in [(Some(true), "a layer on the images' disk"), (None, "perhaps")] {
            assert_eq!(exceeded(&p, &used(0, 4096, 0, 0), apart), None, "{why}");
        }
        let log = exceeded(&p, &used(0, 0, 4097, 0), Some(true)).map(|(signal, _)| signal);
        assert_eq!(log, Some("ephemeralcontainerfs.limit"));
    }
}
