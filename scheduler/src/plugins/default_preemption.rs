//! DefaultPreemption: pods of lower priority make room.
//!
//! Every node that refused the pod for something that deleting pods can change is tried out without its pods of lower
//! priority; as many of those as possible are then put back. The node whose loss is least is taken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::cache::{Budget, Snapshot};
use crate::framework::{Diagnosis, Framework, Plugin, PostFilter, PostFiltered, Preemption, nodes_message};
use crate::model::{Node, Pod};

/// Enough nodes to choose from: at least this many are tried, or this share of all.
const MIN_CANDIDATES: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

/// Makes room by deleting pods.
#[derive(Debug)]
pub(crate) struct DefaultPreemption;

/// What a node would lose.
struct Candidate {
    node: Arc<str>,
    victims: Vec<Arc<Pod>>,
    /// Victims whose disruption budget is spent.
    violations: usize,
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }
}

impl PostFilter for DefaultPreemption {
    fn post_filter(
        &self,
        framework: &Framework,
        pod: &Pod,
        snapshot: &Snapshot,
        diagnosis: &Diagnosis,
    ) -> PostFiltered {
        let refusal = |reason: &str| PostFiltered {
            message: format!("preemption: {reason}"),
            ..PostFiltered::default()
        };
        if !pod.wants.may_preempt {
            return refusal("not eligible due to preemptionPolicy=Never.");
        }
        if victims_are_leaving(pod, snapshot) {
            return PostFiltered {
                keeps_nomination: true,
                ..refusal("not eligible due to a terminating pod on the nominated node.")
            };
        }
        let helpful: Vec<usize> = (diagnosis.rejected.iter())
            .filter(|(_, rejection)| !rejection.unresolvable)
            .map(|(position, _)| *position)
            .collect();
        let limit = MIN_CANDIDATES.max(snapshot.nodes.len() * CANDIDATES_PERCENT / 100);
        let mut candidates = Vec::new();
        let mut hopeless = 0;
        for position in &helpful {
            match try_out(framework, pod, snapshot, &snapshot.nodes[*position]) {
                Some(candidate) => candidates.push(candidate),
                None => hopeless += 1,
            }
            if candidates.len() >= limit {
                break;
            }
        }
        match candidates.into_iter().min_by_key(Candidate::loss) {
            Some(best) => PostFiltered {
                preemption: Some(Preemption {
                    node: best.node,
                    victims: best.victims,
                }),
                ..PostFiltered::default()
            },
            None => refusal(&verdict(snapshot.nodes.len(), helpful.len(), hopeless)),
        }
    }
}

fn verdict(nodes: usize, helpful: usize, hopeless: usize) -> String {
    let counts = [
        ("No preemption victims found for incoming pod", hopeless),
        ("Preemption is not helpful for scheduling", nodes - helpful),
    ];
    nodes_message(nodes, counts.into_iter().filter(|(_, count)| *count > 0))
}

/// Whether room is being made already: deleting more pods would not speed that up.
fn victims_are_leaving(pod: &Pod, snapshot: &Snapshot) -> bool {
    let nominated = pod.nominated_node.as_ref().and_then(|name| snapshot.node(name));
    let leaves = |other: &Arc<Pod>| other.terminating && other.priority < pod.priority;
    nominated.is_some_and(|node| node.pods.iter().any(leaves))
}

/// The fewest and least important pods that have to leave a node so that `pod` fits.
fn try_out(framework: &Framework, pod: &Pod, snapshot: &Snapshot, node: &Arc<Node>) -> Option<Candidate> {
    let (mut lower, _): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = node
        .pods
        .iter()
        .cloned()
        .partition(|other| other.priority < pod.priority);
    if lower.is_empty() {
        return None;
    }
    let mut trial = Node::clone(node);
    for victim in &lower {
        trial.remove_pod(&victim.uid);
    }
    if !fits(framework, pod, snapshot, &trial) {
        return None;
    }
    // The most important first: highest priority, then longest running.
    lower.sort_by_key(|other| (Reverse(other.priority), other.started));
    let (violating, others) = split_by_budget(&snapshot.objects.budgets, lower);
    let mut candidate = Candidate {
        node: Arc::clone(&node.name),
        victims: Vec::new(),
        violations: 0,
    };
    for (group, violates) in [(violating, true), (others, false)] {
        for spared in group {
            trial.add_pod(Arc::clone(&spared));
            if !fits(framework, pod, snapshot, &trial) {
                trial.remove_pod(&spared.uid);
                candidate.violations += usize::from(violates);
                candidate.victims.push(spared);
            }
        }
    }
    (!candidate.victims.is_empty()).then_some(candidate)
}

fn fits(framework: &Framework, pod: &Pod, snapshot: &Snapshot, trial: &Node) -> bool {
    let snapshot = snapshot.with_node(trial.clone());
    framework
        .filters(pod, &snapshot)
        .is_ok_and(|filters| filters.check(trial).is_ok())
}

/// Those whose budget does not allow one more to go, and the rest, each in order.
fn split_by_budget(
    budgets: &HashMap<(Arc<str>, Arc<str>), Budget>,
    pods: Vec<Arc<Pod>>,
) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let mut allowed: BTreeMap<&(Arc<str>, Arc<str>), i64> =
        budgets.iter().map(|(key, budget)| (key, budget.allowed)).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (key, budget) in budgets {
            if key.0 == pod.namespace
                && budget.selector.matches(&pod.labels)
                && let Some(left) = allowed.get_mut(key)
            {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

impl Candidate {
    /// Compared from left to right: broken budgets, the most important victim, the sum of their priorities, their
    /// number, and how long the most important one has run.
    fn loss(&self) -> (usize, i32, i64, usize, Reverse<i64>) {
        let highest = self
            .victims
            .iter()
            .map(|victim| victim.priority)
            .max()
            .unwrap_or(i32::MIN);
        // Shifted, so that many victims of negative priority are not better than few.
        let sum = self
            .victims
            .iter()
            .map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1)
            .sum();
        let oldest = self
            .victims
            .iter()
            .filter(|victim| victim.priority == highest)
            .map(|victim| victim.started)
            .min();
        (
            self.violations,
            highest,
            sum,
            self.victims.len(),
            Reverse(oldest.unwrap_or_default()),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use skiff_api::selector::LabelSelector;

    use super::*;
    use crate::cycle;
    use crate::model::testing::{asking, node, pod, running, with_pods};
    use crate::testing::no_client;

    fn spec(cpu: &str, priority: i32) -> Value {
        let mut spec = asking(cpu, "1Mi");
        spec["priority"] = json!(priority);
        spec
    }

    fn on(node: &str, name: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        running(name, node, json!({"app": name}), spec(cpu, priority))
    }

    fn preempt(pod: &Pod, snapshot: &Snapshot) -> PostFiltered {
        let framework = Framework::new(no_client());
        let diagnosis = cycle::schedule(&framework, snapshot, pod, &mut 0).unwrap_err();
        framework.post_filter(pod, snapshot, &diagnosis)
    }

    fn victims(found: &PostFiltered) -> (String, Vec<String>) {
        let preemption = found.preemption.as_ref().unwrap_or_else(|| panic!("{found:?}"));
        let mut names: Vec<String> = preemption.victims.iter().map(|pod| pod.name.to_string()).collect();
        names.sort();
        (preemption.node.to_string(), names)
    }

    #[tokio::test]
    async fn the_least_important_and_fewest_go() {
        let snapshot = Snapshot::of([
            with_pods(
                node("n1", json!({})),
                &[on("n1", "high", "2", 50), on("n1", "low", "2", 10)],
            ),
            with_pods(node("n2", json!({})), &[on("n2", "x", "1", 20), on("n2", "y", "3", 20)]),
        ]);
        assert_eq!(
            victims(&preempt(&pod("p", spec("2", 100)), &snapshot)),
            ("n1".to_owned(), vec!["low".to_owned()])
        );
        // On n1 both would have to go, one of them more important than any on n2.
        let all = victims(&preempt(&pod("p", spec("4", 100)), &snapshot));
        assert_eq!(all, ("n2".to_owned(), vec!["x".to_owned(), "y".to_owned()]));
    }

    #[tokio::test]
    async fn budgets_are_kept_where_possible() {
        let mut snapshot = Snapshot::of([
            with_pods(node("n1", json!({})), &[on("n1", "guarded", "4", 1)]),
            with_pods(node("n2", json!({})), &[on("n2", "free", "4", 2)]),
        ]);
        let budget = Budget {
            selector: LabelSelector::parse("app=guarded").unwrap(),
            allowed: 0,
        };
        Arc::make_mut(&mut snapshot.objects)
            .budgets
            .insert(("default".into(), "b".into()), budget);
        assert_eq!(victims(&preempt(&pod("p", spec("1", 100)), &snapshot)).1, ["free"]);
    }

    #[tokio::test]
    async fn refusals_are_upstreams() {
        let mut cordoned = node("n2", json!({}));
        cordoned.unschedulable = true;
        let snapshot = Snapshot::of([
            with_pods(node("n1", json!({})), &[on("n1", "equal", "4", 100)]),
            cordoned,
        ]);
        assert_eq!(
            preempt(&pod("p", spec("1", 100)), &snapshot).message,
            "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
             1 Preemption is not helpful for scheduling."
        );
        let mut polite = spec("1", 1000);
        polite["preemptionPolicy"] = json!("Never");
        assert_eq!(
            preempt(&pod("p", polite), &snapshot).message,
            "preemption: not eligible due to preemptionPolicy=Never."
        );
    }
}
