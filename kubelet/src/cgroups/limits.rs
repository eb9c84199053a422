//! What the cgroups of pods and of their containers get, as upstream works it out of what they ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_api::k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use skiff_api::pods;
use skiff_api::quantity::Quantity;
use skiff_cri::LinuxResources;

use super::Limits;
use crate::pod::{self, Qos};

pub(super) const MIN_SHARES: i64 = 2;
pub(super) const MAX_SHARES: i64 = 262_144;
/// The kernel refuses smaller quotas.
const MIN_QUOTA: i64 = 1000;
/// What the kernel kills last of all that is a pod's.
const SPARED: i64 = -997;

/// How the node divides CPU and memory.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// `cpuCFSQuota`.
    pub(crate) quota: bool,
    /// `cpuCFSQuotaPeriod`.
    pub(crate) period: Duration,
    /// `podPidsLimit`, not positive for none.
    pub(crate) pids: i64,
    /// The node's memory, for `oom_score_adj`.
    pub(crate) memory_capacity: i64,
    /// Whether all processes of a container die when one runs out of memory (version 2 without `singleProcessOOMKill`).
    pub(crate) oom_group: bool,
    /// Sizes of huge pages that this machine has, as resources name them: `2Mi`.
    pub(crate) page_sizes: Vec<String>,
    /// How containers are kept from swapping; none where the kernel does not count what they swap.
    pub(crate) swap: Option<Swap>,
}

/// How containers are kept from swapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    /// Version 1 of cgroups: memory and swap together get no more than the memory's limit.
    Together,
    /// Version 2: a limit of its own; with `LimitedSwap` out of so many bytes, otherwise nothing.
    Apart(Option<i64>),
}

/// CPU requests as shares.
pub(super) fn shares(milli: i64) -> i64 {
    if milli == 0 {
        MIN_SHARES
    } else {
        (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
    }
}

/// A CPU limit as quota in a period; none for no limit.
fn quota(milli: i64, period: Duration) -> Option<i64> {
    let period = i64::try_from(period.as_micros()).ok()?;
    (milli > 0).then(|| (milli * period / 1000).max(MIN_QUOTA))
}

fn bytes(container: &Container, of: fn(&Container, &str) -> Option<Quantity>) -> i64 {
    of(container, "memory").map_or(0, |quantity| clamp(quantity.value()))
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What `spec.resources` says of the pod as a whole.
fn of_pod(pod: &Pod) -> Option<&ResourceRequirements> {
    pod::spec(pod).resources.as_ref()
}

fn pod_limit(pod: &Pod, resource: &str) -> Option<Quantity> {
    pod::quantity(of_pod(pod)?.limits.as_ref(), resource)
}

fn pod_request(pod: &Pod, resource: &str) -> Option<Quantity> {
    pod::quantity(of_pod(pod)?.requests.as_ref(), resource)
}

/// A pod's limits: its own, or the most that its containers have at once, where every container has one; and its overhead.
pub(super) fn pod_limits(pod: &Pod, rules: &Rules) -> Limits {
    limits_of(pod::spec(pod), rules)
}

/// What the containers of a pod get together.
pub(crate) fn containers_resources(pod: &Pod, rules: &Rules) -> LinuxResources {
    let mut spec = pod::spec(pod).clone();
    spec.overhead = None;
    resources(limits_of(&spec, rules))
}

/// What a pod costs beside its containers, where its RuntimeClass says so.
pub(crate) fn overhead(pod: &Pod, rules: &Rules) -> Option<LinuxResources> {
    let list = pod::spec(pod).overhead.as_ref()?;
    let cpu = pod::quantity(Some(list), "cpu").map_or(0, |cpu| clamp(cpu.as_milli()));
    let limit = quota(cpu, rules.period).filter(|_| rules.quota);
    Some(resources(Limits {
        shares: Some(shares(cpu)),
        quota: limit,
        period: limit.and_then(|_| i64::try_from(rules.period.as_micros()).ok()),
        memory: pod::quantity(Some(list), "memory").map(|memory| clamp(memory.value())),
        pids: None,
    }))
}

fn resources(limits: Limits) -> LinuxResources {
    LinuxResources {
        cpu_shares: limits.shares.unwrap_or(0),
        cpu_quota: limits.quota.unwrap_or(0),
        cpu_period: limits.period.unwrap_or(0),
        memory_limit: limits.memory.unwrap_or(0),
        ..LinuxResources::default()
    }
}

fn limits_of(spec: &PodSpec, rules: &Rules) -> Limits {
    // Who has a limit alone asks for as much.
    let asked = |container: &Container| {
        let cpu = pod::request(container, "cpu");
        cpu.map(|cpu| ("cpu".to_owned(), cpu)).into_iter().collect()
    };
    let (requests, limits) = (pods::requests_with(spec, asked), pods::limits(spec));
    let own = spec.resources.as_ref().and_then(|own| own.limits.as_ref());
    let limit = |resource: &str| {
        let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let has = |container: &Container| pod::limit(container, resource).is_some_and(|limit| !limit.is_zero());
        let bounded = pod::quantity(own, resource).is_some() || all().all(has);
        limits.get(resource).filter(|limit| bounded && !limit.is_zero())
    };
    let cpu = requests.get("cpu").map_or(0, |cpu| clamp(cpu.as_milli()));
    let quota = limit("cpu")
        .filter(|_| rules.quota)
        .and_then(|cpu| quota(clamp(cpu.as_milli()), rules.period));
    Limits {
        shares: Some(shares(cpu)),
        quota,
        period: quota.and_then(|_| i64::try_from(rules.period.as_micros()).ok()),
        memory: limit("memory").map(|memory| clamp(memory.value())),
        pids: (rules.pids > 0).then_some(rules.pids),
    }
}

/// What a container's cgroup gets; without a limit of its own, the pod's as a whole.
pub(crate) fn container_resources(pod: &Pod, container: &Container, rules: &Rules) -> LinuxResources {
    let limit = |resource: &str| pod::limit(container, resource).or_else(|| pod_limit(pod, resource));
    let cpu = limit("cpu").map_or(0, |cpu| clamp(cpu.as_milli()));
    let quota = quota(cpu, rules.period).filter(|_| rules.quota);
    let memory_limit = limit("memory").map_or(0, |memory| clamp(memory.value()));
    let group = rules.oom_group.then(|| ("memory.oom.group".to_owned(), "1".to_owned()));
    let swap = match rules.swap {
        Some(Swap::Apart(total)) => Some(swap_share(pod, container, total.unwrap_or(0), rules.memory_capacity)),
        Some(Swap::Together) | None => None,
    };
    let swap = swap.map(|bytes| ("memory.swap.max".to_owned(), bytes.to_string()));
    LinuxResources {
        // Who asks for nothing but may use so much asks for that, also where the limit is the pod's.
        cpu_shares: shares(pod::request(container, "cpu").map_or(cpu, |cpu| clamp(cpu.as_milli()))),
        cpu_quota: quota.unwrap_or(0),
        cpu_period: quota
            .and_then(|_| i64::try_from(rules.period.as_micros()).ok())
            .unwrap_or(0),
        memory_limit,
        memory_swap_limit: if rules.swap == Some(Swap::Together) {
            memory_limit
        } else {
            0
        },
        oom_score_adj: oom_score(pod, container, rules.memory_capacity),
        hugepages: huge_pages(rules, limit),
        unified: group.into_iter().chain(swap).collect(),
        ..LinuxResources::default()
    }
}

/// `LimitedSwap`: a container of a burstable pod gets the share of the node's swap that it asks for of its memory; not a critical one,
/// nor one whose request is its limit.
fn swap_share(pod: &Pod, container: &Container, total: i64, capacity: i64) -> i64 {
    let request = bytes(container, pod::request);
    let exact = pod::limit(container, "memory").is_some_and(|limit| clamp(limit.value()) == request);
    if pod::qos(pod) != Qos::Burstable || exact || crate::eviction::is_critical(pod) {
        return 0;
    }
    let share = i128::from(request) * i128::from(total) / i128::from(capacity.max(1));
    i64::try_from(share).unwrap_or(i64::MAX)
}

/// Limits of huge pages of a pod's cgroup, by the kernel's name of their size.
pub(super) fn huge_pages_of_pod(pod: &Pod, rules: &Rules) -> BTreeMap<String, u64> {
    let limits = pods::limits(pod::spec(pod));
    huge_pages(rules, |resource| limits.get(resource).copied())
}

/// `hugepages-2Mi` is `2MB` to the kernel and the runtime. Who asks for none of a size gets none of it.
fn huge_pages(rules: &Rules, limit: impl Fn(&str) -> Option<Quantity>) -> BTreeMap<String, u64> {
    let sizes = rules.page_sizes.iter().filter_map(|size| {
        let bytes = limit(&format!("hugepages-{size}")).map_or(0, |bytes| bytes.value());
        Some((format!("{}B", size.strip_suffix('i')?), u64::try_from(bytes).ok()?))
    });
    sizes.collect()
}

/// Who dies first when memory is short: the more a burstable container asked for, the later.
fn oom_score(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    if pod::spec(pod).priority_class_name.as_deref() == Some("system-node-critical") {
        return SPARED;
    }
    match pod::qos(pod) {
        Qos::Guaranteed => SPARED,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = i128::from(memory_request(pod, container));
            let score = 1000 - i64::try_from(1000 * request / i128::from(capacity.max(1))).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// What counts as a container's request: its own, with its share of what the pod asks for beyond its containers'; a sidecar is
/// not to die before the containers that it serves.
fn memory_request(pod: &Pod, container: &Container) -> i64 {
    let request = |container: &Container| bytes(container, pod::request);
    let main = pod::main_containers(pod);
    let sidecars = pod::init_containers(pod).iter().filter(|init| pod::is_sidecar(init));
    let lasting: Vec<i64> = main.iter().chain(sidecars).map(request).collect();
    let beyond = pod_request(pod, "memory").map_or(0, |all| clamp(all.value()) - lasting.iter().sum::<i64>());
    let share = beyond.max(0) / i64::try_from(lasting.len()).unwrap_or(1).max(1);
    let least = main.iter().map(request).min().filter(|_| pod::is_sidecar(container));
    request(container).max(least.unwrap_or(0)) + share
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    pub(crate) const RULES: Rules = Rules {
        quota: true,
        period: Duration::from_millis(100),
        pids: 64,
        memory_capacity: 1 << 30,
        oom_group: false,
        page_sizes: Vec::new(),
        swap: None,
    };

    fn with(resources: &[Value]) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(index, resources)| json!({"name": format!("c{index}"), "resources": resources}))
            .collect();
        pod(&json!({"containers": containers}))
    }

    #[test]
    fn limits_of_a_pod() {
        let full = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
        let limits = pod_limits(&with(&[full.clone(), full.clone()]), &RULES);
        assert_eq!(
            limits,
            Limits {
                shares: Some(1024),
                quota: Some(100_000),
                period: Some(100_000),
                memory: Some(128 << 20),
                pids: Some(64)
            }
        );
        let partly = pod_limits(&with(&[full, json!({})]), &RULES);
        assert_eq!((partly.shares, partly.quota, partly.memory), (Some(512), None, None));
    }

    /// While an init container runs, the sidecars that began before it run too.
    #[test]
    fn an_init_container_runs_beside_sidecars() {
        let limited = |name: &str, memory: &str, cpu: &str| json!({"name": name, "resources": {"limits": {"memory": memory, "cpu": cpu}}});
        let mut sidecar = limited("s", "100Mi", "100m");
        sidecar["restartPolicy"] = "Always".into();
        let mut p = pod(&json!({
            "initContainers": [sidecar, limited("i", "200Mi", "300m")], "containers": [limited("c", "50Mi", "50m")],
        }));
        let limits = pod_limits(&p, &RULES);
        assert_eq!(
            (limits.shares, limits.quota, limits.memory),
            (Some(409), Some(40_000), Some(300 << 20))
        );
        p.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1].resources = None;
        let limits = pod_limits(&p, &RULES);
        assert_eq!((limits.shares, limits.quota, limits.memory), (Some(153), None, None));
    }

    /// KEP-2837: what `spec.resources` names is the pod's; a container without a limit may use up to that.
    #[test]
    fn the_pods_own_resources_win() {
        let mut p = with(&[json!({"limits": {"cpu": "250m", "memory": "16Mi"}}), json!({})]);
        let own = json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "128Mi"}});
        p.spec.as_mut().unwrap().resources = serde_json::from_value(own).ok();
        let limits = pod_limits(&p, &RULES);
        assert_eq!(
            (limits.shares, limits.quota, limits.memory),
            (Some(1024), Some(200_000), Some(128 << 20))
        );
        let of = |index: usize| {
            let resources = container_resources(&p, &p.spec.as_ref().unwrap().containers[index], &RULES);
            (resources.cpu_shares, resources.cpu_quota, resources.memory_limit)
        };
        assert_eq!(of(0), (256, 25_000, 16 << 20));
        assert_eq!(of(1), (2048, 200_000, 128 << 20));
    }

    #[test]
    fn overhead_is_the_pods_alone() {
        let mut p = with(&[json!({"limits": {"cpu": "500m", "memory": "64Mi"}})]);
        assert_eq!(overhead(&p, &RULES), None);
        p.spec.as_mut().unwrap().overhead = serde_json::from_value(json!({"cpu": "250m", "memory": "1Mi"})).ok();
        let limits = pod_limits(&p, &RULES);
        assert_eq!(
            (limits.shares, limits.quota, limits.memory),
            (Some(768), Some(75_000), Some(65 << 20))
        );
        let own = containers_resources(&p, &RULES);
        assert_eq!(
            (own.cpu_shares, own.cpu_quota, own.memory_limit),
            (512, 50_000, 64 << 20)
        );
        let overhead = overhead(&p, &RULES).unwrap();
        assert_eq!(
            (overhead.cpu_shares, overhead.cpu_quota, overhead.memory_limit),
            (256, 25_000, 1 << 20)
        );
    }

    #[test]
    fn resources_of_a_container() {
        let p = with(&[json!({"limits": {"cpu": "10m", "memory": "128Mi"}, "requests": {"memory": "512Mi"}})]);
        let resources = container_resources(&p, &p.spec.as_ref().unwrap().containers[0], &RULES);
        assert_eq!(
            (resources.cpu_shares, resources.cpu_quota, resources.cpu_period),
            (10, 1000, 100_000)
        );
        assert_eq!(resources.memory_limit, 128 << 20);
    }

    #[test]
    fn who_dies_first() {
        let asks = |bytes: &str| json!({"name": "c", "resources": {"requests": {"memory": bytes}}});
        let sidecar = |bytes: &str| {
            let mut sidecar = asks(bytes);
            (sidecar["name"], sidecar["restartPolicy"]) = ("s".into(), "Always".into());
            sidecar
        };
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let whole = |bytes: &str| json!({"requests": {"memory": bytes}});
        let cases = [
            (json!({"containers": [{"name": "c"}]}), 1000),
            (json!({"containers": [asks("512Mi")]}), 500),
            (json!({"containers": [asks("1Mi")]}), 999),
            (json!({"containers": [asks("2Gi")]}), 3),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": full, "limits": full}}]}),
                -997,
            ),
            (
                json!({"containers": [{"name": "c"}], "priorityClassName": "system-node-critical"}),
                -997,
            ),
            // The pod asks for 512Mi more than its container does; two share 256Mi more.
            (json!({"containers": [asks("256Mi")], "resources": whole("768Mi")}), 250),
            (
                json!({"containers": [asks("256Mi"), {"name": "d"}], "resources": whole("512Mi")}),
                625,
            ),
            // A sidecar that asks for little is spared as long as what it serves.
            (
                json!({"initContainers": [sidecar("1Mi")], "containers": [asks("512Mi")]}),
                500,
            ),
            (
                json!({"initContainers": [sidecar("512Mi")], "containers": [asks("1Mi")]}),
                500,
            ),
        ];
        for (spec, score) in cases {
            let p = pod(&spec);
            let first = pod::init_containers(&p).iter().chain(pod::main_containers(&p)).next();
            assert_eq!(oom_score(&p, first.unwrap(), 1 << 30), score, "{spec}");
        }
    }

    #[test]
    fn nobody_swaps_beyond_a_share() {
        let memory = |request: &str, limit: &str| json!({"requests": {"memory": request}, "limits": {"memory": limit}});
        let asks = json!({"requests": {"memory": "256Mi"}});
        let mut critical = with(std::slice::from_ref(&asks));
        critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
        let full = json!({"cpu": "1", "memory": "512Mi"});
        // Of 1Gi of memory and 2Gi of swap.
        let cases = [
            (with(&[json!({})]), 0),
            (with(&[asks]), 512 << 20),
            (with(&[memory("128Mi", "256Mi")]), 256 << 20),
            (with(&[memory("256Mi", "256Mi")]), 0),
            (with(&[json!({"limits": full, "requests": full})]), 0),
            (critical, 0),
        ];
        for (p, share) in cases {
            let container = &p.spec.as_ref().unwrap().containers[0];
            let resources = |swap: Option<Swap>| container_resources(&p, container, &Rules { swap, ..RULES });
            let file = |swap: Swap| resources(Some(swap)).unified.get("memory.swap.max").cloned();
            let text = serde_json::to_string(&container.resources).unwrap();
            assert_eq!(file(Swap::Apart(Some(2 << 30))), Some(share.to_string()), "{text}");
            assert_eq!(file(Swap::Apart(None)).as_deref(), Some("0"), "{text}");
            let together = resources(Some(Swap::Together));
            assert_eq!(together.memory_swap_limit, together.memory_limit, "{text}");
            let untold = resources(None);
            assert!(untold.unified.is_empty() && untold.memory_swap_limit == 0, "{text}");
        }
    }

    #[test]
    fn huge_pages_and_groups_that_die_together() {
        let asks = json!({"limits": {"hugepages-2Mi": "4Mi", "memory": "1Gi"}});
        let mut p = with(&[asks, json!({})]);
        let rules = Rules {
            oom_group: true,
            page_sizes: vec!["1Gi".into(), "2Mi".into()],
            ..RULES
        };
        let pages = |gigabyte: u64, megabytes: u64| {
            BTreeMap::from([("1GB".to_owned(), gigabyte), ("2MB".to_owned(), megabytes)])
        };
        let of = |p: &Pod, index: usize| {
            container_resources(p, &p.spec.as_ref().unwrap().containers[index], &rules).hugepages
        };
        assert_eq!((of(&p, 0), of(&p, 1)), (pages(0, 4 << 20), pages(0, 0)));
        assert_eq!(huge_pages_of_pod(&p, &rules), pages(0, 4 << 20));
        p.spec.as_mut().unwrap().resources = serde_json::from_value(json!({"limits": {"hugepages-2Mi": "8Mi"}})).ok();
        assert_eq!((of(&p, 0), of(&p, 1)), (pages(0, 4 << 20), pages(0, 8 << 20)));
        assert_eq!(huge_pages_of_pod(&p, &rules), pages(0, 8 << 20));
        let container = &p.spec.as_ref().unwrap().containers[0];
        let group = [("memory.oom.group".to_owned(), "1".to_owned())].into();
        assert_eq!(container_resources(&p, container, &rules).unified, group);
        let plain = container_resources(&p, container, &RULES);
        assert!(plain.unified.is_empty() && plain.hugepages.is_empty());
    }
}
