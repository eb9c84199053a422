//! From what is left to what is to be done: pure, over what is remembered of the looks before.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::signal::{Observations, Threshold};

/// Which of the node's conditions hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Thresholds that are crossed, with the time since when.
    met: Vec<(Threshold, Instant)>,
    /// When each condition was last true.
    seen: BTreeMap<&'static str, Instant>,
}

/// What one look means.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) pressure: Pressure,
    /// Thresholds to act upon, the most urgent first.
    pub(super) starved: Vec<Threshold>,
}

impl Pressure {
    /// The names of the conditions that hold, as upstream's messages list them.
    pub(crate) fn conditions(self) -> Vec<&'static str> {
        [
            (self.memory, "MemoryPressure"),
            (self.disk, "DiskPressure"),
            (self.pids, "PIDPressure"),
        ]
        .into_iter()
        .filter_map(|(holds, name)| holds.then_some(name))
        .collect()
    }
}

impl State {
    /// Takes a look in. A threshold that was crossed stays so until the minimum reclaim is reached too; a condition stays true for
    /// `transition` after its last threshold was crossed, so that it does not flap.
    pub(super) fn step(
        &mut self,
        thresholds: &[Threshold],
        observations: &Observations,
        transition: Duration,
        now: Instant,
    ) -> Verdict {
        let since = |threshold: &Threshold| {
            self.met
                .iter()
                .find(|(known, _)| known == threshold)
                .map(|(_, since)| *since)
        };
        let met: Vec<(Threshold, Instant)> = thresholds
            .iter()
            .filter_map(|threshold| {
                let before = since(threshold);
                let met = threshold.is_met(observations, before.is_some());
                met.then(|| (threshold.clone(), before.unwrap_or(now)))
            })
            .collect();
        self.met = met;
        for (threshold, _) in &self.met {
            self.seen.insert(threshold.signal.condition(), now);
        }
        // Before the first pressure there is nothing to wait for.
        self.seen
            .retain(|_, at| *at == now || now.duration_since(*at) < transition);
        let holds = |condition: &str| self.seen.contains_key(condition);
        Verdict {
            pressure: Pressure {
                memory: holds("MemoryPressure"),
                disk: holds("DiskPressure"),
                pids: holds("PIDPressure"),
            },
            starved: self
                .met
                .iter()
                .filter(|(threshold, since)| now.duration_since(*since) >= threshold.grace)
                .map(|(threshold, _)| threshold.clone())
                .collect(),
        }
    }
}

/// Whether what is left comes near one of the thresholds: then it is looked at more often.
pub(super) fn is_near(thresholds: &[Threshold], observations: &Observations) -> bool {
    thresholds.iter().any(|threshold| {
        observations.get(&threshold.signal).is_some_and(|seen| {
            let least = threshold.amount.of(seen.capacity);
            least > 0 && seen.available < least.saturating_mul(2)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::signal::{Amount, Observation, Signal};
    use super::*;

    const TRANSITION: Duration = Duration::from_secs(300);

    fn threshold(signal: Signal, percent: f64, grace: u64, reclaim: Option<f64>) -> Threshold {
        Threshold {
            signal,
            amount: Amount::Percent(percent),
            grace: Duration::from_secs(grace),
            reclaim: reclaim.map(Amount::Percent),
        }
    }

    fn left(list: &[(Signal, i64)]) -> Observations {
        let seen = |available: i64| Observation {
            available,
            capacity: 100,
        };
        list.iter()
            .map(|(signal, available)| (*signal, seen(*available)))
            .collect()
    }

    #[test]
    fn hard_thresholds_act_at_once_and_conditions_outlast_them() {
        let thresholds = [threshold(Signal::Memory, 10.0, 0, Some(5.0))];
        let mut state = State::default();
        let start = Instant::now();
        let mut at = |second: u64, available: i64| {
            let now = start + Duration::from_secs(second);
            let verdict = state.step(&thresholds, &left(&[(Signal::Memory, available)]), TRANSITION, now);
            (verdict.pressure.memory, verdict.starved.len())
        };
        assert_eq!(at(0, 50), (false, 0));
        assert_eq!(at(10, 9), (true, 1));
        assert_eq!(at(20, 12), (true, 1), "the minimum reclaim is not reached");
        assert_eq!(at(30, 15), (true, 0));
        assert_eq!(at(310, 15), (true, 0), "the transition period");
        assert_eq!(at(320, 15), (false, 0));
        assert_eq!(
            at(330, 12),
            (false, 0),
            "above the threshold, and nothing was crossed before"
        );
    }

    #[test]
    fn soft_thresholds_have_a_grace_period_that_begins_anew() {
        let thresholds = [threshold(Signal::NodeFs, 20.0, 60, None)];
        let mut state = State::default();
        let start = Instant::now();
        let mut at = |second: u64, available: i64| {
            let now = start + Duration::from_secs(second);
            let verdict = state.step(&thresholds, &left(&[(Signal::NodeFs, available)]), TRANSITION, now);
            (verdict.pressure.disk, verdict.starved.len())
        };
        assert_eq!(at(0, 15), (true, 0));
        assert_eq!(at(59, 15), (true, 0));
        assert_eq!(at(60, 15), (true, 1));
        assert_eq!(at(70, 30), (true, 0));
        assert_eq!(at(80, 15), (true, 0));
        assert_eq!(at(140, 15), (true, 1));
    }

    #[test]
    fn pids_and_nearness() {
        let thresholds = [threshold(Signal::Pids, 10.0, 0, None)];
        let verdict = State::default().step(&thresholds, &left(&[(Signal::Pids, 5)]), TRANSITION, Instant::now());
        assert_eq!(verdict.pressure.conditions(), ["PIDPressure"]);
        assert!(is_near(&thresholds, &left(&[(Signal::Pids, 15)])));
        assert!(!is_near(&thresholds, &left(&[(Signal::Pids, 25), (Signal::Memory, 0)])));
    }
}
