//! How large each ReplicaSet of a Deployment is to be next.

use std::cmp::Reverse;
use std::sync::Arc;

use skiff_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::history::{DESIRED_REPLICAS, History, MAX_REPLICAS, newest_first};
use crate::view::{Deployment, ReplicaSet, View};

/// A set and the size that it gets.
#[derive(Clone, Debug)]
pub(super) struct Resize {
    pub(super) set: Arc<ReplicaSet>,
    pub(super) to: i32,
}

impl Deployment {
    pub(super) fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(super) fn is_rolling(&self) -> bool {
        self.spec.strategy.type_.as_deref() != Some("Recreate")
    }
}

/// How many pods a rolling update may have too many and too few of. Percentages of the former are rounded up, of the
/// latter down; both zero would get stuck, so one may then be unavailable.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let (surge, unavailable) = match &deployment.spec.strategy.rolling_update {
        Some(update) => (update.max_surge.clone(), update.max_unavailable.clone()),
        None => (None, None),
    };
    let default = || IntOrString::String("25%".into());
    let surge = resolve(&surge.unwrap_or_else(default), deployment.replicas(), true);
    let unavailable = resolve(&unavailable.unwrap_or_else(default), deployment.replicas(), false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i64>().ok())
                .unwrap_or_default();
            let parts = percent * i64::from(total);
            let whole = if round_up {
                (parts + 99).div_euclid(100)
            } else {
                parts.div_euclid(100)
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if deployment.is_rolling() {
        fenceposts(deployment).0
    } else {
        0
    }
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    if !deployment.is_rolling() || deployment.replicas() == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(deployment.replicas())
}

fn total<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().map(|set| set.replicas()).sum()
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.available_replicas.unwrap_or_default()
}

fn annotated(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.annotation(name)?.parse().ok()
}

/// Whether the Deployment's size differs from the one that its sets were last made for.
pub(super) fn is_scaling(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let active = sets.iter().filter(|set| set.replicas() > 0);
    active
        .filter_map(|set| annotated(set, DESIRED_REPLICAS))
        .any(|desired| desired != deployment.replicas())
}

/// The size for a newest set that has `has` pods, while all sets together have `all`.
pub(super) fn new_set_size(deployment: &Deployment, all: i32, has: i32) -> i32 {
    let desired = deployment.replicas();
    if !deployment.is_rolling() {
        return desired;
    }
    let room = desired + max_surge(deployment) - all;
    if room <= 0 { has } else { has + room.min(desired - has) }
}

/// The next step of a rolling update: first the newest set grows, then old ones shrink. Empty when there is none.
pub(super) fn rolling(deployment: &Deployment, history: &History) -> Vec<Resize> {
    let Some(new) = &history.new else { return Vec::new() };
    let desired = deployment.replicas();
    if new.replicas() > desired {
        return vec![Resize {
            set: Arc::clone(new),
            to: desired,
        }];
    }
    let size = new_set_size(deployment, total(history.all()), new.replicas());
    if size != new.replicas() {
        return vec![Resize {
            set: Arc::clone(new),
            to: size,
        }];
    }
    shrink_old(deployment, history, new)
}

fn shrink_old(deployment: &Deployment, history: &History, new: &ReplicaSet) -> Vec<Resize> {
    let min_available = deployment.replicas() - max_unavailable(deployment);
    let new_unavailable = new.replicas() - available(new);
    let mut budget = total(history.all()) - min_available - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = history
        .old
        .iter()
        .filter(|set| set.replicas() > 0)
        .map(|set| (Arc::clone(set), set.replicas()))
        .collect();
    // Pods that are not available serve nobody: they go first, whatever their set.
    for (set, size) in &mut sizes {
        let unhealthy = (*size - available(set)).clamp(0, budget);
        *size -= unhealthy;
        budget -= unhealthy;
    }
    let mut spare = history.all().map(|set| available(set)).sum::<i32>() - min_available;
    for (_, size) in &mut sizes {
        let going = (*size).clamp(0, spare.max(0));
        *size -= going;
        spare -= going;
    }
    let changed = sizes.into_iter().filter(|(set, size)| set.replicas() != *size);
    changed.map(|(set, to)| Resize { set, to }).collect()
}

/// The next step of a Recreate: old sets empty; the newest grows only when `old_pods_gone`.
pub(super) fn recreate(deployment: &Deployment, history: &History, old_pods_gone: bool) -> Vec<Resize> {
    let shrinking: Vec<_> = history
        .old
        .iter()
        .filter(|set| set.replicas() > 0)
        .map(|set| Resize {
            set: Arc::clone(set),
            to: 0,
        })
        .collect();
    if !shrinking.is_empty() || !old_pods_gone {
        return shrinking;
    }
    let new = history.new.iter().filter(|set| set.replicas() != deployment.replicas());
    new.map(|set| Resize {
        set: Arc::clone(set),
        to: deployment.replicas(),
    })
    .collect()
}

/// Sizes after the Deployment itself was resized (or while it is paused): in the middle of a rollout each set gets its
/// share, so that a bad version does not take all new pods.
pub(super) fn proportional(deployment: &Deployment, history: &History) -> Vec<Resize> {
    let desired = deployment.replicas();
    if let Some(only) = active_or_latest(history) {
        // Also when it has that size: until it is annotated with it, the Deployment counts as being scaled.
        return vec![Resize { set: only, to: desired }];
    }
    let active = |set: &&Arc<ReplicaSet>| set.replicas() > 0;
    if is_saturated(deployment, history.new.as_deref()) {
        return history
            .old
            .iter()
            .filter(active)
            .map(|set| Resize {
                set: Arc::clone(set),
                to: 0,
            })
            .collect();
    }
    if !deployment.is_rolling() {
        return Vec::new();
    }
    let mut sets: Vec<_> = history.all().filter(active).cloned().collect();
    let allowed = if desired > 0 {
        desired + max_surge(deployment)
    } else {
        0
    };
    let to_add = allowed - total(&sets);
    // The largest set first; of equals, the newer gains and the older loses.
    if to_add > 0 {
        newest_first(&mut sets);
    } else {
        sets.sort_by_key(|set| set.metadata.creation_timestamp.clone());
    }
    sets.sort_by_key(|set| Reverse(set.replicas()));
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in &sets {
        let share = share(deployment, set, to_add, added);
        added += share;
        sizes.push(set.replicas() + share);
    }
    if let Some(largest) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    sets.into_iter()
        .zip(sizes)
        .map(|(set, to)| Resize { set, to })
        .collect()
}

/// The only set with pods, or the latest when none has any; `None` when several have.
fn active_or_latest(history: &History) -> Option<Arc<ReplicaSet>> {
    let active: Vec<_> = history.all().filter(|set| set.replicas() > 0).collect();
    match active[..] {
        [] => history.new.clone().or_else(|| {
            let mut old = history.old.clone();
            newest_first(&mut old);
            old.into_iter().next()
        }),
        [only] => Some(Arc::clone(only)),
        _ => None,
    }
}

fn is_saturated(deployment: &Deployment, new: Option<&ReplicaSet>) -> bool {
    let desired = deployment.replicas();
    new.is_some_and(|new| {
        new.replicas() == desired && annotated(new, DESIRED_REPLICAS) == Some(desired) && available(new) == desired
    })
}

/// What a set gains (or, negative, loses) of `to_add`, of which `added` is given already.
fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if set.replicas() == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let desired = deployment.replicas();
    if desired == 0 {
        return -set.replicas();
    }
    let most = i64::from(desired + max_surge(deployment));
    let before = match annotated(set, MAX_REPLICAS).filter(|before| *before != 0) {
        Some(before) => before,
        // Made by somebody else: the size that the Deployment has now is the best guess.
        None => deployment.status.replicas.unwrap_or_default(),
    };
    if before == 0 {
        return 0;
    }
    let (scaled, before) = (i64::from(set.replicas()) * most, i64::from(before));
    let rounded = (2 * scaled + before).div_euclid(2 * before);
    i32::try_from(rounded).unwrap_or(i32::MAX) - set.replicas()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{deployment, set};
    use super::*;

    /// A set by image, size, available pods, and the sizes annotated.
    fn sized(name: &str, image: &str, size: i32, available: i32, annotated: Option<(i32, i32)>) -> Arc<ReplicaSet> {
        let mut set = set(name, size, json!({"image": image}));
        set.status.available_replicas = Some(available);
        if let Some((desired, most)) = annotated {
            set.metadata.annotations = Some(
                [
                    (DESIRED_REPLICAS.into(), desired.to_string()),
                    (MAX_REPLICAS.into(), most.to_string()),
                ]
                .into(),
            );
        }
        Arc::new(set)
    }

    fn strategy(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        deployment(
            json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}),
        )
    }

    fn sizes(resizes: &[Resize]) -> Vec<(&str, i32)> {
        resizes.iter().map(|resize| (resize.set.name(), resize.to)).collect()
    }

    #[test]
    fn percentages_round_to_the_safe_side() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (10, json!(0), json!("1%"), (0, 1)),
            (4, json!(2), json!(0), (2, 0)),
        ] {
            let deployment = strategy(replicas, surge, unavailable);
            assert_eq!(
                (max_surge(&deployment), max_unavailable(&deployment)),
                expected,
                "{replicas}"
            );
        }
    }

    #[test]
    fn a_rolling_update_goes_step_by_step() {
        // new (size, available), old (size, available) -> next step, for 10 replicas with 25 % each way
        type Sizes = (i32, i32);
        type Step<'a> = (Sizes, Sizes, &'a [(&'a str, i32)]);
        let steps: &[Step<'_>] = &[
            ((0, 0), (10, 10), &[("new", 3)]),
            ((3, 0), (10, 10), &[("old", 8)]),
            ((3, 0), (8, 8), &[("new", 5)]),
            ((5, 0), (8, 8), &[]),
            ((5, 3), (8, 8), &[("old", 5)]),
            ((10, 10), (2, 2), &[("old", 0)]),
            ((10, 10), (0, 0), &[]),
            // Five of the old are broken: they go first, and the sound ones stay.
            ((3, 0), (10, 5), &[("old", 8)]),
        ];
        for ((new_size, new_available), (old_size, old_available), expected) in steps {
            let deployment = strategy(10, json!("25%"), json!("25%"));
            let history = History {
                new: Some(sized("new", "2", *new_size, *new_available, None)),
                old: vec![sized("old", "1", *old_size, *old_available, None)],
            };
            assert_eq!(
                sizes(&rolling(&deployment, &history)),
                *expected,
                "new {new_size}/{new_available} old {old_size}/{old_available}"
            );
        }
    }

    #[test]
    fn recreate_waits_for_the_old_pods() {
        let deployment = deployment(json!({"spec": {"replicas": 3, "strategy": {"type": "Recreate"}}}));
        let history = |new, old| History {
            new: Some(sized("new", "2", new, 0, None)),
            old: vec![sized("old", "1", old, 0, None)],
        };
        assert_eq!(sizes(&recreate(&deployment, &history(0, 3), false)), [("old", 0)]);
        assert!(recreate(&deployment, &history(0, 0), false).is_empty());
        assert_eq!(sizes(&recreate(&deployment, &history(0, 0), true)), [("new", 3)]);
        assert!(recreate(&deployment, &history(3, 0), true).is_empty());
    }

    #[test]
    fn scaling_amid_a_rollout_is_proportional() {
        // From 10 (most 13) to 15 (most 19): upstream's documented example.
        let deployment = strategy(15, json!(3), json!(2));
        let history = History {
            new: Some(sized("new", "2", 5, 0, Some((10, 13)))),
            old: vec![sized("old", "1", 8, 8, Some((10, 13)))],
        };
        assert!(is_scaling(&deployment, &history.all().cloned().collect::<Vec<_>>()));
        assert_eq!(sizes(&proportional(&deployment, &history)), [("old", 11), ("new", 7)]);
        // Down to nothing: all go.
        let none = strategy(0, json!(3), json!(2));
        assert_eq!(sizes(&proportional(&none, &history)), [("old", 0), ("new", 0)]);
    }

    #[test]
    fn scaling_one_set_is_direct() {
        let deployment = strategy(5, json!(1), json!(1));
        let history = History {
            new: Some(sized("new", "2", 3, 3, Some((3, 4)))),
            old: vec![sized("old", "1", 0, 0, None)],
        };
        assert_eq!(sizes(&proportional(&deployment, &history)), [("new", 5)]);
        let saturated = History {
            new: Some(sized("new", "2", 5, 5, Some((5, 6)))),
            old: vec![sized("old", "1", 2, 2, Some((5, 6)))],
        };
        assert_eq!(sizes(&proportional(&deployment, &saturated)), [("old", 0)]);
        // Somebody else gave the set this size: what it was made for is still to be written.
        let by_hand = History {
            new: Some(sized("new", "2", 5, 5, Some((3, 4)))),
            old: Vec::new(),
        };
        assert!(is_scaling(&deployment, &by_hand.all().cloned().collect::<Vec<_>>()));
        assert_eq!(sizes(&proportional(&deployment, &by_hand)), [("new", 5)]);
    }
}
