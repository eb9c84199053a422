//! What is watched, and the thresholds at which something is done about it.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_api::quantity::Quantity;

use crate::config::KubeletConfiguration;

/// Something of which a node can have too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Signal {
    /// Memory of the machine.
    Memory,
    /// Memory of the cgroup of all pods, where it has a limit.
    AllocatableMemory,
    /// Bytes of the file system with the kubelet's directory.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Bytes of the file system with the runtime's images.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Bytes of the file system with the containers' writable layers: known by name, watched as that of the images.
    ContainerFs,
    /// Its inodes.
    ContainerFsInodes,
    /// Process ids.
    Pids,
}

/// How much is left of what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) available: i64,
    pub(crate) capacity: i64,
}

/// All that was seen at one moment.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

/// An amount, as it stands in the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// Bytes, inodes, process ids.
    Absolute(Quantity),
    /// A share of the capacity.
    Percent(f64),
}

/// When too little is left.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) signal: Signal,
    pub(crate) amount: Amount,
    /// How long a soft threshold may be crossed; zero for a hard one.
    pub(crate) grace: Duration,
    /// What is freed beyond the threshold.
    pub(crate) reclaim: Option<Amount>,
}

// === impl Signal ===

impl Signal {
    /// Upstream's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::AllocatableMemory => "allocatableMemory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::ContainerFs => "containerfs.available",
            Self::ContainerFsInodes => "containerfs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// The signal that a configuration names.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [
            Self::Memory,
            Self::NodeFs,
            Self::NodeFsInodes,
            Self::ImageFs,
            Self::ImageFsInodes,
            Self::ContainerFs,
            Self::ContainerFsInodes,
            Self::Pids,
        ]
        .into_iter()
        .find(|signal| signal.name() == name)
    }

    /// What pods use up, in upstream's messages and in their requests.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "memory",
            Self::NodeFs | Self::ImageFs | Self::ContainerFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// The node's condition.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "MemoryPressure",
            Self::Pids => "PIDPressure",
            _ => "DiskPressure",
        }
    }

    fn is_inodes(self) -> bool {
        matches!(self, Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes)
    }
}

// === impl Amount ===

impl Amount {
    /// `100Mi`, `10%`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent));
        }
        let quantity: Quantity = text.parse().ok()?;
        (!quantity.is_negative()).then_some(Self::Absolute(quantity))
    }

    /// The amount out of a capacity.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    // a share of a capacity stays far below i64's limits
    pub(crate) fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Absolute(quantity) => i64::try_from(quantity.value()).unwrap_or(i64::MAX),
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as i64,
        }
    }
}

// === impl Threshold ===

impl Threshold {
    pub(crate) fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// Whether too little is left; with `reclaim` also of what is to be freed beyond the threshold.
    pub(crate) fn is_met(&self, observations: &Observations, reclaim: bool) -> bool {
        let Some(seen) = observations.get(&self.signal) else {
            return false;
        };
        if self.signal.is_inodes() && seen.capacity == 0 {
            // File systems that make inodes as they need them.
            return false;
        }
        let mut least = self.amount.of(seen.capacity);
        if reclaim && let Some(more) = self.reclaim {
            least = least.saturating_add(more.of(seen.capacity));
        }
        seen.available < least
    }
}

/// The thresholds of a configuration, memory first, then by name.
pub(crate) fn thresholds(config: &KubeletConfiguration) -> Vec<Threshold> {
    let reclaim = |name: &str| {
        config
            .eviction_minimum_reclaim
            .get(name)
            .and_then(|text| Amount::parse(text))
    };
    let mut thresholds = Vec::new();
    for (list, soft) in [(&config.eviction_hard, false), (&config.eviction_soft, true)] {
        for (name, text) in list {
            let (Some(signal), Some(amount)) = (Signal::parse(name), Amount::parse(text)) else {
                continue;
            };
            if matches!(signal, Signal::ContainerFs | Signal::ContainerFsInodes) {
                tracing::warn!(
                    threshold = name,
                    "containers' layers lie where the images do: the thresholds of that disk hold, this one is not looked at"
                );
                continue;
            }
            if matches!(amount, Amount::Percent(percent) if percent <= 0.0 || percent >= 100.0) {
                // `0%` and `100%` switch a threshold off, as upstream documents.
                continue;
            }
            let grace = match soft {
                true => config
                    .eviction_soft_grace_period
                    .get(name)
                    .map_or(Duration::ZERO, |grace| grace.0),
                false => Duration::ZERO,
            };
            thresholds.push(Threshold {
                signal,
                amount,
                grace,
                reclaim: reclaim(name),
            });
            let enforced = config.enforce_node_allocatable.iter().any(|what| what == "pods");
            if signal == Signal::Memory && !soft && enforced {
                thresholds.push(Threshold {
                    signal: Signal::AllocatableMemory,
                    amount,
                    grace,
                    reclaim: reclaim(name),
                });
            }
        }
    }
    thresholds.sort_by_key(|threshold| threshold.signal);
    thresholds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let cases = [
            ("100Mi", 1 << 30, Some(100 << 20)),
            ("10%", 1000, Some(100)),
            ("0", 1000, Some(0)),
            ("101%", 1000, None),
            ("-1", 1000, None),
            ("lots", 1000, None),
        ];
        for (text, capacity, wanted) in cases {
            assert_eq!(Amount::parse(text).map(|amount| amount.of(capacity)), wanted, "{text}");
        }
    }

    #[test]
    fn thresholds_of_a_configuration() {
        let mut config = KubeletConfiguration {
            eviction_hard: [
                ("nodefs.available", "10%"),
                ("memory.available", "100Mi"),
                ("pid.available", "0%"),
                ("containerfs.available", "99%"),
                ("containerfs.inodesFree", "99%"),
            ]
            .map(|(name, amount)| (name.to_owned(), amount.to_owned()))
            .into(),
            ..KubeletConfiguration::default()
        };
        config.eviction_soft.insert("memory.available".into(), "1Gi".into());
        let grace = crate::config::GoDuration::seconds(90);
        config
            .eviction_soft_grace_period
            .insert("memory.available".into(), grace);
        config
            .eviction_minimum_reclaim
            .insert("nodefs.available".into(), "1Gi".into());
        let found: Vec<_> = thresholds(&config)
            .into_iter()
            .map(|threshold| {
                (
                    threshold.signal.name(),
                    threshold.grace.as_secs(),
                    threshold.reclaim.is_some(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("memory.available", 0, false),
                ("memory.available", 90, false),
                ("allocatableMemory.available", 0, false),
                ("nodefs.available", 0, true),
            ]
        );
    }

    #[test]
    fn a_threshold_is_met_until_the_reclaim_is_reached() {
        let threshold = Threshold {
            signal: Signal::NodeFs,
            amount: Amount::Percent(10.0),
            grace: Duration::ZERO,
            reclaim: Amount::parse("50"),
        };
        let met = |available: i64, reclaim: bool| {
            let seen = Observation {
                available,
                capacity: 1000,
            };
            threshold.is_met(&[(Signal::NodeFs, seen)].into(), reclaim)
        };
        assert!(met(99, false) && !met(100, false));
        assert!(met(149, true) && !met(150, true));
        assert!(!threshold.is_met(&Observations::new(), false), "not seen");
        let inodes = Threshold {
            signal: Signal::NodeFsInodes,
            ..threshold
        };
        let none = Observation::default();
        assert!(!inodes.is_met(&[(Signal::NodeFsInodes, none)].into(), false));
    }
}
