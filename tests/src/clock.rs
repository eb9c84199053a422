//! Wall clocks that somebody sets, by libfaketime: `CLOCK_REALTIME` has no namespace, so the machine's cannot be set in a test. The
//! monotonic clock goes on, as it does when a real clock is set.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::binary;

/// The clock of whatever runs [`Clock::program`].
#[derive(Debug)]
pub struct Clock {
    /// What libfaketime reads at each look at the clock.
    file: PathBuf,
    program: PathBuf,
}

impl Clock {
    /// A clock that is right, its files in `directory`.
    ///
    /// # Errors
    /// When libfaketime is not installed.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let libraries = std::fs::read_dir("/usr/lib").context("/usr/lib")?;
        let library = libraries
            .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .find(|path| path.exists())
            .context("libfaketime is not installed: packaging/deps.sh test")?;
        std::fs::create_dir_all(directory).context("a directory")?;
        let clock = Self {
            file: directory.join("clock"),
            program: directory.join("skiff-with-clock"),
        };
        clock.set("+0")?;
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DISABLE_SHM=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1\nexec {} \"$@\"\n",
            library.display(),
            clock.file.display(),
            binary()?.display()
        );
        std::fs::write(&clock.program, script).context("a script")?;
        std::fs::set_permissions(&clock.program, std::fs::Permissions::from_mode(0o755)).context("a program")?;
        Ok(clock)
    }

    /// `skiff` with this clock.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Sets it so far from the right time, as libfaketime writes it: `+1h`, `-1h`, `+0`.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, offset: &str) -> anyhow::Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).context("a file")?;
        std::fs::rename(&next, &self.file).context("a file")
    }
}
