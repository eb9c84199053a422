//! Writes down the rules of ClusterRoles that are made of others.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::selector::LabelSelector;

use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{ClusterRole, Key, View};
use crate::write::{Error, Merge};

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let roles = shared.informers.cluster_roles.want();
    let queue: Arc<Queue<Key>> = shared.queue("ClusterRoleAggregator");
    let (waiting, all) = (Arc::clone(&queue), Arc::downgrade(&roles));
    roles.on_change(move |_| {
        let Some(all) = all.upgrade() else { return };
        let made = all.list().into_iter().filter(|role| role.aggregation_rule.is_some());
        made.for_each(|role| waiting.add(role.key()));
    });
    let writer = shared.writer("clusterrole-aggregation-controller");
    shared.work(&queue, 1, [roles.synced()], move |key: Key| {
        let (roles, writer) = (Arc::clone(&roles), writer.clone());
        async move {
            let Some(role) = roles.get(&key) else {
                return Ok::<(), Error>(());
            };
            let Some(rules) = plan(&role, &roles.list()) else {
                return Ok(());
            };
            let version = json!({"uid": role.uid(), "resourceVersion": role.resource_version()});
            let patch = json!({"metadata": version, "rules": rules});
            writer.patch::<ClusterRole>(&key, Merge::Json, &patch).await.map(drop)
        }
    })
}

/// The rules that a role is to have; `None` when it has them, or is not made of others.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<Value>> {
    let selectors = &role.aggregation_rule.as_ref()?.cluster_role_selectors;
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors
        .iter()
        .filter_map(|selector| LabelSelector::from_label_selector(Some(selector)).ok())
    {
        let matching =
            |other: &&Arc<ClusterRole>| other.name() != role.name() && selector.matches_with(|key| other.label(key));
        for rule in all.iter().filter(matching).flat_map(|other| &other.rules) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (rules != role.rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_all_that_are_selected() {
        let role = |name: &str, label: &str, rules: Value, of: Option<&str>| -> Arc<ClusterRole> {
            let rule = of.map(|of| json!({"clusterRoleSelectors": [{"matchLabels": {"to": of}}]}));
            let object =
                json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules, "aggregationRule": rule});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let all = [
            role("a", "x", json!([1, 2]), None),
            role("b", "x", json!([2, 3]), None),
            role("c", "y", json!([4]), None),
            role("x", "x", json!([9]), Some("x")),
            role("y", "", json!([4]), Some("y")),
        ];
        assert_eq!(plan(&all[0], &all), None);
        assert_eq!(plan(&all[3], &all), Some(vec![json!(1), json!(2), json!(3)]));
        assert_eq!(plan(&all[4], &all), None);
    }
}
