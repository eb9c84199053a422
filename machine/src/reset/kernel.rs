//! What is left in the kernel: chains, links, mounts, cgroups, settings. Decisions are pure.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use skiff_cri::containerd;
use skiff_net::iptables::{Family, Iptables, Restore, Saved};
use skiff_net::netlink::Netlink;
use skiff_net::sysctl;

use super::{PHASE, Report, files};
use crate::record::{Host, Record, Setting, host};
use crate::{Layout, Machine};

const TABLES: [&str; 4] = ["filter", "mangle", "nat", "raw"];
/// The chains that skiff's processes and plugins make begin so.
const CHAINS: [&str; 3] = ["KUBE-", "CNI-", "SKIFF-"];
/// The bridge of pods and the tunnel between nodes.
const LINKS: [&str; 2] = ["cni0", "skiff.vxlan"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// Takes away what only the kernel holds, and sets settings as they were.
pub(super) fn restore(machine: &Machine<'_>, record: Option<&Record>, report: &mut Report) {
    let nothing = Host::default();
    let before = record.map_or(&nothing, |record| &record.before);
    for (what, removed) in [
        ("chains of iptables", remove_chains(before)),
        ("links", remove_links(before)),
        ("mounts", unmount(&machine.layout.kubelet().join("pods"))),
        ("cgroups", remove_cgroups(machine)),
    ] {
        if let Err(error) = removed {
            report.left.push(format!("{what}: {error}"));
        }
    }
    let now = host::sysctls();
    for (name, setting) in record.iter().flat_map(|record| record.settings(&now)) {
        let Setting::Restore(value) = setting else {
            let told = format!("WARNING: the setting {name} was changed by somebody since: it stays as it is");
            machine.say(PHASE, told);
            continue;
        };
        match sysctl::set(name, value) {
            Ok(_) => machine.say(PHASE, format!("Setting {name} = {value} again")),
            // The module that had it is gone, and the setting with it.
            Err(sysctl::Error::Absent { .. }) => {}
            Err(error) => report
                .left
                .push(format!("setting {name}: {}", skiff_daemon::error_chain(&error))),
        }
    }
}

fn is_our_chain(chain: &str) -> bool {
    CHAINS.iter().any(|prefix| chain.starts_with(prefix))
}

/// Rules that lead to our chains, then the chains.
fn plan_chains(saved: &Saved, before: &BTreeSet<String>) -> Restore {
    let mut changes = Restore::new();
    for table in TABLES {
        let Some(chains) = saved.tables.get(table) else {
            continue;
        };
        let goes = |chain: &str| is_our_chain(chain) && !before.contains(&format!("{table}/{chain}"));
        for (chain, rules) in chains.iter().filter(|(chain, _)| !goes(chain)) {
            for rule in rules.iter().filter(|rule| target(rule).is_some_and(goes)) {
                changes.table(table).delete(chain, rule);
            }
        }
        for chain in chains.keys().filter(|chain| goes(chain)) {
            changes.table(table).delete_chain(chain);
        }
    }
    changes
}

/// Where a rule jumps to.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|word| ["-j", "-g", "--jump", "--goto"].contains(word))?;
    words.next()
}

fn remove_chains(before: &Host) -> Result<(), String> {
    let told = |error| skiff_daemon::error_chain(&error);
    let iptables = Iptables::detect(Family::V4).map_err(told)?;
    let changes = plan_chains(&iptables.save(None).map_err(told)?, &before.chains);
    if changes.is_empty() {
        return Ok(());
    }
    iptables.apply(&changes).map_err(told)
}

fn remove_links(before: &Host) -> Result<(), String> {
    let told = |error| skiff_daemon::error_chain(&error);
    let mut netlink = Netlink::open().map_err(told)?;
    for link in LINKS.iter().filter(|link| !before.links.contains(**link)) {
        netlink.delete_link(link).map_err(told)?;
    }
    Ok(())
}

/// Only pods' mounts: what else is mounted there is somebody's disk.
fn unmount(pods: &Path) -> Result<(), String> {
    let unmounted = containerd::unmount_below(pods);
    unmounted
        .map(drop)
        .map_err(|error| format!("unmount below {}: {error}", pods.display()))
}

/// The pods' cgroups, empty now, in every hierarchy.
fn remove_cgroups(machine: &Machine<'_>) -> Result<(), String> {
    cgroups(machine).iter().try_for_each(|cgroup| remove_cgroup(cgroup))
}

/// Whether a process of a pod runs.
pub(super) fn pods_run(machine: &Machine<'_>) -> bool {
    cgroups(machine).iter().any(|cgroup| has_processes(cgroup))
}

fn has_processes(cgroup: &Path) -> bool {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    !processes.is_empty() || children(cgroup).any(|child| has_processes(&child))
}

/// Where pods' cgroups are, in every hierarchy.
fn cgroups(machine: &Machine<'_>) -> Vec<PathBuf> {
    let below = cgroup_root(machine);
    let of = |root: PathBuf| {
        ["kubepods", "kubepods.slice"].map(|slice| root.join(below.trim_start_matches('/')).join(slice))
    };
    hierarchies().into_iter().flat_map(of).collect()
}

/// Where the kubelet was told to make them.
fn cgroup_root(machine: &Machine<'_>) -> String {
    let text = fs::read_to_string(machine.layout.environment_file("kubelet")).unwrap_or_default();
    let argument = text
        .split(['"', ' '])
        .find_map(|word| word.strip_prefix("--cgroup-root="));
    argument.unwrap_or_default().to_owned()
}

fn hierarchies() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(CGROUPS)];
    // Under version 2 these are cgroups like any other, and hold none of ours.
    roots.extend(children(Path::new(CGROUPS)));
    roots
}

fn children(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.is_dir())
}

fn remove_cgroup(cgroup: &Path) -> Result<(), String> {
    for child in children(cgroup) {
        remove_cgroup(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{}: {error}", cgroup.display())),
        _ => Ok(()),
    }
}

/// Whether a rule is of skiff's making: it leads to a chain of ours, or is about the bridge of pods.
fn is_our_rule(rule: &str) -> bool {
    let chain = rule.split(' ').nth(1).unwrap_or_default();
    // The chain itself is told of.
    !is_our_chain(chain)
        && rule
            .split([' ', '"'])
            .any(|word| is_our_chain(word) || LINKS.contains(&word))
}

/// Tells what is there now that was not before, of what skiff makes; others' files apart. Without a record of before, all of it counts.
pub(super) fn compare(layout: &Layout, record: Option<&Record>, now: &Host, report: &mut Report) {
    let nothing = Host::default();
    let before = record.map_or(&nothing, |record| &record.before);
    let fresh = |now: &BTreeSet<String>, before: &BTreeSet<String>, ours: fn(&str) -> bool| -> Vec<String> {
        now.difference(before).filter(|name| ours(name)).cloned().collect()
    };
    let chain = |name: &str| name.split_once('/').is_some_and(|(_, chain)| is_our_chain(chain));
    let found = [
        ("chain", fresh(&now.chains, &before.chains, chain)),
        ("link", fresh(&now.links, &before.links, |name| LINKS.contains(&name))),
        (
            "network namespace",
            fresh(&now.namespaces, &before.namespaces, |name| name.starts_with("cni-")),
        ),
        ("rule", fresh(&now.rules, &before.rules, is_our_rule)),
        ("route", fresh(&now.routes, &before.routes, |_| true)),
    ];
    for (what, names) in found {
        report
            .left
            .extend(names.into_iter().map(|name| format!("{what} {name}")));
    }
    // Without a record, nobody knows what was there before.
    if record.is_some() {
        let mounts = now.mounts.difference(&before.mounts);
        let mounts = mounts.filter(|mount| files::is_ours(layout, mount));
        report
            .left
            .extend(mounts.map(|mount| format!("mount {}", mount.display())));
        let (ours, others): (Vec<_>, Vec<_>) =
            (now.files.difference(&before.files)).partition(|file| files::is_ours(layout, file));
        (report.left).extend(ours.into_iter().map(|file| format!("file {}", file.display())));
        report.others = files::folded(layout, others);
    }
    for (name, setting) in record.iter().flat_map(|record| record.settings(&now.sysctls)) {
        if let Setting::Restore(value) = setting {
            let found = &now.sysctls[name];
            report.left.push(format!("setting {name} is {found}, was {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Role;

    #[test]
    fn processes_are_seen_however_deep() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("burstable/pod1");
        fs::create_dir_all(&pod).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        assert!(!has_processes(root.path()));
        fs::write(pod.join("cgroup.procs"), "7\n").unwrap();
        assert!(has_processes(root.path()));
        assert!(!has_processes(&root.path().join("nowhere")));
    }

    #[test]
    fn our_chains_go_and_others_stay() {
        let saved = Saved::parse(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:DOCKER - [0:0]\n:CNI-OLD - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n-A PREROUTING -j DOCKER\n\
             -A PREROUTING -j CNI-OLD\n-A KUBE-SERVICES -j RETURN\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
        );
        let before = BTreeSet::from(["nat/CNI-OLD".to_owned()]);
        let wanted = "*nat\n:KUBE-SERVICES - [0:0]\n-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                      -X KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(plan_chains(&saved, &before).text(), wanted);
        assert!(plan_chains(&Saved::default(), &before).is_empty());
    }

    #[test]
    fn what_is_left_is_told_and_what_others_made_is_not() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let layout = Layout::default();
        let before = Host {
            links: set(&["lo", "eth0"]),
            sysctls: [("net.ipv4.ip_forward".to_owned(), "0".to_owned())].into(),
            ..Host::default()
        };
        let now = Host {
            links: set(&["lo", "eth0", "cni0", "docker0"]),
            chains: set(&["nat/KUBE-SERVICES", "nat/DOCKER"]),
            rules: set(&[
                "nat PREROUTING -j KUBE-SERVICES",
                "nat KUBE-SERVICES -j KUBE-MARK-MASQ",
                "filter FORWARD -i cni0 -j ACCEPT",
                "filter FORWARD -j DOCKER",
            ]),
            routes: set(&["10.244.1.0/24"]),
            files: paths(&[
                "/etc/kubernetes/admin.conf",
                "/etc/kubernetes/.admin.conf.7-0.tmp",
                "/etc/kubernetes/mine.conf",
                "/etc/cni/net.d/10-skiff.conflist",
                "/etc/cni/net.d/87-podman.conflist",
                "/etc/systemd/system/multi-user.target.wants/skiff-kubelet.service",
                "/usr/lib/cni/bridge",
                "/var/lib/skiff/images/app.tar",
                "/var/lib/skiff/images/pause.tar",
                "/var/lib/skiff/manifests/app/one.yaml",
                "/var/lib/skiff/manifests/two.yaml",
            ]),
            namespaces: set(&["cni-1", "mine"]),
            mounts: paths(&[
                "/var/lib/kubelet/pods/x",
                "/var/lib/kubelet/local-path/disk",
                "/var/lib/skiff/images",
            ]),
            sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            ..Host::default()
        };
        let mut report = Report::default();
        let mut record = Record::for_test(Role::Worker, None);
        record.before = before;
        compare(&layout, Some(&record), &now, &mut report);
        let wanted = [
            "chain nat/KUBE-SERVICES",
            "link cni0",
            "network namespace cni-1",
            "rule filter FORWARD -i cni0 -j ACCEPT",
            "rule nat PREROUTING -j KUBE-SERVICES",
            "route 10.244.1.0/24",
            "mount /var/lib/kubelet/pods/x",
            "file /etc/cni/net.d/10-skiff.conflist",
            "file /etc/kubernetes/.admin.conf.7-0.tmp",
            "file /etc/kubernetes/admin.conf",
            "file /etc/systemd/system/multi-user.target.wants/skiff-kubelet.service",
            "file /var/lib/skiff/images/pause.tar",
            "setting net.ipv4.ip_forward is 1, was 0",
        ];
        assert_eq!(report.left, wanted);
        let others = [
            "/etc/cni/net.d/87-podman.conflist",
            "/etc/kubernetes/mine.conf",
            "/usr/lib/cni/bridge",
            "/var/lib/skiff/images/app.tar",
            "/var/lib/skiff/manifests",
        ];
        assert_eq!(report.others, others.map(PathBuf::from));
        let mut same = Report::default();
        record.before = now.clone();
        compare(&layout, Some(&record), &now, &mut same);
        assert!(same.left.is_empty() && same.others.is_empty());
    }
}
