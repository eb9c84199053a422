//! The files that go.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::remove::remove_tree;
use super::{PHASE, Report, Wish};
use crate::record::{Host, Record};
use crate::services::Service;
use crate::{Error, Layout, Machine};

/// What goes, and what in it stays.
#[derive(Debug, Default, Eq, PartialEq)]
struct Plan {
    gone: Vec<PathBuf>,
    kept: BTreeSet<PathBuf>,
}

fn plan(layout: &Layout, purge_data: bool) -> Plan {
    let kubeconfigs = [
        "admin",
        "super-admin",
        "kubelet",
        "bootstrap-kubelet",
        "proxy",
        "ingress",
        "controller-manager",
        "scheduler",
    ];
    let mut gone: Vec<PathBuf> = kubeconfigs.iter().map(|name| layout.kubeconfig(name)).collect();
    gone.extend([layout.pki(), layout.static_pods()]);
    for service in Service::ALL {
        gone.push(layout.config_file(service.name()));
        gone.push(layout.environment_file(service.name()));
    }
    gone.extend([
        layout.server_data(),
        layout.images().join("pause.tar"),
        layout.images().join(".pause.tar.new"),
        layout.kubelet(),
        layout.cni_data().join("skiff"),
        layout.pod_logs(),
        layout.container_logs(),
    ]);
    let kept = if purge_data {
        BTreeSet::new()
    } else {
        BTreeSet::from([layout.local_volumes()])
    };
    Plan { gone, kept }
}

/// Whether skiff made what lies there, and not somebody who uses the same directory. Links to plugins are told where they go.
pub(super) fn is_ours(layout: &Layout, path: &Path) -> bool {
    let Plan { gone, kept } = plan(layout, false);
    let below = |tree: &PathBuf| path.starts_with(tree);
    let goes = written_as(path).is_some_and(|plain| gone.contains(&plain)) || gone.iter().any(below);
    let elsewhere = path == layout.cni_config_file() || below(&layout.enabled_units());
    (goes || elsewhere) && !kept.iter().any(below)
}

/// The file that somebody was about to write, of a draft that a kill has left: `.admin.conf.7-0.tmp` is that of `admin.conf`.
fn written_as(draft: &Path) -> Option<PathBuf> {
    let name = draft.file_name()?.to_str()?;
    let (name, _) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    Some(draft.with_file_name(name))
}

/// Drafts of files that go: there may be keys in them.
fn drafts(gone: &[PathBuf]) -> Vec<PathBuf> {
    let directories: BTreeSet<_> = gone.iter().filter_map(|path| path.parent()).collect();
    let entries = directories.into_iter().flat_map(fs::read_dir).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| written_as(path).is_some_and(|plain| gone.contains(&plain)))
        .collect()
}

/// Files by what of them lies in a shared directory itself: one line for a directory full of manifests.
pub(super) fn folded<'a>(layout: &Layout, files: impl IntoIterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let shared = Host::shared_directories(layout);
    let fold = |file: &'a PathBuf| {
        let mut above = file.ancestors();
        above.find(|path| {
            path.parent()
                .is_some_and(|parent| shared.iter().any(|one| one == parent))
        })
    };
    let folded: BTreeSet<_> = files.into_iter().filter_map(fold).collect();
    folded.into_iter().map(Path::to_owned).collect()
}

/// What would be removed of what is there.
pub(super) fn there(machine: &Machine<'_>, record: Option<&Record>, wish: Wish) -> Vec<String> {
    let Plan { gone, kept } = plan(&machine.layout, wish.purge_data);
    let made = record.iter().flat_map(|record| &record.made);
    let gone = gone.iter().chain(made).filter(|path| path.symlink_metadata().is_ok());
    let but = |path: &Path| {
        let inside: Vec<_> = (kept.iter())
            .filter(|kept| kept.starts_with(path) && kept.exists())
            .map(|kept| format!(", but not {}", kept.display()))
            .collect();
        inside.concat()
    };
    let mut steps: Vec<_> = gone
        .map(|path| format!("delete {}{}", path.display(), but(path)))
        .collect();
    let replaced = record.iter().flat_map(|record| record.replaced.keys());
    steps.extend(replaced.map(|path| format!("restore {}", path.display())));
    steps
}

/// Removes them.
pub(super) fn remove(machine: &Machine<'_>, record: Option<&Record>, wish: Wish, report: &mut Report) {
    let layout = &machine.layout;
    let Plan { gone, kept } = plan(layout, wish.purge_data);
    for empty in &kept {
        // Where nobody's data is, nothing has to be kept.
        fs::remove_dir(empty).ok();
    }
    machine.say(
        PHASE,
        format!(
            "Deleting the files of this node below {:?}",
            layout.root().display().to_string()
        ),
    );
    for path in gone.iter().chain(&drafts(&gone)) {
        take(path, &kept, report);
    }
    let made = record.iter().flat_map(|record| &record.made);
    // A kill may have left the draft of a link.
    for path in made.flat_map(|path| [path.clone(), path.with_extension("new")]) {
        if let Err(error) = remove_made(&path, machine) {
            report.left.push(format!("{}: {error}", path.display()));
        }
    }
}

/// Removes a tree, and tells what of it is there still.
fn take(path: &Path, kept: &BTreeSet<PathBuf>, report: &mut Report) {
    let removed = remove_tree(path, kept);
    report.left.extend(removed.failed);
    report.left.extend(removed.mounts.iter().map(|path| {
        format!(
            "{}: something is mounted there; unmount it if it may go",
            path.display()
        )
    }));
    report.kept.extend(removed.kept);
}

/// Whether a machine without a record is a node of skiff's nevertheless: its configuration is there.
///
/// # Errors
/// When it is another program's node, whose files have the same names.
pub(super) fn is_node(layout: &Layout) -> Result<bool, Error> {
    let configured = Service::ALL
        .iter()
        .any(|service| layout.config_file(service.name()).exists());
    let volumes = layout.local_volumes();
    let mut others: Vec<PathBuf> = layout.others_nodes().into();
    if !configured {
        others.extend(plan(layout, false).gone);
    }
    match others.into_iter().find(|path| holds_more_than(path, &volumes)) {
        Some(path) => Err(Error::NotOurs { path }),
        None => Ok(configured),
    }
}

/// Whether a file is there, or a directory with anything in it but that.
fn holds_more_than(path: &Path, one: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().any(|entry| entry.path() != one),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

/// What is said of a machine that nothing was done to.
pub(super) const BARE: &str = "This machine is no node: there is nothing to undo";

/// Volumes may be there still, that a former `reset` has left.
pub(super) fn bare(machine: &Machine<'_>, wish: Wish) -> Report {
    let mut report = Report::default();
    let volumes = machine.layout.local_volumes();
    machine.say(PHASE, BARE);
    if wish.purge_data {
        take(&volumes, &BTreeSet::new(), &mut report);
        // It holds nothing else, or this is another's machine.
        fs::remove_dir(machine.layout.kubelet()).ok();
    } else if volumes.exists() {
        report.kept.push(volumes);
    }
    report
}

/// A link that `init` made goes only while it is still that link: a package may have put its own plugin there.
fn remove_made(path: &Path, machine: &Machine<'_>) -> std::io::Result<()> {
    match fs::read_link(path) {
        Ok(target) if target == machine.plugin_program => fs::remove_file(path),
        Ok(_) => Ok(()),
        // Gone, or replaced by a file of somebody else.
        Err(error) if [ErrorKind::NotFound, ErrorKind::InvalidInput].contains(&error.kind()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The record goes last, and directories that were not there before, where nothing is in them.
pub(super) fn forget(machine: &Machine<'_>, record: Option<&Record>) -> Result<(), Error> {
    let path = machine.layout.record();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::file("remove", path)(error)),
        _ => {}
    }
    let was_there = |directory: &PathBuf| record.is_some_and(|record| record.before.directories.contains(directory));
    for directory in Host::watched_directories(&machine.layout).iter().rev() {
        if !was_there(directory) {
            // One that holds something stays.
            fs::remove_dir(directory).ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_stay_unless_purged() {
        let layout = Layout::default();
        let usual = plan(&layout, false);
        assert!(usual.gone.contains(&"/var/lib/kubelet".into()) && usual.gone.contains(&"/etc/kubernetes/pki".into()));
        assert_eq!(usual.kept, BTreeSet::from(["/var/lib/kubelet/local-path".into()]));
        assert!(plan(&layout, true).kept.is_empty());
    }

    #[test]
    fn without_a_record_only_skiffs_own_node_is_reset() {
        let cases: [(&[&str], Result<bool, &str>); 8] = [
            (&[], Ok(false)),
            (&["etc/skiff/kubelet.yaml", "var/lib/kubelet/pki/x"], Ok(true)),
            // A former `reset` has left it.
            (&["var/lib/kubelet/local-path/v1/data"], Ok(false)),
            (
                &["etc/kubernetes/mine.conf", "var/lib/skiff/manifests/app.yaml"],
                Ok(false),
            ),
            // kubeadm's, beside a package that nobody has used, and one whose init has got far.
            (&["etc/kubernetes/pki/ca.key"], Err("etc/kubernetes/pki")),
            (&["var/lib/kubelet/config.yaml"], Err("var/lib/kubelet")),
            (
                &["etc/skiff/kubelet.yaml", "var/lib/kubelet/kubeadm-flags.env"],
                Err("var/lib/kubelet/kubeadm-flags.env"),
            ),
            (&["var/lib/rancher/k3s/server/token"], Err("var/lib/rancher/k3s")),
        ];
        for (files, wanted) in cases {
            let root = tempfile::tempdir().unwrap();
            for file in files {
                let path = root.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            match (is_node(&Layout::new(root.path())), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{files:?}"),
                (Err(Error::NotOurs { path }), Err(wanted)) => assert_eq!(path, root.path().join(wanted)),
                (found, _) => panic!("{files:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn drafts_go_with_what_they_were_to_become() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in [
            ".admin.conf.7-0.tmp",
            ".mine.conf.7-0.tmp",
            "admin.conf.7-0.tmp",
            ".tmp",
        ] {
            fs::write(place(name), "key").unwrap();
        }
        assert_eq!(drafts(&[place("admin.conf")]), [place(".admin.conf.7-0.tmp")]);
    }

    #[test]
    fn a_persons_own_files_are_not_named() {
        let gone = plan(&Layout::default(), true).gone;
        for own in [
            "/var/lib/skiff",
            "/var/lib/skiff/images",
            "/etc/skiff",
            "/etc/kubernetes",
            "/etc/cni/net.d",
            "/var/lib/skiff/manifests",
        ] {
            assert!(!gone.contains(&PathBuf::from(own)), "{own}");
        }
    }
}
