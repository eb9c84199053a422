//! The node's status: a pure function of what was read and asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use skiff_api::k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use skiff_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as RawQuantity;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_api::k8s_openapi::jiff::Timestamp;
use skiff_api::quantity::Quantity;
use skiff_cri::{Image, RuntimeStatus, RuntimeVersion};

use super::facts::{self, Facts};
use crate::config::Config;
use crate::eviction::{Amount, Pressure};

/// Names shown of one image.
const NAMES: usize = 5;

/// All that a node's status depends on.
pub(super) struct Input<'a> {
    pub(super) config: &'a Config,
    pub(super) facts: &'a Facts,
    pub(super) name: &'a str,
    pub(super) ips: &'a [IpAddr],
    /// The runtime's conditions, or why it does not tell them.
    pub(super) runtime: Result<&'a RuntimeStatus, String>,
    pub(super) version: Option<RuntimeVersion>,
    pub(super) images: Vec<Image>,
    pub(super) pressure: Pressure,
    pub(super) last: &'a NodeStatus,
    pub(super) now: Timestamp,
}

/// The node's status.
pub(super) fn generate(input: Input<'_>) -> NodeStatus {
    let mut addresses: Vec<_> = input
        .ips
        .iter()
        .map(|ip| NodeAddress {
            type_: "InternalIP".into(),
            address: ip.to_string(),
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".into(),
        address: input.name.into(),
    });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(with_extended(raw(&capacity(input.config, input.facts)), input.last)),
        allocatable: Some(with_extended(raw(&allocatable(input.config, input.facts)), input.last)),
        conditions: Some(conditions(&input)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: input.config.kubelet.port,
            }),
        }),
        images: Some(images(&input)).filter(|images| !images.is_empty()),
        node_info: Some(node_info(&input)),
        features: features(&input),
        runtime_handlers: handlers(&input),
        ..NodeStatus::default()
    }
}

/// What the runtime says that it can do; a silent one is not heard to have unlearned it.
fn features(input: &Input<'_>) -> Option<NodeFeatures> {
    let Ok(runtime) = &input.runtime else {
        return input.last.features.clone();
    };
    runtime.supplemental_groups_policy.map(|known| NodeFeatures {
        supplemental_groups_policy: Some(known),
    })
}

fn handlers(input: &Input<'_>) -> Option<Vec<NodeRuntimeHandler>> {
    let Ok(runtime) = &input.runtime else {
        return input.last.runtime_handlers.clone();
    };
    let mut handlers: Vec<_> = runtime
        .handlers
        .iter()
        .map(|handler| NodeRuntimeHandler {
            // The default handler's name is empty.
            name: Some(handler.name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
                user_namespaces: Some(handler.user_namespaces),
            }),
        })
        .collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    Some(handlers).filter(|handlers| !handlers.is_empty())
}

fn node_info(input: &Input<'_>) -> NodeSystemInfo {
    let last = input
        .last
        .node_info
        .as_ref()
        .map(|info| info.container_runtime_version.clone());
    let version = input
        .version
        .as_ref()
        .map(|version| format!("{}://{}", version.name, version.version));
    NodeSystemInfo {
        architecture: facts::architecture().into(),
        boot_id: input.facts.boot_id.clone(),
        container_runtime_version: version.or(last).unwrap_or_default(),
        kernel_version: input.facts.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: super::VERSION.into(),
        machine_id: input.facts.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: input.facts.os_image.clone(),
        swap: Some(input.facts.swap)
            .filter(|swap| *swap > 0)
            .map(|swap| NodeSwapStatus { capacity: Some(swap) }),
        system_uuid: input.facts.system_uuid.clone(),
    }
}

fn images(input: &Input<'_>) -> Vec<ContainerImage> {
    let mut images: Vec<_> = input.images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let limit = usize::try_from(input.config.kubelet.node_status_max_images).unwrap_or(usize::MAX);
    let names = |image: &Image| {
        image
            .repo_digests
            .iter()
            .chain(&image.repo_tags)
            .take(NAMES)
            .cloned()
            .collect::<Vec<_>>()
    };
    images
        .into_iter()
        .take(limit)
        .map(|image| ContainerImage {
            names: Some(names(image)).filter(|names| !names.is_empty()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

/// What the machine has.
pub(crate) fn capacity(config: &Config, facts: &Facts) -> BTreeMap<String, Quantity> {
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_value(facts.cpus)),
        ("memory".to_owned(), kibi(facts.memory)),
        ("ephemeral-storage".to_owned(), kibi(facts.storage)),
        ("pods".to_owned(), Quantity::from_value(pods(config, facts))),
    ]);
    for (size, bytes) in &facts.hugepages {
        capacity.insert(format!("hugepages-{size}"), kibi(*bytes));
    }
    capacity
}

/// How many pods may run: never more than so many for each CPU, where that is said (`podsPerCore`).
fn pods(config: &Config, facts: &Facts) -> i64 {
    let most = i64::from(config.kubelet.max_pods);
    match i64::from(config.kubelet.pods_per_core) {
        0 => most,
        each => most.min(facts.cpus.saturating_mul(each)),
    }
}

fn kibi(bytes: i64) -> Quantity {
    format!("{}Ki", bytes / 1024).parse().unwrap_or(Quantity::ZERO)
}

/// What pods may have of it: less what is reserved and what eviction keeps free.
pub(crate) fn allocatable(config: &Config, facts: &Facts) -> BTreeMap<String, Quantity> {
    let mut allocatable = capacity(config, facts);
    for (resource, left) in &mut allocatable {
        let mut take = |quantity: Option<Quantity>| {
            if let Some(less) = quantity.and_then(|quantity| left.checked_sub(quantity)) {
                *left = if less < Quantity::ZERO { Quantity::ZERO } else { less };
            }
        };
        for reserved in [&config.kubelet.kube_reserved, &config.kubelet.system_reserved] {
            take(reserved.get(resource).and_then(|text| text.parse().ok()));
        }
        let kept = match resource.as_str() {
            "memory" => kept_free(config, "memory.available", facts.memory),
            "ephemeral-storage" => kept_free(config, "nodefs.available", facts.storage),
            _ => 0,
        };
        take((kept > 0).then(|| kibi(kept)));
        // What is set aside as huge pages is nobody's plain memory.
        if resource == "memory" {
            take(Some(kibi(facts.hugepages.values().sum())));
        }
    }
    allocatable
}

/// What a hard threshold keeps free.
fn kept_free(config: &Config, signal: &str, capacity: i64) -> i64 {
    let text = config.kubelet.eviction_hard.get(signal);
    text.and_then(|text| Amount::parse(text))
        .map_or(0, |amount| amount.of(capacity))
}

fn raw(list: &BTreeMap<String, Quantity>) -> BTreeMap<String, RawQuantity> {
    list.iter()
        .map(|(name, quantity)| (name.clone(), RawQuantity(quantity.to_string())))
        .collect()
}

/// With the extended resources that somebody has written into the node's capacity: all of them may be allocated.
fn with_extended(mut list: BTreeMap<String, RawQuantity>, last: &NodeStatus) -> BTreeMap<String, RawQuantity> {
    let known = last.capacity.iter().flatten().filter(|(name, _)| is_extended(name));
    list.extend(known.map(|(name, quantity)| (name.clone(), quantity.clone())));
    list
}

fn is_extended(resource: &str) -> bool {
    resource.contains('/')
}

fn conditions(input: &Input<'_>) -> Vec<NodeCondition> {
    let pressure = |holds: bool, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if holds { yes } else { no };
        (holds, reason.to_owned(), message.to_owned())
    };
    let memory = pressure(
        input.pressure.memory,
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    );
    let disk = pressure(
        input.pressure.disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    );
    let pids = pressure(
        input.pressure.pids,
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    );
    let all = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", pids),
        ("Ready", ready(input)),
    ];
    all.into_iter()
        .map(|(kind, (holds, reason, message))| condition(input, kind, holds, reason, message))
        .collect()
}

fn ready(input: &Input<'_>) -> (bool, String, String) {
    let mut problems = Vec::new();
    match &input.runtime {
        Err(error) => problems.push(format!("container runtime is down: {error}")),
        Ok(status) => {
            for (word, condition) in [("", status.runtime_ready()), ("network ", status.network_ready())] {
                let name = if word.is_empty() {
                    "RuntimeReady"
                } else {
                    "NetworkReady"
                };
                match condition {
                    Some(condition) if condition.status => {}
                    Some(condition) => problems.push(format!(
                        "container runtime {word}not ready: {name}=false reason:{} message:{}",
                        condition.reason, condition.message
                    )),
                    None => problems.push(format!("container runtime {word}not ready: {name} is not reported")),
                }
            }
        }
    }
    match problems.as_slice() {
        [] => (true, "KubeletReady".into(), "kubelet is posting ready status".into()),
        [one] => (false, "KubeletNotReady".into(), one.clone()),
        many => (false, "KubeletNotReady".into(), format!("[{}]", many.join(", "))),
    }
}

fn condition(input: &Input<'_>, kind: &str, holds: bool, reason: String, message: String) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let known = input
        .last
        .conditions
        .iter()
        .flatten()
        .find(|known| known.type_ == kind && known.status == status);
    let now = Time(Timestamp::from_second(input.now.as_second()).unwrap_or(input.now));
    NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason),
        message: Some(message),
        last_transition_time: known
            .and_then(|known| known.last_transition_time.clone())
            .or_else(|| Some(now.clone())),
        last_heartbeat_time: Some(now),
    }
}

pub(super) fn is_ready(status: &NodeStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The patch from `old` to `new`: conditions when one of the new ones differs in more than its heartbeat (or `heartbeat` asks for it),
/// and every other field that differs. Conditions that are only in `old` are others' affair.
pub(super) fn diff(old: &NodeStatus, new: &NodeStatus, heartbeat: bool) -> Option<Value> {
    let told = new.conditions.iter().flatten().all(|condition| holds(old, condition));
    let (old, new) = (serde_json::to_value(old).ok()?, serde_json::to_value(new).ok()?);
    let mut changes = Map::new();
    if (heartbeat || !told) && !new["conditions"].is_null() {
        changes.insert("conditions".into(), new["conditions"].clone());
    }
    for field in [
        "capacity",
        "allocatable",
        "daemonEndpoints",
        "images",
        "nodeInfo",
        "features",
        "runtimeHandlers",
    ] {
        if old[field] != new[field] && !new[field].is_null() {
            changes.insert(field.into(), new[field].clone());
        }
    }
    if let Some(allocatable) = changes.get_mut("allocatable").and_then(Value::as_object_mut) {
        // Those that are gone from the capacity go.
        for (name, _) in old["allocatable"].as_object().into_iter().flatten() {
            if is_extended(name) && !allocatable.contains_key(name) {
                allocatable.insert(name.clone(), Value::Null);
            }
        }
    }
    if old["addresses"] != new["addresses"] {
        let mut list = vec![json!({"$patch": "replace"})];
        list.extend(new["addresses"].as_array().into_iter().flatten().cloned());
        changes.insert("addresses".into(), list.into());
    }
    (!changes.is_empty()).then(|| json!({"status": changes}))
}

/// Whether a condition is there, whatever its heartbeat.
fn holds(status: &NodeStatus, condition: &NodeCondition) -> bool {
    let mut known = status.conditions.iter().flatten();
    known.any(|known| {
        let heartbeat = condition.last_heartbeat_time.clone();
        let known = NodeCondition {
            last_heartbeat_time: heartbeat,
            ..known.clone()
        };
        known == *condition
    })
}

#[cfg(test)]
mod tests {
    use skiff_cri::RuntimeCondition;

    use super::*;

    fn runtime(network: bool) -> RuntimeStatus {
        let condition = |kind: &str, status: bool| RuntimeCondition {
            kind: kind.into(),
            status,
            reason: if status { "" } else { "NetworkPluginNotReady" }.into(),
            message: if status { "" } else { "cni plugin not initialized" }.into(),
        };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        RuntimeStatus {
            conditions,
            ..RuntimeStatus::default()
        }
    }

    fn status(config: &Config, runtime: Result<&RuntimeStatus, String>, last: &NodeStatus, second: i64) -> NodeStatus {
        let facts = Facts {
            cpus: 2,
            memory: 4 << 30,
            swap: 1 << 30,
            storage: 100 << 30,
            ..Facts::default()
        };
        generate(Input {
            config,
            facts: &facts,
            name: "node-1",
            ips: &["172.30.0.1".parse().unwrap()],
            runtime,
            version: Some(RuntimeVersion {
                name: "containerd".into(),
                version: "1.6.20".into(),
                api_version: "v1".into(),
            }),
            images: Vec::new(),
            pressure: Pressure::default(),
            last,
            now: Timestamp::from_second(second).unwrap(),
        })
    }

    #[test]
    fn readiness_in_upstreams_words() {
        let config = Config::default();
        let message = |runtime: Result<&RuntimeStatus, String>| {
            let status = status(&config, runtime, &NodeStatus::default(), 1);
            let ready = status
                .conditions
                .unwrap()
                .into_iter()
                .find(|c| c.type_ == "Ready")
                .unwrap();
            (ready.status, ready.reason.unwrap(), ready.message.unwrap())
        };
        let expect = |status: &str, reason: &str, text: &str| (status.to_owned(), reason.to_owned(), text.to_owned());
        assert_eq!(
            message(Ok(&runtime(true))),
            expect("True", "KubeletReady", "kubelet is posting ready status")
        );
        assert_eq!(
            message(Ok(&runtime(false))),
            expect(
                "False",
                "KubeletNotReady",
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized"
            )
        );
        assert_eq!(message(Err("x".into())).2, "container runtime is down: x");
    }

    #[test]
    fn resources() {
        let mut config = Config::default();
        config.kubelet.kube_reserved = BTreeMap::from([("cpu".into(), "500m".into())]);
        let status = status(&config, Ok(&runtime(true)), &NodeStatus::default(), 1);
        let value = serde_json::to_value(&status).unwrap();
        assert_eq!(
            value["capacity"],
            json!({"cpu": "2", "memory": "4Gi", "ephemeral-storage": "100Gi", "pods": "110"})
        );
        assert_eq!(
            value["allocatable"],
            json!({"cpu": "1500m", "memory": "3996Mi", "ephemeral-storage": "90Gi", "pods": "110"})
        );
        assert_eq!(value["nodeInfo"]["containerRuntimeVersion"], "containerd://1.6.20");
        assert_eq!(value["nodeInfo"]["swap"]["capacity"], 1 << 30);
    }

    #[test]
    fn pods_are_bounded_by_the_cpus_where_that_is_said() {
        let facts = Facts {
            cpus: 2,
            ..Facts::default()
        };
        for (most, each, wanted) in [(110, 0, 110), (110, 10, 20), (15, 10, 15)] {
            let mut config = Config::default();
            (config.kubelet.max_pods, config.kubelet.pods_per_core) = (most, each);
            assert_eq!(pods(&config, &facts), wanted, "{each} for each CPU, {most} at most");
        }
    }

    #[test]
    fn huge_pages_are_no_memory_of_pods() {
        let facts = Facts {
            memory: 4 << 30,
            hugepages: BTreeMap::from([("1Gi".into(), 1 << 30), ("2Mi".into(), 512 << 20)]),
            ..Facts::default()
        };
        let found = |config: &Config| allocatable(config, &facts)["memory"].to_string();
        let mut config = Config::default();
        assert_eq!(found(&config), "2460Mi", "less what eviction keeps free");
        config.kubelet.system_reserved = BTreeMap::from([("memory".into(), "3Gi".into())]);
        assert_eq!(found(&config), "0");
    }

    #[test]
    fn what_the_runtime_can_do_is_told_where_it_tells() {
        let config = Config::default();
        let silent = status(&config, Ok(&runtime(true)), &NodeStatus::default(), 1);
        assert_eq!(
            (&silent.features, &silent.runtime_handlers),
            (&None, &None),
            "containerd 1.6"
        );
        let handler = |name: &str| skiff_cri::RuntimeHandler {
            name: name.into(),
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        let able = RuntimeStatus {
            handlers: vec![handler("runc"), handler("")],
            supplemental_groups_policy: Some(true),
            ..runtime(true)
        };
        let told = status(&config, Ok(&able), &silent, 2);
        let change = diff(&silent, &told, false).unwrap();
        assert_eq!(change["status"]["features"], json!({"supplementalGroupsPolicy": true}));
        assert_eq!(change["status"]["runtimeHandlers"][1]["name"], "runc");
        assert_eq!(
            change["status"]["runtimeHandlers"][0]["features"]["recursiveReadOnlyMounts"],
            true
        );
        let away = status(&config, Err("away".into()), &told, 3);
        assert_eq!(
            (away.features, away.runtime_handlers),
            (told.features, told.runtime_handlers)
        );
    }

    #[test]
    fn only_changes_are_sent_and_transitions_keep_their_time() {
        let config = Config::default();
        let first = status(&config, Ok(&runtime(false)), &NodeStatus::default(), 1);
        let same = status(&config, Ok(&runtime(false)), &first, 2);
        assert_eq!(diff(&first, &same, false), None);
        let heartbeat = diff(&first, &same, true).unwrap();
        assert_eq!(heartbeat["status"].as_object().unwrap().len(), 1);
        let ready = status(&config, Ok(&runtime(true)), &same, 3);
        let conditions = diff(&same, &ready, false).unwrap()["status"]["conditions"].clone();
        assert_eq!(conditions[3]["lastTransitionTime"], "1970-01-01T00:00:03Z");
        assert_eq!(conditions[0]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        assert_eq!(conditions[0]["lastHeartbeatTime"], "1970-01-01T00:00:03Z");
    }

    #[test]
    fn extended_resources_in_the_capacity_may_be_allocated() {
        let config = Config::default();
        let plain = status(&config, Ok(&runtime(true)), &NodeStatus::default(), 1);
        let mut advertised = plain.clone();
        let dongles = ("example.com/dongle".to_owned(), RawQuantity("4".into()));
        advertised.capacity.get_or_insert_default().extend([dongles]);
        let told = status(&config, Ok(&runtime(true)), &advertised, 2);
        let change = diff(&advertised, &told, false).unwrap();
        assert_eq!(change["status"].as_object().unwrap().len(), 1, "{change}");
        assert_eq!(change["status"]["allocatable"]["example.com/dongle"], "4");
        let withdrawn = NodeStatus {
            capacity: plain.capacity.clone(),
            ..told
        };
        let told = status(&config, Ok(&runtime(true)), &withdrawn, 3);
        let change = diff(&withdrawn, &told, false).unwrap();
        assert_eq!(change["status"]["allocatable"]["example.com/dongle"], Value::Null);
        assert!(
            change["status"]["allocatable"]
                .as_object()
                .unwrap()
                .contains_key("example.com/dongle")
        );
    }

    #[test]
    fn what_others_say_beside_it_is_no_difference() {
        let config = Config::default();
        let own = status(&config, Ok(&runtime(true)), &NodeStatus::default(), 1);
        let with = |kind: &str, state: &str| {
            let mut held = own.clone();
            let conditions = held.conditions.get_or_insert_default();
            conditions.retain(|condition| condition.type_ != kind);
            let known = NodeCondition {
                type_: kind.into(),
                status: state.into(),
                ..NodeCondition::default()
            };
            conditions.insert(0, known);
            held
        };
        assert_eq!(diff(&with("KernelDeadlock", "True"), &own, false), None);
        assert!(diff(&with("Ready", "Unknown"), &own, false).is_some());
    }
}
