//! Whether a node still speaks, and what its silence makes of its conditions.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use crate::config::Config;
use crate::view::{Node, View};

/// The conditions that a silent kubelet can no longer vouch for.
const VOUCHED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// When each node was last heard of, by our own clock: a node whose clock is wrong is not thereby silent.
#[derive(Default)]
pub(super) struct Heard {
    nodes: HashMap<String, Last>,
}

struct Last {
    at: Instant,
    renewed: Option<Timestamp>,
    heartbeat: Option<Time>,
}

/// What became of the Ready condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    NotReady,
    Unknown,
}

impl Heard {
    /// Takes a lease as it is now.
    pub(super) fn lease(&mut self, node: &str, renewed: Option<Timestamp>, now: Instant) {
        let last = self.nodes.entry(node.to_owned()).or_insert(Last {
            at: now,
            renewed,
            heartbeat: None,
        });
        if last.renewed != renewed {
            last.renewed = renewed;
            last.at = now;
        }
    }

    /// Takes a node as it is now: a heartbeat in its status counts as a lease does.
    pub(super) fn node(&mut self, node: &Node, now: Instant) {
        let heartbeat = node
            .condition("Ready")
            .and_then(|ready| ready.last_heartbeat_time.clone());
        let last = self.nodes.entry(node.name().to_owned()).or_insert(Last {
            at: now,
            renewed: None,
            heartbeat: None,
        });
        if last.heartbeat != heartbeat {
            last.heartbeat = heartbeat;
            last.at = now;
        }
    }

    /// Starts over for all, after a time when nobody could be heard.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.nodes.values_mut().for_each(|last| last.at = now);
    }

    pub(super) fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// Whether the node has been silent for longer than it may.
    pub(super) fn is_silent(&self, node: &Node, config: &Config, now: Instant) -> bool {
        let grace = match node.condition("Ready") {
            Some(_) => config.node_monitor_grace_period,
            None => config.node_startup_grace_period,
        };
        self.nodes
            .get(node.name())
            .is_some_and(|last| now.saturating_duration_since(last.at) > grace)
    }
}

pub(super) fn readiness(node: &Node) -> Option<Readiness> {
    node.condition("Ready").map(|ready| match ready.status.as_str() {
        "True" => Readiness::Ready,
        "False" => Readiness::NotReady,
        _ => Readiness::Unknown,
    })
}

/// The conditions to write for a silent node; empty when they say so already.
pub(super) fn silenced_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    let now = Time(now.round(jiff::Unit::Second).unwrap_or(now));
    let mut conditions = Vec::new();
    for type_ in VOUCHED {
        match node.condition(type_) {
            Some(present) if present.status == "Unknown" => {}
            Some(_) => conditions.push(json!({
                "type": type_, "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.", "lastTransitionTime": now,
            })),
            None => conditions.push(json!({
                "type": type_, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": node.metadata.creation_timestamp, "lastTransitionTime": now,
            })),
        }
    }
    conditions
}

/// How bad things are in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disruption {
    None,
    Partial,
    Full,
}

pub(super) fn disruption(ready: usize, not_ready: usize, threshold: f64) -> Disruption {
    let total = ready + not_ready;
    #[allow(clippy::cast_precision_loss, reason = "a share of node counts")]
    let share = if total == 0 {
        0.0
    } else {
        not_ready as f64 / total as f64
    };
    match (ready, not_ready) {
        (0, 1..) => Disruption::Full,
        // Two nodes down are an accident in any zone.
        (_, 3..) if share >= threshold => Disruption::Partial,
        _ => Disruption::None,
    }
}

/// Lets a node a while through; the first at once.
pub(super) struct Limiter {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: 1.0, at: now }
    }

    pub(super) fn take(&mut self, per_second: f64, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.tokens = (self.tokens + passed.as_secs_f64() * per_second).min(1.0);
        self.at = now;
        if per_second <= 0.0 || self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// The turn was not used.
    pub(super) fn give_back(&mut self) {
        self.tokens = 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<(&str, &str)>) -> Node {
        let conditions: Vec<_> = ready
            .map(|(status, heartbeat)| json!({"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}})).unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_silent_after_its_grace_and_not_before() {
        let (config, start) = (Config::default(), Instant::now());
        let mut heard = Heard::default();
        let up = node(Some(("True", "2026-01-01T00:00:00Z")));
        heard.node(&up, start);
        assert!(!heard.is_silent(&up, &config, start + seconds(40)));
        assert!(heard.is_silent(&up, &config, start + seconds(41)));
        // The same status again is no sign of life; a renewed lease is, whatever its time says.
        heard.node(&up, start + seconds(30));
        assert!(heard.is_silent(&up, &config, start + seconds(41)));
        heard.lease("n", Some(Timestamp::UNIX_EPOCH), start + seconds(30));
        assert!(!heard.is_silent(&up, &config, start + seconds(70)));
        let unborn = node(None);
        let mut heard = Heard::default();
        heard.node(&unborn, start);
        assert!(!heard.is_silent(&unborn, &config, start + seconds(60)));
        assert!(heard.is_silent(&unborn, &config, start + seconds(61)));
    }

    #[test]
    fn silence_makes_conditions_unknown() {
        let conditions = silenced_conditions(&node(Some(("True", "2026-01-01T00:00:00Z"))), Timestamp::UNIX_EPOCH);
        let reasons: Vec<_> = conditions
            .iter()
            .map(|c| (c["type"].as_str().unwrap(), c["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(reasons[0], ("Ready", "NodeStatusUnknown"));
        assert_eq!(reasons[1], ("MemoryPressure", "NodeStatusNeverUpdated"));
        assert_eq!(reasons.len(), 4);
    }

    #[test]
    fn a_zone_is_disrupted_by_share() {
        for (ready, not_ready, expected) in [
            (3, 0, Disruption::None),
            (0, 1, Disruption::Full),
            (1, 2, Disruption::None),
            (2, 3, Disruption::Partial),
            (7, 3, Disruption::None),
            (0, 0, Disruption::None),
        ] {
            assert_eq!(
                disruption(ready, not_ready, 0.55),
                expected,
                "{ready} ready, {not_ready} not"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_pass_at_the_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert!(limiter.take(0.1, start));
        assert!(!limiter.take(0.1, start + seconds(5)));
        assert!(limiter.take(0.1, start + seconds(10)));
        assert!(!limiter.take(0.0, start + seconds(1000)));
    }
}
