//! What cgroups say has been used.

use std::fs;
use std::path::{Path, PathBuf};

use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::{Cgroups, Hierarchy, Maker, Pressure, below, kernel_log};
use crate::pod::Qos;

/// What a cgroup has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU time in nanoseconds, since the cgroup was made.
    pub(crate) cpu: u64,
    /// Of it, in programs and in the kernel.
    pub(crate) cpu_parts: (u64, u64),
    /// All memory charged, in bytes.
    pub(crate) memory: u64,
    /// Memory that cannot be given back at once, in bytes.
    pub(crate) working_set: u64,
    /// Anonymous memory, in bytes.
    pub(crate) rss: u64,
    /// Page cache, in bytes.
    pub(crate) cache: u64,
    /// Files mapped into memory, in bytes.
    pub(crate) mapped: u64,
    /// Swap, in bytes.
    pub(crate) swap: u64,
    /// Page faults.
    pub(crate) faults: u64,
    /// Page faults that read a disk.
    pub(crate) major_faults: u64,
    /// Memory limit, in bytes.
    pub(crate) limit: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// Periods with a CPU quota, those that ran into it, and the nanoseconds lost so.
    pub(crate) throttling: (u64, u64, u64),
    /// The most memory that was ever charged, in bytes, where the kernel tells.
    pub(crate) peak: Option<u64>,
    /// How often the memory limit was hit.
    pub(crate) refused: u64,
    /// How often the kernel has killed in this cgroup for want of memory.
    pub(crate) kills: u64,
    /// What tasks have waited for, where the kernel tells.
    pub(crate) pressure: Pressure,
}

/// v1's `memory.limit_in_bytes` without a limit, and above.
const NO_LIMIT: u64 = 1 << 60;
/// Nanoseconds of a tick of v1's `cpuacct.stat`.
const TICK: u64 = 10_000_000;

impl Cgroups {
    /// What all pods together have used.
    pub(crate) fn usage_of_pods(&self) -> Option<Usage> {
        self.usage(&self.class_path(Qos::Guaranteed))
    }

    /// What a pod has used.
    pub(crate) fn usage_of_pod(&self, pod: &Pod) -> Option<Usage> {
        self.usage(&self.pod_path(pod))
    }

    /// What a container has used.
    pub(crate) fn usage_of_container(&self, pod: &Pod, id: &str) -> Option<Usage> {
        self.usage(&self.container_path(pod, id))
    }

    /// How often the kernel has killed in a container's cgroup for want of memory; `None` when the cgroup is gone.
    pub(crate) fn memory_kills_of_container(&self, pod: &Pod, id: &str) -> Option<u64> {
        self.memory_kills(&self.container_path(pod, id))
    }

    /// The same in a pod's cgroup and below, also in cgroups that are gone. Version 1 does not add up what is below.
    pub(crate) fn memory_kills_of_pod(&self, pod: &Pod) -> Option<u64> {
        self.is_unified().then(|| self.memory_kills(&self.pod_path(pod)))?
    }

    /// Whether the kernel's log tells of such a kill in a container whose cgroup is gone, where no other count does: on version 1.
    pub(crate) fn logged_memory_kill(&self, pod: &Pod, id: &str) -> bool {
        let path = self.container_path(pod, id);
        !self.is_unified() && kernel_log::tells_of_kill(path.rsplit('/').next().unwrap_or(id))
    }

    fn memory_kills(&self, path: &str) -> Option<u64> {
        let file = if self.is_unified() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.dir("memory", path)?.join(file)).ok()?;
        Some(field(&text, "oom_kill"))
    }

    /// A process of a container or sandbox.
    pub(crate) fn process_of(&self, pod: &Pod, id: &str) -> Option<u32> {
        let dir = self.dir("memory", &self.container_path(pod, id))?;
        let processes = fs::read_to_string(dir.join("cgroup.procs")).ok()?;
        processes.lines().next()?.parse().ok()
    }

    /// Where a container's cgroup is, as containerd names it.
    pub(crate) fn container_path(&self, pod: &Pod, id: &str) -> String {
        let parent = self.pod_path(pod);
        match self.maker {
            Maker::Directories => format!("{parent}/{id}"),
            Maker::Slices(_) => format!("{parent}/cri-containerd-{id}.scope"),
        }
    }

    pub(super) fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let base = match &self.hierarchy {
            Hierarchy::V1 { mounts } => mounts.get(controller)?,
            Hierarchy::V2 { mount } => mount,
        };
        Some(below(base, path))
    }

    fn usage(&self, path: &str) -> Option<Usage> {
        match &self.hierarchy {
            Hierarchy::V1 { .. } => {
                let dir = |controller: &str| self.dir(controller, path).unwrap_or_default();
                v1(&dir("cpuacct"), &dir("cpu"), &dir("memory"), &dir("pids"))
            }
            Hierarchy::V2 { mount } => v2(&below(mount, path)),
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line of a file with `name value` lines.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn v1(cpuacct: &Path, cpu: &Path, memory: &Path, pids: &Path) -> Option<Usage> {
    let used = number(&memory.join("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(memory.join("memory.stat")).unwrap_or_default();
    let throttling = fs::read_to_string(cpu.join("cpu.stat")).unwrap_or_default();
    let ticks = fs::read_to_string(cpuacct.join("cpuacct.stat")).unwrap_or_default();
    let control = fs::read_to_string(memory.join("memory.oom_control")).unwrap_or_default();
    Some(Usage {
        cpu: number(&cpuacct.join("cpuacct.usage")).unwrap_or(0),
        cpu_parts: (field(&ticks, "user") * TICK, field(&ticks, "system") * TICK),
        memory: used,
        working_set: used.saturating_sub(field(&stat, "total_inactive_file")),
        rss: field(&stat, "total_rss"),
        cache: field(&stat, "total_cache"),
        mapped: field(&stat, "total_mapped_file"),
        swap: field(&stat, "total_swap"),
        faults: field(&stat, "total_pgfault"),
        major_faults: field(&stat, "total_pgmajfault"),
        limit: number(&memory.join("memory.limit_in_bytes")).filter(|limit| *limit < NO_LIMIT),
        processes: number(&pids.join("pids.current")).unwrap_or(0),
        throttling: (
            field(&throttling, "nr_periods"),
            field(&throttling, "nr_throttled"),
            field(&throttling, "throttled_time"),
        ),
        peak: number(&memory.join("memory.max_usage_in_bytes")),
        refused: number(&memory.join("memory.failcnt")).unwrap_or(0),
        kills: field(&control, "oom_kill"),
        pressure: Pressure::default(),
    })
}

fn v2(dir: &Path) -> Option<Usage> {
    let cpu = fs::read_to_string(dir.join("cpu.stat")).ok()?;
    let used = number(&dir.join("memory.current")).unwrap_or(0);
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let events = fs::read_to_string(dir.join("memory.events")).unwrap_or_default();
    Some(Usage {
        cpu: field(&cpu, "usage_usec") * 1000,
        cpu_parts: (field(&cpu, "user_usec") * 1000, field(&cpu, "system_usec") * 1000),
        memory: used,
        working_set: used.saturating_sub(field(&stat, "inactive_file")),
        rss: field(&stat, "anon"),
        cache: field(&stat, "file"),
        mapped: field(&stat, "file_mapped"),
        swap: number(&dir.join("memory.swap.current")).unwrap_or(0),
        faults: field(&stat, "pgfault"),
        major_faults: field(&stat, "pgmajfault"),
        limit: number(&dir.join("memory.max")),
        processes: number(&dir.join("pids.current")).unwrap_or(0),
        throttling: (
            field(&cpu, "nr_periods"),
            field(&cpu, "nr_throttled"),
            field(&cpu, "throttled_usec") * 1000,
        ),
        peak: number(&dir.join("memory.peak")),
        refused: field(&events, "max"),
        kills: field(&events, "oom_kill"),
        pressure: Pressure::of_cgroup(dir),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::Driver;

    #[test]
    fn both_versions_tell_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cpuacct.usage", "5000\n");
        write("memory.usage_in_bytes", "1000\n");
        write(
            "memory.stat",
            "cache 1\ntotal_cache 400\ntotal_rss 600\ntotal_inactive_file 300\ntotal_pgfault 7\ntotal_pgmajfault 1\n\
             anon 600\nfile 400\ninactive_file 300\npgfault 7\npgmajfault 1\n",
        );
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.max", "max\n");
        write("memory.current", "1000\n");
        write("pids.current", "3\n");
        write("cpu.stat", "nr_periods 2\nnr_throttled 1\nthrottled_time 4000\n");
        write("cpuacct.stat", "user 3\nsystem 1\n");
        write("memory.max_usage_in_bytes", "1500\n");
        write("memory.peak", "1500\n");
        write("memory.failcnt", "41\n");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        write("memory.events", "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\n");
        let at = dir.path();
        let first = v1(at, at, at, at).unwrap();
        write(
            "cpu.stat",
            "usage_usec 5\nuser_usec 30000\nsystem_usec 10000\nnr_periods 2\nnr_throttled 1\nthrottled_usec 4\n",
        );
        assert_eq!(v2(at).unwrap(), first);
        assert_eq!((first.cpu, first.memory, first.working_set), (5000, 1000, 700));
        assert_eq!((first.rss, first.cache, first.limit), (600, 400, None));
        assert_eq!((first.processes, first.throttling), (3, (2, 1, 4000)));
        assert_eq!((first.cpu_parts, first.peak), ((30_000_000, 10_000_000), Some(1500)));
        assert_eq!((first.refused, first.kills), (41, 2));
        assert_eq!(v1(&at.join("x"), at, &at.join("x"), at), None);
    }

    #[tokio::test]
    async fn kills_for_memory_are_counted_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let p = crate::pod::tests::pod(&serde_json::json!({}));
        for controller in ["cpu", "memory", "pids"] {
            write(&format!("v1/{controller}/cgroup.procs"), "");
        }
        write("v2/cgroup.controllers", "cpu memory pids");
        let v1 = Cgroups::open(&dir.path().join("v1"), "", Driver::Cgroupfs)
            .await
            .unwrap();
        let v2 = Cgroups::open(&dir.path().join("v2"), "", Driver::Cgroupfs)
            .await
            .unwrap();
        let kills = |cgroups: &Cgroups| {
            (
                cgroups.memory_kills_of_container(&p, "c"),
                cgroups.memory_kills_of_pod(&p),
            )
        };
        assert_eq!((kills(&v1), kills(&v2)), ((None, None), (None, None)));
        let below = "kubepods/besteffort/podu1";
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        write(&format!("v1/memory/{below}/memory.oom_control"), control);
        write(&format!("v1/memory/{below}/c/memory.oom_control"), control);
        let events = |kills: u64| format!("low 0\nhigh 0\nmax 41\noom 3\noom_kill {kills}\noom_group_kill 1\n");
        write(&format!("v2/{below}/memory.events"), &events(3));
        write(&format!("v2/{below}/c/memory.events"), &events(1));
        assert_eq!((kills(&v1), kills(&v2)), ((Some(2), None), (Some(1), Some(3))));
        fs::remove_dir_all(dir.path().join("v2").join(below).join("c")).unwrap();
        assert_eq!(kills(&v2), (None, Some(3)), "what is gone still counts in the pod");
    }
}
