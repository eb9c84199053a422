//! Whether the pod bears the node's taints: those that end what runs. The others are the scheduler's affair, as upstream's kubelet has it.

use skiff_api::k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::Refusal;
use crate::pod;

/// Checks the node's `NoExecute` taints; static pods run whatever they are.
pub(super) fn check(pod: &Pod, taints: &[Taint]) -> Result<(), Refusal> {
    let tolerations = pod::spec(pod).tolerations.as_deref().unwrap_or_default();
    let tolerated = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let mut ending = taints.iter().filter(|taint| taint.effect == "NoExecute");
    if pod::is_static(pod) || ending.all(tolerated) {
        return Ok(());
    }
    Err(Refusal::predicate(
        "TaintToleration",
        "node(s) had taints that the pod didn't tolerate",
    ))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let value = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    };
    (key.is_empty() || key == taint.key) && (effect.is_empty() || effect == taint.effect) && value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn taints_that_end_what_runs() {
        let taint = |effect: &str, value: Option<&str>| Taint {
            key: "k".into(),
            value: value.map(str::to_owned),
            effect: effect.into(),
            time_added: None,
        };
        let valued = taint("NoExecute", Some("v"));
        let cases = [
            (json!([]), &taint("NoSchedule", None), true),
            (json!([]), &taint("NoExecute", None), false),
            (json!([{"key": "k"}]), &taint("NoExecute", None), true),
            (json!([{"key": "k"}]), &valued, false),
            (
                json!([{"key": "k", "value": "v", "effect": "NoExecute"}]),
                &valued,
                true,
            ),
            (json!([{"key": "k", "operator": "Equal", "value": "w"}]), &valued, false),
            (json!([{"key": "k", "operator": "Exists"}]), &valued, true),
            (json!([{"operator": "Exists"}]), &valued, true),
            (
                json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]),
                &valued,
                false,
            ),
            (json!([{"key": "other", "operator": "Exists"}]), &valued, false),
            (json!([{"key": "k", "operator": "Gt", "value": "v"}]), &valued, false),
        ];
        for (tolerations, taint, fine) in cases {
            let p = pod(&json!({"tolerations": tolerations}));
            assert_eq!(
                check(&p, std::slice::from_ref(taint)).is_ok(),
                fine,
                "{tolerations} {taint:?}"
            );
        }
        let both = [taint("NoSchedule", None), valued];
        let refusal = check(&pod(&json!({})), &both).unwrap_err();
        assert_eq!(refusal.reason, "TaintToleration");
        assert_eq!(
            refusal.message,
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        );
    }

    #[test]
    fn static_pods_run_whatever_the_taints() {
        let taint = Taint {
            key: "k".into(),
            effect: "NoExecute".into(),
            ..Taint::default()
        };
        let mut p = pod(&json!({}));
        p.metadata.annotations = Some([(pod::CONFIG_SOURCE.to_owned(), "file".to_owned())].into());
        assert_eq!(check(&p, &[taint]), Ok(()));
    }
}
