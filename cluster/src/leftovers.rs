//! What is left when processes are ended from outside: cgroups of containers, processes that nobody recorded. Only what is under a
//! cluster's own cgroup, or in its own namespaces, is touched.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use skiff_net::netns::Namespace;

use crate::process::Process;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Ends what runs in the cgroup `path` of every hierarchy, and removes it with all below.
pub(crate) fn remove_cgroups(path: &str) -> Vec<String> {
    let mut roots = vec![PathBuf::from(CGROUPS)];
    roots.extend(
        fs::read_dir(CGROUPS)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path())),
    );
    let path = Path::new(path.trim_start_matches('/'));
    let left = roots
        .iter()
        .filter_map(|root| remove_cgroup(&root.join(path)).err())
        .collect();
    // The one above is shared by all clusters; the last of them takes it away, for the others it is not empty.
    for parent in path.parent().into_iter().filter(|parent| *parent != Path::new("")) {
        roots.iter().for_each(|root| drop(fs::remove_dir(root.join(parent))));
    }
    left
}

/// Ends the processes in a node's network namespace: what an interrupted `up` had started but not yet recorded.
pub(crate) fn end_processes(namespace: &Namespace) -> Result<(), String> {
    let failed = |error| format!("list the processes in {}: {error}", namespace.name());
    let (_, wanted) = namespace.id().map_err(failed)?;
    for entry in fs::read_dir("/proc").map_err(failed)?.filter_map(Result::ok) {
        // A process may end while we look at it.
        let inside = fs::metadata(entry.path().join("ns/net")).is_ok_and(|found| found.ino() == wanted);
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(process) = pid.filter(|_| inside).and_then(Process::of) {
            process
                .kill()
                .map_err(|error| format!("end process {}: {error}", process.pid))?;
        }
    }
    Ok(())
}

/// The cgroups at and below `path`, in every hierarchy.
pub(crate) fn count_cgroups(path: &str) -> usize {
    let path = path.trim_start_matches('/');
    let roots = fs::read_dir(CGROUPS)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    roots.map(|root| count(&root.join(path))).sum()
}

fn count(cgroup: &Path) -> usize {
    if cgroup.is_dir() {
        1 + children(cgroup).iter().map(|child| count(child)).sum::<usize>()
    } else {
        0
    }
}

fn remove_cgroup(cgroup: &Path) -> Result<(), String> {
    if !cgroup.is_dir() {
        return Ok(());
    }
    for child in children(cgroup) {
        remove_cgroup(&child)?;
    }
    for line in fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        if let Some(process) = line.parse().ok().and_then(Process::of) {
            process
                .kill()
                .map_err(|error| format!("end process {}: {error}", process.pid))?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("remove cgroup {}: {error}", cgroup.display()))
        }
        _ => Ok(()),
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}
