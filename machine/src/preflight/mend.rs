//! What a machine lacks and can simply be given: kernel modules and settings. The package sets them at every boot; this is for the time
//! until then, and for machines without it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use skiff_net::sysctl;

use crate::{Machine, preflight};

/// What skiff needs of the kernel; each is the name of the module that has it.
const FEATURES: [&str; 2] = ["overlay", "br_netfilter"];

/// Settings that pods' traffic needs.
const SETTINGS: [(&str, &str); 3] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
];

/// Whether it is there, loaded or built in.
fn has(feature: &str) -> bool {
    match feature {
        "br_netfilter" => Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(),
        file_system => fs::read_to_string("/proc/filesystems")
            .is_ok_and(|text| text.split_whitespace().any(|word| word == file_system)),
    }
}

/// Features that are not there, and that loading their module would not bring: it does not exist. Loads nothing.
pub(crate) fn missing_features() -> Vec<&'static str> {
    let missing = FEATURES
        .into_iter()
        .filter(|feature| !has(feature) && !modprobe(&["--dry-run", feature]));
    missing.collect()
}

/// What [`apply`] would do.
pub(crate) fn plan() -> Vec<String> {
    let modules = FEATURES.into_iter().filter(|feature| !has(feature));
    let modules = modules.map(|module| format!("load the kernel module {module}"));
    // What is not there yet comes with its module, and as another value than ours.
    let other = |(name, value): &(&str, &str)| sysctl::get(name).map_or(true, |found| found != *value);
    let settings = SETTINGS.into_iter().filter(other);
    modules
        .chain(settings.map(|(name, value)| format!("set {name} = {value}")))
        .collect()
}

/// Loads and sets what is missing; returns what could not be, as findings.
pub(crate) fn apply(machine: &Machine<'_>) -> Vec<preflight::Finding> {
    let mut failed = Vec::new();
    let mut tell = |check: String, text: String| {
        failed.push(preflight::Finding {
            check,
            level: preflight::Level::Error,
            text,
        });
    };
    for module in FEATURES {
        if has(module) {
            continue;
        }
        machine.say("preflight", format!("Loading the kernel module {module}"));
        if !modprobe(&[module]) || !has(module) {
            tell(
                format!("KernelFeature-{module}"),
                format!("`modprobe {module}` does not bring what skiff needs of it; see: dmesg"),
            );
        }
    }
    for (name, value) in SETTINGS {
        match sysctl::set(name, value) {
            Ok(false) => {}
            Ok(true) => machine.say("preflight", format!("Setting {name} = {value}")),
            // A kernel without IPv6.
            Err(sysctl::Error::Absent { .. }) if name.ends_with("ip6tables") => {}
            Err(error) => {
                let path = format!("FileContent--proc-sys-{}", name.replace('.', "-"));
                tell(
                    path,
                    format!(
                        "{}; set it yourself: sysctl -w {name}={value}",
                        skiff_daemon::error_chain(&error)
                    ),
                );
            }
        }
    }
    failed
}

fn modprobe(arguments: &[&str]) -> bool {
    let mut command = Command::new("modprobe");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
