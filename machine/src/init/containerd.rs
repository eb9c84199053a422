//! containerd's configuration file. Where systemd manages cgroups of version 2, containerd is told to leave them to it, as Kubernetes'
//! documentation asks; Debian's containerd comes without. And containerd 2 tells nowhere else which image it makes sandboxes of.
//! [`with_systemd_cgroups`] and [`pinned_sandbox_image`] are pure.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use skiff_cri::{CgroupDriver, Client, Runtime as _, SandboxFilter};
use toml_edit::{DocumentMut, Item, Table, value};

use super::runtime;
use crate::record::{Record, Replaced};
use crate::{Error, Machine};

const PHASE: &str = "preflight";
/// A runtime that was started anew loads its plugins first.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// What a file without a version would be read as has other names for everything.
const FRESH: &str = "version = 2\n";

/// The change that containerd's file needs, where that is right and no pod runs yet; what keeps it from being made is told.
pub(crate) async fn plan(machine: &Machine<'_>, endpoint: &str) -> Result<Option<(PathBuf, Replaced)>, Error> {
    // Another socket is another runtime, whose file is elsewhere.
    if !machine.services.manages_cgroups() || endpoint != machine.layout.runtime_endpoint() {
        return Ok(None);
    }
    if runtime::observe(endpoint).await?.settings.cgroup_driver != Some(CgroupDriver::Cgroupfs) {
        return Ok(None);
    }
    let path = machine.layout.containerd_config();
    let before = read(&path)?;
    let edited = with_systemd_cgroups(before.as_deref().unwrap_or(FRESH));
    let edited = edited.map_err(|reason| Error::RuntimeConfiguration {
        path: path.clone(),
        reason,
    })?;
    let Some(after) = edited else {
        machine.say(PHASE, "WARNING: containerd makes cgroups beside systemd, and its configuration has a form that skiff leaves alone; set SystemdCgroup = true for runc in it");
        return Ok(None);
    };
    if has_pods(endpoint).await {
        machine.say(PHASE, "WARNING: containerd makes cgroups beside systemd; pods run already, so that this stays (after `skiff reset`, SystemdCgroup = true changes it)");
        return Ok(None);
    }
    Ok(Some((path, Replaced { before, after })))
}

/// Changes containerd's file and starts it anew; puts the file back if containerd does not come up with it.
pub(crate) async fn mend(machine: &Machine<'_>, endpoint: &str, record: &mut Record) -> Result<(), Error> {
    let Some((path, found)) = plan(machine, endpoint).await? else {
        return Ok(());
    };
    machine.say(
        PHASE,
        format!("Setting SystemdCgroup = true in {:?}", path.display().to_string()),
    );
    let change = change(record.replaced.get(&path), found.before, found.after);
    record.replaced.insert(path.clone(), change.clone());
    record.write(&machine.layout)?;
    write(&path, &change.after)?;
    if restart(machine, endpoint).await {
        return Ok(());
    }
    machine.say(
        PHASE,
        "WARNING: containerd does not come up with it: the file is as it was again",
    );
    put_back(&path, &change)?;
    record.replaced.remove(&path);
    record.write(&machine.layout)?;
    restart(machine, endpoint).await;
    Ok(())
}

/// What goes back one day: where a former run has written what is there now, that is what it found.
fn change(former: Option<&Replaced>, found: Option<String>, after: String) -> Replaced {
    let before = match former {
        Some(former) if found.as_ref() == Some(&former.after) => former.before.clone(),
        _ => found,
    };
    Replaced { before, after }
}

/// Undoes what [`mend`] did, while the file is what it wrote. Returns whether it was undone.
pub(crate) fn put_back(path: &Path, change: &Replaced) -> Result<bool, Error> {
    if read(path)?.as_deref() != Some(change.after.as_str()) {
        return Ok(false);
    }
    match &change.before {
        Some(text) => write(path, text)?,
        None => fs::remove_file(path).map_err(Error::file("remove", path))?,
    }
    Ok(true)
}

/// Starts the runtime anew; returns whether it answers then.
pub(crate) async fn restart(machine: &Machine<'_>, endpoint: &str) -> bool {
    if machine.services.restart_runtime().is_err() {
        return false;
    }
    let client = Client::new(endpoint).with_timeout(READY_WITHIN);
    client.wait_until_ready(READY_WITHIN).await.is_ok()
}

/// The image that this machine's containerd makes sandboxes of, as its configuration says; `None` before containerd 2, which tells
/// it by itself, and where there is none of its programs.
pub(crate) fn sandbox_image(machine: &Machine<'_>, endpoint: &str) -> Option<String> {
    // Another socket is another runtime, whose file is elsewhere.
    if endpoint != machine.layout.runtime_endpoint() {
        return None;
    }
    let path = machine.layout.containerd_config();
    let file = path.exists().then_some(["--config".as_ref(), path.as_os_str()]);
    let mut command = Command::new("containerd");
    let output = command
        .args(file.into_iter().flatten())
        .args(["config", "dump"])
        .output();
    pinned_sandbox_image(&String::from_utf8_lossy(&output.ok()?.stdout))
}

fn pinned_sandbox_image(dump: &str) -> Option<String> {
    let document: DocumentMut = dump.parse().ok()?;
    let images = document.get("plugins")?.get("io.containerd.cri.v1.images")?;
    Some(images.get("pinned_images")?.get("sandbox")?.as_str()?.to_owned())
}

async fn has_pods(endpoint: &str) -> bool {
    let client = Client::new(endpoint).with_timeout(READY_WITHIN);
    let sandboxes = client.list_sandboxes(&SandboxFilter::default()).await;
    sandboxes.is_ok_and(|sandboxes| !sandboxes.is_empty())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Registries' passwords may be in it: what was private stays so.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let private = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 == 0);
    if private {
        skiff_pki::files::write_private(path, text.as_bytes())?;
    } else {
        skiff_pki::files::write_public(path, text.as_bytes())?;
    }
    Ok(())
}

/// The file with `SystemdCgroup = true` for the runtime that pods get; everything else, comments included, stays as it is. `None` for a
/// form that is not known.
fn with_systemd_cgroups(text: &str) -> Result<Option<String>, String> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
    let plugin = match document.get("version").and_then(Item::as_integer) {
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(3) => "io.containerd.cri.v1.runtime",
        _ => return Ok(None),
    };
    let containerd = ["plugins", plugin, "containerd"];
    let Some(containerd) = table(document.as_table_mut(), &containerd) else {
        return Ok(None);
    };
    let handler = containerd.get("default_runtime_name").and_then(Item::as_str);
    let handler = handler.unwrap_or("runc").to_owned();
    let Some(runtime) = table(containerd, &["runtimes", &handler]) else {
        return Ok(None);
    };
    // A runtime that is named in the file has only what is written there.
    if !runtime.contains_key("runtime_type") {
        runtime.insert("runtime_type", value("io.containerd.runc.v2"));
    }
    let Some(options) = table(runtime, &["options"]) else {
        return Ok(None);
    };
    options.insert("SystemdCgroup", value(true));
    Ok(Some(document.to_string()))
}

/// The table below, made where it is missing; `None` where something else has its name.
fn table<'a>(mut within: &'a mut Table, path: &[&str]) -> Option<&'a mut Table> {
    for name in path {
        let fresh = || {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        };
        within = within.entry(name).or_insert_with(fresh).as_table_mut()?;
    }
    Some(within)
}

#[cfg(test)]
mod tests {
    use skiff_cri::testing::{FORKY, TRIXIE};

    use super::*;

    /// Debian's, as its package installs it.
    const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"#;

    #[test]
    fn everything_else_stays_and_twice_is_once() {
        let once = with_systemd_cgroups(DEBIAN).unwrap().unwrap();
        for line in DEBIAN.lines() {
            assert!(once.contains(line), "{line}\n{once}");
        }
        assert_eq!(with_systemd_cgroups(&once).unwrap().unwrap(), once);
        let off = once.replace("SystemdCgroup = true", "SystemdCgroup = false # mine");
        let again = with_systemd_cgroups(&off).unwrap().unwrap();
        assert!(
            again.contains("SystemdCgroup = true") && !again.contains("false"),
            "{again}"
        );
    }

    #[test]
    fn other_forms() {
        let newer = with_systemd_cgroups("version = 3\n").unwrap().unwrap();
        assert!(newer.contains("io.containerd.cri.v1.runtime"), "{newer}");
        let named =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"crun\"\n";
        assert!(
            with_systemd_cgroups(named)
                .unwrap()
                .unwrap()
                .contains("runtimes.crun.options")
        );
        // Docker's, of which only the version of the form is left out.
        assert_eq!(with_systemd_cgroups("disabled_plugins = []\n").unwrap(), None);
        assert_eq!(with_systemd_cgroups("version = 2\nplugins = 7\n").unwrap(), None);
        assert!(with_systemd_cgroups("version = [").is_err());
    }

    /// What a containerd makes of a file.
    fn dump(programs: &Path, text: &str) -> DocumentMut {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let mut command = Command::new(programs.join("containerd"));
        let output = command.arg("--config").arg(&path).args(["config", "dump"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().parse().unwrap()
    }

    #[test]
    fn containerd_itself_understands_it() {
        let (installed, newer) = (PathBuf::from("/usr/bin"), "version = 3\n");
        let cases = [
            (installed.clone(), DEBIAN),
            (installed, FRESH),
            (TRIXIE.programs(), DEBIAN),
            (TRIXIE.programs(), FRESH),
            (FORKY.programs(), DEBIAN),
            (FORKY.programs(), FRESH),
            (FORKY.programs(), newer),
        ];
        for (programs, text) in cases {
            let dump = dump(&programs, &with_systemd_cgroups(text).unwrap().unwrap());
            let plugin = match dump["version"].as_integer() {
                Some(3) => "io.containerd.cri.v1.runtime",
                _ => "io.containerd.grpc.v1.cri",
            };
            let runc = &dump["plugins"][plugin]["containerd"]["runtimes"]["runc"];
            assert_eq!(runc["options"]["SystemdCgroup"].as_bool(), Some(true), "{dump}");
            assert_eq!(runc["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        }
    }

    #[test]
    fn the_sandbox_image_of_containerd_2() {
        let image = |programs, text| pinned_sandbox_image(&dump(programs, text).to_string());
        let forky = FORKY.programs();
        let default = image(&forky, DEBIAN).unwrap();
        assert!(default.starts_with("registry.k8s.io/pause:"), "{default}");
        let older =
            format!("{FRESH}[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"example.org/pause:1\"\n");
        assert_eq!(image(&forky, &older).as_deref(), Some("example.org/pause:1"));
        // It tells that by CRI.
        assert_eq!(image(&TRIXIE.programs(), &older), None);
        assert_eq!(pinned_sandbox_image("no TOML"), None);
    }

    #[test]
    fn a_second_run_knows_what_the_first_one_found() {
        let text = |text: &str| Some(text.to_owned());
        let former = |before| Replaced {
            before,
            after: "edited".to_owned(),
        };
        let cases = [
            (None, None, None),
            (None, text("theirs"), text("theirs")),
            // Killed after it wrote, before the runtime was started anew.
            (Some(former(text("theirs"))), text("edited"), text("theirs")),
            (Some(former(None)), text("edited"), None),
            // Killed before it wrote; or somebody has changed it since.
            (Some(former(text("theirs"))), text("theirs"), text("theirs")),
            (Some(former(text("theirs"))), text("newer"), text("newer")),
        ];
        for (former, found, wanted) in cases {
            let change = change(former.as_ref(), found.clone(), "edited".to_owned());
            assert_eq!(
                (change.before, change.after.as_str()),
                (wanted, "edited"),
                "{former:?} {found:?}"
            );
        }
    }

    #[test]
    fn what_somebody_changed_since_is_not_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let change = Replaced {
            before: Some("before".to_owned()),
            after: "after".to_owned(),
        };
        fs::write(&path, "theirs").unwrap();
        assert!(!put_back(&path, &change).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        fs::write(&path, "after").unwrap();
        assert!(put_back(&path, &change).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        let made = Replaced { before: None, ..change };
        fs::write(&path, "after").unwrap();
        assert!(put_back(&path, &made).unwrap());
        assert!(!path.exists() && !put_back(&path, &made).unwrap());
    }
}
