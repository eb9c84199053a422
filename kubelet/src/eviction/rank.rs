//! Which pod has to go first, as upstream ranks them.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_api::quantity::Quantity;

use super::signal::Signal;
use crate::pod;

/// Pods of this priority and above keep a node alive.
const CRITICAL: i32 = 2_000_000_000;

/// A pod and what it uses of the things that can run short.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidate {
    pub(crate) pod: Arc<Pod>,
    /// Bytes of memory that cannot be given back at once.
    pub(crate) memory: i64,
    /// What its containers have written into their own file systems, which lie beside the images.
    pub(crate) layers: Stored,
    /// Its logs and volumes, which lie in the kubelet's directories.
    pub(crate) kept: Stored,
    pub(crate) processes: i64,
    /// What each container uses, by name: bytes of memory and of disk.
    pub(crate) containers: Vec<(String, i64, i64)>,
}

/// What lies on a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) bytes: i64,
    pub(crate) inodes: i64,
}

/// Whether a pod is never evicted: static pods, and those of the system's priority.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    pod::is_static(pod) || priority(pod) >= CRITICAL
}

fn priority(pod: &Pod) -> i32 {
    pod::spec(pod).priority.unwrap_or(0)
}

/// What a pod asked for of a resource.
fn request(pod: &Pod, resource: &str) -> i64 {
    let requests = skiff_api::pods::requests(pod::spec(pod));
    let value = requests.get(resource).map_or(0, Quantity::value);
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Sorts the first to go to the front: those above their request, of low priority, far above their request. Where images have a disk
/// of their own, only what lies on the disk that runs short counts.
pub(crate) fn rank(candidates: &mut [Candidate], signal: Signal, own_image_fs: bool) {
    let stored = |candidate: &Candidate| candidate.stored(signal, own_image_fs);
    candidates.sort_by(|a, b| match signal.resource() {
        "pids" => by_priority(a, b).then_with(|| b.processes.cmp(&a.processes)),
        // Nobody requests inodes: all are above.
        "inodes" => by_priority(a, b).then_with(|| stored(b).inodes.cmp(&stored(a).inodes)),
        "memory" => above(a, b, "memory", |candidate| candidate.memory),
        resource => above(a, b, resource, |candidate| stored(candidate).bytes),
    });
}

impl Candidate {
    /// What it has on the disk of a signal.
    fn stored(&self, signal: Signal, own_image_fs: bool) -> Stored {
        let (layers, kept) = (self.layers, self.kept);
        match signal {
            _ if !own_image_fs => Stored {
                bytes: layers.bytes.saturating_add(kept.bytes),
                inodes: layers.inodes.saturating_add(kept.inodes),
            },
            Signal::NodeFs | Signal::NodeFsInodes => kept,
            _ => layers,
        }
    }
}

fn by_priority(a: &Candidate, b: &Candidate) -> Ordering {
    priority(&a.pod).cmp(&priority(&b.pod))
}

fn above(a: &Candidate, b: &Candidate, resource: &str, used: impl Fn(&Candidate) -> i64) -> Ordering {
    let excess = |candidate: &Candidate| used(candidate) - request(&candidate.pod, resource);
    let (of_a, of_b) = (excess(a), excess(b));
    Reverse(of_a > 0)
        .cmp(&Reverse(of_b > 0))
        .then_with(|| by_priority(a, b))
        .then_with(|| of_b.cmp(&of_a))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn candidate(name: &str, priority: i32, request: &str, used: i64) -> Candidate {
        let mut pod = crate::pod::tests::pod(&json!({
            "priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": request, "ephemeral-storage": request}}}],
        }));
        pod.metadata.name = Some(name.into());
        Candidate {
            pod: Arc::new(pod),
            memory: used,
            layers: Stored {
                bytes: used,
                inodes: used,
            },
            processes: used,
            ..Candidate::default()
        }
    }

    fn order(signal: Signal, mut candidates: Vec<Candidate>) -> Vec<String> {
        rank(&mut candidates, signal, false);
        names(&candidates)
    }

    fn names(candidates: &[Candidate]) -> Vec<String> {
        let name = |candidate: &Candidate| candidate.pod.metadata.name.clone().unwrap_or_default();
        candidates.iter().map(name).collect()
    }

    #[test]
    fn those_above_their_request_go_first_then_low_priority_then_the_largest_excess() {
        let candidates = vec![
            candidate("within", 0, "100", 90),
            candidate("important", 100, "10", 500),
            candidate("a little above", 0, "100", 110),
            candidate("far above", 0, "100", 300),
            candidate("within, less important", -5, "100", 100),
        ];
        let wanted = [
            "far above",
            "a little above",
            "important",
            "within, less important",
            "within",
        ];
        for signal in [
            Signal::Memory,
            Signal::AllocatableMemory,
            Signal::NodeFs,
            Signal::ImageFs,
        ] {
            assert_eq!(order(signal, candidates.clone()), wanted, "{signal:?}");
        }
    }

    #[test]
    fn with_two_disks_what_lies_on_the_other_one_does_not_count() {
        let stored = |amount: i64| Stored {
            bytes: amount,
            inodes: amount,
        };
        let writes = |name: &str, layers: i64, kept: i64| Candidate {
            layers: stored(layers),
            kept: stored(kept),
            ..candidate(name, 0, "10", 0)
        };
        let both = [writes("layer", 90, 5), writes("volume", 20, 60), writes("log", 0, 70)];
        let cases = [
            (Signal::NodeFs, false, ["layer", "volume", "log"]),
            (Signal::ImageFs, false, ["layer", "volume", "log"]),
            (Signal::NodeFs, true, ["log", "volume", "layer"]),
            (Signal::NodeFsInodes, true, ["log", "volume", "layer"]),
            (Signal::ImageFs, true, ["layer", "volume", "log"]),
            (Signal::ImageFsInodes, true, ["layer", "volume", "log"]),
        ];
        for (signal, own_image_fs, wanted) in cases {
            let mut candidates = both.to_vec();
            rank(&mut candidates, signal, own_image_fs);
            assert_eq!(names(&candidates), wanted, "{signal:?} {own_image_fs}");
        }
    }

    #[test]
    fn nobody_requests_processes_or_inodes() {
        let candidates = vec![
            candidate("few", 0, "1000", 10),
            candidate("many", 0, "1000", 90),
            candidate("important", 1, "0", 1000),
        ];
        for signal in [Signal::Pids, Signal::NodeFsInodes] {
            assert_eq!(
                order(signal, candidates.clone()),
                ["many", "few", "important"],
                "{signal:?}"
            );
        }
    }

    #[test]
    fn critical_pods() {
        let mut p = crate::pod::tests::pod(&json!({"containers": [], "priority": 2_000_000_000}));
        assert!(is_critical(&p));
        p.spec.as_mut().unwrap().priority = Some(5);
        assert!(!is_critical(&p));
        for (annotation, value, critical) in [
            ("kubernetes.io/config.source", "file", true),
            ("kubernetes.io/config.source", "api", false),
            ("kubernetes.io/config.mirror", "x", false),
        ] {
            p.metadata.annotations = Some([(annotation.to_owned(), value.to_owned())].into());
            assert_eq!(is_critical(&p), critical, "{annotation}={value}");
        }
    }
}
