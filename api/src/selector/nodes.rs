//! Node selectors: which nodes a pod or a volume can be on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// One alternative of a node selector: every requirement must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTerm {
    labels: Vec<NodeSelectorRequirement>,
    /// On `metadata.name`, the only field there is.
    names: Vec<NodeSelectorRequirement>,
}

impl NodeTerm {
    /// Of what a pod or volume says.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        Self {
            labels: term.match_expressions.clone().unwrap_or_default(),
            names: term.match_fields.clone().unwrap_or_default(),
        }
    }

    /// A term without requirements matches nothing.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
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
    pub fn only_names(&self) -> Option<Vec<String>> {
        let mut lists = self.names.iter().filter(|requirement| requirement.operator == "In");
        let mut names = lists.next()?.values.clone().unwrap_or_default();
        for list in lists {
            names.retain(|name| list.values.iter().flatten().any(|other| other == name));
        }
        Some(names)
    }
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

/// The alternatives of a node selector.
pub fn node_terms(selector: &NodeSelector) -> Vec<NodeTerm> {
    selector.node_selector_terms.iter().map(NodeTerm::new).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn node_terms_match() {
        let node: BTreeMap<String, String> = [("disk", "ssd"), ("cores", "8")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
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
}
