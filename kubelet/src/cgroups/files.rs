//! Limits as the files of both versions of cgroups.

use super::Limits;

const MIN_SHARES: i64 = super::limits::MIN_SHARES;
const MAX_SHARES: i64 = super::limits::MAX_SHARES;

/// Files of one controller of version 1, in the order of writing.
pub(super) fn v1(controller: &str, limits: Limits) -> Vec<(&'static str, String)> {
    let files = match controller {
        "cpu" => vec![
            ("cpu.shares", limits.shares),
            ("cpu.cfs_period_us", limits.period),
            ("cpu.cfs_quota_us", limits.quota),
        ],
        "memory" => vec![("memory.limit_in_bytes", limits.memory)],
        "pids" => vec![("pids.max", limits.pids)],
        _ => Vec::new(),
    };
    files
        .into_iter()
        .filter_map(|(file, value)| Some((file, value?.to_string())))
        .collect()
}

/// Files of version 2.
pub(super) fn v2(limits: Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.shares {
        files.push(("cpu.weight", weight(shares).to_string()));
    }
    if let (Some(quota), Some(period)) = (limits.quota, limits.period) {
        files.push(("cpu.max", format!("{quota} {period}")));
    }
    files.extend(limits.memory.map(|memory| ("memory.max", memory.to_string())));
    files.extend(limits.pids.map(|pids| ("pids.max", pids.to_string())));
    files
}

/// Version 1's shares (2 to 262,144, usually 1,024) as version 2's weight (1 to 10,000, usually 100): a curve through all three
/// points, as Kubernetes has it since 1.35 (opencontainers/cgroups #20).
pub(super) fn weight(shares: i64) -> i64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return 10_000;
    }
    #[allow(clippy::cast_precision_loss)] // at most 262,144
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[allow(clippy::cast_possible_truncation)] // at most 10,000
    let weight = 10_f64.powf(exponent).ceil() as i64;
    weight.clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Limits = Limits {
        shares: Some(512),
        quota: Some(50_000),
        period: Some(100_000),
        memory: Some(64 << 20),
        pids: Some(64),
    };

    fn text(files: Vec<(&'static str, String)>) -> String {
        let lines = files.into_iter().map(|(file, value)| format!("{file}={value}"));
        lines.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn files_of_both_versions() {
        assert_eq!(
            text(v1("cpu", FULL)),
            "cpu.shares=512 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000"
        );
        assert_eq!(text(v1("memory", FULL)), "memory.limit_in_bytes=67108864");
        assert_eq!(text(v1("pids", FULL)), "pids.max=64");
        assert_eq!(text(v1("freezer", FULL)), "");
        assert_eq!(
            text(v2(FULL)),
            "cpu.weight=59 cpu.max=50000 100000 memory.max=67108864 pids.max=64"
        );
        assert_eq!(text(v2(Limits::default())), "");
    }

    #[test]
    fn weights() {
        let cases = [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (102, 17),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (102_400, 4429),
            (262_144, 10_000),
            (1 << 40, 10_000),
        ];
        for (shares, wanted) in cases {
            assert_eq!(weight(shares), wanted, "{shares} shares");
        }
        let all: Vec<i64> = (2..262_144).step_by(97).map(weight).collect();
        assert!(all.is_sorted(), "more shares never weigh less");
    }
}
