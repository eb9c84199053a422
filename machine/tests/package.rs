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
