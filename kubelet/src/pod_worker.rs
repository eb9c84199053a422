//! One task a pod: look, plan, act, report, wait.
//!
//! The task owns all that is remembered of its pod. It wakes when the pod changes in the API, when a container changes, when
//! an action ends, when a probe's verdict changes, when an object that the pod names changes, or at the time that the last
//! plan named; why it woke does not matter. Actions run beside it, each on its own [`Task`].

mod earlier;
mod ended;
mod handle;
mod hurry;
mod look;
mod mirror;
mod outcomes;
mod report;
mod start;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Refusal};
use crate::agent::Agent;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::events::Severity;
use crate::execute::{self, Outcome};
use crate::hop::hop;
use crate::labels;
use crate::memory::{Memory, Told, Volumes};
use crate::observed::Observed;
use crate::plan::{self, Action, Plan, Task};
use crate::pod;
use crate::probes::{Probes, Report};
pub(crate) use earlier::counted;
pub(crate) use handle::{Admission, Handle, Mirror, Wish};
use handle::{Wake, Yielding};
use hurry::Busy;
use report::Reporter;
use start::Start;

/// How long a failed look at the runtime waits.
const RUNTIME_RETRY: Duration = Duration::from_secs(1);

struct Worker {
    agent: Arc<Agent>,
    wish: watch::Receiver<Wish>,
    wake: Arc<Wake>,
    pod: Arc<Pod>,
    observed: Arc<Observed>,
    view: watch::Sender<Arc<Observed>>,
    memory: Memory,
    /// Once the pod must go: the seconds that its containers get.
    stop: Option<i64>,
    busy: HashMap<Task, Busy>,
    running: JoinSet<(Action, Outcome)>,
    probes: Probes,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: Reporter,
    /// Whether the runtime may have changed since the last look.
    dirty: bool,
    /// Whether an action has changed it since: what is observed lacks, say, the container that was started.
    outdated: bool,
    /// When to look again for what an event told and the runtime does not show yet.
    settle: Option<Duration>,
    /// The status is final: what the runtime forgets now must not change it.
    frozen: bool,
    adopted: bool,
    start: Start,
    clock: Clock,
    /// How often the kernel had killed in the pod for want of memory when that was last looked at.
    memory_kills: u64,
    /// Whether the pod may still hold something of the node.
    holds: watch::Sender<bool>,
}

/// Starts a pod's worker; `done` gets the UID when nothing of the pod is left. A refused pod fails and is not run.
pub(crate) fn spawn(
    agent: Arc<Agent>,
    wish: Wish,
    admission: Admission,
    done: mpsc::UnboundedSender<String>,
) -> Handle {
    let pod = wish.pod.clone();
    let uid = pod::uid(&pod).to_owned();
    let (sender, receiver) = watch::channel(wish);
    let (view, seen) = watch::channel(Arc::default());
    let wake = Arc::new(Wake::default());
    let (holds, held) = watch::channel(true);
    let (report_sender, reports) = mpsc::unbounded_channel();
    let refused = admission.refusal.is_some();
    let start = Start::of(&pod);
    let mut worker = Worker {
        reporter: Reporter::new(agent.clone()),
        agent,
        wish: receiver,
        wake: wake.clone(),
        pod,
        observed: Arc::default(),
        view,
        memory: Memory::default(),
        stop: None,
        busy: HashMap::new(),
        running: JoinSet::new(),
        probes: Probes::new(report_sender),
        reports,
        dirty: true,
        outdated: false,
        settle: None,
        frozen: false,
        adopted: false,
        start,
        clock: Clock::read(),
        memory_kills: 0,
        holds,
    };
    tokio::spawn(async move {
        // Nobody makes room for a pod that is not taken.
        if worker.admit(admission.refusal, admission.asks_node).await {
            worker.make_room(admission.room, &admission.short).await;
        }
        if let Some(remains) = admission.remains {
            remains.gone().await;
        }
        worker.run().await;
        done.send(uid).ok();
    });
    Handle {
        wish: sender,
        wake,
        refused,
        view: seen,
        holds: held,
    }
}

impl Worker {
    /// Takes a refusal to memory. True when the pod is taken.
    async fn admit(&mut self, refusal: Option<Refusal>, asks_node: bool) -> bool {
        let refusal = if asks_node { self.ask_node().await } else { refusal };
        let Some(refusal) = refusal else { return true };
        let (reason, message) = (refusal.reason.clone(), refusal.message.clone());
        self.agent.events.pod(&self.pod, Severity::Warning, reason, message);
        self.memory.verdict = Some(refusal.finish());
        self.memory.refused = true;
        false
    }

    /// Why the node's labels and taints keep the pod out. Most are let in by the node as it was seen last; before a pod is refused, the
    /// API is asked.
    async fn ask_node(&self) -> Option<Refusal> {
        let check = |node: Arc<Node>| admission::check_node(&self.pod, &self.agent.node_name, &node).err();
        let seen = self.agent.seen.get().map(check);
        match seen {
            Some(None) => None,
            Some(Some(_)) | None => check(self.agent.node().await),
        }
    }

    /// Ends the pods that make room, and waits until they have ended, however slowly: their grace periods are the bound.
    async fn make_room(&self, mut room: Vec<Yielding>, short: &[String]) {
        for resource in short {
            self.agent.measures.preempted(resource);
        }
        for yielding in &mut room {
            tracing::info!(
                pod = yielding.name(),
                by = pod::full_name(&self.pod),
                "preempting a pod"
            );
            yielding.end();
        }
        for mut yielding in room {
            yielding.ended().await;
            hop(&self.pod, "room made");
        }
    }

    async fn run(mut self) {
        self.memory.seen = Some(Timestamp::now());
        hop(&self.pod, "worker begun");
        let containers = pod::containers(&self.pod).count();
        self.agent.measures.lives.begun(containers, self.start.age());
        loop {
            let begun = Instant::now();
            let operation = self.operation();
            self.follow_clock();
            self.take_wish();
            // What an event tells is acted on first; the look that follows confirms it.
            let looked = self.take_ends() || !self.dirty || self.look().await;
            let mut next = None;
            if looked {
                let plan = self.plan();
                if plan.finish.is_some() {
                    self.wake.ends.store(true, Ordering::Release);
                }
                if let Some(finish) = &plan.exceeded {
                    self.end(finish.clone(), Severity::Normal);
                }
                self.probes.sync(
                    &self.agent,
                    &self.pod,
                    &self.observed,
                    &self.memory,
                    self.stop.is_some(),
                );
                for busy in plan.given_up.iter().filter_map(|task| self.busy.get(task)) {
                    busy.cancel.cancel();
                }
                for action in &plan.actions {
                    self.act(action.clone());
                }
                let gone = self.wish.borrow().gone;
                if self.memory.cleaned && (gone || self.reporter.is_deleted()) {
                    return;
                }
                self.report(&plan);
                next = plan.wake;
            }
            self.agent.measures.lives.worked(operation, begun.elapsed());
            if !self.wait(looked, next).await {
                return;
            }
        }
    }

    /// Keeps delays what they are when somebody sets the wall clock.
    fn follow_clock(&mut self) {
        let Some(step) = self.clock.step(Clock::read()) else {
            return;
        };
        self.memory.shift(step);
    }

    /// What a round is for, as upstream's metric calls it.
    fn operation(&self) -> &'static str {
        if !self.adopted {
            "create"
        } else if self.stop.is_some() {
            "kill"
        } else if self.wish.has_changed().unwrap_or(false) {
            "update"
        } else {
            "sync"
        }
    }

    fn take_wish(&mut self) {
        let finish = self.wake.end.lock().take();
        if let Some(finish) = finish
            && self.memory.verdict.is_none()
            && !pod::is_terminal(&self.pod)
        {
            self.end(finish, Severity::Warning);
        }
        self.memory.bare |= self.wake.clear.swap(false, Ordering::AcqRel);
        let wish = self.wish.borrow_and_update().clone();
        let meta = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        if meta(&self.pod) != meta(&wish.pod) {
            // downwardAPI files may show them.
            self.refresh_volumes();
        }
        for name in labels::changed_containers(&self.pod, &wish.pod) {
            self.memory.forget_image(&name);
            let busy = self.busy.get(&Task::Container(name));
            if let Some(start) = busy.filter(|busy| busy.kill.is_none()) {
                start.cancel.cancel();
            }
        }
        self.pod = wish.pod;
        let deleted = pod::deletion_time(&self.pod).is_some();
        if !(deleted || wish.gone) {
            return;
        }
        let grace = pod::grace_period(&self.pod);
        if self.stop.is_none_or(|before| grace < before) {
            let shortened = self.stop.replace(grace).is_some();
            self.keep_tokens();
            if shortened {
                // The shorter period begins now, as upstream's does.
                let now = Timestamp::now();
                self.memory.told_to_end.values_mut().for_each(|told| told.since = now);
            }
            self.hurry(grace);
        }
    }

    fn plan(&self) -> Plan {
        let now = Timestamp::now();
        let busy: BTreeSet<Task> = self.busy.keys().cloned().collect();
        let goal = hurry::goal(self.stop, self.memory.verdict.as_ref());
        let input = plan::Input {
            pod: &self.pod,
            goal,
            observed: &self.observed,
            memory: &self.memory,
            busy: &busy,
            now,
        };
        plan::plan(&input)
    }

    fn act(&mut self, action: Action) {
        let now = Timestamp::now();
        match &action {
            Action::StartContainer { name, ended, .. } => {
                if let Some(ended) = ended {
                    let next = Backoff::next(self.memory.restarts.get(name).copied(), *ended, now);
                    self.memory.restarts.insert(name.clone(), next);
                }
                if pod::container(&self.pod, name).is_some_and(|(_, spec)| pod::has_post_start(&spec)) {
                    self.memory.hooks.insert(name.clone());
                }
            }
            Action::PreStop { id, again, .. } | Action::KillContainer { id, again, .. } => {
                let told = Told {
                    since: now,
                    again: false,
                };
                self.memory.told_to_end.entry(id.clone()).or_insert(told).again |= *again;
            }
            _ => {}
        }
        let cancel = CancellationToken::new();
        let stops_at_once = action.grace().is_some() || action == Action::PrepareVolumes;
        let kill = action.grace().map(|grace| (Instant::now(), execute::seconds(grace)));
        self.busy.insert(
            action.task(),
            Busy {
                cancel: cancel.clone(),
                kill,
            },
        );
        let context = execute::Context {
            agent: self.agent.clone(),
            pod: self.pod.clone(),
            sandbox: self.observed.ready_sandbox().cloned(),
            observed: self.observed.clone(),
            ran_before: !self.memory.earlier.is_empty(),
            is_ending: self.is_ending(),
            cancel,
        };
        self.running.spawn(async move {
            let begun = Instant::now();
            let outcome = tokio::select! {
                biased;
                outcome = execute::execute(&context, &action) => outcome,
                () = context.cancel.cancelled(), if stops_at_once => Outcome::Cancelled,
            };
            let pod = context.pod.metadata.name.as_deref().unwrap_or_default();
            tracing::debug!(pod, ?action, ?outcome, took = ?begun.elapsed(), "acted");
            (action, outcome)
        });
    }

    fn report(&mut self, plan: &Plan) {
        let wish = self.wish.borrow().clone();
        self.reporter.see(&wish);
        if !self.frozen {
            self.reporter.update(&self.pod, &self.observed, &self.memory, plan);
            self.frozen = self.stop.is_some() && self.busy.contains_key(&Task::Cleanup);
        }
        let (wanted, told) = self.reporter.shown();
        let lives = &self.agent.measures.lives;
        self.start.look(&self.pod, &self.observed, wanted, told, lives);
        self.reporter.send(&self.pod, wish.gone, self.memory.cleaned);
    }

    /// Waits for a reason to look again; false when there will be none.
    async fn wait(&mut self, looked: bool, next: Option<Timestamp>) -> bool {
        let planned = next.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO));
        let mut timer = if looked { planned } else { Some(RUNTIME_RETRY) };
        if let Some(settle) = self.settle {
            timer = Some(timer.map_or(settle, |timer| timer.min(settle)));
        }
        // Every arm is cancel-safe: nothing is taken from a channel unless its arm is chosen.
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                match ended {
                    Ok((action, outcome)) => {
                        // Volumes are no affair of the runtime's.
                        self.outdated |= action.task() != Task::Volumes;
                        self.dirty |= self.outdated;
                        self.finished(&action, outcome);
                    }
                    Err(error) => {
                        tracing::error!(%error, pod = pod::full_name(&self.pod), "an action panicked");
                        return false;
                    }
                }
            }
            changed = self.wish.changed() => return changed.is_ok(),
            () = self.wake.notify.notified() => {
                self.dirty = true;
                if self.wake.objects.swap(false, Ordering::AcqRel) {
                    self.refresh_volumes();
                }
            }
            Some(report) = self.reports.recv() => self.probed(&report),
            () = self.reporter.next() => {}
            () = sleep(timer) => self.dirty |= self.settle.is_some(),
        }
        true
    }

    /// What the volumes and the environment are made from has changed; a pod that ends has no use for it.
    fn refresh_volumes(&mut self) {
        if self.is_ending() {
            return;
        }
        let now = Timestamp::now();
        self.memory
            .starts
            .retain(|_, failure| failure.reason != "CreateContainerConfigError");
        match &mut self.memory.volumes {
            Volumes::Ready { refresh } => *refresh = Some(now),
            volumes => *volumes = Volumes::Pending,
        }
    }
}

async fn sleep(timer: Option<Duration>) {
    match timer {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
