//! What the kernel of a machine holds, for comparing before `init` with after `reset`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use skiff_net::iptables::{Family, Iptables, Saved};
use skiff_net::netlink::{Netlink, Protocol};
use skiff_net::sysctl;

use super::Host;
use crate::Layout;

/// What `mend`, the overlay and the proxy set.
const SYSCTLS: [&str; 10] = [
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.route_localnet",
    "net.ipv4.ip_forward",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
];

/// Whose the routes to other nodes' pods are.
const ROUTES: Protocol = Protocol(75);
/// So many files are noted at most; a machine that has more in these directories is used for something else.
const FILES: usize = 20_000;

impl Host {
    /// Looks. What cannot be read is empty: a kernel without packet filter has no chains.
    pub fn observe(layout: &Layout) -> Self {
        let saved = Iptables::detect(Family::V4).and_then(|iptables| iptables.save(None));
        let saved = saved.unwrap_or_default();
        Self {
            links: links(),
            namespaces: names_in(Path::new("/run/netns")),
            chains: chains(&saved),
            rules: rules(&saved),
            routes: routes(),
            files: files(layout),
            mounts: mounts_below(
                &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
                &roots(layout),
            ),
            sysctls: sysctls(),
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

    /// Directories that skiff puts files into, and others too.
    pub(crate) fn shared_directories(layout: &Layout) -> Vec<PathBuf> {
        let mut directories = Self::watched_directories(layout);
        directories.push(layout.cni_config());
        directories.extend(layout.cni_plugins());
        directories
    }
}

/// Where skiff mounts something.
fn roots(layout: &Layout) -> Vec<PathBuf> {
    [layout.kubelet(), layout.data()]
        .into_iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect()
}

/// Those settings, as far as the kernel has them.
pub(crate) fn sysctls() -> BTreeMap<String, String> {
    let of = |name: &str| Some((name.to_owned(), sysctl::get(name).ok()?));
    SYSCTLS.into_iter().filter_map(of).collect()
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

fn chains(saved: &Saved) -> BTreeSet<String> {
    let tables = saved.tables.iter();
    let of = |(table, chains): (&String, &BTreeMap<String, Vec<String>>)| {
        let names = chains.keys().map(|chain| format!("{table}/{chain}"));
        names.collect::<Vec<_>>()
    };
    tables.flat_map(of).collect()
}

fn rules(saved: &Saved) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (table, chains) in &saved.tables {
        for (chain, rules) in chains {
            all.extend(rules.iter().map(|rule| format!("{table} {chain} {rule}")));
        }
    }
    all
}

fn routes() -> BTreeSet<String> {
    let routes = Netlink::open().and_then(|mut netlink| netlink.routes());
    let ours = routes.unwrap_or_default().into_iter();
    ours.filter(|route| route.protocol == ROUTES)
        .map(|route| route.destination.to_string())
        .collect()
}

/// Files, but not those in people's volumes.
fn files(layout: &Layout) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = Host::shared_directories(layout);
    while let Some(directory) = directories.pop() {
        if directory == layout.local_volumes() {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Not through links.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                _ if found.len() < FILES => drop(found.insert(entry.path())),
                _ => return found,
            }
        }
    }
    let units = names_in(&layout.enabled_units()).into_iter();
    // It goes last.
    found.remove(&layout.record());
    found.extend(
        units
            .filter(|unit| unit.starts_with("skiff-"))
            .map(|unit| layout.enabled_units().join(unit)),
    );
    found
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
        assert!(host.mounts.is_empty() && host.files.is_empty());
    }

    #[test]
    fn files_and_enabled_units_are_seen_and_peoples_volumes_are_not() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let wanted = [
            layout.kubeconfig("admin"),
            layout.pki().join("ca.key"),
            layout.enabled_units().join("skiff-kubelet.service"),
        ];
        let others = [
            layout.record(),
            layout.local_volumes().join("v/data"),
            layout.enabled_units().join("cron.service"),
        ];
        for path in wanted.iter().chain(&others) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        assert_eq!(files(&layout), wanted.into_iter().collect());
    }
}
