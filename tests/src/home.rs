//! The `skiff` command as a person types it, with a home of its own.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Context as _;

use crate::binary;

/// A home of its own for the clusters of one test; takes down what the test left.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    /// Clusters' names that no other test has.
    pub names: Vec<String>,
}

impl Home {
    /// A home for clusters whose names begin so.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("skiff-").tempdir()?;
        let names = names
            .iter()
            .map(|name| format!("{name}{}", std::process::id()))
            .collect();
        Ok(Self { directory, names })
    }

    /// The home's directory (`SKIFF_HOME`).
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `skiff`, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn skiff(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Command::new(binary()?)
            .env("SKIFF_HOME", self.path())
            .args(arguments)
            .output()
            .context("run skiff")
    }

    /// Runs `skiff`; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.skiff(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "skiff {}: {stderr}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `skiff`, which is to fail; returns what it said.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.skiff(arguments)?;
        anyhow::ensure!(
            !output.status.success(),
            "skiff {} should have failed",
            arguments.join(" ")
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for name in &self.names {
            if let Ok(output) = self.skiff(&["down", "--name", name, "--purge"])
                && !output.status.success()
            {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
}
