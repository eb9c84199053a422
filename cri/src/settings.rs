//! What containerd tells of its own configuration (`crictl info`), in the forms of 1.6, 1.7 and 2.

use std::path::PathBuf;

use serde_json::Value;

use crate::types::{CgroupDriver, RuntimeSettings};

/// Reads the `config` of a verbose status.
pub(crate) fn read(text: &str) -> RuntimeSettings {
    let config: Value = serde_json::from_str(text).unwrap_or_default();
    let containerd = &config["containerd"];
    let handler = containerd["defaultRuntimeName"].as_str().unwrap_or("runc");
    let options = &containerd["runtimes"][handler]["options"];
    let systemd = options["SystemdCgroup"].as_bool();
    RuntimeSettings {
        // Unset is cgroupfs, but only where the options are there at all.
        cgroup_driver: match (systemd, containerd["runtimes"][handler].is_object()) {
            (Some(true), _) => Some(CgroupDriver::Systemd),
            (Some(false), _) | (None, true) => Some(CgroupDriver::Cgroupfs),
            (None, false) => None,
        },
        sandbox_image: config["sandboxImage"].as_str().map(str::to_owned),
        cni_config_dir: config["cni"]["confDir"].as_str().map(PathBuf::from),
        // containerd 2.1 names several, the old field is then empty.
        cni_plugin_dir: [&config["cni"]["binDir"], &config["cni"]["binDirs"][0]]
            .into_iter()
            .filter_map(Value::as_str)
            .find(|dir| !dir.is_empty())
            .map(PathBuf::from),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_containerd_tells() {
        let config = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": true}}}},
                         "cni": {"binDir": "/usr/lib/cni", "confDir": "/etc/cni/net.d"}, "sandboxImage": "registry.k8s.io/pause:3.6"}"#;
        let settings = read(config);
        assert_eq!(settings.cgroup_driver, Some(CgroupDriver::Systemd));
        assert_eq!(settings.sandbox_image.as_deref(), Some("registry.k8s.io/pause:3.6"));
        assert_eq!(settings.cni_config_dir.as_deref(), Some(Path::new("/etc/cni/net.d")));
        assert_eq!(settings.cni_plugin_dir.as_deref(), Some(Path::new("/usr/lib/cni")));
        let newer = read(r#"{"cni": {"binDir": "", "binDirs": ["/opt/cni/bin"]}}"#);
        assert_eq!(newer.cni_plugin_dir.as_deref(), Some(Path::new("/opt/cni/bin")));
        let unset = read(r#"{"containerd": {"runtimes": {"runc": {"options": {}}}}}"#);
        assert_eq!(unset.cgroup_driver, Some(CgroupDriver::Cgroupfs));
        assert_eq!(read("no JSON"), RuntimeSettings::default());
    }
}
