//! What the Debian package does on a machine that is a node still.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use skiff_machine::{Layout, Service};

/// Runs a script as dpkg does; returns what it tells.
fn script(name: &str, argument: &str, root: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging/debian")
        .join(name);
    let mut command = Command::new("sh");
    let output = command
        .arg(path)
        .arg(argument)
        .env("DPKG_ROOT", root)
        .output()
        .expect("run sh");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{name} {argument}: {told}");
    told
}

#[test]
fn a_purge_leaves_no_enabled_unit_and_removal_names_reset() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    assert_eq!(script("prerm", "remove", root.path()), "");
    for directory in [layout.enabled_units(), layout.config(), layout.data()] {
        fs::create_dir_all(directory).unwrap();
    }
    for service in Service::ALL {
        let unit = Path::new("/lib/systemd/system").join(service.unit());
        symlink(unit, layout.enabled_units().join(service.unit())).unwrap();
    }
    fs::write(layout.enabled_units().join("cron.service"), "").unwrap();
    fs::write(layout.record(), "{}").unwrap();

    let told = script("prerm", "remove", root.path());
    assert!(told.contains("run `skiff reset` first"), "{told}");
    assert_eq!(script("prerm", "upgrade", root.path()), "");
    script("postrm", "remove", root.path());
    assert_eq!(fs::read_dir(layout.enabled_units()).unwrap().count(), 5);
    script("postrm", "purge", root.path());
    let left: Vec<_> = fs::read_dir(layout.enabled_units()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!layout.config().exists() && layout.record().exists());
}

/// Programs of the system, which note how they are called; `timeout` runs what it is given.
const SYSTEM: &str = r#"
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system "$STUBS" || exit 70
    for program in systemctl deb-systemd-invoke; do
        printf '#!/bin/sh\necho "%s $*" >> "$CALLS"\n' "$program" > "$STUBS/$program"
    done
    printf '#!/bin/sh\nprintf "timeout $1: " >> "$CALLS"\nshift\nexec "$@"\n' > "$STUBS/timeout"
    chmod +x "$STUBS"/*
    exec env PATH="$STUBS:$PATH" sh "$@""#;

#[test]
fn an_upgrade_waits_for_no_unit_without_a_bound() {
    let directory = tempfile::tempdir().unwrap();
    let calls = directory.path().join("calls");
    let postinst = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/debian/postinst");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", SYSTEM, "sh"])
        .arg(postinst)
        .args(["configure", "0.0.1-1"])
        .env("STUBS", directory.path().join("stubs"))
        .env("CALLS", &calls)
        .output()
        .expect("run unshare");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = fs::read_to_string(calls).unwrap();
    let restarts: Vec<_> = calls.lines().filter(|call| call.contains("try-restart")).collect();
    assert_eq!(restarts.len(), 1, "{calls}");
    assert!(restarts[0].starts_with("timeout 20: deb-systemd-invoke "), "{calls}");
    for service in Service::ALL {
        assert!(restarts[0].contains(&service.unit()), "{service}: {calls}");
    }
}
