//! Reading a pod: names, kinds of containers, QoS class, grace periods.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use jiff::Timestamp;
use skiff_api::k8s_openapi::api::core::v1::{
    Container, ContainerStatus, EphemeralContainer, Pod, PodSpec, PodStatus, VolumeMount,
};
use skiff_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as RawQuantity;
use skiff_api::pods;
pub(crate) use skiff_api::pods::{MIRROR, QosClass as Qos, is_sidecar, is_terminal};
use skiff_api::quantity::Quantity;

/// Annotation: the UID of a static pod, which is the hash of its manifest.
pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation that every pod gets where it comes in: the source that it comes from (`file`, `api`), whatever its author wrote.
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
const FROM_API: &str = "api";

/// What role a container has in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to completion before the main containers.
    Init,
    /// Starts in the order of the init containers and runs beside the main ones.
    Sidecar,
    /// The pod's purpose.
    Main,
    /// Added to a running pod for debugging.
    Ephemeral,
}

/// The pod's UID; a static pod's is the hash of its manifest.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Namespace and name.
pub(crate) type Key = (String, String);

pub(crate) fn key(pod: &Pod) -> Key {
    (namespace(pod).to_owned(), name(pod).to_owned())
}

/// Marks a pod as one of the API.
pub(crate) fn mark_as_api(pod: &mut Pod) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE.into(), FROM_API.into());
}

/// Whether the pod comes from a manifest of this node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != FROM_API)
}

/// Whether the pod only shows a static pod, and is never run itself.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// `name_namespace(uid)`: how upstream writes a pod in messages.
pub(crate) fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: OnceLock<PodSpec> = OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

pub(crate) fn status(pod: &Pod) -> &PodStatus {
    static EMPTY: OnceLock<PodStatus> = OnceLock::new();
    pod.status
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodStatus::default))
}

/// What the API says of a container, of whatever role.
pub(crate) fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = status(pod);
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

pub(crate) fn generation(pod: &Pod) -> Option<i64> {
    pod.metadata.generation
}

pub(crate) fn deletion_time(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.deletion_timestamp.as_ref().map(|time| time.0)
}

pub(crate) fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// Seconds that the pod's processes get to end by themselves.
pub(crate) fn grace_period(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
        .max(1)
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub(crate) fn main_containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

pub(crate) fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// All containers of a pod with their roles: init containers and sidecars in order, main ones, ephemeral ones.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = (Role, Cow<'_, Container>)> {
    let init = init_containers(pod)
        .iter()
        .map(|c| (if is_sidecar(c) { Role::Sidecar } else { Role::Init }, Cow::Borrowed(c)));
    let main = main_containers(pod).iter().map(|c| (Role::Main, Cow::Borrowed(c)));
    let ephemeral = ephemeral_containers(pod)
        .iter()
        .map(|c| (Role::Ephemeral, Cow::Owned(plain(c))));
    init.chain(main).chain(ephemeral)
}

pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    containers(pod).find(|(_, container)| container.name == name)
}

/// Whether what a container mounts in a volume is to be seen by the node and by other pods.
pub(crate) fn is_bidirectional(mount: &VolumeMount) -> bool {
    mount.mount_propagation.as_deref() == Some("Bidirectional")
}

/// Whether a container of the pod mounts for the node.
pub(crate) fn mounts_for_the_node(pod: &Pod) -> bool {
    containers(pod).any(|(_, container)| container.volume_mounts.iter().flatten().any(is_bidirectional))
}

pub(crate) fn has_post_start(container: &Container) -> bool {
    let lifecycle = container.lifecycle.as_ref();
    lifecycle.is_some_and(|lifecycle| lifecycle.post_start.is_some())
}

/// How the container is called in messages: `spec.containers{name}`.
pub(crate) fn field_path(role: Role, name: &str) -> String {
    let list = match role {
        Role::Init | Role::Sidecar => "initContainers",
        Role::Main => "containers",
        Role::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}

fn plain(c: &EphemeralContainer) -> Container {
    Container {
        args: c.args.clone(),
        command: c.command.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        name: c.name.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        tty: c.tty,
        volume_mounts: c.volume_mounts.clone(),
        working_dir: c.working_dir.clone(),
        ..Container::default()
    }
}

/// The pod's class: the API server's word if it gave one, computed otherwise.
pub(crate) fn qos(pod: &Pod) -> Qos {
    match status(pod).qos_class.as_deref() {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    pods::qos_class(spec(pod))
}

/// Where in its container a volume is mounted.
pub(crate) fn mount_path(mount: &VolumeMount) -> String {
    let path = &mount.mount_path;
    if path.starts_with('/') {
        path.clone()
    } else {
        format!("/{path}")
    }
}

/// What a container requests; a limit without a request is the request, as the API's defaulting says.
pub(crate) fn request(container: &Container, resource: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    quantity(resources.requests.as_ref(), resource).or_else(|| quantity(resources.limits.as_ref(), resource))
}

pub(crate) fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    quantity(container.resources.as_ref()?.limits.as_ref(), resource)
}

pub(crate) fn quantity(list: Option<&BTreeMap<String, RawQuantity>>, resource: &str) -> Option<Quantity> {
    list?.get(resource)?.0.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod with one container `c`, with `spec` laid over it.
    pub(crate) fn pod(spec: &Value) -> Pod {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "generation": 1},
            "spec": {"containers": [{"name": "c", "image": "i", "imagePullPolicy": "IfNotPresent"}]},
        });
        for (key, field) in spec.as_object().unwrap() {
            value["spec"][key] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn grace_periods() {
        let mut p = pod(&json!({"terminationGracePeriodSeconds": 7}));
        assert_eq!(grace_period(&p), 7);
        p.metadata.deletion_grace_period_seconds = Some(0);
        assert_eq!(grace_period(&p), 1);
        assert_eq!(grace_period(&pod(&json!({}))), 30);
    }

    #[test]
    fn roles_and_their_paths() {
        let p = pod(&json!({
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "ephemeralContainers": [{"name": "e", "image": "x"}],
        }));
        let roles: Vec<_> = containers(&p).map(|(role, c)| field_path(role, &c.name)).collect();
        assert_eq!(
            roles,
            [
                "spec.initContainers{i}",
                "spec.initContainers{s}",
                "spec.containers{c}",
                "spec.ephemeralContainers{e}"
            ]
        );
        assert_eq!(container(&p, "s").unwrap().0, Role::Sidecar);
    }
}
