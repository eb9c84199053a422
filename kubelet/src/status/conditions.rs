//! The conditions that the kubelet owns, with upstream's reasons and messages.

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Input;
use crate::admission;
use crate::pod;

/// Whether a condition holds, and why not.
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            holds: true,
            reason: "",
            message: String::new(),
        }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self {
            holds: false,
            reason,
            message,
        }
    }
}

/// The kubelet's conditions for a pod whose other status fields are `status`.
pub(super) fn conditions(input: &Input<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input, status);
    let ready = pod_ready(input, &containers_ready);
    let start = match input.observed.ready_sandbox() {
        Some(sandbox) if pod::host_network(input.pod) || !sandbox.ips.is_empty() => Verdict::yes(),
        _ => Verdict::no("", String::new()),
    };
    let mut conditions: Vec<_> = [
        ("PodReadyToStartContainers", start),
        ("Initialized", initialized(input, status)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ]
    .into_iter()
    .map(|(kind, verdict)| condition(input, kind, verdict))
    .collect();
    conditions.extend(disrupted(input));
    conditions
}

/// An eviction shows at once, so that a Job's failure policy can tell it from a failure of the pod's own.
fn disrupted(input: &Input<'_>) -> Option<PodCondition> {
    let verdict = input
        .memory
        .verdict
        .as_ref()
        .filter(|verdict| verdict.evicted.is_some())?;
    let mut condition = condition(input, "DisruptionTarget", Verdict::yes());
    condition.reason = Some("TerminationByKubelet".into());
    condition.message = match admission::preemption::disruption(verdict) {
        Some(text) => Some(text.into()),
        None => verdict.message.clone(),
    };
    Some(condition)
}

fn condition(input: &Input<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let known = input
        .last
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind);
    let status = if verdict.holds { "True" } else { "False" };
    let since = known
        .filter(|known| known.status == status)
        .and_then(|known| known.last_transition_time.as_ref())
        .map_or_else(|| second(input.now), |time| time.0);
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: (!verdict.reason.is_empty()).then(|| verdict.reason.into()),
        message: (!verdict.message.is_empty()).then_some(verdict.message),
        last_transition_time: Some(Time(since)),
        last_probe_time: None,
        observed_generation: pod::generation(input.pod),
    }
}

/// The API keeps whole seconds.
fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn containers_ready(input: &Input<'_>, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Verdict::no("PodCompleted", String::new()),
        Some("Failed") => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = pod::init_containers(input.pod)
        .iter()
        .filter(|spec| pod::is_sidecar(spec));
    let mains = pod::main_containers(input.pod).iter();
    let find = |list: &Option<Vec<ContainerStatus>>, name: &str| -> Option<ContainerStatus> {
        list.iter().flatten().find(|status| status.name == name).cloned()
    };
    let mut unready = Vec::new();
    for spec in sidecars {
        if !find(&status.init_container_statuses, &spec.name).is_some_and(|status| status.ready) {
            unready.push(spec.name.as_str());
        }
    }
    for spec in mains {
        if !find(&status.container_statuses, &spec.name).is_some_and(|status| status.ready) {
            unready.push(spec.name.as_str());
        }
    }
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no(
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    )
}

fn pod_ready(input: &Input<'_>, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.holds {
        return Verdict::no(containers_ready.reason, containers_ready.message.clone());
    }
    let conditions = input.last.conditions.as_deref().unwrap_or_default();
    let mut missing = Vec::new();
    for gate in pod::spec(input.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *kind) {
            None => missing.push(format!(
                "corresponding condition of pod readiness gate {kind:?} does not exist."
            )),
            Some(condition) if condition.status != "True" => missing.push(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", missing.join(", "))
    }
}

fn initialized(input: &Input<'_>, status: &PodStatus) -> Verdict {
    let specs = pod::init_containers(input.pod);
    let completed = status.phase.as_deref() == Some("Succeeded");
    let mains_ran = status.container_statuses.iter().flatten().any(|status| {
        status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    });
    let list = status.init_container_statuses.as_deref().unwrap_or_default();
    let mut incomplete = Vec::new();
    for (spec, status) in specs.iter().zip(list) {
        let done = if pod::is_sidecar(spec) {
            status.started == Some(true)
        } else {
            status.ready
        };
        if !(done || mains_ran) {
            incomplete.push(spec.name.as_str());
        }
    }
    match (incomplete.is_empty(), completed) {
        (_, true) => Verdict {
            holds: true,
            reason: "PodCompleted",
            message: String::new(),
        },
        (true, false) => Verdict::yes(),
        (false, false) => Verdict::no(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ),
    }
}
