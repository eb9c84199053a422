//! The long-running processes of a machine, and who starts them: systemd.

use std::fmt;
use std::io;
use std::process::{Command, Output};

/// A process that a machine runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Service {
    /// API server, scheduler, controllers, DNS.
    Server,
    /// The node agent.
    Kubelet,
    /// Service proxy and routes.
    Proxy,
    /// The ingress controller.
    Ingress,
}

impl Service {
    /// All, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::Server, Self::Kubelet, Self::Proxy, Self::Ingress];

    /// The name of its subcommand and of its configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Kubelet => "kubelet",
            Self::Proxy => "proxy",
            Self::Ingress => "ingress",
        }
    }

    /// Its systemd unit.
    pub fn unit(self) -> String {
        format!("skiff-{}.service", self.name())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skiff-{}", self.name())
    }
}

/// How a service is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It runs, and is ready where it tells.
    Running,
    /// It is being started.
    Starting,
    /// It is not wanted to run.
    Stopped,
    /// It ended by itself, and is tried again now and then at most.
    Failed,
    /// There is no such unit.
    Absent,
}

/// A request to the service manager that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `systemctl` cannot be run.
    #[error(
        "cannot run systemctl: skiff's services run under systemd; on a system without it, run `skiff server`, `skiff kubelet` and `skiff proxy` with the files in /etc/skiff yourself"
    )]
    NoSystemd(#[source] io::Error),
    /// `systemctl` refused.
    #[error("systemctl {arguments}: {answer}; see `systemctl status {unit}`")]
    Refused {
        /// What was asked.
        arguments: String,
        /// About which unit.
        unit: String,
        /// What it said.
        answer: String,
    },
}

/// Who starts, stops and watches services. systemd on a machine; tests put their own in its place, that runs the same programs.
pub trait ServiceManager: fmt::Debug + Send + Sync {
    /// Whether services can be managed here at all; the text says what is missing and what to do.
    fn check(&self) -> Result<(), String>;

    /// Has it started now (anew, if it runs: its configuration may be another) and at every boot. Does not wait until it is ready.
    fn start(&self, service: Service) -> Result<(), Error>;

    /// Has it stopped now, and not started again. One that is not there is no error. Returns when it has ended.
    fn stop(&self, service: Service) -> Result<(), Error>;

    /// How it is doing.
    fn state(&self, service: Service) -> Result<State, Error>;

    /// The last lines of its log.
    fn log_tail(&self, service: Service) -> String;

    /// How a person sees the log.
    fn log_hint(&self, service: Service) -> String;

    /// Whether it manages cgroups of version 2, which a container runtime then leaves to it.
    fn manages_cgroups(&self) -> bool;

    /// Whether the clock follows others' clocks; `None` when it does not know.
    fn clock_is_synchronized(&self) -> Option<bool>;

    /// Has the container runtime started anew, after its configuration was changed. Pods outlive it.
    fn restart_runtime(&self) -> Result<(), Error>;
}

/// The unit of the container runtime whose configuration skiff knows.
const RUNTIME: &str = "containerd.service";

/// systemd, by `systemctl`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Systemd;

impl ServiceManager for Systemd {
    fn check(&self) -> Result<(), String> {
        if !std::path::Path::new("/run/systemd/system").is_dir() {
            return Err("systemd is not running here; skiff's services run under it".to_owned());
        }
        match self.state(Service::Kubelet) {
            Ok(State::Absent) => Err(
                "the units skiff-*.service are not installed; install the skiff package, or run `make install`"
                    .to_owned(),
            ),
            Ok(_) => Ok(()),
            Err(error) => Err(skiff_daemon::error_chain(&error)),
        }
    }

    fn start(&self, service: Service) -> Result<(), Error> {
        let unit = service.unit();
        // One that failed too often would be refused.
        systemctl(&["reset-failed", &unit])?;
        expect_success(&["enable", "--quiet", &unit], &unit)?;
        expect_success(&["restart", "--no-block", &unit], &unit)
    }

    fn stop(&self, service: Service) -> Result<(), Error> {
        if self.state(service)? == State::Absent {
            return Ok(());
        }
        let unit = service.unit();
        expect_success(&["disable", "--now", "--quiet", &unit], &unit)?;
        systemctl(&["reset-failed", &unit]).map(drop)
    }

    fn state(&self, service: Service) -> Result<State, Error> {
        let unit = service.unit();
        let answer = systemctl(&["show", "--property=LoadState,ActiveState,SubState", &unit])?;
        Ok(read_state(&String::from_utf8_lossy(&answer.stdout)))
    }

    fn log_tail(&self, service: Service) -> String {
        let unit = service.unit();
        let output = Command::new("journalctl")
            .args(["--unit", &unit, "--lines=15", "--no-pager", "--output=cat"])
            .output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn log_hint(&self, service: Service) -> String {
        format!("journalctl -u {service}")
    }

    fn manages_cgroups(&self) -> bool {
        let exists = |path: &str| std::path::Path::new(path).exists();
        exists("/run/systemd/system") && exists("/sys/fs/cgroup/cgroup.controllers")
    }

    fn clock_is_synchronized(&self) -> Option<bool> {
        let mut command = Command::new("timedatectl");
        let output = command.args(["show", "--property=NTPSynchronized", "--value"]).output();
        match String::from_utf8_lossy(&output.ok()?.stdout).trim() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }

    fn restart_runtime(&self) -> Result<(), Error> {
        expect_success(&["restart", RUNTIME], RUNTIME)
    }
}

fn systemctl(arguments: &[&str]) -> Result<Output, Error> {
    Command::new("systemctl")
        .args(arguments)
        .output()
        .map_err(Error::NoSystemd)
}

fn expect_success(arguments: &[&str], unit: &str) -> Result<(), Error> {
    let output = systemctl(arguments)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        arguments: arguments.join(" "),
        unit: unit.to_owned(),
        answer: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Reads the properties that `systemctl show` prints.
fn read_state(text: &str) -> State {
    let property = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    match (property("LoadState"), property("ActiveState"), property("SubState")) {
        ("not-found" | "", _, _) => State::Absent,
        // Waiting to be tried again after a failure.
        (_, "failed", _) | (_, _, "auto-restart") => State::Failed,
        (_, "active" | "reloading", _) => State::Running,
        (_, "activating", _) => State::Starting,
        _ => State::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_says() {
        let cases = [
            (
                "LoadState=loaded\nActiveState=active\nSubState=running\n",
                State::Running,
            ),
            (
                "LoadState=loaded\nActiveState=activating\nSubState=start\n",
                State::Starting,
            ),
            (
                "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\n",
                State::Failed,
            ),
            ("LoadState=loaded\nActiveState=failed\nSubState=failed\n", State::Failed),
            (
                "LoadState=loaded\nActiveState=inactive\nSubState=dead\n",
                State::Stopped,
            ),
            (
                "LoadState=not-found\nActiveState=inactive\nSubState=dead\n",
                State::Absent,
            ),
            ("", State::Absent),
        ];
        for (text, wanted) in cases {
            assert_eq!(read_state(text), wanted, "{text}");
        }
    }

    #[test]
    fn units_are_named_after_their_process() {
        assert_eq!(Service::Kubelet.unit(), "skiff-kubelet.service");
        assert_eq!(Service::Server.to_string(), "skiff-server");
    }
}
