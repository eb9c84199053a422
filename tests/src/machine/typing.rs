//! What the documents tell people to type, typed on a machine.

use std::path::Path;

use anyhow::Context as _;
use skiff_machine::{Service, ServiceManager as _};

use super::TestMachine;
use crate::document;

impl TestMachine {
    /// Types a named block of a document in `docs/` word for word; returns what it printed. Of `systemctl` the supervisor does what
    /// systemd would.
    ///
    /// # Errors
    /// When there is no such block, or one of its commands fails.
    pub fn follow(&self, document: &str, block: &str) -> anyhow::Result<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document);
        let document = document::Path::read(&path)?;
        let typed = || format!("{block:?} of {} on {}", path.display(), self.node.name);
        let (mut script, mut printed) = (String::new(), String::new());
        for line in document.block(block)?.lines() {
            if let Some(words) = line.strip_prefix("systemctl ") {
                printed += &self.shell(&std::mem::take(&mut script)).with_context(typed)?;
                self.systemctl(words).with_context(typed)?;
            } else {
                script += &format!("{line}\n");
            }
        }
        printed += &self.shell(&script).with_context(typed)?;
        Ok(printed)
    }

    fn shell(&self, script: &str) -> anyhow::Result<String> {
        if script.is_empty() {
            return Ok(String::new());
        }
        let output = self.skiff_as(Path::new("bash"), &["-euo", "pipefail", "-c", script])?;
        let told = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{script}\nends with {}: {told}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn systemctl(&self, words: &str) -> anyhow::Result<()> {
        let words = words.split(" #").next().unwrap_or_default();
        let mut words = words.split_whitespace();
        let verb = words.next().unwrap_or_default();
        for unit in words {
            let mut services = Service::ALL.into_iter();
            let service = services.find(|service| service.unit() == format!("{unit}.service"));
            let service = service.with_context(|| format!("no unit {unit}"))?;
            match verb {
                "start" | "restart" => self.services.start(service)?,
                "stop" => self.services.stop(service)?,
                "reload" => self.services.reload(service)?,
                _ => anyhow::bail!("systemctl {verb} is not known here"),
            }
        }
        Ok(())
    }
}
