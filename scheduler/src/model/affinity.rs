//! Node selectors and pod affinity terms, compiled for matching.

use skiff_api::k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use skiff_api::selector::LabelSelector;

use super::Labels;

/// Something wanted with a weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Preferred<T> {
    pub(crate) weight: i64,
    pub(crate) term: T,
}

/// One alternative of a node selector: every requirement must hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeTerm {
    labels: Vec<NodeSelectorRequirement>,
    /// On `metadata.name`, the only field there is.
    names: Vec<NodeSelectorRequirement>,
}

impl NodeTerm {
    pub(crate) fn new(term: &NodeSelectorTerm) -> Self {
        Self {
            labels: term.match_expressions.clone().unwrap_or_default(),
            names: term.match_fields.clone().unwrap_or_default(),
        }
    }

    /// A term without requirements matches nothing.
    pub(crate) fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.names.is_empty() {
            return false;
        }
        self.labels
            .iter()
            .all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
            && self
                .names
                .iter()
                .all(|requirement| requirement.key == "metadata.name" && holds(requirement, Some(name)))
    }

    /// The node names that it restricts itself to, if it does.
    pub(crate) fn only_names(&self) -> Option<Vec<String>> {
        let mut lists = self.names.iter().filter(|requirement| requirement.operator == "In");
        let mut names = lists.next()?.values.clone().unwrap_or_default();
        for list in lists {
            names.retain(|name| list.values.iter().flatten().any(|other| other == name));
        }
        Some(names)
    }
}

/// The alternatives of a required node affinity.
pub(crate) fn node_terms(terms: &[NodeSelectorTerm]) -> Vec<NodeTerm> {
    terms.iter().map(NodeTerm::new).collect()
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let compare = |wanted: fn(i64, i64) -> bool| {
        let number = value.and_then(|value| value.parse().ok());
        let bound = values.first().and_then(|bound| bound.parse().ok());
        number.zip(bound).is_some_and(|(number, bound)| wanted(number, bound))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|number, bound| number > bound),
        "Lt" => compare(|number, bound| number < bound),
        _ => false,
    }
}

/// A pod affinity or anti-affinity term.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodTerm {
    pub(crate) topology_key: String,
    selector: LabelSelector,
    namespaces: Vec<String>,
    /// `None`: only the namespaces listed.
    namespace_selector: Option<LabelSelector>,
}

impl PodTerm {
    /// `namespace` and `labels` are those of the pod that the term is in.
    pub(crate) fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        let same = term.match_label_keys.as_deref().unwrap_or_default();
        let different = term.mismatch_label_keys.as_deref().unwrap_or_default();
        Self {
            topology_key: term.topology_key.clone(),
            selector: merge_match_label_keys(term.label_selector.as_ref(), same, different, labels),
            namespaces,
            namespace_selector: (term.namespace_selector.as_ref())
                .map(|selector| LabelSelector::from_typed(Some(selector)).unwrap_or(LabelSelector::NOTHING)),
        }
    }

    /// Whether the term speaks of a pod with these properties, in a namespace with these labels.
    pub(crate) fn matches(&self, namespace: &str, namespace_labels: Option<&Labels>, labels: &Labels) -> bool {
        let in_namespace = self.namespaces.iter().any(|listed| listed == namespace)
            || (self.namespace_selector.as_ref()).is_some_and(|selector| selector.matches_labels(namespace_labels));
        in_namespace && self.matches_labels(labels)
    }

    /// Whether the term speaks of pods with these labels, in whatever namespace.
    pub(crate) fn matches_labels(&self, labels: &Labels) -> bool {
        self.selector.matches(labels)
    }
}

/// A selector with `matchLabelKeys` and `mismatchLabelKeys` filled in from the pod's own labels.
pub(crate) fn merge_match_label_keys(
    selector: Option<&meta::LabelSelector>,
    same: &[String],
    different: &[String],
    labels: &Labels,
) -> LabelSelector {
    let Some(selector) = selector else {
        return LabelSelector::NOTHING;
    };
    let mut merged = selector.clone();
    for (keys, operator) in [(same, "In"), (different, "NotIn")] {
        for key in keys {
            let Some(value) = labels.get(key) else { continue };
            merged
                .match_expressions
                .get_or_insert_default()
                .push(meta::LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value.clone()]),
                });
        }
    }
    // The API server has validated it; one that slipped through selects nothing.
    LabelSelector::from_typed(Some(&merged)).unwrap_or(LabelSelector::NOTHING)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn node_terms_match() {
        let node = labels(&[("disk", "ssd"), ("cores", "8")]);
        let cases = [
            (json!({}), false),
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["hdd", "ssd"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "gone", "operator": "NotIn", "values": ["ssd"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "gone", "operator": "Exists"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "gone", "operator": "DoesNotExist"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["7"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "Gt", "values": ["1"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "spec.x", "operator": "In", "values": ["n1"]}]}),
                false,
            ),
        ];
        for (term, expected) in cases {
            let compiled = NodeTerm::new(&serde_json::from_value(term.clone()).unwrap());
            assert_eq!(compiled.matches("n1", &node), expected, "{term}");
        }
    }

    #[test]
    fn pod_terms_match_in_their_namespaces() {
        let own = labels(&[("app", "web"), ("hash", "7")]);
        let team = labels(&[("team", "a")]);
        let cases = [
            (json!({"topologyKey": "z"}), "default", false),
            (json!({"topologyKey": "z", "labelSelector": {}}), "default", true),
            (json!({"topologyKey": "z", "labelSelector": {}}), "other", false),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "namespaces": ["other"]}),
                "other",
                true,
            ),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "namespaces": ["other"]}),
                "default",
                false,
            ),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "namespaceSelector": {}}),
                "anywhere",
                true,
            ),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "namespaceSelector": {"matchLabels": {"team": "b"}}}),
                "anywhere",
                false,
            ),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "matchLabelKeys": ["hash"]}),
                "default",
                true,
            ),
            (
                json!({"topologyKey": "z", "labelSelector": {}, "mismatchLabelKeys": ["hash"]}),
                "default",
                false,
            ),
        ];
        for (term, namespace, expected) in cases {
            let compiled = PodTerm::new(&serde_json::from_value(term.clone()).unwrap(), "default", &own);
            assert_eq!(
                compiled.matches(namespace, Some(&team), &own),
                expected,
                "{term} in {namespace}"
            );
        }
    }
}
