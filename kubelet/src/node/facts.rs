//! What this machine is and has, read from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::stats::disk;

/// Facts that do not change while the kubelet runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) cpus: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) swap: i64,
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
        swap: meminfo("SwapTotal"),
        storage: disk::file_system(root).map_or(0, |system| i64::try_from(system.capacity).unwrap_or(i64::MAX)),
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
            let name = match size {
                ..1024 => format!("{size}Ki"),
                1024..1_048_576 => format!("{}Mi", size >> 10),
                _ => format!("{}Gi", size >> 20),
            };
            pages.insert(name, size * 1024 * count);
        }
    }
    pages
}

/// Processes that run, and how many may.
pub(crate) fn pids() -> Option<(i64, i64)> {
    let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
    let used = loads.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((used, most_pids(Path::new("/proc/sys/kernel"))?))
}

/// The lesser of the kernel's limits: of numbers, and of tasks.
fn most_pids(dir: &Path) -> Option<i64> {
    let read = |file| {
        let text = std::fs::read_to_string(dir.join(file)).ok()?;
        text.trim().parse::<i64>().ok()
    };
    ["pid_max", "threads-max"].into_iter().filter_map(read).min()
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
    fn huge_pages_have_kubernetes_names() {
        let dir = tempfile::tempdir().unwrap();
        for (kernels, count) in [
            ("hugepages-64kB", "4\n"),
            ("hugepages-2048kB", "2\n"),
            ("hugepages-1048576kB", "1\n"),
            ("hugepages-x", "1\n"),
        ] {
            std::fs::create_dir(dir.path().join(kernels)).unwrap();
            std::fs::write(dir.path().join(kernels).join("nr_hugepages"), count).unwrap();
        }
        let wanted = [("64Ki", 4 << 16), ("2Mi", 2 << 21), ("1Gi", 1 << 30)];
        let wanted: BTreeMap<_, _> = wanted.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        assert_eq!(hugepages(dir.path()), wanted);
    }

    #[test]
    fn processes_are_bounded_by_both_limits_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        assert_eq!(most_pids(dir.path()), None);
        write("pid_max", "4194304\n");
        assert_eq!(most_pids(dir.path()), Some(4_194_304));
        write("threads-max", "190000\n");
        assert_eq!(most_pids(dir.path()), Some(190_000));
        write("pid_max", "32768\n");
        assert_eq!(most_pids(dir.path()), Some(32_768));
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
