//! Persistent volumes: the status remembers since when the volume has been in its phase.

use serde_json::Value;
use skiff_api::{field, meta};

use super::generic::{self, VOLUME, at};
use super::{Context, Strategy};

/// See the module.
#[derive(Debug)]
pub(super) struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn prepare_create(&self, object: &mut Value, context: &Context<'_>) {
        VOLUME.prepare_create(object, context);
        object["status"]["lastPhaseTransitionTime"] = meta::now().into();
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        VOLUME.prepare_update(new, old, subresource);
        // Whoever knows the time better may say so.
        let told = at(new, "status.lastPhaseTransitionTime") != at(old, "status.lastPhaseTransitionTime");
        if at(new, "status.phase") != at(old, "status.phase") && !told {
            new["status"]["lastPhaseTransitionTime"] = meta::now().into();
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_of_phase_is_dated() {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": {}});
        PersistentVolume.prepare_create(&mut volume, &Context::default());
        assert_eq!(volume["status"]["phase"], "Pending");
        volume["status"]["lastPhaseTransitionTime"] = json!("2026-01-01T00:00:00Z");
        let mut same = volume.clone();
        PersistentVolume.prepare_update(&mut same, &volume, Some("status"));
        assert_eq!(same, volume);
        let mut bound = volume.clone();
        bound["status"]["phase"] = json!("Bound");
        PersistentVolume.prepare_update(&mut bound, &volume, Some("status"));
        assert_ne!(
            bound["status"]["lastPhaseTransitionTime"],
            volume["status"]["lastPhaseTransitionTime"]
        );
    }
}
