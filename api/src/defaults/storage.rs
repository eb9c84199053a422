//! Storage classes and drivers; priority classes.

use serde_json::json;

use super::{Fields, absent, is_empty, make};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    match kind {
        "StorageClass" => {
            absent(object, "reclaimPolicy", "Delete");
            absent(object, "volumeBindingMode", "Immediate");
        }
        "CSIDriver" => driver(object),
        "PriorityClass" => absent(object, "preemptionPolicy", "PreemptLowerPriority"),
        _ => {}
    }
}

fn driver(object: &mut Fields) {
    let Some(spec) = make(object, "spec") else { return };
    absent(spec, "attachRequired", true);
    absent(spec, "podInfoOnMount", false);
    absent(spec, "storageCapacity", false);
    absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    absent(spec, "requiresRepublish", false);
    absent(spec, "seLinuxMount", false);
    if is_empty(spec, "volumeLifecycleModes") {
        spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::applied;
    use super::*;

    #[test]
    fn classes() {
        assert_eq!(
            applied("storage.k8s.io", "StorageClass", json!({})),
            json!({"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"})
        );
        assert_eq!(
            applied("scheduling.k8s.io", "PriorityClass", json!({"value": 1})),
            json!({"value": 1, "preemptionPolicy": "PreemptLowerPriority"})
        );
    }
}
