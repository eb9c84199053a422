//! Amounts of resources, and how much of them a pod asks for.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::{Container, PodSpec};
use skiff_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use skiff_api::quantity::Quantity;

/// What a container counts as for scores when it asks for none, so that such pods do not pile up on one node.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts: CPU in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Resources {
    pub(crate) milli_cpu: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral_storage: i64,
    /// Extended resources and huge pages.
    pub(crate) other: BTreeMap<Box<str>, i64>,
}

impl Resources {
    pub(crate) fn add(&mut self, more: &Self) {
        self.each(more, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, less: &Self) {
        self.each(less, i64::saturating_sub);
    }

    fn max(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    fn each(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = combine(self.milli_cpu, other.milli_cpu);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = combine(*mine, *amount);
        }
    }

    fn set(&mut self, name: &str, amount: &Text) {
        let Ok(quantity) = amount.0.parse::<Quantity>() else {
            return;
        };
        let whole = saturate(quantity.value());
        match name {
            "cpu" => self.milli_cpu = saturate(quantity.as_milli()),
            "memory" => self.memory = whole,
            "ephemeral-storage" => self.ephemeral_storage = whole,
            "pods" => {}
            _ => {
                self.other.insert(name.into(), whole);
            }
        }
    }
}

/// Every amount of a resource list.
pub(crate) fn parse_all(list: Option<&BTreeMap<String, Text>>) -> Resources {
    let mut resources = Resources::default();
    for (name, amount) in list.into_iter().flatten() {
        resources.set(name, amount);
    }
    resources
}

/// What a pod asks for, and what it counts as for scores.
///
/// Containers and restartable init containers run side by side; other init containers run one at a time before them,
/// beside the restartable ones started so far. The larger of the two counts, plus the runtime's overhead.
pub(crate) fn pod_requests(spec: &PodSpec) -> (Resources, Resources) {
    let mut exact = total(spec, requests);
    let mut scored = total(spec, |container| {
        let mut amount = requests(container);
        let asks = |name: &str| {
            (container.resources.as_ref())
                .and_then(|resources| resources.requests.as_ref())
                .is_some_and(|requests| requests.contains_key(name))
        };
        if !asks("cpu") {
            amount.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !asks("memory") {
            amount.memory = DEFAULT_MEMORY;
        }
        amount
    });
    if let Some(whole_pod) = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
    {
        // Requests of the pod as a whole take the place of its containers' sum.
        for (name, amount) in whole_pod {
            exact.set(name, amount);
            scored.set(name, amount);
        }
    }
    let overhead = parse_all(spec.overhead.as_ref());
    exact.add(&overhead);
    scored.add(&overhead);
    (exact, scored)
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut restartable = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needs = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&needs);
            restartable.add(&needs);
            needs = restartable.clone();
        } else {
            needs.add(&restartable);
        }
        starting.max(&needs);
    }
    running.max(&starting);
    running
}

fn requests(container: &Container) -> Resources {
    parse_all(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

fn saturate(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn sidecar(cpu: &str, memory: &str) -> serde_json::Value {
        let mut container = container(cpu, memory);
        container["restartPolicy"] = json!("Always");
        container
    }

    #[test]
    fn requests_are_what_runs_at_the_same_time() {
        let cases = [
            (
                "sum of containers",
                json!([]),
                json!([container("100m", "1Ki"), container("1", "1Ki")]),
                1100,
                2048,
            ),
            (
                "a large init container",
                json!([container("3", "1")]),
                json!([container("1", "1Ki")]),
                3000,
                1024,
            ),
            (
                "init beside a sidecar started before it",
                json!([sidecar("1", "1"), container("2", "1"), sidecar("1", "1")]),
                json!([container("500m", "1Ki")]),
                3000,
                1026,
            ),
            (
                "sidecars beside containers",
                json!([sidecar("1", "1")]),
                json!([container("1", "1")]),
                2000,
                2,
            ),
        ];
        for (name, init, containers, cpu, memory) in cases {
            let (exact, _) = pod_requests(&spec(json!({"initContainers": init, "containers": containers})));
            assert_eq!((exact.milli_cpu, exact.memory), (cpu, memory), "{name}");
        }
    }

    #[test]
    fn overhead_and_pod_level_requests_count() {
        let (exact, scored) = pod_requests(&spec(json!({
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}}}],
            "overhead": {"cpu": "250m"},
        })));
        assert_eq!(
            (exact.milli_cpu, exact.memory, exact.other["example.com/gpu"]),
            (1250, 0, 2)
        );
        assert_eq!((scored.milli_cpu, scored.memory), (1350, 2 * DEFAULT_MEMORY));
        let (exact, _) = pod_requests(&spec(json!({
            "containers": [container("1", "1Ki")],
            "resources": {"requests": {"cpu": "4"}},
        })));
        assert_eq!((exact.milli_cpu, exact.memory), (4000, 1024));
    }
}
