//! What a pod's worker remembers between two looks at the runtime. Losing it (a restart of the kubelet) costs nothing but
//! back-off time: everything else is read back from the runtime and the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use skiff_api::k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff::{self, Backoff};
use crate::clock;
use crate::observed::{Container, State};
use crate::plan::Task;
use crate::pod;

/// A pod's memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// When this kubelet first saw the pod; `status.startTime` wins.
    pub(crate) seen: Option<Timestamp>,
    /// The next attempt's number of containers that ran before and that the runtime has forgotten, by name.
    pub(crate) earlier: BTreeMap<String, u32>,
    /// How far the volumes are.
    pub(crate) volumes: Volumes,
    /// Why there is no sandbox yet.
    pub(crate) sandbox: Option<Failure>,
    /// Why a container could not be started, by name.
    pub(crate) starts: BTreeMap<String, Failure>,
    /// Containers whose postStart hooks have not succeeded since they were started last, by name.
    pub(crate) hooks: BTreeSet<String>,
    /// When a container ended by this process's clock, by id: what the runtime says may be by a clock that was set since.
    pub(crate) ends: BTreeMap<String, Timestamp>,
    /// Containers in which the kernel killed for want of memory, by id.
    pub(crate) out_of_memory: BTreeSet<String>,
    /// Restart back-off, by container name.
    pub(crate) restarts: BTreeMap<String, Backoff>,
    /// Containers that must die, by id: a probe failed.
    pub(crate) doomed: BTreeMap<String, Doom>,
    /// What the probes say, by container id.
    pub(crate) health: BTreeMap<String, Health>,
    /// Containers that were told to end, by id: their preStop hooks run once.
    pub(crate) told_to_end: BTreeMap<String, Told>,
    /// Why the pod failed as a whole, where the kubelet decided so.
    pub(crate) verdict: Option<Finish>,
    /// Whether the pod was never taken.
    pub(crate) refused: bool,
    /// Whether a finished pod's volumes, network and cgroup are given back.
    pub(crate) released: bool,
    /// Whether nothing of a finished pod is to stay, not even for its logs: the disk is full.
    pub(crate) bare: bool,
    /// Whether nothing is left of a pod that had to go.
    pub(crate) cleaned: bool,
    /// Why the last attempt to take something away failed.
    pub(crate) retries: BTreeMap<Task, Failure>,
}

/// How far a pod's volumes are.
#[derive(Clone, Debug, Default)]
pub(crate) enum Volumes {
    /// Not looked at yet.
    #[default]
    Pending,
    /// All there, as of the last look at what they are made from.
    Ready {
        /// When to look at that again.
        refresh: Option<Timestamp>,
    },
    /// Something is missing.
    Failed(Failure),
}

/// A failed step, to be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The reason that the status shows.
    pub(crate) reason: String,
    /// Its message.
    pub(crate) message: String,
    /// Set for pulls: the image, since a pull that waits shows as `ImagePullBackOff`.
    pub(crate) pull: Option<String>,
    /// When it failed.
    pub(crate) since: Timestamp,
    /// How long it waits.
    pub(crate) delay: Duration,
}

/// That a container was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// When its grace period began.
    pub(crate) since: Timestamp,
    /// Whether it starts anew, whatever the restart policy says.
    pub(crate) again: bool,
}

/// Why a container must die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doom {
    /// Text for the event, upstream's.
    pub(crate) message: String,
    /// A probe's own grace period.
    pub(crate) grace: Option<i64>,
}

/// What the probes say of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// The startup probe has succeeded, or there is none.
    pub(crate) started: bool,
    /// The readiness probe succeeds, or there is none.
    pub(crate) ready: bool,
}

/// The end of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    /// `Succeeded` or `Failed`.
    pub(crate) phase: String,
    /// Reason, where it is not just the containers' exit codes.
    pub(crate) reason: Option<String>,
    /// Message.
    pub(crate) message: Option<String>,
    /// Of an eviction: seconds that the containers get.
    pub(crate) evicted: Option<i64>,
}

/// How late the end of a container may be seen that is watched: events may be lost until the next relist.
const SEEN_WITHIN: SignedDuration = SignedDuration::from_secs(120);

/// The reason of a container that was made and did not start.
pub(crate) const NOT_RUN: &str = "RunContainerError";

/// The reason of a container that is killed since its postStart hook has failed.
pub(crate) const HOOK_FAILED: &str = "PostStartHookError";

/// How long a failed pull shows as `ErrImagePull` before it shows as `ImagePullBackOff`.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(2);

// === impl Memory ===

impl Memory {
    /// Moves every time along with the wall clock, which somebody has set.
    pub(crate) fn shift(&mut self, step: SignedDuration) {
        let move_failure = |failure: &mut Failure| failure.since = clock::moved(failure.since, step);
        let told = self.told_to_end.values_mut().map(|told| &mut told.since);
        for at in self.seen.iter_mut().chain(self.ends.values_mut()).chain(told) {
            *at = clock::moved(*at, step);
        }
        for backoff in self.restarts.values_mut() {
            *backoff = backoff.moved(step);
        }
        self.sandbox.iter_mut().for_each(move_failure);
        self.retries.values_mut().for_each(move_failure);
        self.starts.values_mut().for_each(move_failure);
        match &mut self.volumes {
            Volumes::Ready { refresh: Some(at) } => *at = clock::moved(*at, step),
            Volumes::Failed(failure) => move_failure(failure),
            Volumes::Ready { refresh: None } | Volumes::Pending => {}
        }
    }

    /// Forgets what was learnt of an image that a container no longer asks for: the new one is tried at once.
    pub(crate) fn forget_image(&mut self, name: &str) {
        self.starts.remove(name);
        self.restarts.remove(name);
    }

    /// Whether nothing is to be told of a container, and it is not to be probed: its postStart hook has not succeeded, or not yet.
    pub(crate) fn awaits_hook(&self, container: &Container) -> bool {
        matches!(container.state, State::Created | State::Running(_)) && self.hooks.contains(&container.name)
    }

    /// Whether a container was told to end so that it starts anew, whatever the restart policy says.
    pub(crate) fn starts_again(&self, id: &str) -> bool {
        self.told_to_end.get(id).is_some_and(|told| told.again)
    }

    /// When a container ended, of which the runtime says `finished`.
    pub(crate) fn ended(&self, id: &str, finished: Timestamp) -> Timestamp {
        self.ends.get(id).copied().unwrap_or(finished)
    }
}

/// When a container ended that is first seen so `now`: as the runtime says, unless that cannot be, since it ran a moment ago
/// (`watched`) or has not ended yet by this clock.
pub(crate) fn end_of(finished: Timestamp, watched: bool, now: Timestamp) -> Timestamp {
    let ago = now.duration_since(finished);
    if watched && ago > SEEN_WITHIN {
        now
    } else {
        finished.min(now)
    }
}

// === impl Failure ===

impl Failure {
    /// A failure that is tried again after ten seconds at first, later after longer.
    pub(crate) fn growing(last: Option<&Self>, reason: &str, message: String, now: Timestamp) -> Self {
        let delay = backoff::grow(last.filter(|last| last.reason == reason).map(|last| last.delay));
        Self {
            reason: reason.into(),
            message,
            pull: None,
            since: now,
            delay,
        }
    }

    /// A failure that is tried again soon, always after the same time.
    pub(crate) fn steady(reason: &str, message: String, delay: Duration, now: Timestamp) -> Self {
        Self {
            reason: reason.into(),
            message,
            pull: None,
            since: now,
            delay,
        }
    }

    /// When to try again.
    pub(crate) fn retry_at(&self) -> Timestamp {
        backoff::after(self.since, self.delay)
    }

    /// Reason and message to show, and when they change by themselves.
    pub(crate) fn shown(&self, now: Timestamp) -> (String, String, Option<Timestamp>) {
        let flip = backoff::after(self.since, PULL_ERROR_SHOWN);
        match &self.pull {
            Some(_) if now < flip => (self.reason.clone(), self.message.clone(), Some(flip)),
            Some(image) => (
                "ImagePullBackOff".into(),
                format!("Back-off pulling image \"{image}\": {}: {}", self.reason, self.message),
                None,
            ),
            None => (self.reason.clone(), self.message.clone(), None),
        }
    }
}

// === impl Finish ===

impl Finish {
    pub(crate) fn failed(reason: &str, message: &str) -> Self {
        Self {
            phase: "Failed".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            evicted: None,
        }
    }

    /// An eviction, whose containers get `grace` seconds.
    pub(crate) fn evicted(message: &str, grace: i64) -> Self {
        Self {
            evicted: Some(grace),
            ..Self::failed("Evicted", message)
        }
    }

    /// The end of a pod that was active for too long.
    pub(crate) fn deadline() -> Self {
        Self::failed(
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        )
    }

    /// Seconds that the containers get which still run.
    pub(crate) fn grace(&self, pod: &Pod) -> i64 {
        self.evicted.unwrap_or_else(|| pod::grace_period(pod))
    }

    /// An end that follows from the containers' exits.
    pub(crate) fn by_exit(success: bool) -> Self {
        Self {
            phase: if success { "Succeeded" } else { "Failed" }.into(),
            reason: None,
            message: None,
            evicted: None,
        }
    }

    /// The end that the API knows of already.
    pub(crate) fn told(status: &PodStatus) -> Self {
        Self {
            phase: status.phase.clone().unwrap_or_default(),
            reason: status.reason.clone(),
            message: status.message.clone(),
            evicted: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_by_this_clock() {
        let at = |second: i64| Timestamp::from_second(100_000 + second).unwrap();
        let cases = [
            ("seen at once", 99, true, 99),
            ("seen late, since events were lost", 40, true, 40),
            ("by a clock that lags an hour behind", -3500, true, 100),
            ("by a clock that is an hour ahead", 3700, true, 100),
            ("while no kubelet ran", -3500, false, -3500),
            ("while none ran, by a clock that was ahead", 3700, false, 100),
        ];
        for (what, finished, watched, end) in cases {
            assert_eq!(end_of(at(finished), watched, at(100)), at(end), "{what}");
        }
    }
}
