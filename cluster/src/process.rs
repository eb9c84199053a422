//! Starting and ending processes, known by pid and start time so that a reused pid is never taken for them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use serde::{Deserialize, Serialize};
use skiff_net::netns::Namespace;

/// The kernel's `USER_HZ`, the same on every architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// One process of this machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process with the same id.
    pub start_time: u64,
}

/// Starts `command` inside `namespace`, in a session of its own, with its output appended to `log`.
pub(crate) fn spawn(namespace: &Namespace, command: &mut Command, log: &Path) -> io::Result<Process> {
    let log = open_log(log)?;
    command.stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = namespace.run(|| command.spawn()).map_err(io::Error::other)??;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Process::of(pid).ok_or_else(|| io::Error::other("it ended at once"))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// A command that reads nothing.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

// === impl Process ===

impl Process {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, start_time)| Self { pid, start_time })
    }

    /// Whether it runs; one that ended but was not yet waited for does not.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start_time)| start_time == self.start_time && !"ZX".contains(state))
    }

    /// How long ago it started, to a hundredth of a second; `None` when the system does not tell.
    pub fn age(&self) -> Option<Duration> {
        let uptime: f64 = std::fs::read_to_string("/proc/uptime")
            .ok()?
            .split(' ')
            .next()?
            .parse()
            .ok()?;
        let ticks = Duration::from_millis(self.start_time * 1000 / TICKS_PER_SECOND);
        Duration::try_from_secs_f64(uptime).ok()?.checked_sub(ticks)
    }

    /// Kills it without a chance to clean up, and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&self) -> io::Result<()> {
        self.end(Signal::KILL, Duration::from_secs(10)).map(|_| ())
    }

    /// Asks it to end, and kills it when it has not after `patience`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop(&self, patience: Duration) -> io::Result<()> {
        if !self.end(Signal::TERM, patience)? {
            self.kill()?;
        }
        Ok(())
    }

    /// Sends a signal and waits; returns whether the process ended in time.
    fn end(&self, signal: Signal, patience: Duration) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(true);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // Asked after the handle is open: from here on the id cannot be reused under us.
        if !self.is_alive() {
            return Ok(true);
        }
        pidfd_send_signal(&handle, signal)?;
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout))? > 0;
        if ended {
            // Only our own children can be waited for; of others somebody else takes care.
            waitpid(Some(pid), WaitOptions::NOHANG).ok();
        }
        Ok(ended)
    }
}

/// The state letter and the start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(arguments: &str) -> Process {
        let log = tempfile::NamedTempFile::new().unwrap();
        let namespace = Namespace::current().unwrap();
        spawn(&namespace, command("sh").args(["-c", arguments]), log.path()).unwrap()
    }

    #[test]
    fn a_process_lives_until_it_is_stopped() {
        let process = sleeper("exec sleep 1000");
        assert!(process.is_alive());
        assert!(process.age().unwrap() < Duration::from_secs(5));
        process.stop(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        process.stop(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let process = sleeper("trap '' TERM; echo; while :; do sleep 1; done");
        process.stop(Duration::from_secs(1)).unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let process = sleeper("exec sleep 1000");
        let stranger = Process {
            start_time: process.start_time + 1,
            ..process
        };
        assert!(!stranger.is_alive());
        stranger.kill().unwrap();
        assert!(process.is_alive());
        process.kill().unwrap();
    }
}
