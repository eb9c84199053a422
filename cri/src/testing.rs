//! Tests once more, on another containerd than this machine's: one of a later Debian, which `packaging/deps.sh test` has unpacked.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A containerd that is not installed, with the runc and the kubectl of its time.
#[derive(Clone, Copy, Debug)]
pub struct Later {
    suite: &'static str,
    version: &'static str,
}

/// Debian 13's.
pub const TRIXIE: Later = Later {
    suite: "trixie",
    version: "1.7.",
};

/// That of the Debian which comes next.
pub const FORKY: Later = Later {
    suite: "forky",
    version: "2.",
};

impl Later {
    /// Where its programs are.
    ///
    /// # Panics
    /// When they are not there, or are others.
    #[must_use]
    pub fn programs(self) -> PathBuf {
        let test = std::env::current_exe().unwrap_or_default();
        // The target directory, of `target/debug/deps/TEST`.
        let target = test.ancestors().nth(3).unwrap_or(Path::new("target"));
        let programs = target.join("runtimes").join(self.suite).join("usr/bin");
        let output = Command::new(programs.join("containerd")).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version = text.ok().and_then(|text| text.split(' ').nth(2).map(str::to_owned));
        let version =
            version.unwrap_or_else(|| panic!("no containerd in {}: run packaging/deps.sh test", programs.display()));
        assert!(
            version.starts_with(self.version),
            "{} has containerd {version}, not {}x",
            self.suite,
            self.version
        );
        programs
    }

    /// Runs tests of the calling test's own binary with these programs before those of this machine.
    ///
    /// # Panics
    /// When one of them fails, or has another name by now.
    pub fn run(self, tests: &[&str]) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = [self.programs()].into_iter().chain(std::env::split_paths(&path));
        let path: OsString = std::env::join_paths(all).unwrap_or_default();
        let test = std::env::current_exe().unwrap_or_default();
        let mut command = Command::new(test);
        command
            .args(tests)
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .env("PATH", path);
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("cannot run the test itself: {error}"));
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let passed = format!("test result: ok. {} passed", tests.len());
        assert!(
            text.contains(&passed),
            "with the containerd of {} not all of {tests:?} have passed",
            self.suite
        );
    }
}
