//! Amounts of resources, and how much of them a pod asks for.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::PodSpec;
use skiff_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use skiff_api::pods;
use skiff_api::quantity::Quantity;

/// What a container counts as for scores when it asks for none, so that such pods do not pile up on one node.
const DEFAULT_CPU: Quantity = Quantity::from_milli(100);
const DEFAULT_MEMORY: Quantity = Quantity::from_bytes(200 << 20);

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

    fn of(amounts: &pods::Resources) -> Self {
        let mut resources = Self::default();
        for (name, amount) in amounts {
            resources.set(name, *amount);
        }
        resources
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

    fn set(&mut self, name: &str, quantity: Quantity) {
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
        if let Ok(amount) = amount.0.parse() {
            resources.set(name, amount);
        }
    }
    resources
}

/// What a pod asks for, and what it counts as for scores.
pub(crate) fn pod_requests(spec: &PodSpec) -> (Resources, Resources) {
    let scored = pods::requests_with(spec, |container| {
        let mut amounts = pods::container_requests(container);
        for (name, least) in [("cpu", DEFAULT_CPU), ("memory", DEFAULT_MEMORY)] {
            amounts.entry(name.to_owned()).or_insert(least);
        }
        amounts
    });
    (Resources::of(&pods::requests(spec)), Resources::of(&scored))
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
        assert_eq!((scored.milli_cpu, scored.memory), (1350, 400 << 20));
        let (exact, _) = pod_requests(&spec(json!({
            "containers": [container("1", "1Ki")],
            "resources": {"requests": {"cpu": "4"}},
        })));
        assert_eq!((exact.milli_cpu, exact.memory), (4000, 1024));
    }
}
