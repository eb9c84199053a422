//! How a pod's start is timed: for the metrics, and for who reads the hops.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use skiff_api::k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use tokio::time::Instant;

use crate::hop::hop;
use crate::metrics::Lives;
use crate::observed::Observed;
use crate::pod;

/// What is known of a pod's start.
#[derive(Debug)]
pub(super) struct Start {
    seen: Instant,
    /// It runs, as this kubelet sees it.
    runs: bool,
    /// The API knows that it runs; also of a pod that an earlier kubelet has started, or that will never run.
    known: bool,
}

impl Start {
    /// A pod that was just seen.
    pub(super) fn of(pod: &Pod) -> Self {
        let phase = pod::status(pod).phase.as_deref();
        let known = !matches!(phase, None | Some("Pending")) || pod::deletion_time(pod).is_some();
        Self {
            seen: Instant::now(),
            runs: known,
            known,
        }
    }

    /// How long ago the pod was seen.
    pub(super) fn age(&self) -> Duration {
        self.seen.elapsed()
    }

    /// Takes note of the status that is to be told and of the one that the API has.
    pub(super) fn look(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        wanted: Option<&str>,
        told: &PodStatus,
        lives: &Lives,
    ) {
        if !self.runs && wanted == Some("Running") {
            self.runs = true;
            hop(pod, "runs");
            lives.runs(self.age());
        }
        if self.known || !has_started(told) {
            return;
        }
        self.known = true;
        hop(pod, "known to run");
        // Static pods are made by this node, and nobody waits for an API server with them.
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .filter(|_| !pod::is_static(pod));
        if let Some(created) = created {
            let after = Timestamp::now().duration_since(created.0);
            let after = Duration::try_from(after).unwrap_or(Duration::ZERO);
            lives.is_known_to_run(pod::uid(pod), after, initializing(pod, observed));
        }
    }
}

/// Whether the API knows all containers to have started.
fn has_started(status: &PodStatus) -> bool {
    let ran = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    status.phase.as_deref() == Some("Running") && !containers.is_empty() && containers.iter().all(ran)
}

/// From the start of the first init container to the end of the last one.
fn initializing(pod: &Pod, observed: &Observed) -> Duration {
    let init = pod::init_containers(pod).iter().filter(|spec| !pod::is_sidecar(spec));
    let exits = || init.clone().filter_map(|spec| observed.latest(&spec.name)?.exit());
    let first = exits().filter_map(|exit| exit.started).min();
    let last = exits().map(|exit| exit.finished).max();
    let span = first
        .zip(last)
        .map_or(SignedDuration::ZERO, |(first, last)| last.duration_since(first));
    Duration::try_from(span).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_daemon::Metrics;

    use super::*;
    use crate::metrics::Measures;
    use crate::observed::{Container, Exit, State};
    use crate::pod::tests::pod;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn exited(name: &str, started: i64, finished: i64) -> Container {
        let exit = Exit {
            started: Some(at(started)),
            finished: at(finished),
            code: 0,
            reason: String::new(),
            message: String::new(),
            recorded: true,
        };
        Container {
            id: name.into(),
            name: name.into(),
            attempt: 0,
            sandbox: "s".into(),
            created: at(0),
            state: State::Exited(exit),
            hash: None,
            image: String::new(),
            image_ref: String::new(),
            log_path: String::new(),
            message_file: None,
            read_only_below: Vec::new(),
            user: None,
        }
    }

    #[test]
    fn init_containers_are_one_span() {
        let p =
            pod(&json!({"initContainers": [{"name": "a"}, {"name": "b"}, {"name": "s", "restartPolicy": "Always"}]}));
        let observed = Observed {
            containers: vec![exited("b", 14, 17), exited("a", 10, 12), exited("s", 0, 100)],
            ..Observed::default()
        };
        assert_eq!(initializing(&p, &observed).as_secs(), 7);
        assert_eq!(initializing(&p, &Observed::default()), Duration::ZERO);
    }

    #[test]
    fn a_start_is_counted_once_and_never_for_a_pod_that_ran_before() {
        let process = Metrics::default();
        let measures = Measures::new(&process, &Metrics::default(), "n");
        let mut p = pod(&json!({}));
        p.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        let told: PodStatus = serde_json::from_value(json!({
            "phase": "Running",
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}],
        }))
        .unwrap();
        let mut start = Start::of(&p);
        let mut look = |wanted, told: &PodStatus| start.look(&p, &Observed::default(), wanted, told, &measures.lives);
        look(Some("Pending"), &PodStatus::default());
        look(Some("Running"), &PodStatus::default());
        look(Some("Running"), &told);
        look(Some("Running"), &told);
        let mut before = p.clone();
        before.status = Some(told.clone());
        Start::of(&before).look(&before, &Observed::default(), Some("Running"), &told, &measures.lives);
        let text = process.encode();
        for name in [
            "start_duration_seconds",
            "start_sli_duration_seconds",
            "start_total_duration_seconds",
        ] {
            assert!(
                text.contains(&format!("kubelet_pod_{name}_count 1")),
                "{name} in {text}"
            );
        }
    }
}
