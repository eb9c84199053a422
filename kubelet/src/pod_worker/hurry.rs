//! What becomes of the actions under way when a pod must go, or must go sooner.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::events::Severity;
use crate::memory::{Finish, Volumes};
use crate::plan::{Goal, Task};
use crate::{execute, plan, pod};

/// An action under way.
pub(super) struct Busy {
    pub(super) cancel: CancellationToken,
    /// Where it ends a container: since when, and how long it takes at most.
    pub(super) kill: Option<(Instant, Duration)>,
}

impl Busy {
    /// Where it ends a container: how long that takes yet at most.
    fn left(&self) -> Option<Duration> {
        let (since, grace) = self.kill?;
        Some(grace.saturating_sub(since.elapsed()))
    }
}

impl Worker {
    /// Decides that the pod fails, whatever its containers do.
    pub(super) fn end(&mut self, finish: Finish, severity: Severity) {
        let (reason, message) = (finish.reason.clone(), finish.message.clone());
        let (reason, message) = (reason.unwrap_or_default(), message.unwrap_or_default());
        self.agent.events.pod(&self.pod, severity, reason, message);
        self.hurry(finish.grace(&self.pod));
        self.memory.verdict = Some(finish);
        self.keep_tokens();
    }

    /// Whether the pod was told to go, or fails.
    pub(super) fn is_ending(&self) -> bool {
        self.stop.is_some() || self.memory.verdict.is_some()
    }

    /// A pod that ends needs tokens that are good, and nothing else that is new: what its volumes are made from may be gone before it.
    pub(super) fn keep_tokens(&mut self) {
        if let Volumes::Ready { refresh } = &mut self.memory.volumes {
            *refresh = self.agent.volumes.refresh_at(pod::uid(&self.pod));
        }
    }

    /// What is being started is given up; what is being stopped slowly is stopped anew, in `grace` seconds from now.
    pub(super) fn hurry(&mut self, grace: i64) {
        let (now, grace) = (Timestamp::now(), execute::seconds(grace.max(plan::LEAST_GRACE)));
        for (task, busy) in &self.busy {
            let name = match task {
                Task::Container(name) => name,
                Task::Sandbox => "",
                _ => continue,
            };
            if busy.left().is_some_and(|left| left <= grace) {
                continue;
            }
            busy.cancel.cancel();
            let containers = self.observed.containers.iter();
            for container in containers.filter(|container| container.name == name) {
                if let Some(told) = self.memory.told_to_end.get_mut(&container.id) {
                    told.since = now;
                }
            }
        }
    }
}

/// A pod that is deleted and evicted gets the shorter of the two times, whichever came first.
pub(super) fn goal(stop: Option<i64>, verdict: Option<&Finish>) -> Goal {
    let evicted = verdict.and_then(|verdict| verdict.evicted);
    stop.map_or(Goal::Run, |grace| Goal::Stop {
        grace: evicted.map_or(grace, |evicted| grace.min(evicted)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_and_a_deletion_only_shorten_each_other() {
        let (quick, slow) = (Finish::evicted("m", 1), Finish::evicted("m", 60));
        let stop = |grace: i64| Goal::Stop { grace };
        let cases = [
            ("neither", None, None, Goal::Run),
            ("evicted", None, Some(&quick), Goal::Run),
            ("deleted", Some(30), None, stop(30)),
            (
                "a slow end that an eviction hurries, or the other way round",
                Some(30),
                Some(&quick),
                stop(1),
            ),
            ("a slow eviction of what is deleted", Some(30), Some(&slow), stop(30)),
            ("a deletion by force", Some(0), Some(&quick), stop(0)),
            ("past its deadline", Some(30), Some(&Finish::deadline()), stop(30)),
        ];
        for (what, grace, verdict, expected) in cases {
            assert_eq!(goal(grace, verdict), expected, "{what}");
        }
    }
}
