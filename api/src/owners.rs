//! Owner references of typed objects: who made this, and may I touch it?

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::{Metadata, Resource};

/// A reference that makes `owner` the managing controller of what carries it. `None` when the owner was never stored.
pub fn controller_ref<K: Resource + Metadata<Ty = ObjectMeta>>(owner: &K) -> Option<OwnerReference> {
    let meta = owner.metadata();
    Some(OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        controller: Some(true),
        block_owner_deletion: Some(true),
    })
}

/// The reference to the managing controller, if there is one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|r| r.controller == Some(true))
}

/// Whether the object with that UID is the managing controller.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|r| r.uid == uid)
}

/// Whether the object with that UID is among the owners.
pub fn is_owned_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|r| r.uid == uid)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;

    use super::*;

    #[test]
    fn control() {
        let mut owner = ReplicaSet::default();
        assert_eq!(controller_ref(&owner), None);
        owner.metadata.name = Some("web".into());
        owner.metadata.uid = Some("1".into());
        let reference = controller_ref(&owner).unwrap();
        assert_eq!(
            (reference.api_version.as_str(), reference.kind.as_str()),
            ("apps/v1", "ReplicaSet")
        );
        let other = OwnerReference {
            uid: "2".into(),
            ..OwnerReference::default()
        };
        let pod = ObjectMeta {
            owner_references: Some(vec![other, reference]),
            ..ObjectMeta::default()
        };
        assert!(is_controlled_by(&pod, "1") && !is_controlled_by(&pod, "2"));
        assert!(is_owned_by(&pod, "2") && !is_owned_by(&pod, "3"));
        assert_eq!(controller_of(&ObjectMeta::default()), None);
    }
}
