//! What this machine is and has, read from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::path::Path;

use skiff_api::quantity::Quantity;

use crate::config::Config;

/// Facts that do not change while the kubelet runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) cpus: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes of the file system that holds the root directory.
    pub(crate) storage: i64,
    /// Bytes by page size (`2Mi`).
    pub(crate) hugepages: BTreeMap<String, i64>,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// Which thresholds of `evictionHard` are crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// `amd64`, `arm64`: Go's names.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads all facts; `root` is the kubelet's directory.
pub(crate) fn read(root: &Path) -> Facts {
    let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = line("/proc/cpuinfo");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let machine_id = line("/etc/machine-id");
    let uuid = line("/sys/class/dmi/id/product_uuid");
    Facts {
        cpus: i64::try_from(cpus).unwrap_or(1).max(1),
        memory: meminfo("MemTotal"),
        storage: disk(root).map_or(0, |disk| disk.total),
        hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel: nix::sys::utsname::uname()
            .map(|uname| uname.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        os_image: os_image(&line("/etc/os-release")),
    }
}

fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// A field of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(field: &str) -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').next() == Some(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<i64>().ok())
        .unwrap_or(0)
        * 1024
}

fn hugepages(dir: &Path) -> BTreeMap<String, i64> {
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB")?.parse::<i64>().ok());
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count = count.and_then(|text| text.trim().parse::<i64>().ok());
        if let (Some(size), Some(count)) = (size, count) {
            let name = if size >= 1 << 20 {
                format!("{}Gi", size >> 20)
            } else {
                format!("{}Mi", size >> 10)
            };
            pages.insert(name, size * 1024 * count);
        }
    }
    pages
}

struct Disk {
    total: i64,
    available: i64,
    inodes: i64,
    inodes_free: i64,
}

fn disk(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let size = number(stat.fragment_size());
    Some(Disk {
        total: number(stat.blocks()).saturating_mul(size),
        available: number(stat.blocks_available()).saturating_mul(size),
        inodes: number(stat.files()),
        inodes_free: number(stat.files_free()),
    })
}

/// Bytes that a threshold of `evictionHard` keeps free.
pub(crate) fn threshold(config: &Config, signal: &str, capacity: i64) -> i64 {
    let Some(text) = config.kubelet.eviction_hard.get(signal) else {
        return 0;
    };
    match text.strip_suffix('%').and_then(|percent| percent.parse::<f64>().ok()) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        // a share of a capacity stays far below i64's limits
        Some(percent) => (capacity as f64 * percent / 100.0) as i64,
        None => text
            .parse::<Quantity>()
            .ok()
            .and_then(|quantity| i64::try_from(quantity.value()).ok())
            .unwrap_or(0),
    }
}

/// Looks at what is left.
pub(crate) fn pressure(config: &Config) -> Pressure {
    let memory = meminfo("MemAvailable");
    let mut pressure = Pressure {
        memory: memory > 0 && memory < threshold(config, "memory.available", meminfo("MemTotal")),
        ..Pressure::default()
    };
    if let Some(disk) = disk(&config.flags.root_dir) {
        for signal in ["nodefs.available", "imagefs.available"] {
            pressure.disk |= disk.available < threshold(config, signal, disk.total);
        }
        for signal in ["nodefs.inodesFree", "imagefs.inodesFree"] {
            pressure.disk |= disk.inodes > 0 && disk.inodes_free < threshold(config, signal, disk.inodes);
        }
    }
    if let Some((used, limit)) = pids() {
        pressure.pids = limit - used < threshold(config, "pid.available", limit);
    }
    pressure
}

/// Processes that run, and how many may.
pub(crate) fn pids() -> Option<(i64, i64)> {
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
    let used = loads.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((used, limit))
}

/// The address that this machine has towards others, where no `--node-ip` is given.
pub(crate) fn default_ip() -> Option<std::net::IpAddr> {
    // Connecting a UDP socket sends nothing: it only asks the routing table.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let mut config = Config::default();
        assert_eq!(threshold(&config, "memory.available", 1 << 30), 100 << 20);
        assert_eq!(threshold(&config, "nodefs.available", 1000), 100);
        config.kubelet.eviction_hard.clear();
        assert_eq!(threshold(&config, "nodefs.available", 1000), 0);
    }

    #[test]
    fn names() {
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        let facts = read(Path::new("/"));
        assert!(
            facts.cpus > 0 && facts.memory > 0 && facts.storage > 0 && !facts.kernel.is_empty(),
            "{facts:?}"
        );
    }
}
