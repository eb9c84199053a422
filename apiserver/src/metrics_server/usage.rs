//! From two looks at a node to what is used now.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::scrape::{Sample, Scrape};

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Billionths of a CPU core.
    pub(super) nano_cores: u64,
    /// Bytes.
    pub(super) working_set: u64,
}

/// Two looks at one node, the older first.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) before: Scrape,
    pub(super) last: Scrape,
}

impl Pair {
    /// When the newer look was taken.
    pub(super) fn at(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
            .checked_add(SignedDuration::from_secs_f64(self.last.node.at))
            .unwrap_or_default()
    }

    /// Seconds between the two.
    pub(super) fn window(&self) -> f64 {
        self.last.node.at - self.before.node.at
    }
}

/// The node's usage; none when the two looks do not fit together (it was started anew between them).
pub(super) fn of_node(pair: &Pair) -> Option<Usage> {
    rate(&pair.before.node, &pair.last.node)
}

/// The usage of a pod's containers, by name. A container that is younger than the older look counts from its start.
pub(super) fn of_pod(pair: &Pair, namespace: &str, pod: &str) -> BTreeMap<String, Usage> {
    let mut containers = BTreeMap::new();
    for (key, last) in &pair.last.containers {
        if key.0 != namespace || key.1 != pod {
            continue;
        }
        let same = |before: &&Sample| before.started == last.started && before.cpu <= last.cpu;
        let start = Sample {
            at: last.started,
            ..Sample::default()
        };
        let before = pair.before.containers.get(key).filter(same).unwrap_or(&start);
        if let Some(usage) = rate(before, last) {
            containers.insert(key.2.clone(), usage);
        }
    }
    containers
}

fn rate(before: &Sample, last: &Sample) -> Option<Usage> {
    let seconds = last.at - before.at;
    if before.at <= 0.0 || seconds <= 0.0 || last.cpu < before.cpu {
        return None;
    }
    Some(Usage {
        nano_cores: whole((last.cpu - before.cpu) / seconds * 1e9),
        working_set: whole(last.working_set),
    })
}

/// Not negative here; a float too large for the type becomes the type's largest number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cpu: f64, at: f64, started: f64) -> Sample {
        Sample {
            cpu,
            working_set: 4096.0,
            at,
            started,
        }
    }

    fn look(cpu: f64, at: f64, containers: &[(&str, Sample)]) -> Scrape {
        Scrape {
            node: sample(cpu, at, 0.0),
            containers: containers
                .iter()
                .map(|(name, sample)| (("ns".to_owned(), "p".to_owned(), (*name).to_owned()), *sample))
                .collect(),
        }
    }

    #[test]
    fn usage_between_two_looks() {
        let pair = Pair {
            before: look(
                10.0,
                100.0,
                &[("old", sample(1.0, 100.0, 50.0)), ("again", sample(9.0, 100.0, 50.0))],
            ),
            last: look(
                12.0,
                104.0,
                &[
                    ("old", sample(3.0, 104.0, 50.0)),
                    ("again", sample(0.5, 104.0, 103.0)),
                    ("new", sample(1.0, 104.0, 102.0)),
                ],
            ),
        };
        let cores = |usage: Usage| usage.nano_cores;
        assert_eq!(of_node(&pair).map(cores), Some(500_000_000));
        let pod = of_pod(&pair, "ns", "p");
        assert_eq!(cores(pod["old"]), 500_000_000);
        assert_eq!(
            cores(pod["again"]),
            500_000_000,
            "half a second of CPU in the second since its restart"
        );
        assert_eq!(cores(pod["new"]), 500_000_000);
        assert_eq!(pod["new"].working_set, 4096);
        assert!(of_pod(&pair, "ns", "q").is_empty());
        assert_eq!((pair.window(), pair.at().as_second()), (4.0, 104));
    }

    #[test]
    fn a_machine_that_started_anew_has_no_usage_yet() {
        let pair = Pair {
            before: look(10.0, 100.0, &[]),
            last: look(1.0, 104.0, &[]),
        };
        assert_eq!(of_node(&pair), None);
    }
}
