//! What several components ask about a typed pod: is it ready, what does it need, how well is it treated?

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::quantity::Quantity;

/// Annotation of a pod in the API that shows a node's static pod: the hash of what it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// The condition of that type.
pub fn condition<'a>(status: Option<&'a PodStatus>, kind: &str) -> Option<&'a PodCondition> {
    status?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Whether the pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod.status.as_ref(), "Ready").is_some_and(|c| c.status == "True")
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let Some(ready) = condition(pod.status.as_ref(), "Ready").filter(|c| c.status == "True") else {
        return false;
    };
    let wait = SignedDuration::from_secs(min_ready_seconds.into());
    min_ready_seconds <= 0
        || ready
            .last_transition_time
            .as_ref()
            .is_some_and(|since| since.0 + wait <= now)
}

/// The phase; empty when none is set.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// Whether all of its containers are done for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it still counts for its controller: neither done nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// What the scheduler sets aside for the pod: the most that is needed at any time, with overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    requests_with(spec, container_requests)
}

/// What one container asks for.
pub fn container_requests(container: &Container) -> Resources {
    read(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// As [`requests`], where each container asks for what `of` says.
pub fn requests_with(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut total = peak(spec, of);
    override_with_pod_level(&mut total, spec, |r| r.requests.as_ref());
    add(&mut total, &read(spec.overhead.as_ref()));
    total
}

/// The most that the pod may use; overhead counts only where there is a limit.
pub fn limits(spec: &PodSpec) -> Resources {
    let mut total = peak(spec, |c| read(c.resources.as_ref().and_then(|r| r.limits.as_ref())));
    override_with_pod_level(&mut total, spec, |r| r.limits.as_ref());
    let mut overhead = read(spec.overhead.as_ref());
    overhead.retain(|name, _| total.get(name).is_some_and(|q| !q.is_zero()));
    add(&mut total, &overhead);
    total
}

type Side = for<'r> fn(&'r ResourceRequirements) -> Option<&'r BTreeMap<String, Text>>;

fn peak(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::new();
    for container in &spec.containers {
        add(&mut running, &of(container));
    }
    // While an init container runs, the sidecars started before it run too.
    let (mut sidecars, mut starting) = (Resources::new(), Resources::new());
    for init in spec.init_containers.iter().flatten() {
        let mut at_once = of(init);
        if is_sidecar(init) {
            add(&mut running, &at_once);
            add(&mut sidecars, &at_once);
            at_once = sidecars.clone();
        } else {
            add(&mut at_once, &sidecars);
        }
        raise(&mut starting, &at_once);
    }
    raise(&mut running, &starting);
    running
}

/// `spec.resources` says what the pod as a whole gets of these, whatever its containers ask for.
fn override_with_pod_level(total: &mut Resources, spec: &PodSpec, side: Side) {
    for (name, quantity) in read(spec.resources.as_ref().and_then(side)) {
        if is_pod_level(&name) {
            total.insert(name, quantity);
        }
    }
}

/// Whether a pod's own resources name any of those that a pod can have: empty ones are as if they were not there.
fn says_something(resources: &ResourceRequirements) -> bool {
    let names = |side: &Option<BTreeMap<String, Text>>| side.iter().flatten().any(|(name, _)| is_pod_level(name));
    names(&resources.requests) || names(&resources.limits)
}

fn is_pod_level(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

fn read(list: Option<&BTreeMap<String, Text>>) -> Resources {
    // The API server has parsed them all; one that does not parse counts as absent.
    list.into_iter()
        .flatten()
        .filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?)))
        .collect()
}

fn add(total: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        let sum = total.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = sum.checked_add(*quantity).unwrap_or(*sum);
    }
}

fn raise(total: &mut Resources, least: &Resources) {
    for (name, quantity) in least {
        let most = total.entry(name.clone()).or_insert(*quantity);
        *most = (*most).max(*quantity);
    }
}

/// How a pod is treated when its node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QosClass {
    /// Limits on CPU and memory everywhere, and requests equal to them.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None at all.
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class that a pod's resources put it in.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let (mut requests, mut limits) = (Resources::new(), Resources::new());
    let mut limited_everywhere = true;
    let counted = |list: Option<&BTreeMap<String, Text>>| {
        let mut list = read(list);
        list.retain(|name, q| matches!(name.as_str(), "cpu" | "memory") && !q.is_zero());
        list
    };
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.resources.as_ref());
    let all: Vec<_> = match &spec.resources {
        Some(resources) if says_something(resources) => vec![Some(resources)],
        _ => containers.collect(),
    };
    for resources in all {
        let limit = counted(resources.and_then(|r| r.limits.as_ref()));
        limited_everywhere &= limit.len() == 2;
        add(&mut limits, &limit);
        add(&mut requests, &counted(resources.and_then(|r| r.requests.as_ref())));
    }
    match () {
        () if requests.is_empty() && limits.is_empty() => QosClass::BestEffort,
        () if limited_everywhere && requests == limits => QosClass::Guaranteed,
        () => QosClass::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(requests: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests}})
    }

    fn sidecar(requests: Value) -> Value {
        json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": requests}})
    }

    #[test]
    fn requests_are_the_peak() {
        let cases = [
            (
                json!({"containers": [container(json!({"cpu": "1"})), container(json!({"cpu": "500m"}))]}),
                "1500m",
            ),
            (
                json!({"containers": [container(json!({"cpu": "1"}))], "initContainers": [container(json!({"cpu": "3"}))]}),
                "3",
            ),
            (
                json!({"containers": [container(json!({"cpu": "1"}))], "initContainers": [sidecar(json!({"cpu": "1"})), container(json!({"cpu": "3"}))]}),
                "4",
            ),
            (
                json!({"containers": [container(json!({"cpu": "3"}))], "initContainers": [container(json!({"cpu": "2"})), sidecar(json!({"cpu": "1"}))]}),
                "4",
            ),
            (
                json!({"containers": [container(json!({"cpu": "1"}))], "overhead": {"cpu": "250m"}}),
                "1250m",
            ),
            (
                json!({"containers": [container(json!({"cpu": "1"}))], "resources": {"requests": {"cpu": "5"}}}),
                "5",
            ),
        ];
        for (value, cpu) in cases {
            assert_eq!(requests(&spec(value.clone()))["cpu"].to_string(), cpu, "{value}");
        }
        let limited = spec(
            json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}], "overhead": {"cpu": "1", "memory": "1Mi"}}),
        );
        assert_eq!(
            limits(&limited)
                .into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>(),
            ["cpu=2"]
        );
    }

    #[test]
    fn classes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (json!([{"name": "a"}]), QosClass::BestEffort),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
                QosClass::BestEffort,
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"requests": full, "limits": full}}]),
                QosClass::Guaranteed,
            ),
            (
                json!([{"name": "a", "resources": {"requests": full, "limits": full}}, {"name": "b"}]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": full}}]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"limits": {"cpu": "1"}}}]),
                QosClass::Burstable,
            ),
            (
                json!([{"name": "a", "resources": {"limits": {"x/gpu": "1"}}}]),
                QosClass::BestEffort,
            ),
        ];
        for (containers, class) in cases {
            assert_eq!(
                qos_class(&spec(json!({"containers": containers}))),
                class,
                "{containers}"
            );
        }
        let with_own = |own: Value| {
            qos_class(&spec(
                json!({"resources": own, "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}),
            ))
        };
        assert_eq!(with_own(json!({})), QosClass::Burstable, "as the containers say");
        assert_eq!(
            with_own(json!({"requests": {}, "limits": {"x/gpu": "1"}})),
            QosClass::Burstable
        );
        assert_eq!(
            with_own(json!({"requests": full, "limits": full})),
            QosClass::Guaranteed
        );
        assert_eq!(with_own(json!({"requests": {"cpu": "0"}})), QosClass::BestEffort);
    }

    #[test]
    fn readiness() {
        let pod: Pod = serde_json::from_value(json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
        ]}}))
        .unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_ready(&pod) && is_active(&pod) && !is_terminal(&pod));
        assert!(is_available(&pod, 0, at("2026-01-02T03:04:05Z")));
        assert!(!is_available(&pod, 10, at("2026-01-02T03:04:14Z")));
        assert!(is_available(&pod, 10, at("2026-01-02T03:04:15Z")));
        assert!(!is_ready(&Pod::default()) && !is_available(&Pod::default(), 0, at("2026-01-02T03:04:05Z")));
    }
}
