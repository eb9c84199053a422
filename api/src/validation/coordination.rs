//! Leases.

use serde_json::Value;

use super::Errors;
use super::read::{POSITIVE, get, int, non_negative};
use crate::field::{Error, Path};

const SPEC: Path<'static> = Path::root("spec");

pub(super) fn lease(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(Error::invalid(&SPEC.child("leaseDurationSeconds"), seconds, POSITIVE));
    }
    non_negative(&SPEC, "leaseTransitions", spec, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn durations() {
        let lease = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}});
        assert_eq!(
            created("coordination.k8s.io", "Lease", &lease),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
    }
}
