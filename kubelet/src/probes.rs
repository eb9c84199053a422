//! Probes: one task a probe of a running container; it reports only what changes.
//!
//! The worker owns [`Probes`]; a report comes back over its channel. A readiness probe runs at once when its container has
//! started, then every period.

mod grpc;
pub(crate) mod http;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod, Probe};
use skiff_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::agent::Agent;
use crate::env;
use crate::events::Severity;
use crate::memory::Memory;
use crate::observed::{Observed, State};
use crate::pod::{self, Role};

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Holds back the other two until it succeeds.
    Startup,
    /// Takes the pod in and out of Services.
    Readiness,
    /// Restarts the container.
    Liveness,
}

/// A probe's verdict has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) success: bool,
    pub(crate) grace: Option<i64>,
}

/// The probes of one pod.
#[derive(Debug)]
pub(crate) struct Probes {
    tasks: HashMap<(String, Kind), AbortHandle>,
    reports: mpsc::UnboundedSender<Report>,
    /// What was started before was taken over from an earlier kubelet.
    begun: Timestamp,
}

/// What one attempt found.
enum Finding {
    Success,
    /// It counts as success, but somebody should look.
    Warning(String),
    Failure(String),
    /// Nothing can be said; it counts neither way.
    Unknown(String),
}

/// What the results so far add up to.
struct Verdict {
    success_threshold: i32,
    failure_threshold: i32,
    /// The latest results that were alike: which, and how many.
    streak: (bool, i32),
    /// What was reported last.
    last: Option<bool>,
}

struct Prober {
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    role: Role,
    container: Container,
    id: String,
    address: Option<String>,
    kind: Kind,
    probe: Probe,
    reports: mpsc::UnboundedSender<Report>,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

// === impl Finding ===

impl Finding {
    /// As `prober_probe_total` has it.
    fn result(&self) -> &'static str {
        match self {
            Self::Success | Self::Warning(_) => "successful",
            Self::Failure(_) => "failed",
            Self::Unknown(_) => "unknown",
        }
    }
}

// === impl Verdict ===

impl Verdict {
    fn new(kind: Kind, probe: &Probe, initially_ready: bool) -> Self {
        let threshold = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1);
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            streak: (true, 0),
            last: match kind {
                Kind::Liveness => Some(true),
                Kind::Readiness => Some(initially_ready),
                Kind::Startup => None,
            },
        }
    }

    /// Whether one more result, after those before it, makes another verdict.
    fn changes(&mut self, success: bool) -> bool {
        let before = if self.streak.0 == success { self.streak.1 } else { 0 };
        self.streak = (success, before.saturating_add(1));
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        let changes = self.streak.1 >= threshold && self.last != Some(success);
        if changes {
            self.last = Some(success);
        }
        changes
    }
}

// === impl Probes ===

impl Probes {
    pub(crate) fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        Self {
            tasks: HashMap::new(),
            reports,
            begun: Timestamp::now(),
        }
    }

    /// Starts what is due and ends what is not. With `stopping`, only readiness probes go on, as upstream's do.
    pub(crate) fn sync(
        &mut self,
        agent: &Arc<Agent>,
        pod: &Arc<Pod>,
        observed: &Observed,
        memory: &Memory,
        stopping: bool,
    ) {
        let mut wanted = Vec::new();
        let sandbox = observed.ready_sandbox();
        for (role, container) in pod::containers(pod) {
            let Some(running) = observed.latest(&container.name) else {
                continue;
            };
            let State::Running(since) = running.state else { continue };
            if memory.doomed.contains_key(&running.id) || memory.awaits_hook(running) {
                continue;
            }
            let started = memory.health.get(&running.id).is_some_and(|health| health.started);
            let kinds: &[Kind] = match (started, stopping) {
                (_, true) => &[Kind::Readiness],
                (true, _) => &[Kind::Readiness, Kind::Liveness],
                (false, _) => &[Kind::Startup],
            };
            for kind in kinds {
                if let Some(probe) = kind.of(&container) {
                    wanted.push((*kind, role, container.clone(), probe.clone(), running.id.clone(), since));
                }
            }
        }
        self.tasks.retain(|(id, kind), task| {
            let keep = wanted
                .iter()
                .any(|(k, _, _, _, wanted_id, _)| k == kind && wanted_id == id);
            if !keep {
                task.abort();
            }
            keep
        });
        for (kind, role, container, probe, id, since) in wanted {
            let address = if pod::host_network(pod) {
                agent.node_ips.first().map(ToString::to_string)
            } else {
                sandbox.and_then(|sandbox| sandbox.ips.first().cloned())
            };
            self.tasks.entry((id.clone(), kind)).or_insert_with(|| {
                let prober = Prober {
                    agent: agent.clone(),
                    pod: pod.clone(),
                    role,
                    container: container.into_owned(),
                    id,
                    address,
                    kind,
                    probe,
                    reports: self.reports.clone(),
                };
                let initially = memory.health.get(&prober.id).is_some_and(|health| health.ready);
                let taken_over = since < self.begun;
                tokio::spawn(prober.run(since, taken_over, initially)).abort_handle()
            });
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

// === impl Prober ===

impl Prober {
    async fn run(self, since: Timestamp, taken_over: bool, initially_ready: bool) {
        let seconds = |value: Option<i32>, default: u32| {
            Duration::from_secs(u64::from(value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default)))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let delay = seconds(self.probe.initial_delay_seconds, 0);
        let age = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
        tokio::time::sleep(first_pause(age, delay, period, taken_over.then_some(&self.id))).await;
        let mut verdict = Verdict::new(self.kind, &self.probe, initially_ready);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let finding = self.probe_once(timeout).await;
            let measures = &self.agent.measures;
            measures.probed(&self.pod, &self.container.name, self.kind.word(), finding.result());
            let Some(success) = self.judge(finding) else { continue };
            if !verdict.changes(success) {
                continue;
            }
            let report = Report {
                id: self.id.clone(),
                name: self.container.name.clone(),
                kind: self.kind,
                success,
                grace: self.probe.termination_grace_period_seconds,
            };
            if self.reports.send(report).is_err() {
                return;
            }
        }
    }

    /// Tells what was found where somebody should look; whether it counts as success, `None` when it counts neither way.
    fn judge(&self, finding: Finding) -> Option<bool> {
        let word = self.kind.word();
        match finding {
            Finding::Success => Some(true),
            Finding::Warning(output) => {
                self.tell("ProbeWarning", format!("{word} probe warning: {output}"));
                Some(true)
            }
            Finding::Failure(output) => {
                self.tell("Unhealthy", format!("{word} probe failed: {output}"));
                Some(false)
            }
            Finding::Unknown(error) => {
                let text = format!("{word} probe errored and resulted in unknown state: {error}");
                self.tell("Unhealthy", text);
                None
            }
        }
    }

    fn tell(&self, reason: &'static str, message: String) {
        self.agent.events.container(
            &self.pod,
            (self.role, &self.container.name),
            Severity::Warning,
            reason,
            message,
        );
    }

    async fn probe_once(&self, timeout: Duration) -> Finding {
        if let Some(exec) = &self.probe.exec {
            let command = env::expand_literals(exec.command.as_deref().unwrap_or_default(), &self.container);
            return self.exec(&command, timeout).await;
        }
        let address = self.address.as_deref();
        if let Some(action) = &self.probe.http_get {
            return match http::Target::new(action, &self.container, address) {
                Ok(target) => http_finding(&target, timeout).await,
                Err(error) => Finding::Unknown(error),
            };
        }
        if let Some(action) = &self.probe.tcp_socket {
            let host = action
                .host
                .as_deref()
                .filter(|host| !host.is_empty())
                .or(address)
                .unwrap_or_default();
            return match port(&action.port, &self.container) {
                Ok(port) => tcp(host, port, timeout).await,
                Err(error) => Finding::Unknown(error),
            };
        }
        if let Some(action) = &self.probe.grpc {
            let port = u16::try_from(action.port).unwrap_or_default();
            let service = action.service.as_deref().unwrap_or_default();
            return match tokio::time::timeout(timeout, grpc::check(address.unwrap_or_default(), port, service)).await {
                Ok(Ok(())) => Finding::Success,
                Ok(Err(error)) => Finding::Failure(error),
                Err(_) => Finding::Failure(format!(
                    "timeout: failed to connect service \"{}:{port}\" within {}s: context deadline exceeded",
                    address.unwrap_or_default(),
                    timeout.as_secs()
                )),
            };
        }
        Finding::Unknown("missing probe handler".into())
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Finding {
        match self.agent.runtime.exec_sync(&self.id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Finding::Success,
            Ok(output) => {
                let mut text = output.stdout;
                text.extend(output.stderr);
                text.truncate(10 * 1024);
                Finding::Failure(String::from_utf8_lossy(&text).into_owned())
            }
            Err(skiff_cri::Error::DeadlineExceeded { .. }) => Finding::Failure(format!(
                "command timed out: {:?} timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            )),
            Err(error) => Finding::Unknown(error.rpc_text()),
        }
    }
}

async fn http_finding(target: &http::Target, timeout: Duration) -> Finding {
    match http::get(target, timeout).await {
        Err(error) => Finding::Failure(error),
        Ok(answer) => match (answer.status, answer.body) {
            (_, Err(error)) => Finding::Unknown(error),
            (300..400, Ok(body)) => Finding::Warning(format!("Probe terminated redirects, Response body: {body}")),
            (200..300, Ok(_)) => Finding::Success,
            (status, Ok(_)) => Finding::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Finding {
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Finding::Success,
        Ok(Err(error)) => Finding::Failure(dial_error(host, port, &error)),
        Err(_) => Finding::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// A failed connection in upstream's words.
fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    let text = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {text}")
}

/// A port by number, or by the name of a port of the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let valid = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port > 0);
    valid.ok_or_else(|| format!("invalid port: {port:?}"))
}

/// How long a container's first probe waits. After a restart of the kubelet, not all probes of a node come at once: with the id of a
/// container that was taken over, one that is due comes within its period.
fn first_pause(age: Duration, delay: Duration, period: Duration, taken_over: Option<&str>) -> Duration {
    match taken_over {
        Some(id) if age > delay + period => spread(id, period),
        _ => delay.saturating_sub(age),
    }
}

/// A part of `period` that depends on `id`.
fn spread(id: &str, period: Duration) -> Duration {
    let sum = id
        .bytes()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    period * (sum % 1000) / 1000
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn ports() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let cases = [
            (IntOrString::Int(80), Some(80)),
            (IntOrString::String("web".into()), Some(8080)),
            (IntOrString::String("81".into()), Some(81)),
            (IntOrString::String("x".into()), None),
            (IntOrString::Int(0), None),
            (IntOrString::Int(70000), None),
        ];
        for (given, found) in cases {
            assert_eq!(port(&given, &container).ok(), found, "{given:?}");
        }
    }

    #[test]
    fn a_verdict_changes_when_the_threshold_is_reached_in_a_row() {
        // Success is `+`, failure `-`; what is expected is the results after which a report goes out.
        let cases = [
            (Kind::Startup, false, "+", "+"),
            (Kind::Startup, false, "----", "..-."),
            (Kind::Readiness, false, "+-++", "...+"),
            (Kind::Readiness, true, "++--+---", ".......-"),
            (Kind::Readiness, true, "---+++", "..-.+."),
            (Kind::Liveness, true, "+--+---", "......-"),
        ];
        for (kind, ready, results, expected) in cases {
            let success = if kind == Kind::Readiness { 2 } else { 1 };
            let probe = Probe {
                success_threshold: Some(success),
                failure_threshold: Some(3),
                ..Probe::default()
            };
            let mut verdict = Verdict::new(kind, &probe, ready);
            let told: String = results
                .chars()
                .map(|result| if verdict.changes(result == '+') { result } else { '.' })
                .collect();
            assert_eq!(told, expected, "{kind:?}, ready {ready}: {results}");
        }
    }

    /// After a restart of the kubelet, the probes of a node's pods come one after another.
    #[test]
    fn probes_that_are_taken_over_are_spread() {
        let period = Duration::from_secs(10);
        // A runtime's ids are random.
        let id = |pod: u32| -> String {
            let digest = Sha256::digest(pod.to_le_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let starts: Vec<Duration> = (0..110).map(|pod| spread(&id(pod), period)).collect();
        assert!(starts.iter().all(|start| *start < period), "{starts:?}");
        for tenth in 0..10 {
            let (from, to) = (period * tenth / 10, period * (tenth + 1) / 10);
            let count = starts.iter().filter(|start| (from..to).contains(*start)).count();
            assert!((2..=30).contains(&count), "{count} of 110 in tenth {tenth}: {starts:?}");
        }
    }

    #[test]
    fn only_a_probe_that_is_taken_over_waits_without_need() {
        let pause = |age: u64, taken_over: Option<&str>| {
            let [age, delay, period] = [age, 5, 10].map(Duration::from_secs);
            first_pause(age, delay, period, taken_over).as_millis()
        };
        let id = "a";
        let own = spread(id, Duration::from_secs(10)).as_millis();
        assert!(own > 0);
        for (age, taken_over, expected) in [
            (0, None, 5000),
            (3, None, 2000),
            (5, None, 0),
            // As after a startup probe or a postStart hook that took its time.
            (600, None, 0),
            (3, Some(id), 2000),
            (10, Some(id), 0),
            (16, Some(id), own),
            (600, Some(id), own),
        ] {
            assert_eq!(pause(age, taken_over), expected, "{age} {taken_over:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_reads_as_upstreams() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(
            tcp("127.0.0.1", port, Duration::from_secs(1)).await,
            Finding::Success
        ));
        drop(listener);
        let Finding::Failure(text) = tcp("127.0.0.1", port, Duration::from_secs(1)).await else {
            panic!()
        };
        assert_eq!(text, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
