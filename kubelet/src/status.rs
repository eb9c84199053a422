//! What the kubelet says of a pod: a pure function of what it sees and remembers.

mod conditions;
mod containers;
mod ends;
pub(crate) mod patch;

use std::net::IpAddr;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::memory::Memory;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::{pod, restarts};

/// All that a status depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// The status that the API has.
    pub(crate) last: &'a PodStatus,
    /// What the runtime says.
    pub(crate) observed: &'a Observed,
    /// What the worker remembers.
    pub(crate) memory: &'a Memory,
    /// What the worker is about to do.
    pub(crate) plan: &'a Plan,
    /// The runtime's name, for container ids.
    pub(crate) runtime: &'a str,
    /// The node's addresses, the primary first.
    pub(crate) node_ips: &'a [IpAddr],
    /// The time.
    pub(crate) now: Timestamp,
}

/// The status to report.
pub(crate) fn generate(input: &Input<'_>) -> PodStatus {
    let last = input.last;
    let (init, main, ephemeral) = containers::statuses(input);
    let phase = phase(input, &init, &main);
    let ips = pod_ips(input);
    let finish = input.plan.finish.as_ref();
    let mut status = PodStatus {
        host_ip: input.node_ips.first().map(ToString::to_string),
        host_ips: some(input.node_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
        message: finish.and_then(|finish| finish.message.clone()),
        reason: finish.and_then(|finish| finish.reason.clone()),
        observed_generation: pod::generation(input.pod),
        qos_class: Some(pod::qos(input.pod).as_str().into()),
        start_time: last
            .start_time
            .clone()
            .or_else(|| Some(Time(input.memory.seen.unwrap_or(input.now)))),
        init_container_statuses: some(init),
        container_statuses: some(main),
        ephemeral_container_statuses: some(ephemeral),
        phase: Some(phase),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions::conditions(input, &status));
    status
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

/// The pod's addresses: the sandbox's, the node's with its network, or the last known once the sandbox is gone.
fn pod_ips(input: &Input<'_>) -> Vec<String> {
    if pod::host_network(input.pod) {
        let started = input.observed.sandbox().is_some();
        let node = input.node_ips.iter().map(ToString::to_string);
        return if started { node.collect() } else { known_ips(input) };
    }
    match input.observed.ready_sandbox() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        _ => known_ips(input),
    }
}

fn known_ips(input: &Input<'_>) -> Vec<String> {
    input.last.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

/// The pod's phase, by upstream's rules.
fn phase(input: &Input<'_>, init: &[ContainerStatus], main: &[ContainerStatus]) -> String {
    if let Some(finish) = &input.plan.finish {
        return finish.phase.clone();
    }
    let waits = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        let waiting = state.is_none_or(|state| state.running.is_none() && state.terminated.is_none());
        waiting && status.last_state.as_ref().is_none_or(|last| last.terminated.is_none())
    };
    let runs = |status: &&ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    let exit = |status: &ContainerStatus| {
        status
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .map(|terminated| terminated.exit_code)
    };
    let main_has_run = main.iter().any(|status| !waits(status));
    let init_pending = pod::init_containers(input.pod).iter().zip(init).any(|(spec, status)| {
        if pod::is_sidecar(spec) {
            status.started != Some(true)
        } else {
            exit(status) != Some(0)
        }
    });
    let pending = (init_pending && !main_has_run) || main.iter().any(waits);
    let running = main.iter().filter(runs).count();
    // Between its end and its new start, a container whose image was changed ends no pod.
    let mut latest = main.iter().filter_map(|status| input.observed.latest(&status.name));
    let again = latest.any(|container| input.memory.starts_again(&container.id));
    let ended = main.iter().filter_map(|status| Some((&status.name, exit(status)?)));
    let restarts = |(name, code): (&String, i32)| {
        pod::container(input.pod, name).is_some_and(|(role, spec)| restarts::after(input.pod, role, &spec, code))
    };
    // The verdict on a pod whose containers have all ended waits until the sidecars have ended too; one of the kubelet's own is told
    // with its reason.
    let undecided = input.observed.goes_on() || input.memory.verdict.is_some();
    let phase = if pending {
        "Pending"
    } else if running > 0 || again || main.is_empty() || ended.into_iter().any(restarts) {
        "Running"
    } else if main.iter().all(|status| exit(status) == Some(0)) {
        if undecided { "Running" } else { "Succeeded" }
    } else if main.iter().all(|status| exit(status).is_some()) {
        if undecided { "Running" } else { "Failed" }
    } else {
        "Running"
    };
    phase.into()
}

#[cfg(test)]
mod tests;
