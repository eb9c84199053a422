//! A containerd of one's own: its configuration, and what it may leave behind.
//!
//! In production containerd is the distribution's package. A cluster on one machine, and the tests, start one for each node, with
//! root, state, socket and CNI directories of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `CAP_SYS_RESOURCE`, without which nobody may lower an `oom_score_adj`.
const CAP_SYS_RESOURCE: u32 = 24;

/// The OCI runtime that everybody has who has containerd.
pub const RUNC: &str = "runc";

/// Where one containerd keeps its things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Content, snapshots, metadata: survives restarts.
    pub root: PathBuf,
    /// What lives as long as the machine runs.
    pub state: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// CNI configuration files.
    pub cni_conf_dir: PathBuf,
    /// CNI plugins.
    pub cni_bin_dir: PathBuf,
    /// Registry hosts files (`certs.d`).
    pub registry_dir: PathBuf,
    /// Image of the pause process.
    pub sandbox_image: String,
    /// The program that makes containers, by its name in `PATH`: [`RUNC`], or one that takes its place.
    pub oci_runtime: String,
    /// Never lower an `oom_score_adj`; see [`must_restrict_oom_score`].
    pub restrict_oom_score: bool,
}

impl Config {
    /// The configuration file. Version 2 is understood by containerd 1.6, 1.7 and 2.
    #[must_use]
    pub fn render(&self) -> String {
        let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
        format!(
            r#"version = 2
root = {root}
state = {state}
# Their probing of the machine only costs time at every start.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

# Its socket is one for the whole machine; containerd 2 would open it.
[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {sandbox_image:?}
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = {restrict}

  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {cni_conf}
    bin_dir = {cni_bin}

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {registry}

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = {oci:?}

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{oci:?}]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{oci:?}.options]
        BinaryName = {oci:?}
        Root = {oci_state}
"#,
            root = quoted(&self.root),
            state = quoted(&self.state),
            socket = quoted(&self.socket),
            opt = quoted(&self.root.join("opt")),
            sandbox_image = self.sandbox_image,
            restrict = self.restrict_oom_score,
            cni_conf = quoted(&self.cni_conf_dir),
            cni_bin = quoted(&self.cni_bin_dir),
            registry = quoted(&self.registry_dir),
            oci = self.oci_runtime,
            oci_state = quoted(&self.state.join(&self.oci_runtime)),
        )
    }
}

/// Whether this process (and so the containerd that it starts) lacks the right to lower an `oom_score_adj`; runc then fails at
/// every container unless containerd is told to let it be.
#[must_use]
pub fn must_restrict_oom_score() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| !has_capability(&status, CAP_SYS_RESOURCE))
}

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    // What cannot be read is taken for granted, as on an ordinary machine.
    bits.is_none_or(|bits| bits & (1 << capability) != 0)
}

/// Kills the shims that serve the containerd at `socket`, with SIGKILL. Their containers' first processes go on, or end with their
/// pid namespace; so this comes after stopping all sandboxes, for those that could not be stopped.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn kill_shims(socket: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for process in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end while we look: then there is nothing to do.
        let Ok(command) = fs::read(process.path().join("cmdline")) else {
            continue;
        };
        if is_shim_of(&command, socket) && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

fn is_shim_of(command: &[u8], socket: &Path) -> bool {
    let mut arguments = command.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let shim = program
        .rsplit(|byte| *byte == b'/')
        .next()
        .is_some_and(|name| name.starts_with(b"containerd-shim"));
    shim && arguments.any(|argument| argument == socket.as_os_str().as_encoded_bytes())
}

/// Removes the sockets of shims that were killed, which lie in a directory that all containerds of a machine share. Each bundle
/// below `state` names its own: in `address`, or from containerd 2 on in `bootstrap.json`.
pub fn remove_shim_sockets(state: &Path) -> usize {
    let below = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).filter(|path| path.is_dir())
    };
    let bundles = below(state.join("io.containerd.runtime.v2.task")).flat_map(below);
    let addresses = bundles.filter_map(|bundle| {
        let read = |name: &str| fs::read_to_string(bundle.join(name)).ok();
        read("address").or_else(|| shim_address(&read("bootstrap.json")?))
    });
    let sockets = addresses.filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from));
    // The containers of a pod share one shim, so that most are gone when their turn comes.
    sockets.filter(|socket| fs::remove_file(socket).is_ok()).count()
}

fn shim_address(bootstrap: &str) -> Option<String> {
    let bootstrap: serde_json::Value = serde_json::from_str(bootstrap).ok()?;
    bootstrap["address"].as_str().map(str::to_owned)
}

/// Where the CNI library inside containerd notes the results of its plugins; containerd 1.x has no setting for it.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// Removes the CNI results of a containerd's sandboxes (its root tells them), for when it is to be deleted without having been
/// able to take their networks down.
pub fn remove_cni_results(root: &Path) -> usize {
    let sandboxes: Vec<_> = names(&root.join("io.containerd.grpc.v1.cri/sandboxes")).collect();
    let results = sandboxes.iter().flat_map(|sandbox| cni_results(sandbox));
    results.filter(|path| fs::remove_file(path).is_ok()).count()
}

/// Removes those CNI results of a sandbox that are no JSON. The CNI library does not sync what it notes, so that a power cut may
/// leave an empty file; then containerd fails to take the sandbox's network down until the file is gone.
pub(crate) fn remove_garbled_cni_results(sandbox: &str) -> usize {
    let is_json = |text: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
    let garbled = |path: &PathBuf| fs::read(path).is_ok_and(|text| !is_json(&text));
    cni_results(sandbox)
        .filter(garbled)
        .filter(|path| fs::remove_file(path).is_ok())
        .count()
}

/// Files named NETWORK-SANDBOX-INTERFACE, where a sandbox's id is 64 digits.
fn cni_results(sandbox: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let part = format!("-{sandbox}-");
    let directory = Path::new(CNI_RESULTS);
    let ours = names(directory).filter(move |name| name.contains(&part));
    ours.map(|name| directory.join(name))
}

fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Unmounts everything below a directory, the innermost first. What is busy is detached.
///
/// # Errors
/// When the list of mounts cannot be read, or the kernel refuses.
pub fn unmount_below(directory: &Path) -> io::Result<usize> {
    let mut below = mounts_below(directory)?;
    // Later mounts lie over earlier ones.
    below.reverse();
    for path in &below {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(below.len())
}

/// Everything that is mounted at and below a directory, in the order in which it was mounted.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel lists mounts by their real paths.
    let directory = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => directory.to_owned(),
        real => real?,
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = mounts.lines().filter_map(mount_point);
    Ok(mounts.filter(|mount| mount.starts_with(&directory)).collect())
}

/// Where a line of `/proc/self/mountinfo` says that something is mounted: its fifth field, in which the kernel writes blanks as
/// octal escapes.
pub fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    let unescaped = field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    Some(PathBuf::from(unescaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        assert!(has_capability("CapEff:\t000001ffffffffff\n", CAP_SYS_RESOURCE));
        assert!(!has_capability("CapEff:\t000001fffeffffff\n", CAP_SYS_RESOURCE));
        assert!(has_capability("nothing", CAP_SYS_RESOURCE));
    }

    #[test]
    fn shims_are_told_by_their_socket() {
        let command = |program: &str, socket: &str| format!("{program}\0-namespace\0k8s.io\0-address\0{socket}\0");
        let ours = Path::new("/x/containerd.sock");
        let shim = "/usr/bin/containerd-shim-runc-v2";
        assert!(is_shim_of(command(shim, "/x/containerd.sock").as_bytes(), ours));
        assert!(!is_shim_of(command(shim, "/y/containerd.sock").as_bytes(), ours));
        assert!(!is_shim_of(command("/bin/vi", "/x/containerd.sock").as_bytes(), ours));
        assert!(!is_shim_of(b"", ours));
    }

    #[test]
    fn sockets_of_shims_go_whoever_noted_them() {
        let state = tempfile::tempdir().unwrap();
        let task = state.path().join("io.containerd.runtime.v2.task/k8s.io");
        let note = |name: &str, file: &str, text: &str| {
            let (bundle, socket) = (task.join(name), state.path().join(name));
            fs::create_dir_all(&bundle).unwrap();
            fs::write(&socket, "").unwrap();
            let url = format!("unix://{}", socket.display());
            fs::write(bundle.join(file), text.replace("URL", &url)).unwrap();
        };
        note("first", "address", "URL");
        let json = r#"{"version":3,"address":"URL","protocol":"ttrpc"}"#;
        note("second", "bootstrap.json", json);
        note("garbled", "bootstrap.json", "{");
        assert_eq!(remove_shim_sockets(state.path()), 2);
        assert!(!state.path().join("first").exists() && !state.path().join("second").exists());
        assert!(state.path().join("garbled").exists());
    }

    #[test]
    fn mount_points() {
        let line = r"22 27 0:21 / /run/a\040b rw,nosuid - tmpfs tmpfs rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/run/a b"));
    }
}
