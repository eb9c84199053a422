//! The real `kubectl`, as a person would type it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// `kubectl` with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

/// What a `kubectl` that may fail printed.
#[derive(Clone, Debug)]
pub struct Printed {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Kubectl {
    /// `kubectl` for this kubeconfig.
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig }
    }

    /// A command with the kubeconfig, to be given arguments and run by the caller.
    pub fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        // Its discovery cache must be neither the user's nor shared between clusters on one port.
        command.arg("--cache-dir").arg(self.kubeconfig.with_extension("cache"));
        command
    }

    /// Runs it; a failure is an error with what it printed.
    ///
    /// # Errors
    /// When it cannot be run, or exits with another code than 0.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let printed = self.attempt(arguments, "")?;
        anyhow::ensure!(
            printed.success,
            "kubectl {}: {}{}",
            arguments.join(" "),
            printed.stdout,
            printed.stderr
        );
        Ok(printed.stdout)
    }

    /// Runs it with an input, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn attempt(&self, arguments: &[&str], input: &str) -> anyhow::Result<Printed> {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl")?;
        // It may have ended without reading: that is its own affair.
        child
            .stdin
            .take()
            .context("kubectl's input")?
            .write_all(input.as_bytes())
            .ok();
        let output = child.wait_with_output().context("wait for kubectl")?;
        Ok(Printed {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let printed = self.attempt(&["apply", "-f", "-"], manifest)?;
        anyhow::ensure!(printed.success, "kubectl apply: {}{}", printed.stdout, printed.stderr);
        Ok(printed.stdout)
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn get(&self, what: &[&str]) -> anyhow::Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], what].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// `kubectl get … -o jsonpath=…`.
    ///
    /// # Errors
    /// When it fails.
    pub fn field(&self, what: &[&str], path: &str) -> anyhow::Result<String> {
        let output = format!("jsonpath={path}");
        self.run(&[&["get", "-o", output.as_str()], what].concat())
    }
}
