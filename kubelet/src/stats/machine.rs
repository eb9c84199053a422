//! What the machine as a whole has used: the node's own figures, the same with both versions of cgroups.

use std::fs;
use std::path::Path;

use crate::cgroups::{Pressure, Usage};

/// Clock ticks a second in `/proc`.
const TICKS: u64 = 100;

/// Traffic of one network interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// Traffic in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// The machine's CPU time and memory.
pub(crate) fn usage() -> Usage {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Usage {
        pressure: Pressure::of_machine(Path::new("/proc/pressure")),
        ..parse(&text("/proc/stat"), &text("/proc/meminfo"), &text("/proc/vmstat"))
    }
}

fn parse(stat: &str, meminfo: &str, vmstat: &str) -> Usage {
    let memory = |name: &str| -> u64 {
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    let count = |name: &str| -> u64 {
        let line = vmstat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    };
    // What the kernel charges to its root cgroup, with both versions: anonymous pages and the page cache (whose parts these three are).
    // Not what it keeps for itself: of slabs, however large, it gives back what it can before anybody goes short.
    let file_pages = memory("Cached") + memory("Buffers") + memory("SwapCached");
    let used = memory("AnonPages") + file_pages;
    let (user, system) = busy(stat);
    Usage {
        cpu: user + system,
        cpu_parts: (user, system),
        memory: used,
        working_set: used.saturating_sub(memory("Inactive(file)")),
        rss: memory("AnonPages"),
        cache: memory("Cached"),
        mapped: memory("Mapped"),
        swap: memory("SwapTotal").saturating_sub(memory("SwapFree")),
        faults: count("pgfault"),
        major_faults: count("pgmajfault"),
        ..Usage::default()
    }
}

/// Nanoseconds that were spent working, in programs (user, nice) and in the kernel (system, irq, softirq), not idle and waiting, nor
/// what guests or others took.
fn busy(stat: &str) -> (u64, u64) {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let sum = |which: &[usize]| which.iter().filter_map(|index| fields.get(*index)).sum::<u64>();
    let nanoseconds = |ticks: u64| ticks * (1_000_000_000 / TICKS);
    (nanoseconds(sum(&[0, 1])), nanoseconds(sum(&[2, 5, 6])))
}

/// When the machine was started, in seconds since 1970.
pub(crate) fn boot_time() -> i64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The interfaces of a process's network namespace, but loopback.
pub(crate) fn interfaces(process: Option<u32>) -> Vec<Interface> {
    let path = process.map_or_else(|| "/proc/self/net/dev".to_owned(), |pid| format!("/proc/{pid}/net/dev"));
    parse_interfaces(&fs::read_to_string(path).unwrap_or_default())
}

fn parse_interfaces(text: &str) -> Vec<Interface> {
    let mut interfaces = Vec::new();
    for (name, rest) in text.lines().filter_map(|line| line.split_once(':')) {
        let fields: Vec<u64> = rest.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let name = name.trim();
        if name == "lo" || fields.len() < 12 {
            continue;
        }
        let traffic = |at: usize| Traffic {
            bytes: fields[at],
            packets: fields[at + 1],
            errors: fields[at + 2],
            dropped: fields[at + 3],
        };
        interfaces.push(Interface {
            name: name.to_owned(),
            received: traffic(0),
            sent: traffic(8),
        });
    }
    interfaces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory() {
        let usage = parse(
            "cpu  100 10 50 9999 77 3 2 0 0 0\ncpu0 1 1 1 1\n",
            "MemTotal: 4194304 kB\nMemFree: 400 kB\nBuffers: 40 kB\nCached: 500 kB\nSwapCached: 3 kB\nInactive(file): 100 kB\n\
             AnonPages: 57 kB\nSReclaimable: 2097152 kB\n",
            "pgfault 5\npgfault_x 6\npgmajfault 2\n",
        );
        assert_eq!(usage.cpu, 165 * 10_000_000);
        assert_eq!(usage.cpu_parts, (110 * 10_000_000, 55 * 10_000_000));
        assert_eq!((usage.memory, usage.working_set), (600 << 10, 500 << 10));
        assert_eq!((usage.rss, usage.faults, usage.major_faults), (57 << 10, 5, 2));
    }

    #[test]
    fn network() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0:10 2 3 4 0 0 0 0 20 6 7 8 0 0 0 0\n";
        let interfaces = parse_interfaces(text);
        assert_eq!(interfaces.len(), 1);
        assert_eq!(interfaces[0].name, "eth0");
        let sent = interfaces[0].sent;
        assert_eq!(
            (
                interfaces[0].received.bytes,
                sent.bytes,
                sent.packets,
                sent.errors,
                sent.dropped
            ),
            (10, 20, 6, 7, 8)
        );
        assert!(super::usage().cpu > 0 && boot_time() > 0);
    }
}
