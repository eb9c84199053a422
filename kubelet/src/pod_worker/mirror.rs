//! Mirrors: pods in the API by which others see a static pod. Nobody can change the static pod through its mirror.

use kube::api::{Api, PostParams};
use skiff_api::k8s_openapi::api::core::v1::{Node, Pod};
use skiff_api::owners;
use skiff_daemon::error_chain;

use crate::agent::Agent;
use crate::pod::{self, MIRROR};

/// Makes the mirror of a static pod, owned by the node; the error is text for the log.
pub(super) async fn create(agent: &Agent, pod: &Pod) -> Result<Pod, String> {
    let nodes: Api<Node> = Api::all(agent.client.clone());
    let node = nodes.get(&agent.node_name).await.map_err(|error| error_chain(&error))?;
    let api: Api<Pod> = Api::namespaced(agent.client.clone(), pod::namespace(pod));
    api.create(&PostParams::default(), &of(pod, &node))
        .await
        .map_err(|error| error_chain(&error))
}

/// What is shown of a static pod.
fn of(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let hash = pod::uid(pod).to_owned();
    let metadata = &mut mirror.metadata;
    metadata.uid = None;
    metadata.annotations.get_or_insert_default().insert(MIRROR.into(), hash);
    let mut owner = owners::controller_ref(node);
    if let Some(owner) = &mut owner {
        owner.block_owner_deletion = None;
    }
    metadata.owner_references = owner.map(|owner| vec![owner]);
    mirror.status = None;
    mirror
}

/// Whether a mirror shows what the static pod no longer is, or is being deleted: it is made anew.
pub(super) fn is_outdated(mirror: &Pod, pod: &Pod) -> bool {
    pod::annotation(mirror, MIRROR) != Some(pod::uid(pod)) || pod::deletion_time(mirror).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_mirror_is_owned_by_its_node_and_names_what_it_shows() {
        let p = pod(&json!({}));
        let node = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "node-uid"}})).unwrap();
        let mut mirror = of(&p, &node);
        assert_eq!(mirror.metadata.uid, None);
        let owner = mirror.metadata.owner_references.as_ref().unwrap()[0].clone();
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "node-uid"));
        assert!(pod::is_mirror(&mirror) && !is_outdated(&mirror, &p));
        let mut changed = p.clone();
        changed.metadata.uid = Some("u2".into());
        assert!(is_outdated(&mirror, &changed));
        mirror.metadata.deletion_timestamp = Some(skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::UNIX_EPOCH,
        ));
        assert!(is_outdated(&mirror, &p));
    }
}
