//! PodTopologySpread: pods of one kind are spread over zones, nodes or any other domains.

use std::collections::HashMap;

use skiff_api::selector::LabelSelector;

use super::node_affinity::selects;
use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreFiltered, PreScore, Rejection, Score};
use crate::model::{HOSTNAME, Node, Pod, SpreadConstraint, WhenUnsatisfiable, ZONE};

/// What a pod without constraints of its own is spread by, softly: topology key and skew.
const DEFAULT_CONSTRAINTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// Refuses nodes that would make the spread too uneven, and rates the others.
#[derive(Debug)]
pub(crate) struct PodTopologySpread;

struct Even<'a> {
    constraints: Vec<Counted<'a>>,
}

/// A constraint, and how many matching pods each domain has.
struct Counted<'a> {
    constraint: &'a SpreadConstraint,
    counts: HashMap<&'a str, i64>,
    /// The fewest that count as the least.
    least: i64,
    /// 1 when the pod itself matches.
    itself: i64,
}

struct Spread<'a> {
    pod: &'a Pod,
    constraints: Vec<Soft<'a>>,
    /// Nodes without all of the keys get nothing.
    need_all_keys: bool,
}

struct Soft<'a> {
    topology_key: &'a str,
    max_skew: i64,
    selectors: Vec<&'a LabelSelector>,
    /// Empty for host names: those are counted on the node itself.
    counts: HashMap<&'a str, i64>,
    /// Domains of which there are more weigh more.
    weight: f64,
    constraint: Option<&'a SpreadConstraint>,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn hint(&self, pod: &Pod, event: &ClusterEvent<'_>) -> bool {
        let counts = |other: &Pod| {
            other.namespace == pod.namespace && hard(pod).any(|constraint| constraint.selector.matches(&other.labels))
        };
        let has_keys = |node: &Node| hard(pod).all(|constraint| node.labels.contains_key(&constraint.topology_key));
        match event {
            ClusterEvent::PodPlaced(other) | ClusterEvent::PodGone(other) => counts(other),
            ClusterEvent::PodChanged { old, new } => counts(old) || counts(new),
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeGone(node) => has_keys(node),
            ClusterEvent::NodeChanged { old, new } => has_keys(old) || has_keys(new),
            _ => false,
        }
    }
}

fn hard(pod: &Pod) -> impl Iterator<Item = &SpreadConstraint> {
    pod.wants
        .spread
        .iter()
        .filter(|constraint| constraint.when == WhenUnsatisfiable::DoNotSchedule)
}

/// Whether a node counts for a constraint at all.
fn is_included(constraint: &SpreadConstraint, pod: &Pod, node: &Node) -> bool {
    (!constraint.honor_affinity || selects(&pod.wants, node))
        && (!constraint.honor_taints || node.untolerated_taint(&pod.wants.tolerations).is_none())
}

fn count(node: &Node, pod: &Pod, selectors: &[&LabelSelector]) -> i64 {
    let alike = |other: &&std::sync::Arc<Pod>| {
        other.namespace == pod.namespace
            && !other.terminating
            && selectors.iter().all(|selector| selector.matches(&other.labels))
    };
    i64::try_from(node.pods.iter().filter(alike).count()).unwrap_or(i64::MAX)
}

// === Filtering ===

impl PreFilter for PodTopologySpread {
    fn pre_filter<'a>(&'a self, pod: &'a Pod, snapshot: &'a Snapshot) -> PreFiltered<'a> {
        let mut constraints: Vec<Counted<'a>> = hard(pod).map(|constraint| Counted::new(constraint, pod)).collect();
        if constraints.is_empty() {
            return PreFiltered::Skip;
        }
        for node in &snapshot.nodes {
            if !hard(pod).all(|constraint| node.labels.contains_key(&constraint.topology_key)) {
                continue;
            }
            for counted in &mut constraints {
                counted.add(node, pod);
            }
        }
        for counted in &mut constraints {
            counted.find_least();
        }
        PreFiltered::Filter(Box::new(Even { constraints }))
    }
}

impl<'a> Counted<'a> {
    fn new(constraint: &'a SpreadConstraint, pod: &Pod) -> Self {
        Self {
            constraint,
            counts: HashMap::new(),
            least: 0,
            itself: i64::from(constraint.selector.matches(&pod.labels)),
        }
    }

    fn add(&mut self, node: &'a Node, pod: &Pod) {
        if is_included(self.constraint, pod, node)
            && let Some(domain) = node.labels.get(&self.constraint.topology_key)
        {
            *self.counts.entry(domain).or_default() += count(node, pod, &[&self.constraint.selector]);
        }
    }

    fn find_least(&mut self) {
        let domains = i64::try_from(self.counts.len()).unwrap_or(i64::MAX);
        // Domains that should exist and do not count as empty ones.
        self.least = if domains < self.constraint.min_domains {
            0
        } else {
            self.counts.values().copied().min().unwrap_or_default()
        };
    }
}

impl Filter for Even<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        const PLUGIN: &str = "PodTopologySpread";
        for counted in &self.constraints {
            let Some(domain) = node.labels.get(&counted.constraint.topology_key) else {
                return Err(Rejection::unresolvable(
                    PLUGIN,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let there = counted.counts.get(domain.as_str()).copied().unwrap_or_default();
            if there + counted.itself - counted.least > counted.constraint.max_skew {
                return Err(Rejection::new(
                    PLUGIN,
                    "node(s) didn't match pod topology spread constraints",
                ));
            }
        }
        Ok(())
    }
}

// === Scoring ===

impl PreScore for PodTopologySpread {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        snapshot: &'a Snapshot,
        feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        let mut spread = Spread {
            pod,
            constraints: soft(pod, snapshot),
            need_all_keys: !pod.wants.spread.is_empty(),
        };
        if spread.constraints.is_empty() {
            return None;
        }
        spread.weigh(feasible);
        if spread.constraints.iter().any(|soft| !soft.counts.is_empty()) {
            for node in &snapshot.nodes {
                spread.add(node);
            }
        }
        Some(Box::new(spread))
    }
}

/// The pod's own soft constraints, or the defaults when it has none at all and something says which pods are its like.
fn soft<'a>(pod: &'a Pod, snapshot: &'a Snapshot) -> Vec<Soft<'a>> {
    if !pod.wants.spread.is_empty() {
        let own = pod
            .wants
            .spread
            .iter()
            .filter(|constraint| constraint.when == WhenUnsatisfiable::ScheduleAnyway);
        return own
            .map(|constraint| Soft {
                topology_key: &constraint.topology_key,
                max_skew: constraint.max_skew,
                selectors: vec![&constraint.selector],
                counts: HashMap::new(),
                weight: 0.0,
                constraint: Some(constraint),
            })
            .collect();
    }
    let selectors = snapshot.objects.likeness(pod);
    if selectors.is_empty() {
        return Vec::new();
    }
    let default = |(topology_key, max_skew)| Soft {
        topology_key,
        max_skew,
        selectors: selectors.clone(),
        counts: HashMap::new(),
        weight: 0.0,
        constraint: None,
    };
    DEFAULT_CONSTRAINTS.into_iter().map(default).collect()
}

impl<'a> Spread<'a> {
    fn is_ignored(&self, node: &Node) -> bool {
        self.need_all_keys
            && !self
                .constraints
                .iter()
                .all(|soft| node.labels.contains_key(soft.topology_key))
    }

    /// Finds the domains that there are among the feasible nodes.
    #[expect(clippy::cast_precision_loss, reason = "there are fewer nodes than 2^52")]
    fn weigh(&mut self, feasible: &[&'a Node]) {
        let counting: Vec<&&Node> = feasible.iter().filter(|node| !self.is_ignored(node)).collect();
        for soft in &mut self.constraints {
            let domains = if soft.topology_key == HOSTNAME {
                counting.len()
            } else {
                let domains = counting.iter().filter_map(|node| node.labels.get(soft.topology_key));
                soft.counts = domains.map(|domain| (domain.as_str(), 0)).collect();
                soft.counts.len()
            };
            soft.weight = (domains as f64 + 2.0).ln();
        }
    }

    fn add(&mut self, node: &Node) {
        if self.is_ignored(node) {
            return;
        }
        for soft in &mut self.constraints {
            if soft
                .constraint
                .is_some_and(|constraint| !is_included(constraint, self.pod, node))
            {
                continue;
            }
            let domain = node.labels.get(soft.topology_key);
            if let Some(counted) = domain.and_then(|domain| soft.counts.get_mut(domain.as_str())) {
                *counted += count(node, self.pod, &soft.selectors);
            }
        }
    }
}

impl Score for Spread<'_> {
    #[expect(clippy::cast_precision_loss, reason = "there are fewer pods than 2^52")]
    #[expect(clippy::cast_possible_truncation, reason = "scores are small")]
    fn score(&self, node: &Node) -> i64 {
        if self.is_ignored(node) {
            // Told from others in `normalize`.
            return -1;
        }
        let mut score = 0.0;
        for soft in &self.constraints {
            let Some(domain) = node.labels.get(soft.topology_key) else {
                continue;
            };
            let there = if soft.topology_key == HOSTNAME {
                count(node, self.pod, &soft.selectors)
            } else {
                soft.counts.get(domain.as_str()).copied().unwrap_or_default()
            };
            score += there as f64 * soft.weight + (soft.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    /// Fewer is better; the difference counts relative to the most.
    fn normalize(&self, _nodes: &[&Node], scores: &mut [i64]) {
        let counting = || scores.iter().copied().filter(|&score| score >= 0);
        let most = counting().max().unwrap_or_default();
        let least = counting().min().unwrap_or_default();
        for score in scores {
            *score = match *score {
                ignored if ignored < 0 => 0,
                _ if most == 0 => MAX_SCORE,
                counted => MAX_SCORE * (most + least - counted) / most,
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
    use crate::plugins::testing::{feasible, scores, verdicts};

    fn constraint(key: &str, more: Value) -> Value {
        let mut constraint = json!({
            "topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        });
        constraint
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        constraint
    }

    fn web(constraints: &[Value]) -> Pod {
        labelled(
            "new",
            json!({"app": "web"}),
            json!({"topologySpreadConstraints": constraints}),
        )
    }

    /// Nodes named for their zone and number, with so many web pods each.
    fn cluster(nodes: &[(&str, usize)]) -> Snapshot {
        Snapshot::of(nodes.iter().map(|&(name, count)| {
            let pods: Vec<Arc<Pod>> = (0..count)
                .map(|number| running(&format!("{name}-{number}"), name, json!({"app": "web"}), json!({})))
                .collect();
            with_pods(node(name, json!({ZONE: &name[..1]})), &pods)
        }))
    }

    #[test]
    fn hard_constraints_keep_the_skew() {
        let snapshot = cluster(&[("a1", 1), ("a2", 1), ("b1", 1)]);
        assert_eq!(
            feasible(&PodTopologySpread, &web(&[constraint(ZONE, json!({}))]), &snapshot),
            ["b1"]
        );
        let by_node = web(&[constraint(HOSTNAME, json!({}))]);
        assert_eq!(feasible(&PodTopologySpread, &by_node, &snapshot), ["a1", "a2", "b1"]);
        let wider = web(&[constraint(ZONE, json!({"maxSkew": 2}))]);
        assert_eq!(feasible(&PodTopologySpread, &wider, &snapshot), ["a1", "a2", "b1"]);
        let more_domains = web(&[constraint(ZONE, json!({"minDomains": 3}))]);
        assert_eq!(feasible(&PodTopologySpread, &more_domains, &snapshot), [""; 0]);
        let other = labelled(
            "x",
            json!({"app": "db"}),
            json!({"topologySpreadConstraints": [constraint(ZONE, json!({}))]}),
        );
        assert_eq!(
            feasible(&PodTopologySpread, &other, &snapshot),
            ["a1", "a2", "b1"],
            "it does not count itself"
        );
    }

    #[test]
    fn excluded_nodes_do_not_count() {
        let snapshot = cluster(&[("a1", 1), ("b1", 0)]);
        let only_a = |policy: &str| {
            let constraint = constraint(ZONE, json!({"nodeAffinityPolicy": policy}));
            labelled(
                "new",
                json!({"app": "web"}),
                json!({"topologySpreadConstraints": [constraint], "nodeSelector": {ZONE: "a"}}),
            )
        };
        assert_eq!(feasible(&PodTopologySpread, &only_a("Honor"), &snapshot), ["a1", "b1"]);
        assert_eq!(feasible(&PodTopologySpread, &only_a("Ignore"), &snapshot), ["b1"]);
    }

    #[test]
    fn reasons_are_upstreams() {
        let snapshot = Snapshot::of([node("a1", json!({ZONE: "a"})), node("none", json!({}))]);
        let verdicts = verdicts(&PodTopologySpread, &web(&[constraint(ZONE, json!({}))]), &snapshot);
        let missing = "node(s) didn't match pod topology spread constraints (missing required label)";
        assert_eq!(
            verdicts,
            [("a1".to_owned(), Ok(())), ("none".to_owned(), Err(missing.to_owned()))]
        );
    }

    #[test]
    fn match_label_keys_separate_revisions() {
        let constraint = constraint(HOSTNAME, json!({"matchLabelKeys": ["rev"]}));
        let new = labelled(
            "new",
            json!({"app": "web", "rev": "2"}),
            json!({"topologySpreadConstraints": [constraint]}),
        );
        // All the pods there are of revision 1, which does not count.
        let old = |name: &str, node: &str| running(name, node, json!({"app": "web", "rev": "1"}), json!({}));
        let snapshot = Snapshot::of([
            with_pods(node("a1", json!({})), &[old("x", "a1"), old("y", "a1")]),
            node("b1", json!({})),
        ]);
        assert_eq!(feasible(&PodTopologySpread, &new, &snapshot), ["a1", "b1"]);
    }

    #[test]
    fn soft_constraints_prefer_the_emptier_domain() {
        let soft = constraint(ZONE, json!({"whenUnsatisfiable": "ScheduleAnyway"}));
        let scores = scores(
            &PodTopologySpread,
            &web(&[soft]),
            &cluster(&[("a1", 3), ("a2", 0), ("b1", 1)]),
        )
        .unwrap();
        assert_eq!(scores[0], scores[1]);
        assert!(scores[2] > scores[0], "{scores:?}");
    }

    #[test]
    fn pods_of_a_service_are_spread_by_default() {
        let mut snapshot = cluster(&[("a1", 2), ("a2", 0), ("b1", 0)]);
        let pod = labelled("new", json!({"app": "web"}), json!({}));
        assert_eq!(
            scores(&PodTopologySpread, &pod, &snapshot),
            None,
            "nothing says which pods are its like"
        );
        Arc::make_mut(&mut snapshot.objects).services.insert(
            ("default".into(), "web".into()),
            LabelSelector::parse("app=web").unwrap(),
        );
        let scores = scores(&PodTopologySpread, &pod, &snapshot).unwrap();
        assert!(scores[0] < scores[1] && scores[1] < scores[2], "{scores:?}");
    }
}
