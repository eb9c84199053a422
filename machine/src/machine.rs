//! The machine that a command works on, and whom it talks to.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::services::{Service, ServiceManager, State};
use crate::{Error, Layout};

/// Where progress is told.
pub trait Say: Send + Sync {
    /// A line of a phase: `[certs] Generating "ca" certificate and key`.
    fn say(&self, phase: &str, text: &str);
}

/// A machine: its files, its services, its clock.
pub struct Machine<'a> {
    /// Where things are.
    pub layout: Layout,
    /// Who runs the long-lived processes.
    pub services: &'a dyn ServiceManager,
    /// The `skiff` program.
    pub binary: PathBuf,
    /// The program that is the CNI plugins, when called by their names.
    pub plugin_program: PathBuf,
    /// Who listens.
    pub say: &'a dyn Say,
    /// What time it is.
    pub now: fn() -> Timestamp,
}

impl std::fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Machine<'_> {
    pub(crate) fn say(&self, phase: &str, text: impl AsRef<str>) {
        self.say.say(phase, text.as_ref());
    }

    /// Held while the machine is changed; the kernel lets it go with the process.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        // Told here, too: `reset` looks for nothing before, and preflight may be left out.
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let path = self.layout.lock();
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        }
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            Err(TryLockError::Error(source)) => Err(Error::file("lock", path)(source)),
        }
    }

    /// Asks again and again until there is something, while `services` stay up.
    pub(crate) async fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        services: &[Service],
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Error> {
        const PAUSE: Duration = Duration::from_millis(200);
        let deadline = Instant::now() + limit;
        loop {
            // Asked first: what is there already needs no service to run.
            if let Some(found) = ask().await {
                return Ok(found);
            }
            for service in services {
                if self.services.state(*service)? == State::Failed {
                    return Err(self.failed(*service));
                }
            }
            if Instant::now() >= deadline {
                let hints: Vec<_> = services
                    .iter()
                    .map(|service| self.services.log_hint(*service))
                    .collect();
                return Err(Error::TooLate {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    hint: format!(
                        "look at the logs ({}), then run the same command again",
                        hints.join("; ")
                    ),
                });
            }
            sleep(PAUSE).await;
        }
    }

    fn failed(&self, service: Service) -> Error {
        Error::ServiceFailed {
            service,
            hint: self.services.log_hint(service),
            log: self.services.log_tail(service),
        }
    }
}
