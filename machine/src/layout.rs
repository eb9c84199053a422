//! Where everything of a machine is. Pure.
//!
//! The names are kubeadm's where it has one. All paths hang below one root: `/` for a real machine, a directory for tests.

use std::path::{Path, PathBuf};

/// The paths of one machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    root: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Layout {
    /// A machine whose file system begins at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the file system begins.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is the machine itself: programs then find their files where they look by default.
    pub fn is_whole_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// `/etc/kubernetes`.
    pub fn kubernetes(&self) -> PathBuf {
        self.at("etc/kubernetes")
    }

    /// The cluster's authorities, certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.at("etc/kubernetes/pki")
    }

    /// A kubeconfig by its name: `admin` is `/etc/kubernetes/admin.conf`.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.kubernetes().join(format!("{name}.conf"))
    }

    /// Manifests of static pods.
    pub fn static_pods(&self) -> PathBuf {
        self.at("etc/kubernetes/manifests")
    }

    /// Configuration of skiff's own processes.
    pub fn config(&self) -> PathBuf {
        self.at("etc/skiff")
    }

    /// The configuration file of a process: `kubelet` is `/etc/skiff/kubelet.yaml`.
    pub fn config_file(&self, process: &str) -> PathBuf {
        self.config().join(format!("{process}.yaml"))
    }

    /// The command line arguments of a process, as its unit reads them: `/etc/skiff/kubelet.env`.
    pub fn environment_file(&self, process: &str) -> PathBuf {
        self.config().join(format!("{process}.env"))
    }

    /// What belongs to skiff and outlives a reboot.
    pub fn data(&self) -> PathBuf {
        self.at("var/lib/skiff")
    }

    /// The server's data.
    pub fn server_data(&self) -> PathBuf {
        self.at("var/lib/skiff/server")
    }

    /// Image archives that the kubelet imports at its start.
    pub fn images(&self) -> PathBuf {
        self.at("var/lib/skiff/images")
    }

    /// Manifests that the server applies.
    pub fn manifests(&self) -> PathBuf {
        self.at("var/lib/skiff/manifests")
    }

    /// What `init` or `join` found and did, for `reset`.
    pub fn record(&self) -> PathBuf {
        self.at("var/lib/skiff/machine.json")
    }

    /// Held while `init`, `join` or `reset` is at work.
    pub fn lock(&self) -> PathBuf {
        self.at("run/skiff-machine.lock")
    }

    /// The kubelet's root directory.
    pub fn kubelet(&self) -> PathBuf {
        self.at("var/lib/kubelet")
    }

    /// The kubelet's own certificates.
    pub fn kubelet_pki(&self) -> PathBuf {
        self.at("var/lib/kubelet/pki")
    }

    /// The link to the kubelet's client certificate, which has its key beside it.
    pub fn kubelet_certificate(&self) -> PathBuf {
        self.kubelet_pki().join("kubelet-client-current.pem")
    }

    /// Volumes of the local-path provisioner: people's data.
    pub fn local_volumes(&self) -> PathBuf {
        self.at("var/lib/kubelet/local-path")
    }

    /// Containers' logs.
    pub fn pod_logs(&self) -> PathBuf {
        self.at("var/log/pods")
    }

    /// Links to containers' logs.
    pub fn container_logs(&self) -> PathBuf {
        self.at("var/log/containers")
    }

    /// Leases of pods' addresses.
    pub fn cni_data(&self) -> PathBuf {
        self.at("var/lib/cni/networks")
    }

    /// CNI configuration, where the runtime does not say otherwise.
    pub fn cni_config(&self) -> PathBuf {
        self.at("etc/cni/net.d")
    }

    /// The file there that skiff's proxy writes.
    pub fn cni_config_file(&self) -> PathBuf {
        self.cni_config().join("10-skiff.conflist")
    }

    /// The container runtime's socket, where nothing else is said, as a URL.
    pub fn runtime_endpoint(&self) -> String {
        format!("unix://{}", self.at("run/containerd/containerd.sock").display())
    }

    /// containerd's configuration.
    pub fn containerd_config(&self) -> PathBuf {
        self.at("etc/containerd/config.toml")
    }

    /// What says that another program made this machine a node: kubeadm, k3s and RKE2, k0s, MicroK8s.
    pub fn others_nodes(&self) -> [PathBuf; 5] {
        [
            "var/lib/kubelet/kubeadm-flags.env",
            "var/lib/rancher/k3s",
            "var/lib/rancher/rke2",
            "var/lib/k0s",
            "var/snap/microk8s",
        ]
        .map(|path| self.at(path))
    }

    /// Where an enabled unit is linked.
    pub fn enabled_units(&self) -> PathBuf {
        self.at("etc/systemd/system/multi-user.target.wants")
    }

    /// Where runtimes look for CNI plugins: upstream's place and Debian's.
    pub fn cni_plugins(&self) -> [PathBuf; 2] {
        [self.at("opt/cni/bin"), self.at("usr/lib/cni")]
    }

    /// The authority that signs for clients and servers.
    pub fn ca_certificate(&self) -> PathBuf {
        self.pki().join("ca.crt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_machine_has_kubeadms_paths() {
        let layout = Layout::default();
        assert!(layout.is_whole_machine());
        let paths = [
            (layout.kubeconfig("admin"), "/etc/kubernetes/admin.conf"),
            (layout.ca_certificate(), "/etc/kubernetes/pki/ca.crt"),
            (layout.config_file("kubelet"), "/etc/skiff/kubelet.yaml"),
            (layout.kubelet_pki(), "/var/lib/kubelet/pki"),
        ];
        for (path, wanted) in paths {
            assert_eq!(path, Path::new(wanted));
        }
        assert_eq!(layout.runtime_endpoint(), "unix:///run/containerd/containerd.sock");
    }

    #[test]
    fn nothing_lies_outside_of_the_root() {
        let layout = Layout::new("/tmp/x");
        for path in [
            layout.pki(),
            layout.lock(),
            layout.record(),
            layout.cni_data(),
            layout.pod_logs(),
        ] {
            assert!(path.starts_with("/tmp/x"), "{}", path.display());
        }
        assert!(!layout.is_whole_machine());
    }
}
