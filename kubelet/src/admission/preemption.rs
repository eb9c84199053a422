//! Who makes room when a critical pod does not fit: as few pods as need be, the least protected class first, as upstream
//! chooses them. A pure function.

use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_api::pods;

use super::Shortage;
use crate::eviction::is_critical;
use crate::memory::Finish;
use crate::pod::{self, Qos};

const REASON: &str = "Preempting";
const MESSAGE: &str = "Preempted in order to admit critical pod";

/// The end of a pod that makes room.
pub(crate) fn finish(pod: &Pod) -> Finish {
    Finish {
        evicted: Some(pod::grace_period(pod)),
        ..Finish::failed(REASON, MESSAGE)
    }
}

/// What the `DisruptionTarget` condition says of such an end; `None` for other ends.
pub(crate) fn disruption(finish: &Finish) -> Option<&'static str> {
    (finish.reason.as_deref() == Some(REASON)).then_some("Pod was preempted by Kubelet to accommodate a critical pod.")
}

/// Something that is still to be freed.
#[derive(Clone, Debug, PartialEq)]
struct Need {
    resource: String,
    amount: i128,
}

/// The pods that must end so that `pod` has what it lacks; `None` when it is not critical, or when all together would not do.
pub(crate) fn victims<'a>(
    pod: &Pod,
    shortages: &[Shortage],
    others: impl Iterator<Item = &'a Pod>,
) -> Option<Vec<&'a Pod>> {
    if !is_critical(pod) || shortages.is_empty() {
        return None;
    }
    let needs: Vec<Need> = shortages
        .iter()
        .map(|short| Need {
            resource: short.resource.clone(),
            amount: short.requested - (short.capacity - short.used),
        })
        .collect();
    let (mut guaranteed, mut burstable, mut best_effort) = (Vec::new(), Vec::new(), Vec::new());
    for other in others.filter(|other| may_be_preempted(pod, other)) {
        match pod::qos(other) {
            Qos::Guaranteed => guaranteed.push(other),
            Qos::Burstable => burstable.push(other),
            Qos::BestEffort => best_effort.push(other),
        }
    }
    // What is needed of a class when all of the weaker classes, and what was chosen of the stronger ones, are gone.
    let strong = choose(guaranteed, &less(&needs, burstable.iter().chain(&best_effort).copied()))?;
    let rest = less(&needs, strong.iter().copied());
    let middle = choose(burstable, &less(&rest, best_effort.iter().copied()))?;
    let rest = less(&rest, middle.iter().copied());
    let weak = choose(best_effort, &rest)?;
    Some([weak, middle, strong].concat())
}

fn may_be_preempted(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod::spec(pod).priority;
    let higher = || matches!((priority(pod), priority(other)), (Some(mine), Some(its)) if mine > its);
    !is_critical(other) || higher()
}

/// What a pod frees of a resource, in the measure of shortages.
fn frees(pod: &Pod, resource: &str) -> i128 {
    if resource == "pods" {
        return 1;
    }
    let requests = pods::requests(pod::spec(pod));
    requests
        .get(resource)
        .map_or(0, |quantity| super::amount(resource, *quantity))
}

fn less<'a>(needs: &[Need], gone: impl Iterator<Item = &'a Pod> + Clone) -> Vec<Need> {
    let left = needs.iter().map(|need| Need {
        resource: need.resource.clone(),
        amount: need.amount - gone.clone().map(|pod| frees(pod, &need.resource)).sum::<i128>(),
    });
    left.filter(|need| need.amount > 0).collect()
}

/// The pods of one class that fill the needs: again and again the one that comes nearest, of two the smaller.
fn choose<'a>(mut pods: Vec<&'a Pod>, needs: &[Need]) -> Option<Vec<&'a Pod>> {
    let mut needs = needs.to_vec();
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let nearest = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            let size = |pod: &Pod| ["memory", "cpu"].map(|resource| frees(pod, resource));
            distance(&needs, a)
                .total_cmp(&distance(&needs, b))
                .then_with(|| size(a).cmp(&size(b)))
        });
        let (index, _) = nearest?;
        let pod = pods.swap_remove(index);
        needs = less(&needs, std::iter::once(pod));
        chosen.push(pod);
    }
    Some(chosen)
}

/// How far a pod alone is from filling the needs: the sum of the squares of the shares that would be missing.
#[allow(clippy::cast_precision_loss)] // a measure to compare by
fn distance(needs: &[Need], pod: &Pod) -> f64 {
    let missing = |need: &Need| {
        let left = (need.amount - frees(pod, &need.resource)).max(0);
        left as f64 / need.amount as f64
    };
    needs.iter().map(|need| missing(need).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sized(name: &str, priority: i32, class: Qos, cpu: &str) -> Pod {
        let resources = match class {
            Qos::Guaranteed => {
                json!({"limits": {"cpu": cpu, "memory": "1Mi"}, "requests": {"cpu": cpu, "memory": "1Mi"}})
            }
            Qos::Burstable => json!({"requests": {"cpu": cpu}}),
            Qos::BestEffort => json!({}),
        };
        let mut p = crate::pod::tests::pod(
            &json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]}),
        );
        p.metadata.name = Some(name.into());
        p
    }

    fn names(victims: Option<Vec<&Pod>>) -> Option<Vec<String>> {
        let name = |pod: &&Pod| pod.metadata.name.clone().unwrap_or_default();
        victims.map(|pods| pods.iter().map(name).collect())
    }

    fn short(resource: &str, requested: i128, used: i128, capacity: i128) -> Shortage {
        Shortage {
            resource: resource.into(),
            requested,
            used,
            capacity,
        }
    }

    #[test]
    fn only_critical_pods_preempt_and_critical_ones_only_by_priority() {
        let others = [sized("critical", 2_000_000_000, Qos::Burstable, "1")];
        let cpu = [short("cpu", 500, 2000, 2000)];
        let chosen = |priority| {
            names(victims(
                &sized("new", priority, Qos::Burstable, "500m"),
                &cpu,
                others.iter(),
            ))
        };
        assert_eq!(chosen(1000), None);
        assert_eq!(chosen(2_000_000_000), None);
        assert_eq!(chosen(2_000_001_000), Some(vec!["critical".to_owned()]));
    }

    #[test]
    fn the_weakest_class_that_will_do_and_no_more_than_needed() {
        let others = [
            sized("guaranteed", 0, Qos::Guaranteed, "500m"),
            sized("large", 0, Qos::Burstable, "1"),
            sized("fitting", 0, Qos::Burstable, "500m"),
            sized("small", 0, Qos::Burstable, "100m"),
            sized("nothing", 0, Qos::BestEffort, ""),
        ];
        let new = sized("new", 2_000_000_000, Qos::Burstable, "500m");
        let cases: [(i128, &[&str]); 5] = [
            (100, &["small"]),
            (500, &["fitting"]),
            (550, &["large"]),
            (1050, &["large", "small"]),
            (2000, &["large", "fitting", "guaranteed"]),
        ];
        for (missing, wanted) in cases {
            let cpu = [short("cpu", missing, 2000, 2000)];
            let chosen = names(victims(&new, &cpu, others.iter())).unwrap_or_default();
            assert_eq!(chosen, wanted, "{missing}m of CPU");
        }
        let count = [short("pods", 1, 5, 5)];
        assert_eq!(
            names(victims(&new, &count, others.iter())),
            Some(vec!["nothing".to_owned()])
        );
        let too_much = [short("cpu", 9000, 0, 2000)];
        assert_eq!(victims(&new, &too_much, others.iter()), None);
    }
}
