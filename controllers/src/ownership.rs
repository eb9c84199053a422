//! Which children a controller owns: it adopts orphans that its selector takes and releases children that it no longer takes.

use std::sync::Arc;

use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::view::View;
use crate::write::{Error, Merge, Writer};

/// What to do with the children that a controller finds.
#[derive(Debug)]
pub(crate) struct Claim<C> {
    pub(crate) keep: Vec<Arc<C>>,
    pub(crate) adopt: Vec<Arc<C>>,
    pub(crate) release: Vec<Arc<C>>,
}

/// The owner's selector in a form that matches; `None` when it is invalid or empty, and so takes nothing.
pub(crate) fn parse_selector(selector: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Sorts candidates: those owned and those orphaned.
pub(crate) fn claim<O: View, C: View>(
    owner: &O,
    selector: &Selector,
    candidates: impl IntoIterator<Item = Arc<C>>,
) -> Claim<C> {
    let mut claim = Claim {
        keep: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    for child in candidates {
        let matches = selector.matches(child.labels());
        match child.controller() {
            Some(controller) if controller.uid != owner.uid() => {}
            Some(_) if matches => claim.keep.push(child),
            Some(_) if owner.is_being_deleted() => {}
            Some(_) => claim.release.push(child),
            None if matches && !owner.is_being_deleted() && !child.is_being_deleted() => claim.adopt.push(child),
            None => {}
        }
    }
    claim
}

/// Carries a claim out and returns all children owned afterwards.
pub(crate) async fn settle<O: View, C: View>(
    writer: &Writer,
    owner: &O,
    claim: Claim<C>,
) -> Result<Vec<Arc<C>>, Error> {
    let Claim {
        mut keep,
        adopt,
        release,
    } = claim;
    for child in release {
        let patch = json!({"metadata": {
            "uid": child.uid(),
            "ownerReferences": [{"$patch": "delete", "uid": owner.uid()}],
        }});
        match writer.patch::<C>(&child.key(), Merge::Strategic, &patch).await {
            // Gone, or without owner references already.
            Err(error) if !error.is_not_found() && !error.is_invalid() => return Err(error),
            _ => tracing::debug!(child = %child.key(), owner = %owner.key(), "released"),
        }
    }
    if adopt.is_empty() {
        return Ok(keep);
    }
    // The store may be behind: an owner that was deleted and made again must not adopt by its old uid.
    let fresh = writer.get::<O>(&owner.key()).await?;
    if fresh.is_none_or(|fresh| fresh.uid() != owner.uid() || fresh.is_being_deleted()) {
        return Ok(keep);
    }
    for child in adopt {
        let patch = json!({"metadata": {"uid": child.uid(), "ownerReferences": [controller_reference(owner)]}});
        match writer.patch::<C>(&child.key(), Merge::Strategic, &patch).await {
            Ok(_) => keep.push(child),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(keep)
}

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_reference<O: View>(owner: &O) -> Value {
    json!({
        "apiVersion": O::api_version(&()),
        "kind": O::kind(&()),
        "name": owner.name(),
        "uid": owner.uid(),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::{claim, parse_selector};
    use crate::view::{Pod, ReplicaSet, View};

    fn owner(deleting: bool) -> ReplicaSet {
        let deletion = deleting.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "owner", "deletionTimestamp": deletion},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, label: &str, owner: Option<&str>, deleting: bool) -> Arc<Pod> {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let deletion = deleting.then_some("2026-01-01T00:00:00Z");
        let pod = json!({"metadata": {"name": name, "labels": {"app": label}, "ownerReferences": owners, "deletionTimestamp": deletion}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.name()).collect()
    }

    #[test]
    fn children_are_kept_adopted_or_released() {
        let candidates = || {
            vec![
                pod("ours", "web", Some("owner"), false),
                pod("ours-relabelled", "other", Some("owner"), false),
                pod("orphan", "web", None, false),
                pod("orphan-going", "web", None, true),
                pod("orphan-other", "other", None, false),
                pod("theirs", "web", Some("stranger"), false),
            ]
        };
        let selector = parse_selector(&owner(false).spec.selector).unwrap();
        let sorted = claim(&owner(false), &selector, candidates());
        assert_eq!(names(&sorted.keep), ["ours"]);
        assert_eq!(names(&sorted.adopt), ["orphan"]);
        assert_eq!(names(&sorted.release), ["ours-relabelled"]);
        let sorted = claim(&owner(true), &selector, candidates());
        assert_eq!(names(&sorted.keep), ["ours"]);
        assert!(
            sorted.adopt.is_empty() && sorted.release.is_empty(),
            "an owner that goes changes nothing"
        );
    }

    #[test]
    fn an_empty_selector_takes_nothing() {
        assert!(parse_selector(&serde_json::from_value(json!({})).unwrap()).is_none());
    }
}
