//! Pressure stall information: how long tasks have waited for want of CPU, memory or I/O (the kernel's documentation of PSI).

use std::fs;
use std::path::Path;

/// Of one resource, or of one cgroup's share of it: how long it has held tasks up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stalls {
    /// At least one task has waited.
    pub(crate) some: Stall,
    /// All tasks have waited.
    pub(crate) full: Stall,
}

/// Shares of the time in percent, and the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stall {
    /// Of the last ten seconds.
    pub(crate) avg10: f64,
    /// Of the last minute.
    pub(crate) avg60: f64,
    /// Of the last five minutes.
    pub(crate) avg300: f64,
    /// Microseconds since the cgroup was made, or the machine started.
    pub(crate) total: u64,
}

/// All three; none where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    pub(crate) cpu: Option<Stalls>,
    pub(crate) memory: Option<Stalls>,
    pub(crate) io: Option<Stalls>,
}

impl Pressure {
    /// Of a cgroup of version 2.
    pub(super) fn of_cgroup(directory: &Path) -> Self {
        Self::read(|resource| directory.join(format!("{resource}.pressure")))
    }

    /// Of the machine, from a directory like `/proc/pressure`.
    pub(crate) fn of_machine(directory: &Path) -> Self {
        Self::read(|resource| directory.join(resource))
    }

    fn read<P: AsRef<Path>>(path: impl Fn(&str) -> P) -> Self {
        let stalls = |resource: &str| parse(&fs::read_to_string(path(resource)).ok()?);
        Self {
            cpu: stalls("cpu"),
            memory: stalls("memory"),
            io: stalls("io"),
        }
    }
}

/// Two lines; a kernel before 5.13 has none for tasks that all wait for CPU.
fn parse(text: &str) -> Option<Stalls> {
    let line = |kind: &str| text.lines().find_map(|line| stall(line.strip_prefix(kind)?));
    Some(Stalls {
        some: line("some ")?,
        full: line("full ").unwrap_or_default(),
    })
}

fn stall(fields: &str) -> Option<Stall> {
    let field = |name: &str| {
        let mut fields = fields.split_whitespace();
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    Some(Stall {
        avg10: field("avg10")?.parse().ok()?,
        avg60: field("avg60")?.parse().ok()?,
        avg300: field("avg300")?.parse().ok()?,
        total: field("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "cpu.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=2000000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n",
        );
        write("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n");
        write("io.pressure", "");
        let found = Pressure::of_cgroup(dir.path());
        let cpu = found.cpu.unwrap();
        assert_eq!((cpu.some.avg10, cpu.some.avg60, cpu.some.total), (1.5, 0.25, 2_000_000));
        assert_eq!((cpu.full.avg10, cpu.full.total), (0.5, 7));
        let memory = found.memory.unwrap();
        assert_eq!((memory.some.total, memory.full), (3, Stall::default()));
        assert_eq!(found.io, None, "switched off");
        assert_eq!(Pressure::of_machine(dir.path()), Pressure::default());
    }
}
