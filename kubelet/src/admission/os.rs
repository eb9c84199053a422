//! Whether the pod is one for this operating system.

use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Refusal;
use crate::pod;

const LABEL: &str = "kubernetes.io/os";
const OS: &str = "linux";

/// Checks the pod's own label of the operating system, and `spec.os`.
pub(super) fn check(pod: &Pod) -> Result<(), Refusal> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    if label.is_some_and(|os| os != OS) {
        return Err(Refusal::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if pod::spec(pod).os.as_ref().is_some_and(|os| os.name != OS) {
        return Err(Refusal::new(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn pods_of_other_systems() {
        let of = |label: Option<&str>, os: Option<&str>| {
            let mut p = os.map_or_else(|| pod(&json!({})), |os| pod(&json!({"os": {"name": os}})));
            p.metadata.labels = label.map(|os| [(LABEL.to_owned(), os.to_owned())].into());
            check(&p).err().map(|refusal| refusal.reason)
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some("linux"), Some("linux")), None);
        assert_eq!(of(None, Some("windows")).as_deref(), Some("PodOSNotSupported"));
        let reason = "PodOSSelectorNodeLabelDoesNotMatch";
        assert_eq!(of(Some("windows"), Some("windows")).as_deref(), Some(reason));
    }
}
