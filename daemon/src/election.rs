//! Leader election: of several processes that could do the same work, the one whose name is in a Lease does it.
//!
//! As upstream's `client-go/tools/leaderelection`: a leader renews its Lease every `retry_period`; one that could not for
//! `renew_deadline` stops; others take over when they have seen nothing new for the Lease's duration, each by its own clock. Two
//! differences: candidates watch the Lease, so that one that is given back goes to another at once; and a leader that lost it
//! does not end the process. Its work is cancelled and awaited, and it becomes a candidate again.
//!
//! No task is spawned but one to tell of a new leader by an event: [`Election::lead`] is one future.

mod decision;
mod lease;

use std::pin::pin;

use futures::StreamExt as _;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use skiff_api::k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout, timeout_at};

use crate::{Metrics, Shutdown, error_chain};
use decision::{Candidate, Leader, Record, Sighting};
use lease::Leases;

/// Where the Leases are.
const NAMESPACE: &str = "kube-system";
/// How long giving the Lease back may take at the end.
const RELEASE: Duration = Duration::from_secs(2);

/// How long is waited for what; upstream's flags `--leader-elect-…` and defaults.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// `--leader-elect-lease-duration`: others keep away from a silent leader for this long.
    pub lease_duration: Duration,
    /// `--leader-elect-renew-deadline`: a leader that could not renew for this long stops.
    pub renew_deadline: Duration,
    /// `--leader-elect-retry-period`: how often a leader renews.
    pub retry_period: Duration,
}

/// Times that cannot be: two could lead at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TimingError {
    /// A leader would stop only after another began.
    #[error("--leader-elect-lease-duration {lease:?} must be greater than --leader-elect-renew-deadline {deadline:?}")]
    LeaseDuration {
        /// The duration.
        lease: Duration,
        /// The deadline.
        deadline: Duration,
    },
    /// A leader would give up before it tried again.
    #[error(
        "--leader-elect-renew-deadline {deadline:?} must be greater than 1.2 times --leader-elect-retry-period {period:?}"
    )]
    RenewDeadline {
        /// The deadline.
        deadline: Duration,
        /// The period.
        period: Duration,
    },
    /// A Lease counts whole seconds.
    #[error("--leader-elect-lease-duration {0:?} must be at least a second, and --leader-elect-retry-period not zero")]
    TooShort(Duration),
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Election {
    /// The Lease in `kube-system`, one for each kind of work.
    pub name: String,
    /// Ours among the candidates: [`identity`].
    pub identity: String,
    /// How long is waited for what.
    pub timing: Timing,
}

/// Who leads, as `leader_election_master_status`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Labels {
    name: String,
}

/// Why a term ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Loss {
    /// Another holds the Lease.
    Taken,
    /// The Lease could not be renewed in time.
    Late,
}

/// A name for a candidate: the host's, and a random part that tells its processes apart.
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), uuid::Uuid::new_v4())
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// Refuses times that would let two lead at once, or nobody.
    ///
    /// # Errors
    /// Says which two do not fit.
    pub fn validate(&self) -> Result<(), TimingError> {
        if self.lease_duration < Duration::from_secs(1) || self.retry_period.is_zero() {
            return Err(TimingError::TooShort(self.lease_duration));
        }
        if self.lease_duration <= self.renew_deadline {
            return Err(TimingError::LeaseDuration {
                lease: self.lease_duration,
                deadline: self.renew_deadline,
            });
        }
        // Upstream's factor: what its jitter may add.
        if self.renew_deadline <= self.retry_period.mul_f64(1.2) {
            return Err(TimingError::RenewDeadline {
                deadline: self.renew_deadline,
                period: self.retry_period,
            });
        }
        Ok(())
    }
}

impl Election {
    /// A candidate of this process for the Lease `name`.
    pub fn new(name: &str, timing: Timing) -> Self {
        Self {
            name: name.to_owned(),
            identity: identity(),
            timing,
        }
    }

    /// Does `work` whenever we lead, until shutdown; then gives the Lease back. The work is given a [`Shutdown`] that ends with the
    /// term: it has to end soon after, with everything that it started, since another begins.
    ///
    /// # Errors
    /// What `work` returns; it is not begun again then.
    pub async fn lead<W, E>(
        &self,
        client: Client,
        metrics: &Metrics,
        shutdown: &Shutdown,
        mut work: impl FnMut(Shutdown) -> W,
    ) -> Result<(), E>
    where
        W: Future<Output = Result<(), E>>,
    {
        let status = self.gauge(metrics);
        let leases = Leases::new(client.clone(), &self.name);
        loop {
            let Some(mut held) = shutdown.run_until_cancelled(self.acquire(&leases)).await else {
                return Ok(());
            };
            tracing::info!(lease = self.name, identity = self.identity, "leading");
            status.set(1);
            self.announce(&client);
            let term = shutdown.child_token();
            let mut working = pin!(work(term.clone()));
            let ended = tokio::select! {
                result = &mut working => Ok(result),
                loss = self.hold(&leases, &mut held) => Err(loss),
            };
            let (result, is_over) = match ended {
                Ok(result) => {
                    self.release(&leases, &held).await;
                    (result, true)
                }
                Err(loss) => {
                    tracing::warn!(lease = self.name, ?loss, "not leading any more: stopping the work");
                    term.cancel();
                    (working.await, shutdown.is_cancelled())
                }
            };
            status.set(0);
            if is_over || result.is_err() {
                return result;
            }
        }
    }

    fn gauge(&self, metrics: &Metrics) -> Gauge {
        let family = Family::<Labels, Gauge>::default();
        let gauge = family.get_or_create_owned(&Labels {
            name: self.name.clone(),
        });
        metrics.register(|registry| {
            let help = "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. \
                'name' is the string used to identify the lease. Please make sure to group by name";
            registry.register("leader_election_master_status", help, family);
        });
        gauge
    }

    // === Candidate ===

    /// Ends when we hold the Lease.
    async fn acquire(&self, leases: &Leases) -> Sighting {
        let mut seen = None;
        let mut looked = false;
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut news = pin!(watcher(leases.api.clone(), config).default_backoff());
        loop {
            if !looked {
                match self.limited(leases.look(seen.clone())).await {
                    Ok(now) => {
                        seen = now;
                        looked = true;
                    }
                    Err(error) => {
                        tracing::warn!(lease = self.name, %error, "cannot see who leads; trying again");
                        sleep(self.timing.retry_period).await;
                        continue;
                    }
                }
            }
            let attempt = match decision::candidate(seen.as_ref(), &self.identity, Instant::now()) {
                Candidate::Wait(until) => {
                    tokio::select! {
                        () = sleep_until(until) => {}
                        Some(event) = news.next() => self.hear(&mut seen, event),
                    }
                    continue;
                }
                Candidate::Create => self.limited(leases.create(&self.first_record(None))).await,
                Candidate::Take => {
                    let before = seen.as_ref().map(|seen| &seen.record);
                    let version = seen.as_ref().map_or("", |seen| &seen.version);
                    self.limited(leases.write(&self.first_record(before), version)).await
                }
            };
            match attempt {
                Ok(held) => return held,
                Err(error) => {
                    // Another was faster, most likely.
                    tracing::debug!(lease = self.name, %error, "cannot take the Lease");
                    looked = false;
                    sleep(self.timing.retry_period / 10).await;
                }
            }
        }
    }

    fn hear(
        &self,
        seen: &mut Option<Sighting>,
        event: Result<watcher::Event<skiff_api::k8s_openapi::api::coordination::v1::Lease>, watcher::Error>,
    ) {
        match event {
            Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease)) => {
                *seen = Some(lease::sighting(seen.take(), lease));
            }
            Ok(watcher::Event::Delete(_)) => *seen = None,
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            // The end of the Lease is waited for in any case.
            Err(error) => {
                tracing::debug!(lease = self.name, error = %error_chain(&error), "the watch of the Lease broke")
            }
        }
    }

    /// What to write on becoming the leader after `before`.
    fn first_record(&self, before: Option<&Record>) -> Record {
        let now = lease::now();
        Record {
            holder: self.identity.clone(),
            duration: self.timing.lease_duration,
            acquired: Some(now.clone()),
            renewed: Some(now),
            transitions: before.map_or(0, |before| before.transitions.saturating_add(1)),
        }
    }

    /// A call of the API that does not hang.
    async fn limited<T>(&self, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
        match timeout(self.timing.renew_deadline, call).await {
            Ok(answer) => answer.map_err(|error| error_chain(&error)),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    // === Leader ===

    /// Keeps the Lease; ends when it is lost, or may be by now.
    async fn hold(&self, leases: &Leases, held: &mut Sighting) -> Loss {
        let mut tried = held.since;
        loop {
            match decision::leader(held.since, tried, &self.timing, Instant::now()) {
                Leader::Wait(until) => sleep_until(until).await,
                Leader::Stop => return Loss::Late,
                Leader::Renew => {
                    tried = Instant::now();
                    let deadline = held.since + self.timing.renew_deadline;
                    match timeout_at(deadline, self.renew(leases, held)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(Some(loss))) => return loss,
                        // It has been told; the deadline decides.
                        Ok(Err(None)) | Err(_) => {}
                    }
                }
            }
        }
    }

    /// One sign of life; `Err(None)` when it may succeed later.
    async fn renew(&self, leases: &Leases, held: &mut Sighting) -> Result<(), Option<Loss>> {
        let record = Record {
            renewed: Some(lease::now()),
            ..held.record.clone()
        };
        let failed = |error: &kube::Error| {
            tracing::warn!(lease = self.name, error = %error_chain(error), "cannot renew the Lease; trying again");
            None
        };
        match leases.write(&record, &held.version).await {
            Ok(now) => *held = now,
            // Somebody wrote: another leader, or a person a label, or we ourselves a moment ago without hearing of it.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                let seen = leases.look(None).await.map_err(|error| failed(&error))?;
                let written = match seen {
                    Some(seen) if seen.record.holder != self.identity => return Err(Some(Loss::Taken)),
                    Some(seen) => leases.write(&record, &seen.version).await,
                    None => leases.create(&record).await,
                };
                *held = written.map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
        }
        Ok(())
    }

    /// Gives the Lease back, so that nobody has to wait for its end. The work is done by now.
    async fn release(&self, leases: &Leases, held: &Sighting) {
        let record = Record {
            holder: String::new(),
            duration: Duration::from_secs(1),
            acquired: Some(lease::now()),
            renewed: Some(lease::now()),
            transitions: held.record.transitions,
        };
        match timeout(RELEASE, leases.write(&record, &held.version)).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "gave the Lease back"),
            Ok(Err(error)) => {
                tracing::debug!(lease = self.name, error = %error_chain(&error), "cannot give the Lease back")
            }
            Err(_) => tracing::debug!(lease = self.name, "giving the Lease back takes too long"),
        }
    }

    /// Tells of the new leader by an event, as upstream does.
    fn announce(&self, client: &Client) {
        let recorder = Recorder::new(client.clone(), Reporter::from(self.name.as_str()));
        let event = Event {
            type_: EventType::Normal,
            reason: "LeaderElection".to_owned(),
            note: Some(format!("{} became leader", self.identity)),
            action: "LeaderElection".to_owned(),
            secondary: None,
        };
        let lease = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(self.name.clone()),
            ..ObjectReference::default()
        };
        let limit = self.timing.renew_deadline;
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(limit, recorder.publish(&event, &lease)).await {
                tracing::debug!(error = %error_chain(&error), "cannot record the event of a new leader");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Timing, TimingError};
    use std::time::Duration;

    #[test]
    fn times_must_keep_two_from_leading() {
        let timing = |lease: u64, deadline: u64, period: u64| {
            Timing {
                lease_duration: Duration::from_secs(lease),
                renew_deadline: Duration::from_secs(deadline),
                retry_period: Duration::from_secs(period),
            }
            .validate()
        };
        assert_eq!(Timing::default().validate(), Ok(()));
        assert!(matches!(timing(10, 10, 2), Err(TimingError::LeaseDuration { .. })));
        assert!(matches!(timing(15, 10, 9), Err(TimingError::RenewDeadline { .. })));
        assert!(matches!(timing(0, 10, 2), Err(TimingError::TooShort(_))));
        assert!(matches!(timing(15, 10, 0), Err(TimingError::TooShort(_))));
    }
}
