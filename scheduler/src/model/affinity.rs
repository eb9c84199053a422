//! Pod affinity terms, compiled for matching.

use skiff_api::k8s_openapi::api::core::v1::PodAffinityTerm;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use skiff_api::selector::LabelSelector;

use super::Labels;

/// Something wanted with a weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Preferred<T> {
    pub(crate) weight: i64,
    pub(crate) term: T,
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
