//! Files that may change while the process runs (certificates, keys, kubeconfigs), and are read anew then.
//!
//! They are looked at once a minute, and at SIGHUP: inotify instances are few on a machine, and each file may be replaced together
//! with its directory. While SIGHUP is worked on, systemd sees the process as reloading.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::notify;

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(60);
/// How long reading anew may take before systemd is told that it is done.
const RELOAD: Duration = Duration::from_secs(10);

/// Files that one part of the process has read.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Whoever asked for the reading that goes on.
    asked: Option<Request>,
}

/// What changes when a file is written or replaced; links are followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Dropped when the files have been read.
type Request = oneshot::Sender<()>;

static LISTENERS: Mutex<Vec<mpsc::UnboundedSender<Request>>> = Mutex::new(Vec::new());
static SIGNAL: Once = Once::new();

impl Files {
    /// As they are now. From the first call on, SIGHUP means to read anew, and no longer ends the process.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        SIGNAL.call_once(|| {
            tokio::spawn(reload_on_signal());
        });
        let (sender, requests) = mpsc::unbounded_channel();
        LISTENERS.lock().push(sender);
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        Self {
            paths,
            stamps,
            requests,
            asked: None,
        }
    }

    /// Ends when one of them is not as it was, or at SIGHUP.
    pub async fn changed(&mut self) {
        // What was asked for before is done by now.
        self.asked = None;
        loop {
            match timeout(PERIOD, self.requests.recv()).await {
                Ok(Some(request)) => {
                    self.asked = Some(request);
                    self.look();
                    return;
                }
                Ok(None) | Err(_) => {
                    if self.look() {
                        return;
                    }
                }
            }
        }
    }

    /// From now on these files, as they were when [`Files::changed`] ended where they are the same.
    pub fn follow(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.stamps = paths.iter().map(|path| stamp(path)).collect();
            self.paths = paths;
        }
    }

    /// They could not be used as they are (a key and its certificate are not replaced in one step): the next look counts as a change.
    pub fn retry(&mut self) {
        self.stamps.clear();
    }

    /// Whether something changed since the last look.
    fn look(&mut self) -> bool {
        let now: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        let changed = now != self.stamps;
        self.stamps = now;
        changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

async fn reload_on_signal() {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::warn!("cannot listen for SIGHUP: files are only looked at once a minute");
        return;
    };
    while hangup.recv().await.is_some() {
        tracing::info!("asked to read files anew");
        notify::reloading();
        let mut waiting = Vec::new();
        LISTENERS.lock().retain(|listener| {
            let (request, done) = oneshot::channel();
            waiting.push(done);
            listener.send(request).is_ok()
        });
        let all = async {
            for done in waiting {
                // It is never sent, only dropped.
                done.await.ok();
            }
        };
        if timeout(RELOAD, all).await.is_err() {
            tracing::warn!("reading files anew takes more than {RELOAD:?}");
        }
        notify::ready();
    }
}

#[cfg(test)]
mod tests {
    use super::Files;

    #[tokio::test(start_paused = true)]
    async fn every_way_to_change_a_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut files = Files::new(vec![link.clone()]);
        assert!(!files.look());
        std::fs::write(&file, "longer").unwrap();
        files.changed().await;
        // Replaced, as `pki::files` does it.
        std::fs::write(directory.path().join("new"), "longer").unwrap();
        std::fs::rename(directory.path().join("new"), &file).unwrap();
        files.changed().await;
        std::fs::remove_file(&link).unwrap();
        files.changed().await;
        assert!(!files.look());
        // What cannot be used is offered again.
        files.retry();
        files.changed().await;
        assert!(!files.look());
        files.follow(vec![file]);
        assert!(!files.look());
    }
}
