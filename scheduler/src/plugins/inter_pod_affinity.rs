//! InterPodAffinity: pods that want to be near others, or away from them.

use std::collections::HashMap;

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreFiltered, PreScore, Rejection, Score};
use crate::model::{Labels, Node, Pod, PodTerm, Preferred};

/// How much a required affinity of a running pod also pulls others towards it.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Refuses, and rates, nodes by the pods in their domains.
#[derive(Debug)]
pub(crate) struct InterPodAffinity;

/// A number for each domain: topology key, then value.
#[derive(Default)]
struct Domains<'a> {
    by_key: HashMap<&'a str, HashMap<&'a str, i64>>,
}

struct Neighbours<'a> {
    pod: &'a Pod,
    /// Running pods that match all of its affinity terms.
    wanted: Domains<'a>,
    /// Running pods that match an anti-affinity term of its.
    unwanted: Domains<'a>,
    /// Running pods with an anti-affinity term that it matches.
    unwelcome: Domains<'a>,
    /// It would be its own neighbour: the first of a group may go anywhere.
    matches_itself: bool,
}

struct Attraction<'a> {
    domains: Domains<'a>,
}

impl<'a> Domains<'a> {
    fn add(&mut self, key: &'a str, node: &'a Node, amount: i64) {
        if let Some(value) = node.labels.get(key) {
            *self.by_key.entry(key).or_default().entry(value).or_default() += amount;
        }
    }

    fn at(&self, key: &str, node: &Node) -> i64 {
        let value = node.labels.get(key);
        let found = value.and_then(|value| self.by_key.get(key)?.get(value.as_str()));
        found.copied().unwrap_or_default()
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        // Without the namespaces' labels at hand, a term that selects by them is taken to match.
        let wants = |other: &Pod| pod.affinity.iter().any(|term| may_match(term, other));
        let repels = |other: &Pod| {
            pod.anti_affinity.iter().any(|term| may_match(term, other))
                || other.anti_affinity.iter().any(|term| may_match(term, pod))
        };
        match event {
            ClusterEvent::PodPlaced(other) => wants(other),
            ClusterEvent::PodGone(other) => repels(other),
            ClusterEvent::PodChanged { old, new } => old.labels != new.labels && (wants(new) || repels(old)),
            ClusterEvent::NodeAdded(_) | ClusterEvent::NamespaceChanged => true,
            ClusterEvent::NodeChanged { old, new } => old.labels != new.labels,
            _ => false,
        }
    }
}

fn may_match(term: &PodTerm, pod: &Pod) -> bool {
    term.matches_labels(&pod.labels)
}

// === Filtering ===

impl PreFilter for InterPodAffinity {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let unwelcome = unwelcome(pod, snapshot);
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() && unwelcome.by_key.is_empty() {
            return PreFiltered::Skip;
        }
        let namespaces = &snapshot.objects.namespaces;
        let mut neighbours = Neighbours {
            pod,
            wanted: Domains::default(),
            unwanted: Domains::default(),
            unwelcome,
            matches_itself: matches_all(&pod.affinity, pod, namespaces.get(&pod.namespace)),
        };
        if !pod.affinity.is_empty() || !pod.anti_affinity.is_empty() {
            for node in &snapshot.nodes {
                for other in &node.pods {
                    neighbours.add(node, other, namespaces.get(&other.namespace));
                }
            }
        }
        PreFiltered::Filter(Box::new(neighbours))
    }
}

/// Where running pods do not want this one.
fn unwelcome<'a>(pod: &Pod, snapshot: &'a Snapshot) -> Domains<'a> {
    let namespace = snapshot.objects.namespaces.get(&pod.namespace);
    let mut domains = Domains::default();
    for node in snapshot.nodes.iter().filter(|node| node.with_anti_affinity > 0) {
        for term in node.pods.iter().flat_map(|other| &other.anti_affinity) {
            if term.matches(&pod.namespace, namespace, &pod.labels) {
                domains.add(&term.topology_key, node, 1);
            }
        }
    }
    domains
}

fn matches_all(terms: &[PodTerm], pod: &Pod, namespace: Option<&Labels>) -> bool {
    !terms.is_empty()
        && terms
            .iter()
            .all(|term| term.matches(&pod.namespace, namespace, &pod.labels))
}

impl<'a> Neighbours<'a> {
    fn add(&mut self, node: &'a Node, other: &Pod, namespace: Option<&Labels>) {
        if matches_all(&self.pod.affinity, other, namespace) {
            for term in &self.pod.affinity {
                self.wanted.add(&term.topology_key, node, 1);
            }
        }
        for term in &self.pod.anti_affinity {
            if term.matches(&other.namespace, namespace, &other.labels) {
                self.unwanted.add(&term.topology_key, node, 1);
            }
        }
    }

    fn affinity_holds(&self, node: &Node) -> bool {
        let terms = &self.pod.affinity;
        if !terms.iter().all(|term| node.labels.contains_key(&term.topology_key)) {
            return false;
        }
        if terms.iter().all(|term| self.wanted.at(&term.topology_key, node) > 0) {
            return true;
        }
        self.wanted.by_key.is_empty() && self.matches_itself
    }
}

impl Filter for Neighbours<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        const PLUGIN: &str = "InterPodAffinity";
        if !self.affinity_holds(node) {
            return Err(Rejection::unresolvable(
                PLUGIN,
                "node(s) didn't match pod affinity rules",
            ));
        }
        if self
            .pod
            .anti_affinity
            .iter()
            .any(|term| self.unwanted.at(&term.topology_key, node) > 0)
        {
            return Err(Rejection::new(PLUGIN, "node(s) didn't match pod anti-affinity rules"));
        }
        if self.unwelcome.by_key.keys().any(|key| self.unwelcome.at(key, node) > 0) {
            return Err(Rejection::new(
                PLUGIN,
                "node(s) didn't satisfy existing pods anti-affinity rules",
            ));
        }
        Ok(())
    }
}

// === Scoring ===

impl PreScore for InterPodAffinity {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        snapshot: &'a Snapshot,
        _feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let has_wishes = !pod.preferred_affinity.is_empty() || !pod.preferred_anti_affinity.is_empty();
        let namespaces = &snapshot.objects.namespaces;
        let own_namespace = namespaces.get(&pod.namespace);
        let mut domains = Domains::default();
        for node in snapshot
            .nodes
            .iter()
            .filter(|node| has_wishes || node.with_affinity > 0)
        {
            for other in &node.pods {
                if has_wishes {
                    let namespace = namespaces.get(&other.namespace);
                    pull(&mut domains, node, &pod.preferred_affinity, other, namespace, 1);
                    pull(&mut domains, node, &pod.preferred_anti_affinity, other, namespace, -1);
                }
                if other.has_affinity() {
                    pull(&mut domains, node, &other.preferred_affinity, pod, own_namespace, 1);
                    pull(
                        &mut domains,
                        node,
                        &other.preferred_anti_affinity,
                        pod,
                        own_namespace,
                        -1,
                    );
                    for term in &other.affinity {
                        if term.matches(&pod.namespace, own_namespace, &pod.labels) {
                            domains.add(&term.topology_key, node, HARD_AFFINITY_WEIGHT);
                        }
                    }
                }
            }
        }
        if domains.by_key.is_empty() {
            return None;
        }
        Some(Box::new(Attraction { domains }))
    }
}

fn pull<'a>(
    domains: &mut Domains<'a>,
    node: &'a Node,
    wishes: &'a [Preferred<PodTerm>],
    target: &Pod,
    namespace: Option<&Labels>,
    sign: i64,
) {
    for wish in wishes {
        if wish.term.matches(&target.namespace, namespace, &target.labels) {
            domains.add(&wish.term.topology_key, node, sign * wish.weight);
        }
    }
}

impl Score for Attraction<'_> {
    fn score(&self, node: &Node) -> i64 {
        self.domains.by_key.keys().map(|key| self.domains.at(key, node)).sum()
    }

    fn normalize(&self, _nodes: &[&Node], scores: &mut [i64]) {
        let most = scores.iter().copied().max().unwrap_or_default();
        let least = scores.iter().copied().min().unwrap_or_default();
        for score in scores {
            *score = if most == least {
                0
            } else {
                MAX_SCORE * (*score - least) / (most - least)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::model::testing::{labelled, node, running, with_pods};
    use crate::model::{HOSTNAME, ZONE};
    use crate::plugins::testing::{feasible, scores, verdicts};

    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

    fn term(key: &str, app: &str) -> Value {
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn wants(kind: &str, when: &str, terms: Value) -> Value {
        json!({"affinity": {kind: {when: terms}}})
    }

    fn app(name: &str, app: &str, node: &str, spec: Value) -> Arc<Pod> {
        running(name, node, json!({"app": app}), spec)
    }

    /// Two nodes in zone a, one in zone b; a database on a1.
    fn cluster(extra: &[Arc<Pod>]) -> Snapshot {
        Snapshot::of(["a1", "a2", "b1"].map(|name| {
            let mut pods: Vec<Arc<Pod>> = extra
                .iter()
                .filter(|pod| pod.node.as_deref() == Some(name))
                .cloned()
                .collect();
            if name == "a1" {
                pods.push(app("db", "db", "a1", json!({})));
            }
            with_pods(node(name, json!({ZONE: &name[..1]})), &pods)
        }))
    }

    #[test]
    fn required_affinity_and_anti_affinity() {
        let cases = [
            (
                wants("podAffinity", REQUIRED, json!([term(ZONE, "db")])),
                vec!["a1", "a2"],
            ),
            (
                wants("podAffinity", REQUIRED, json!([term(HOSTNAME, "db")])),
                vec!["a1"],
            ),
            (wants("podAffinity", REQUIRED, json!([term(ZONE, "nobody")])), vec![]),
            (
                wants("podAffinity", REQUIRED, json!([term(ZONE, "web")])),
                vec!["a1", "a2", "b1"],
            ),
            (wants("podAffinity", REQUIRED, json!([term("rack", "web")])), vec![]),
            (
                wants("podAntiAffinity", REQUIRED, json!([term(ZONE, "db")])),
                vec!["b1"],
            ),
            (
                wants("podAntiAffinity", REQUIRED, json!([term(HOSTNAME, "db")])),
                vec!["a2", "b1"],
            ),
            (
                wants("podAntiAffinity", REQUIRED, json!([term(HOSTNAME, "nobody")])),
                vec!["a1", "a2", "b1"],
            ),
        ];
        for (spec, expected) in cases {
            let pod = labelled("new", json!({"app": "web"}), spec.clone());
            assert_eq!(feasible(&InterPodAffinity, &pod, &cluster(&[])), expected, "{spec}");
        }
    }

    #[test]
    fn running_pods_keep_others_away() {
        let shy = app(
            "shy",
            "shy",
            "b1",
            wants("podAntiAffinity", REQUIRED, json!([term(ZONE, "web")])),
        );
        let snapshot = cluster(&[shy]);
        let web = labelled("new", json!({"app": "web"}), json!({}));
        let verdicts = verdicts(&InterPodAffinity, &web, &snapshot);
        assert_eq!(
            verdicts[2].1,
            Err("node(s) didn't satisfy existing pods anti-affinity rules".to_owned())
        );
        assert_eq!(feasible(&InterPodAffinity, &web, &snapshot), ["a1", "a2"]);
        let other = labelled("new", json!({"app": "other"}), json!({}));
        assert_eq!(feasible(&InterPodAffinity, &other, &snapshot), ["a1", "a2", "b1"]);
    }

    #[test]
    fn other_namespaces_count_only_when_named() {
        let mut far = wants("podAffinity", REQUIRED, json!([term(ZONE, "db")]));
        far["affinity"]["podAffinity"][REQUIRED][0]["namespaces"] = json!(["elsewhere"]);
        let pod = labelled("new", json!({"app": "web"}), far);
        assert_eq!(feasible(&InterPodAffinity, &pod, &cluster(&[])), [""; 0]);
    }

    #[test]
    fn wishes_pull_and_push() {
        let wish = |kind: &str, app: &str| {
            let spec = wants(
                kind,
                PREFERRED,
                json!([{"weight": 50, "podAffinityTerm": term(ZONE, app)}]),
            );
            labelled("new", json!({"app": "web"}), spec)
        };
        assert_eq!(
            scores(&InterPodAffinity, &wish("podAffinity", "db"), &cluster(&[])),
            Some(vec![100, 100, 0])
        );
        assert_eq!(
            scores(&InterPodAffinity, &wish("podAntiAffinity", "db"), &cluster(&[])),
            Some(vec![0, 0, 100])
        );
        assert_eq!(
            scores(&InterPodAffinity, &wish("podAffinity", "nobody"), &cluster(&[])),
            None
        );
        let fond = app(
            "fond",
            "fond",
            "b1",
            wants("podAffinity", REQUIRED, json!([term(ZONE, "web")])),
        );
        let web = labelled("new", json!({"app": "web"}), json!({}));
        assert_eq!(
            scores(&InterPodAffinity, &web, &cluster(&[fond])),
            Some(vec![0, 0, 100])
        );
    }

    #[test]
    fn a_neighbour_that_comes_or_goes_is_a_reason_to_try_again() {
        let fond = labelled(
            "new",
            json!({}),
            wants("podAffinity", REQUIRED, json!([term(ZONE, "db")])),
        );
        let shy = labelled(
            "new",
            json!({}),
            wants("podAntiAffinity", REQUIRED, json!([term(ZONE, "db")])),
        );
        let (db, web) = (app("x", "db", "a1", json!({})), app("y", "web", "a1", json!({})));
        let cases = [
            (&fond, ClusterEvent::PodPlaced(&db), true),
            (&fond, ClusterEvent::PodPlaced(&web), false),
            (&fond, ClusterEvent::PodGone(&db), false),
            (&shy, ClusterEvent::PodGone(&db), true),
            (&shy, ClusterEvent::PodPlaced(&db), false),
        ];
        for (pod, event, expected) in cases {
            assert_eq!(InterPodAffinity.hint(pod, &event), expected, "{event:?}");
        }
    }
}
