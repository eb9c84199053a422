//! Network namespaces: made, named by a bind mount, opened, entered, removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

/// A step on a network namespace that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace's file cannot be opened.
    #[error("cannot open network namespace {path}: it is gone, or its process has ended")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a new namespace.
    #[error("cannot make a network namespace: CAP_SYS_ADMIN is needed (run as root)")]
    Unshare(#[source] Errno),
    /// The kernel refused to move a thread into the namespace.
    #[error("cannot enter network namespace {name}: CAP_SYS_ADMIN is needed (run as root)")]
    Enter {
        /// The namespace.
        name: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The file is something else: one whose namespace was unmounted, or one that never stood for a namespace.
    #[error("{name} is no network namespace: it was unmounted, or the path is wrong")]
    NotANamespace {
        /// The file.
        name: String,
    },
    /// A namespace of that name exists already.
    #[error("network namespace {path} exists already: remove it first, or choose another name")]
    Exists {
        /// The file that names it.
        path: PathBuf,
    },
    /// The file that names the namespace cannot be made.
    #[error("cannot create {path} to name a network namespace by")]
    Create {
        /// The file or its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be bound to its name.
    #[error("cannot bind a network namespace to {path}")]
    Bind {
        /// The file that should name it.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The name cannot be taken away.
    #[error("cannot remove network namespace {path}")]
    Delete {
        /// The file that names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started for it.
    #[error("cannot start a thread for network namespace {name}: the process may be at its limit of threads")]
    Thread {
        /// The namespace.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open network namespace. It lives at least as long as this handle, whatever happens to its name.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
    name: String,
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace that a file stands for: a bind mount, or one under `/proc/<pid>/ns`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file: file.into(),
            name: path.display().to_string(),
        })
    }

    /// A new namespace without a name: it ends with its last process and handle.
    pub fn anonymous() -> Result<Self, Error> {
        on_thread("new", || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(Error::Unshare)?;
            let mut namespace = Self::current()?;
            namespace.name = "(anonymous)".to_owned();
            Ok(namespace)
        })?
    }

    /// A new namespace, named by a bind mount at `directory/name`. The directory is made when absent.
    ///
    /// With `/run/netns` as the directory, `ip netns` knows it too.
    pub fn create(directory: &Path, name: &str) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(|source| Error::Create {
            path: directory.to_owned(),
            source,
        })?;
        let path = directory.join(name);
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path);
        if let Err(source) = made {
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists { path },
                _ => Error::Create { path, source },
            });
        }
        let bound = on_thread(name, || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(Error::Unshare)?;
            nix::mount::mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(|source| Error::Bind {
                path: path.clone(),
                source,
            })
        });
        match bound.and_then(|inner| inner).and_then(|()| Self::open(&path)) {
            Ok(namespace) => Ok(namespace),
            Err(error) => {
                // The first error is the one to tell; a file left behind would only make the next try fail.
                Self::delete(directory, name).ok();
                Err(error)
            }
        }
    }

    /// The namespace named `directory/name`.
    pub fn open_named(directory: &Path, name: &str) -> Result<Self, Error> {
        Self::open(directory.join(name))
    }

    /// Takes the name away; the namespace ends when its last process and handle do. An absent name is no error.
    pub fn delete(directory: &Path, name: &str) -> Result<(), Error> {
        let path = directory.join(name);
        let failed = |source| Error::Delete {
            path: path.clone(),
            source,
        };
        match nix::mount::umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: the file is there, but nothing is mounted on it (a creation that was interrupted).
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
            _ => Ok(()),
        }
    }

    /// Whether `directory/name` is a namespace now: a file left by an interrupted creation is not.
    pub fn exists(directory: &Path, name: &str) -> bool {
        let own = fs::metadata("/proc/thread-self/ns/net").map(|found| found.dev());
        let named = fs::metadata(directory.join(name)).map(|found| found.dev());
        matches!((own, named), (Ok(own), Ok(named)) if own == named)
    }

    /// The kernel's identity of the namespace (device and inode), equal for every handle to it.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let found = nix::sys::stat::fstat(&self.file)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// What the namespace is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure inside the namespace, on a thread of its own, and waits for its result.
    ///
    /// A process that the closure spawns starts in the namespace and stays there.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(&self.name, || {
            self.enter()?;
            Ok(closure())
        })?
    }

    /// Runs a closure inside the namespace on the calling thread, and comes back. For programs of a single thread that
    /// live for milliseconds, where another thread would cost more than the work; everybody else uses [`Self::run`].
    ///
    /// A thread that cannot come back would do the rest of its work in the wrong place: then the process ends.
    pub fn visit<T>(&self, closure: impl FnOnce() -> T) -> Result<T, Error> {
        struct Home(Namespace);
        impl Drop for Home {
            fn drop(&mut self) {
                if self.0.enter().is_err() {
                    std::process::abort();
                }
            }
        }
        let home = Home(Self::current()?);
        self.enter()?;
        let value = closure();
        drop(home);
        Ok(value)
    }

    /// Starts a thread that lives inside the namespace until the closure returns.
    pub fn spawn<T: Send + 'static>(
        self,
        closure: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, Error>>, Error> {
        let name = self.name.clone();
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                self.enter()?;
                Ok(closure())
            })
            .map_err(|source| Error::Thread { name, source })
    }

    #[allow(clippy::disallowed_methods)] // This is the place that the ban names: the thread is always our own.
    fn enter(&self) -> Result<(), Error> {
        let name = || self.name.clone();
        nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|source| match source {
            Errno::EINVAL => Error::NotANamespace { name: name() },
            _ => Error::Enter { name: name(), source },
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Runs a closure on a fresh thread, so that a change of namespace ends with it.
fn on_thread<T: Send>(name: &str, closure: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let started = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, closure)
            .map_err(|source| Error::Thread {
                name: name.to_owned(),
                source,
            })?;
        match started.join() {
            Ok(value) => Ok(value),
            // The closure's own panic: it belongs to the caller.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
