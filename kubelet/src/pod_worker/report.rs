//! Telling the API what a pod does: one patch at a time, of what has changed since the last one; in the end, the deletion.
//!
//! It outlives an API server that is away: the newest status is sent when it is back, older ones never. A static pod is
//! told of through its mirror, which is made, and made anew, here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::Value;
use skiff_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::events::Severity;
use crate::memory::Memory;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::pod;
use crate::pod_worker::Wish;
use crate::pod_worker::mirror;
use crate::status::{self, patch};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// How one call to the API ended.
enum Answer {
    Patched(Box<Pod>),
    /// A mirror was made.
    Created(Box<Pod>),
    Deleted,
    /// The API has no such pod.
    Missing,
    Failed(String),
}

/// What one pod's worker tells the API.
pub(super) struct Reporter {
    agent: Arc<Agent>,
    /// The API's object that shows the pod: itself, or a static pod's mirror; `None` while there is no mirror.
    object: Option<Arc<Pod>>,
    /// Of a static pod: the last word about its mirror.
    mirror_change: Option<u64>,
    /// The newest status that the API is known to have.
    last: PodStatus,
    version: u64,
    wanted: Option<Value>,
    /// What the call under way sends.
    sent: Option<Value>,
    /// Since when something is to be told.
    changed: Option<Instant>,
    /// What the API was last told, and the version that it answered with: an older API server drops fields that it does not
    /// know, and telling it again would never end.
    told: Option<(Value, u64)>,
    call: Option<JoinHandle<Answer>>,
    retry: Option<(Instant, Duration)>,
    missing: bool,
    deleted: bool,
    waiting: BTreeMap<String, String>,
}

impl Reporter {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            object: None,
            mirror_change: None,
            last: PodStatus::default(),
            version: 0,
            wanted: None,
            sent: None,
            changed: None,
            told: None,
            call: None,
            retry: None,
            missing: false,
            deleted: false,
            waiting: BTreeMap::new(),
        }
    }

    /// Whether the API has let go of the pod.
    pub(super) fn is_deleted(&self) -> bool {
        self.mirror_change.is_none() && (self.deleted || self.missing)
    }

    /// The phase that is to be told, and the status that the API has.
    pub(super) fn shown(&self) -> (Option<&str>, &PodStatus) {
        let wanted = self.wanted.as_ref().and_then(|wanted| wanted["phase"].as_str());
        (wanted, &self.last)
    }

    /// Takes note of what the API has.
    pub(super) fn see(&mut self, wish: &Wish) {
        match &wish.mirror {
            None => self.take(Some(wish.pod.clone())),
            Some(mirror) if self.mirror_change != Some(mirror.change) => {
                self.mirror_change = Some(mirror.change);
                self.take(mirror.pod.clone());
            }
            Some(_) => {}
        }
    }

    fn take(&mut self, object: Option<Arc<Pod>>) {
        match &object {
            Some(object) => {
                let version = version(object);
                if version > self.version {
                    self.last = pod::status(object).clone();
                    self.version = version;
                }
            }
            None => (self.last, self.version) = (PodStatus::default(), 0),
        }
        self.object = object;
    }

    /// Works out the status to report.
    pub(super) fn update(&mut self, pod: &Pod, observed: &Observed, memory: &Memory, plan: &Plan) {
        let input = status::Input {
            pod,
            last: &self.last,
            observed,
            memory,
            plan,
            runtime: &self.agent.runtime_name,
            node_ips: &self.agent.node_ips,
            now: Timestamp::now(),
        };
        let wanted = Some(patch::json(&status::generate(&input)));
        if self.wanted != wanted {
            self.changed.get_or_insert_with(Instant::now);
            self.wanted = wanted;
        }
        self.tell_of_back_off(pod, plan);
    }

    /// Sends what is to be sent, unless a call is under way.
    pub(super) fn send(&mut self, pod: &Pod, gone: bool, cleaned: bool) {
        let waits = self.retry.is_some_and(|(at, _)| at > Instant::now());
        if gone || waits || self.call.is_some() || self.is_deleted() {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.agent.client.clone(), pod::namespace(pod));
        let name = pod::name(pod).to_owned();
        let Some(object) = self.object.clone() else {
            let (agent, pod) = (self.agent.clone(), pod.clone());
            self.call = Some(tokio::spawn(async move {
                match mirror::create(&agent, &pod).await {
                    Ok(mirror) => Answer::Created(Box::new(mirror)),
                    Err(error) => Answer::Failed(format!("cannot create the pod's mirror: {error}")),
                }
            }));
            return;
        };
        let uid = pod::uid(&object);
        let outdated = self.mirror_change.is_some() && mirror::is_outdated(&object, pod);
        let told = |wanted: &&Value| {
            let told = self.told.as_ref();
            told.is_some_and(|(told, version)| told == *wanted && *version == self.version)
        };
        let change = self
            .wanted
            .as_ref()
            .filter(|wanted| !outdated && !told(wanted))
            .and_then(|wanted| patch::diff(uid, &patch::json(&self.last), wanted));
        if change.is_none() && self.sent.is_none() {
            self.changed = None;
        }
        if let Some(change) = change {
            self.sent.clone_from(&self.wanted);
            self.call = Some(tokio::spawn(async move {
                let begun = Instant::now();
                let patch = Patch::Strategic(change);
                let answer = api.patch_status(&name, &PatchParams::default(), &patch).await;
                tracing::debug!(pod = name, took = ?begun.elapsed(), ?patch, "told the API");
                match answer {
                    Ok(pod) => Answer::Patched(Box::new(pod)),
                    Err(error) => refused(&error, &[404]),
                }
            }));
        } else if outdated || (cleaned && pod::deletion_time(pod).is_some()) {
            let uid = Some(uid.to_owned());
            self.call = Some(tokio::spawn(async move {
                let precondition = Preconditions {
                    uid,
                    resource_version: None,
                };
                let parameters = DeleteParams::default().grace_period(0).preconditions(precondition);
                match api.delete(&name, &parameters).await {
                    Ok(_) => Answer::Deleted,
                    // 409 is the UID precondition: another pod of that name is there.
                    Err(error) => refused(&error, &[404, 409]),
                }
            }));
        }
    }

    /// Waits until there is something to send, or a call has ended. Cancel-safe.
    pub(super) async fn next(&mut self) {
        if let Some(call) = &mut self.call {
            let answer = call.await.unwrap_or_else(|error| Answer::Failed(error.to_string()));
            self.call = None;
            self.answered(answer);
        } else if let Some((at, _)) = self.retry {
            if at <= Instant::now() {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(at).await;
        } else {
            std::future::pending().await
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Patched(pod) => {
                self.retry = None;
                let version = version(&pod);
                if self.sent == self.wanted
                    && let Some(changed) = self.changed.take()
                {
                    self.agent.measures.lives.told(changed);
                }
                self.told = self.sent.take().map(|sent| (sent, version));
                if version > self.version {
                    self.last = pod.status.unwrap_or_default();
                    self.version = version;
                }
            }
            Answer::Created(mirror) => {
                self.retry = None;
                self.take(Some(Arc::new(*mirror)));
            }
            Answer::Deleted | Answer::Missing if self.mirror_change.is_some() => {
                self.retry = None;
                self.take(None);
            }
            Answer::Deleted => self.deleted = true,
            Answer::Missing => self.missing = true,
            Answer::Failed(error) => {
                tracing::debug!(error, "cannot report a pod's status; it is tried again");
                let delay = self.retry.map_or(FIRST_RETRY, |(_, delay)| (delay * 2).min(LAST_RETRY));
                self.retry = Some((Instant::now() + delay, delay));
            }
        }
    }

    /// Events for containers that have begun to wait.
    fn tell_of_back_off(&mut self, pod: &Pod, plan: &Plan) {
        let events = &self.agent.events;
        for (name, (reason, _)) in &plan.waiting {
            if self.waiting.get(name) == Some(reason) {
                continue;
            }
            let Some((role, container)) = pod::container(pod, name) else {
                continue;
            };
            let who = (role, name.as_str());
            match reason.as_str() {
                "CrashLoopBackOff" => {
                    let text = format!(
                        "Back-off restarting failed container {name} in pod {}",
                        pod::full_name(pod)
                    );
                    events.container(pod, who, Severity::Warning, "BackOff", text);
                }
                "ImagePullBackOff" => {
                    let image = container.image.as_deref().unwrap_or_default();
                    let text = format!("Back-off pulling image {image:?}");
                    events.container(pod, who, Severity::Normal, "BackOff", text);
                    events.container(pod, who, Severity::Warning, "Failed", format!("Error: {reason}"));
                }
                _ => {}
            }
        }
        self.waiting = plan
            .waiting
            .iter()
            .map(|(name, (reason, _))| (name.clone(), reason.clone()))
            .collect();
    }
}

fn refused(error: &kube::Error, missing: &[u16]) -> Answer {
    match error {
        kube::Error::Api(status) if missing.contains(&status.code) => Answer::Missing,
        other => Answer::Failed(skiff_daemon::error_chain(other)),
    }
}

/// Resource versions are ordered numbers.
fn version(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
