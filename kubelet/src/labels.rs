//! Labels and annotations by which the kubelet, `crictl` and others find a pod's sandboxes and containers: upstream's.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub(crate) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Our own: the images that a container has as volumes, parted by commas. The runtime's lists name none of them.
pub(crate) const IMAGE_VOLUMES: &str = "kubelet.skiff/image-volumes";

/// Labels of a sandbox: the pod's own and its identity.
pub(crate) fn sandbox(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(identity(pod));
    labels
}

/// Labels of a container.
pub(crate) fn container(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from(identity(pod));
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    labels
}

/// Annotations of a container.
pub(crate) fn container_annotations(pod: &Pod, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let path = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let grace = pod::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    BTreeMap::from([
        (CONTAINER_HASH.into(), container_hash(container)),
        (RESTART_COUNT.into(), attempt.to_string()),
        (TERMINATION_MESSAGE_PATH.into(), path.into()),
        (TERMINATION_MESSAGE_POLICY.into(), policy.into()),
        (GRACE_PERIOD.into(), grace.to_string()),
    ])
}

/// A hash of what makes a container another container: its name and image, the only fields that may change in a running
/// pod and ask for a restart. It must never change between versions of skiff: an upgrade would restart every container.
pub(crate) fn container_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    for part in [container.name.as_str(), container.image.as_deref().unwrap_or_default()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the containers that are others in a pod's new spec.
pub(crate) fn changed_containers(before: &Pod, after: &Pod) -> Vec<String> {
    let others = pod::containers(before).filter(|(_, old)| {
        let new = pod::container(after, &old.name);
        new.is_some_and(|(_, new)| container_hash(&new) != container_hash(old))
    });
    others.map(|(_, old)| old.name.clone()).collect()
}

fn identity(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME.into(), pod::name(pod).into()),
        (POD_NAMESPACE.into(), pod::namespace(pod).into()),
        (POD_UID.into(), pod::uid(pod).into()),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_container_is_another_by_its_image() {
        let spec = |image: &str| {
            json!({
                "initContainers": [{"name": "i", "image": image}],
                "containers": [{"name": "a", "image": image}, {"name": "b", "image": "fixed"}],
            })
        };
        let (one, two) = (pod(&spec("i:1")), pod(&spec("i:2")));
        assert_eq!(changed_containers(&one, &two), ["i", "a"]);
        assert_eq!(changed_containers(&one, &one), Vec::<String>::new());
    }

    /// Golden: a change here restarts every container of every node at the next upgrade.
    #[test]
    fn hash_of_a_container_is_stable() {
        let mut c = Container {
            name: "web".into(),
            image: Some("nginx:1.27".into()),
            ..Container::default()
        };
        let hash = container_hash(&c);
        assert_eq!(hash, "2f6eae59");
        c.env = Some(Vec::new());
        c.stdin = Some(false);
        assert_eq!(container_hash(&c), hash);
        c.image = Some("nginx:1.28".into());
        assert_ne!(container_hash(&c), hash);
    }
}
