//! One inotify instance for all watched directories of a process: the kernel allows a user 128 of them by default.
//!
//! A thread reads its events and wakes those who watch the directory that changed: followers of logs, and whoever reads
//! a directory of manifests.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Wakes when something happens in a directory.
#[derive(Debug)]
pub struct Subscription {
    directory: PathBuf,
    changes: watch::Receiver<()>,
}

impl Subscription {
    /// Watches a directory: files that are made, written, moved or removed in it, or given to others.
    ///
    /// # Errors
    /// When the directory is not there, or the user has no inotify instance or watch left.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let changes = watcher()?.subscribe(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            changes,
        })
    }

    /// Resolves after the next change, or at once when there was one since the last call.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The directory is gone and nothing will come; whoever waits also waits for the container's end.
            std::future::pending().await
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Ok(watcher) = watcher() {
            watcher.release(&self.directory);
        }
    }
}

struct Watcher {
    watches: Mutex<Watches>,
    directories: Mutex<HashMap<PathBuf, Watched>>,
}

struct Watched {
    descriptor: WatchDescriptor,
    sender: watch::Sender<()>,
    followers: usize,
}

fn watcher() -> io::Result<&'static Arc<Watcher>> {
    static WATCHER: OnceLock<Arc<Watcher>> = OnceLock::new();
    if let Some(watcher) = WATCHER.get() {
        return Ok(watcher);
    }
    let inotify = Inotify::init()?;
    let watches = Mutex::new(inotify.watches());
    let watcher = Arc::new(Watcher {
        watches,
        directories: Mutex::default(),
    });
    // Of two that come here at once, the loser's instance is closed again.
    if WATCHER.set(watcher.clone()).is_ok() {
        std::thread::Builder::new()
            .name("directories".into())
            .spawn(move || watcher.run(inotify))?;
    }
    WATCHER.get().ok_or_else(|| io::Error::other("no inotify watcher"))
}

impl Watcher {
    fn subscribe(&self, directory: &Path) -> io::Result<watch::Receiver<()>> {
        let mut directories = self.directories.lock();
        if let Some(watched) = directories.get_mut(directory) {
            watched.followers += 1;
            return Ok(watched.sender.subscribe());
        }
        let moved = WatchMask::MOVED_TO | WatchMask::MOVED_FROM;
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::CREATE | WatchMask::DELETE | moved;
        let descriptor = self.watches.lock().add(directory, mask)?;
        let (sender, receiver) = watch::channel(());
        directories.insert(
            directory.to_owned(),
            Watched {
                descriptor,
                sender,
                followers: 1,
            },
        );
        Ok(receiver)
    }

    fn release(&self, directory: &Path) {
        let mut directories = self.directories.lock();
        let Some(watched) = directories.get_mut(directory) else {
            return;
        };
        watched.followers -= 1;
        if watched.followers == 0
            && let Some(watched) = directories.remove(directory)
        {
            // It fails when the directory is gone, and the watch with it.
            self.watches.lock().remove(watched.descriptor).ok();
        }
    }

    fn run(&self, mut inotify: Inotify) {
        let mut buffer = [0; 4096];
        loop {
            let events = match inotify.read_events_blocking(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "watching directories (logs, manifests) stops: cannot read inotify events");
                    return;
                }
            };
            let changed: Vec<_> = events.map(|event| event.wd).collect();
            for watched in self
                .directories
                .lock()
                .values()
                .filter(|watched| changed.contains(&watched.descriptor))
            {
                watched.sender.send_replace(());
            }
        }
    }
}
