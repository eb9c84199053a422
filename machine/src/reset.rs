//! `skiff reset`: what `init` or `join` made goes, and the proof that it went.
//!
//! People's data stays unless it is to be purged, and nothing is deleted through a mount point.

mod files;
mod kernel;
mod remove;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use skiff_cri::{Client, Runtime as _, SandboxFilter};

use crate::init::containerd;
use crate::record::{Host, Record, Setting, host};
use crate::services::Service;
use crate::{Error, Machine};

const PHASE: &str = "reset";
/// A runtime that is stuck must not keep a machine from being reset.
const RUNTIME_WITHIN: Duration = Duration::from_secs(60);
/// Those that would make things again come first.
const STOP_ORDER: [Service; 4] = [Service::Proxy, Service::Ingress, Service::Kubelet, Service::Server];

/// What is to be reset, beside the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// People's volumes too.
    pub purge_data: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// People's data that was left where it is.
    pub kept: Vec<PathBuf>,
    /// What others have put into directories that skiff uses, too, since it came: theirs, and left where it is.
    pub others: Vec<PathBuf>,
    /// What should have gone and is there still, with the reason.
    pub left: Vec<String>,
}

/// Undoes what was done to this machine. One that is no node is no error.
///
/// # Errors
/// When the machine is another program's node, or services cannot be stopped: then nothing else was touched. What cannot be removed is
/// in the report.
pub async fn reset(machine: &Machine<'_>, wish: Wish) -> Result<Report, Error> {
    let _lock = machine.lock()?;
    let record = match Record::read(&machine.layout) {
        Ok(None) if !files::is_node(&machine.layout)? => return Ok(files::bare(machine, wish)),
        Ok(record) => record,
        Err(error) => {
            // A garbled record must not keep anybody from starting anew.
            machine.say(PHASE, format!("WARNING: {}", skiff_daemon::error_chain(&error)));
            None
        }
    };
    for service in STOP_ORDER {
        machine.say(PHASE, format!("Stopping {service}"));
        machine.services.stop(service)?;
    }
    let mut report = Report::default();
    remove_sandboxes(machine, record.as_ref(), &mut report).await;
    remove_rules(machine, &mut report);
    kernel::restore(machine, record.as_ref(), &mut report);
    files::remove(machine, record.as_ref(), wish, &mut report);
    put_back(machine, record.as_ref(), &mut report).await;
    let now = Host::observe(&machine.layout);
    kernel::compare(&machine.layout, record.as_ref(), &now, &mut report);
    if report.left.is_empty() {
        files::forget(machine, record.as_ref())?;
        machine.say(
            PHASE,
            "The machine is as it was: rules, routes, links, namespaces, mounts, settings, enabled units and files were compared",
        );
    }
    Ok(report)
}

/// What `reset` would do, told and not done.
///
/// # Errors
/// When the record cannot be read, or the machine is another program's node.
pub fn dry_run(machine: &Machine<'_>, wish: Wish) -> Result<Vec<String>, Error> {
    let record = Record::read(&machine.layout)?;
    if record.is_none() && !files::is_node(&machine.layout)? {
        machine.say("dryrun", files::BARE);
        return Ok(Vec::new());
    }
    let mut steps: Vec<_> = STOP_ORDER.iter().map(|service| format!("stop {service}")).collect();
    steps.push("end all pods of this node, remove their networks, mounts and cgroups".to_owned());
    steps.push("remove the rules of Services and the routes to other nodes".to_owned());
    let now = host::sysctls();
    for (name, setting) in record.iter().flat_map(|record| record.settings(&now)) {
        if let Setting::Restore(value) = setting {
            steps.push(format!("set {name} = {value}"));
        }
    }
    steps.extend(files::there(machine, record.as_ref(), wish));
    for step in &steps {
        machine.say("dryrun", format!("Would {step}"));
    }
    Ok(steps)
}

/// Files of others get back what was in them; the runtime reads its own anew.
async fn put_back(machine: &Machine<'_>, record: Option<&Record>, report: &mut Report) {
    let Some(record) = record else { return };
    for (path, change) in &record.replaced {
        match containerd::put_back(path, change) {
            Ok(true) => {
                machine.say(PHASE, format!("Restoring {:?}", path.display().to_string()));
                if !containerd::restart(machine, &record.runtime_endpoint).await {
                    report
                        .left
                        .push("container runtime: it does not come up again; see: journalctl -u containerd".to_owned());
                }
            }
            Ok(false) => machine.say(
                PHASE,
                format!(
                    "WARNING: {} was changed by somebody since: it stays as it is",
                    path.display()
                ),
            ),
            Err(error) => report.left.push(skiff_daemon::error_chain(&error)),
        }
    }
}

/// Ends all pods, so that their networks and mounts go the way they came.
async fn remove_sandboxes(machine: &Machine<'_>, record: Option<&Record>, report: &mut Report) {
    let Some(record) = record else { return };
    machine.say(PHASE, "Removing the pods of this node");
    let client = Client::new(&record.runtime_endpoint).with_timeout(RUNTIME_WITHIN);
    let removed = tokio::time::timeout(RUNTIME_WITHIN, async {
        let sandboxes = client.list_sandboxes(&SandboxFilter::default()).await?;
        for sandbox in sandboxes {
            client.stop_sandbox(&sandbox.id).await?;
            client.remove_sandbox(&sandbox.id).await?;
        }
        Ok::<_, skiff_cri::Error>(())
    });
    let failed = match removed.await {
        Ok(Ok(())) => return,
        // It may be gone for good; what a pod has left in the kernel is compared.
        Ok(Err(error @ skiff_cri::Error::Unreachable { .. })) if !kernel::pods_run(machine) => {
            let told = skiff_daemon::error_chain(&error);
            machine.say(
                PHASE,
                format!("WARNING: {told}; no process of a pod runs, so that none has to be ended"),
            );
            return;
        }
        Ok(Err(error)) => skiff_daemon::error_chain(&error),
        Err(_) => format!(
            "the container runtime does not answer within {} s",
            RUNTIME_WITHIN.as_secs()
        ),
    };
    report.left.push(format!(
        "pods: {failed}; start the container runtime, then run `skiff reset` again"
    ));
}

/// The proxy knows its rules and routes, and takes them away itself.
fn remove_rules(machine: &Machine<'_>, report: &mut Report) {
    machine.say(PHASE, "Removing the rules of Services and the routes to other nodes");
    let mut command = Command::new(&machine.binary);
    command
        .args(["proxy", "--cleanup", "--config"])
        .arg(machine.layout.config_file("proxy"));
    let arguments = std::fs::read_to_string(machine.layout.environment_file("proxy")).unwrap_or_default();
    command.args(arguments.split('"').nth(1).unwrap_or_default().split_whitespace());
    match command.stdin(Stdio::null()).stdout(Stdio::null()).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => report
            .left
            .push(format!("rules: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => report.left.push(format!(
            "rules: run {} proxy --cleanup: {error}",
            machine.binary.display()
        )),
    }
}
