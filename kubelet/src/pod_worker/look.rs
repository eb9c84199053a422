//! What a worker learns when it asks the runtime of its pod.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;

use super::{Worker, earlier};
use crate::memory::{self, Health};
use crate::observed::{self, State};
use crate::pod;

/// Looks that follow an end which the runtime does not show yet: the first after this, then half as long again, up to the
/// limit; a record that is nowhere by then is gone.
pub(super) const SETTLE: Duration = Duration::from_millis(4);
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Worker {
    /// Asks the runtime; false when it does not answer.
    pub(super) async fn look(&mut self) -> bool {
        let uid = pod::uid(&self.pod).to_owned();
        match observed::observe(&self.agent.runtime, &uid, &self.observed).await {
            Ok(mut observed) => {
                self.explain_kills(&mut observed);
                let first = !self.wake.looked.swap(true, Ordering::AcqRel);
                if first || *self.observed != observed {
                    self.observed = Arc::new(observed);
                    self.view.send_replace(self.observed.clone());
                    self.index(&uid);
                }
                self.update_health();
                (self.dirty, self.outdated) = (false, false);
                self.settle();
                true
            }
            Err(error) => {
                tracing::warn!(
                    error = skiff_daemon::error_chain(&error),
                    pod = pod::full_name(&self.pod),
                    "cannot ask the runtime"
                );
                false
            }
        }
    }

    /// Looks again soon while an event told of an end that the runtime does not show yet.
    fn settle(&mut self) {
        let mut ended = self.wake.ended.lock();
        let patient = self.settle.is_none_or(|last| last < SETTLE_LIMIT);
        // A record may even say "created" when the end of its first process is told: only an end is an end.
        ended.retain(|id, _| match self.observed.has_ended(id) {
            Some(has_ended) => !has_ended,
            None => patient,
        });
        let next = self.settle.map_or(SETTLE, |last| (last * 3 / 2).min(SETTLE_LIMIT));
        self.settle = (!ended.is_empty()).then_some(next);
    }

    fn index(&self, uid: &str) {
        let ids = self.observed.containers.iter().map(|container| &container.id);
        for id in ids.chain(self.observed.sandboxes.iter().map(|sandbox| &sandbox.id)) {
            self.agent.ids.insert(id, uid);
        }
        if self.busy.is_empty() {
            self.agent.ids.retain(uid, |id| {
                self.observed.containers.iter().any(|container| container.id == id)
                    || self.observed.sandboxes.iter().any(|sandbox| sandbox.id == id)
            });
        }
    }

    /// A container without a probe is well as soon as it runs; one that an earlier kubelet found ready stays ready until
    /// its probe says otherwise.
    pub(super) fn update_health(&mut self) {
        if !self.adopted {
            let logs = self.agent.log_dir(&self.pod);
            self.memory.earlier =
                earlier::attempts(&self.pod, &self.observed, |name| earlier::highest_log(&logs.join(name)));
        }
        let known: Vec<String> = self
            .observed
            .containers
            .iter()
            .map(|container| container.id.clone())
            .collect();
        self.memory.health.retain(|id, _| known.contains(id));
        self.memory.doomed.retain(|id, _| known.contains(id));
        self.memory.ends.retain(|id, _| known.contains(id));
        self.memory.out_of_memory.retain(|id| known.contains(id));
        self.memory.told_to_end.retain(|id, _| known.contains(id));
        let now = Timestamp::now();
        for container in &self.observed.containers {
            if let Some(exit) = container.exit() {
                let end = memory::end_of(exit.finished, self.adopted, now);
                self.memory.ends.entry(container.id.clone()).or_insert(end);
            }
            if !matches!(container.state, State::Running(_)) || self.memory.health.contains_key(&container.id) {
                continue;
            }
            let Some((_, spec)) = pod::container(&self.pod, &container.name) else {
                continue;
            };
            let before = if self.adopted { None } else { self.before(&container.id) };
            let health = Health {
                started: spec.startup_probe.is_none() || before.is_some_and(|(started, _)| started),
                ready: spec.readiness_probe.is_none() || before.is_some_and(|(_, ready)| ready),
            };
            self.memory.health.insert(container.id.clone(), health);
        }
        self.adopted = true;
    }

    /// What the API says of a running container: started, ready.
    fn before(&self, id: &str) -> Option<(bool, bool)> {
        let status = pod::status(&self.pod);
        let lists = [&status.init_container_statuses, &status.container_statuses];
        let id = format!("{}://{id}", self.agent.runtime_name);
        let found = lists
            .into_iter()
            .flatten()
            .flatten()
            .find(|s| s.container_id.as_ref() == Some(&id))?;
        Some((found.started == Some(true), found.ready))
    }
}
