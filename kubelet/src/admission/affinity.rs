//! Whether the node has the labels that a pod selects.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::Refusal;
use crate::pod;

/// Whether the pod selects nodes at all.
pub(super) fn needs_labels(pod: &Pod) -> bool {
    let selector = pod::spec(pod).node_selector.as_ref();
    selector.is_some_and(|selector| !selector.is_empty()) || required(pod).is_some()
}

/// Checks the pod's node selector and required node affinity.
pub(super) fn check(pod: &Pod, node: &str, labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let mut selector = pod::spec(pod).node_selector.iter().flatten();
    let selected = selector.all(|(key, value)| labels.get(key) == Some(value));
    let allowed = required(pod).is_none_or(|terms| any_term(terms, node, labels));
    if selected && allowed {
        return Ok(());
    }
    Err(Refusal::predicate(
        "NodeAffinity",
        "node(s) didn't match Pod's node affinity/selector",
    ))
}

fn required(pod: &Pod) -> Option<&[NodeSelectorTerm]> {
    let affinity = pod::spec(pod).affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(&required.node_selector_terms)
}

/// Whether one of the terms selects the node.
pub(crate) fn any_term(terms: &[NodeSelectorTerm], node: &str, labels: &BTreeMap<String, String>) -> bool {
    terms.iter().any(|term| matches(term, node, labels))
}

/// An empty term matches nothing.
fn matches(term: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|wanted| holds(wanted, label(&wanted.key)))
        && fields.iter().all(|wanted| holds(wanted, field(&wanted.key)))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn selectors_and_affinity() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("size".to_owned(), "7".to_owned())]);
        let terms = |terms: Value| {
            let required = json!({"nodeSelectorTerms": terms});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
        };
        let expression = |key: &str, operator: &str, values: Value| {
            terms(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        let cases = [
            (json!({}), false, true),
            (json!({"nodeSelector": {"zone": "a"}}), true, true),
            (json!({"nodeSelector": {"zone": "b"}}), true, false),
            (expression("zone", "In", json!(["b", "a"])), true, true),
            (expression("zone", "NotIn", json!(["a"])), true, false),
            (expression("rack", "NotIn", json!(["a"])), true, true),
            (expression("rack", "Exists", json!([])), true, false),
            (expression("rack", "DoesNotExist", json!([])), true, true),
            (expression("size", "Gt", json!(["6"])), true, true),
            (expression("size", "Lt", json!(["6"])), true, false),
            (
                terms(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])),
                true,
                true,
            ),
            (terms(json!([{}])), true, false),
        ];
        for (spec, needs, fine) in cases {
            let p = pod(&spec);
            assert_eq!(needs_labels(&p), needs, "{spec}");
            assert_eq!(check(&p, "n", &labels).is_ok(), fine, "{spec}");
        }
    }
}
