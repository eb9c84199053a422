//! Container logs are rotated by size, and linked where log collectors look for them (`/var/log/containers`).
//!
//! One task. What is due follows from the files alone, so that a rotation that was cut short is finished by the next look.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use jiff::Timestamp;
use skiff_api::quantity::Quantity;
use skiff_daemon::{Shutdown, error_chain};

use crate::agent::Agent;
use crate::pod;
use crate::pods::{Directory, Entry};

/// Where a compressed log is written until it is whole.
const PARTIAL: &str = ".tmp";
const COMPRESSED: &str = ".gz";

/// Looks after the logs of all containers until shutdown.
pub(crate) async fn run(agent: Arc<Agent>, directory: Directory, shutdown: Shutdown) {
    let kubelet = &agent.config.kubelet;
    let size = kubelet.container_log_max_size.parse::<Quantity>();
    // A size that is not positive means that nothing is rotated.
    let size = size
        .ok()
        .and_then(|size| u64::try_from(size.value()).ok())
        .filter(|size| *size > 0);
    let files = usize::try_from(kubelet.container_log_max_files).unwrap_or(2).max(2);
    let workers = usize::try_from(kubelet.container_log_max_workers).ok();
    let links = links_dir(&kubelet.pod_logs_dir);
    let mut ticks = tokio::time::interval(kubelet.container_log_monitor_interval.0);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let entries = directory.all();
        if let Some(links) = links.clone() {
            let wanted = wanted_links(&entries);
            let linked = tokio::task::spawn_blocking(move || link(&links, &wanted)).await;
            if let Ok(Err(error)) = linked {
                tracing::warn!(%error, "cannot link container logs");
            }
        }
        if let Some(size) = size {
            let logs = futures::stream::iter(running_logs(&entries));
            let agent = &agent;
            let rotate = |(id, path): (String, PathBuf)| async move {
                if let Err(error) = rotate(agent, &id, &path, size, files).await {
                    tracing::warn!(error, path = %path.display(), "cannot rotate a container's log; it is tried again");
                }
            };
            logs.for_each_concurrent(workers, rotate).await;
        }
    }
}

/// `/var/log/containers` beside `/var/log/pods`; none where the pods' logs lie in a directory of another name.
fn links_dir(pod_logs: &Path) -> Option<PathBuf> {
    let named = pod_logs.file_name().is_some_and(|name| name == "pods");
    named.then(|| pod_logs.with_file_name("containers"))
}

fn running_logs(entries: &[Entry]) -> Vec<(String, PathBuf)> {
    let running = entries.iter().flat_map(|entry| entry.observed.running());
    running
        .filter(|container| !container.log_path.is_empty())
        .map(|container| (container.id.clone(), PathBuf::from(&container.log_path)))
        .collect()
}

/// `<pod>_<namespace>_<container>-<id>.log`, to what it points at.
fn wanted_links(entries: &[Entry]) -> BTreeMap<String, PathBuf> {
    let mut links = BTreeMap::new();
    for entry in entries {
        for container in &entry.observed.containers {
            let (name, namespace) = (pod::name(&entry.pod), pod::namespace(&entry.pod));
            // As long as file names may be, as upstream cuts them.
            let mut link = format!("{name}_{namespace}_{}-{}", container.name, container.id);
            link.truncate(251);
            link.push_str(".log");
            if !container.log_path.is_empty() {
                links.insert(link, PathBuf::from(&container.log_path));
            }
        }
    }
    links
}

/// Makes the wanted links and removes others that end in `.log`.
fn link(dir: &Path, wanted: &BTreeMap<String, PathBuf>) -> io::Result<()> {
    if !wanted.is_empty() {
        fs::create_dir_all(dir)?;
    }
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut present = BTreeMap::new();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type()?.is_symlink() || !name.ends_with(".log") {
            continue;
        }
        let target = fs::read_link(entry.path())?;
        if wanted.get(&name) == Some(&target) {
            present.insert(name, target);
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    for (name, target) in wanted.iter().filter(|(name, _)| !present.contains_key(*name)) {
        std::os::unix::fs::symlink(target, dir.join(name))?;
    }
    Ok(())
}

/// Rotates one log if it is too large; tidies what earlier rotations have left in any case.
async fn rotate(agent: &Agent, id: &str, path: &Path, size: u64, files: usize) -> Result<(), String> {
    let large = match fs::metadata(path) {
        Ok(metadata) => metadata.len() > size,
        // The runtime lost its log file (a rotation was cut short): it is to open a new one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reopened = agent.runtime.reopen_container_log(id).await;
            return reopened.map_err(|error| error_chain(&error));
        }
        Err(error) => return Err(error.to_string()),
    };
    if !large {
        return Ok(());
    }
    let owned = path.to_owned();
    let tidied = tokio::task::spawn_blocking(move || tidy(&owned, files)).await;
    tidied
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let rotated = rotated_name(path, Timestamp::now());
    fs::rename(path, &rotated).map_err(|error| error.to_string())?;
    if let Err(error) = agent.runtime.reopen_container_log(id).await {
        // The container still writes into the renamed file: it gets its name back.
        fs::rename(&rotated, path).ok();
        return Err(error_chain(&error));
    }
    Ok(())
}

/// `0.log.20260102-150405`.
fn rotated_name(path: &Path, at: Timestamp) -> PathBuf {
    let time = at.strftime("%Y%m%d-%H%M%S");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{time}"));
    PathBuf::from(name)
}

/// Makes room for one more rotated file of at most `files` in all: what is half-written goes, the oldest go, and all but the
/// newest of the rest are compressed (a reader may still be in that one).
fn tidy(path: &Path, files: usize) -> io::Result<()> {
    let rotated = rotated(path)?;
    let (partial, mut whole): (Vec<_>, Vec<_>) = rotated
        .into_iter()
        .partition(|file| file.as_os_str().to_string_lossy().ends_with(PARTIAL));
    for file in partial {
        fs::remove_file(file)?;
    }
    // The open log, and the one that it is about to become.
    let kept = files - 2;
    let excess = whole.len().saturating_sub(kept);
    for file in whole.drain(..excess) {
        fs::remove_file(file)?;
    }
    for file in &whole {
        if !file.as_os_str().to_string_lossy().ends_with(COMPRESSED) {
            compress(file)?;
        }
    }
    Ok(())
}

/// Files that a log was rotated into, the oldest first: their names begin with the log's and go on with a time.
pub(crate) fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

fn compress(file: &Path) -> io::Result<()> {
    let with = |ending: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let partial = with(PARTIAL);
    let mut source = File::open(file)?;
    let mut encoder = GzEncoder::new(File::create(&partial)?, Compression::default());
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?.set_permissions(source.metadata()?.permissions())?;
    fs::rename(&partial, with(COMPRESSED))?;
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn old_logs_are_compressed_then_removed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for name in [
            "0.log",
            "0.log.20260101-000000.gz",
            "0.log.20260101-000001.gz",
            "0.log.20260101-000002",
            "0.log.20260101-000002.tmp",
            "1.log",
            "10.log.20260101-000000",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        tidy(&log, 4).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "0.log",
                "0.log.20260101-000001.gz",
                "0.log.20260101-000002.gz",
                "1.log",
                "10.log.20260101-000000"
            ]
        );
        let packed = File::open(dir.path().join("0.log.20260101-000002.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "0.log.20260101-000002");
        tidy(&log, 2).unwrap();
        assert_eq!(names(dir.path()), ["0.log", "1.log", "10.log.20260101-000000"]);
        let at = "2026-01-02T15:04:05Z".parse().unwrap();
        assert!(rotated_name(&log, at).ends_with("0.log.20260102-150405"));
    }

    #[test]
    fn links_follow_the_containers() {
        let dir = tempfile::tempdir().unwrap();
        let links = links_dir(&dir.path().join("pods")).unwrap();
        assert_eq!(links_dir(Path::new("/x/logs")), None);
        let wanted = |names: &[(&str, &str)]| -> BTreeMap<String, PathBuf> {
            let pairs = names.iter();
            pairs
                .map(|(name, target)| ((*name).to_owned(), PathBuf::from(target)))
                .collect()
        };
        link(&links, &wanted(&[])).unwrap();
        assert!(!links.exists(), "nothing to link, nothing made");
        link(&links, &wanted(&[("a.log", "/1"), ("b.log", "/2")])).unwrap();
        fs::write(links.join("other.log"), "not a link").unwrap();
        link(&links, &wanted(&[("a.log", "/3")])).unwrap();
        assert_eq!(names(&links), ["a.log", "other.log"]);
        assert_eq!(fs::read_link(links.join("a.log")).unwrap(), Path::new("/3"));
    }
}
