//! What the kernel of a machine holds, for comparing before `init` with after `reset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use skiff_net::iptables::{Family, Iptables};
use skiff_net::netlink::Netlink;
use skiff_net::sysctl;

use super::Host;
use crate::Layout;

/// What skiff's processes set: `mend`, the overlay, the proxy and the kubelet.
const SYSCTLS: [&str; 14] = [
    "kernel.keys.root_maxbytes",
    "kernel.keys.root_maxkeys",
    "kernel.panic",
    "kernel.panic_on_oops",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.route_localnet",
    "net.ipv4.ip_forward",
    "net.ipv4.vs.conntrack",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
];

impl Host {
    /// Looks. What cannot be read is empty: a kernel without packet filter has no chains.
    pub fn observe(layout: &Layout) -> Self {
        Self {
            links: links(),
            namespaces: names_in(Path::new("/run/netns")),
            chains: chains(),
            mounts: mounts_below(
                &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
                &roots(layout),
            ),
            sysctls: SYSCTLS
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), sysctl::get(name).ok()?)))
                .collect::<BTreeMap<_, _>>(),
            directories: Self::watched_directories(layout)
                .into_iter()
                .filter(|path| path.is_dir())
                .collect(),
        }
    }

    /// Directories that skiff makes, outer ones first.
    pub(crate) fn watched_directories(layout: &Layout) -> Vec<PathBuf> {
        vec![
            layout.kubernetes(),
            layout.config(),
            layout.data(),
            layout.images(),
            layout.kubelet(),
            layout.pod_logs(),
            layout.container_logs(),
            layout.cni_data(),
        ]
    }
}

/// Where skiff mounts something.
fn roots(layout: &Layout) -> Vec<PathBuf> {
    [layout.kubelet(), layout.data()]
        .into_iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect()
}

fn links() -> BTreeSet<String> {
    let links = Netlink::open().and_then(|mut netlink| netlink.links());
    links
        .map(|links| links.into_iter().map(|link| link.name).collect())
        .unwrap_or_default()
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn chains() -> BTreeSet<String> {
    const TABLES: [&str; 4] = ["filter", "mangle", "nat", "raw"];
    let saved = Iptables::detect(Family::V4).and_then(|iptables| iptables.save(None));
    let Ok(saved) = saved else { return BTreeSet::new() };
    let of = |table: &'static str| saved.chains(table, "").map(move |chain| format!("{table}/{chain}"));
    TABLES.into_iter().flat_map(of).collect()
}

/// Mount points strictly below the directories.
pub(crate) fn mounts_below(mountinfo: &str, directories: &[PathBuf]) -> BTreeSet<PathBuf> {
    let points = mountinfo.lines().filter_map(skiff_cri::containerd::mount_point);
    let below = points.filter(|point| {
        directories
            .iter()
            .any(|directory| point != directory && point.starts_with(directory))
    });
    below.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_count() {
        let text = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /var/lib/kubelet rw - ext4 b rw\n\
                    3 2 0:3 / /var/lib/kubelet/pods/x rw - tmpfs c rw\n4 1 0:4 / /var/lib/kubelet2 rw - tmpfs d rw\n";
        let found = mounts_below(text, &["/var/lib/kubelet".into()]);
        assert_eq!(found, BTreeSet::from(["/var/lib/kubelet/pods/x".into()]));
    }

    #[test]
    fn this_machine_has_something_to_show() {
        let host = Host::observe(&Layout::new("/nonexistent"));
        assert!(host.links.contains("lo"));
        assert!(host.sysctls.contains_key("net.ipv4.ip_forward"));
        assert!(host.mounts.is_empty());
    }
}
