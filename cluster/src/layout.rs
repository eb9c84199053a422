//! Where everything of a cluster is: paths, names and addresses. Pure but for [`names`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::{Error, Result};

/// Clusters' namespaces are named here, so that `ip netns` knows them.
pub const NAMESPACES: &str = "/run/netns";
/// More than this many nodes would not fit the addresses.
pub const MAX_NODES: usize = 200;

const LONGEST_NAME: usize = 20;
// The kernel takes 107 bytes; containerd adds `.ttrpc` to its own.
const LONGEST_SOCKET: usize = 101;

/// The paths of one cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    home: PathBuf,
    name: String,
    segments: usize,
}

/// The paths and the address of one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeLayout {
    /// The node's name.
    pub name: String,
    /// Its address in the cluster's LAN.
    pub address: IpAddr,
    /// Which segment of the LAN it is on, counted from 0.
    pub segment: usize,
    directory: PathBuf,
    namespace: String,
    cgroup: String,
}

/// A segment of the LAN that joins the nodes; most clusters have one. It lies inside a namespace, so that every cluster
/// can have the same.
pub fn segment(number: usize) -> IpNet {
    IpNet::new_assert(in_segment(number, 0), 24)
}

/// A segment's gateway: it leads to the other segments and nowhere else, but says so at once.
pub fn gateway(segment: usize) -> IpAddr {
    in_segment(segment, 1)
}

fn in_segment(segment: usize, host: u8) -> IpAddr {
    let segment = u8::try_from(segment).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(172, 30, segment, host))
}

/// The first address of the default Service range: the `kubernetes` Service.
pub fn kubernetes_service() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))
}

/// The usual address of cluster DNS.
pub fn dns_service() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))
}

/// The names of the clusters under `home`, in order.
///
/// # Errors
/// When the directory is there but cannot be read.
pub fn names(home: &Path) -> Result<Vec<String>> {
    let directory = home.join("clusters");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::File {
                what: "list",
                path: directory,
                source,
            });
        }
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| directory.join(name).join("cluster.json").exists())
        .collect();
    names.sort();
    Ok(names)
}

// === impl Layout ===

impl Layout {
    /// The layout of the cluster `name` under `home`.
    ///
    /// # Errors
    /// When the name cannot be part of paths and namespace names, or would make a socket's path too long.
    pub fn new(home: &Path, name: &str) -> Result<Self> {
        let valid = name.starts_with(|first: char| first.is_ascii_lowercase())
            && !name.ends_with('-')
            // The namespaces of cluster `a-node-1` would be taken for those of cluster `a`.
            && !name.contains("-node-")
            && name.len() <= LONGEST_NAME
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !valid {
            return Err(Error::Name { name: name.to_owned() });
        }
        let layout = Self {
            home: home.to_owned(),
            name: name.to_owned(),
            segments: 1,
        };
        let socket = layout.node(MAX_NODES - 1).containerd_socket();
        if socket.as_os_str().len() > LONGEST_SOCKET {
            return Err(Error::PathTooLong { path: socket });
        }
        Ok(layout)
    }

    /// The same with this many segments: nodes take turns, so that the first and the third of two segments share one.
    #[must_use]
    pub fn with_segments(mut self, segments: usize) -> Self {
        self.segments = segments.max(1);
        self
    }

    /// How many segments the LAN has.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster's directory.
    pub fn directory(&self) -> PathBuf {
        self.home.join("clusters").join(&self.name)
    }

    /// What was started (`cluster.json`).
    pub fn record(&self) -> PathBuf {
        self.directory().join("cluster.json")
    }

    /// Held while `up` or `down` is at work. Beside the directory, since `down --purge` removes that.
    pub fn lock(&self) -> PathBuf {
        self.home.join("clusters").join(format!(".{}.lock", self.name))
    }

    /// The kubeconfig for a person on this machine: the API server through loopback.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.directory().join("admin.conf")
    }

    /// The kubeconfig for use inside the cluster's network: the API server at its node's address.
    pub fn cluster_kubeconfig(&self) -> PathBuf {
        self.directory().join("cluster.conf")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.directory().join("pki")
    }

    /// The server's data.
    pub fn server_data(&self) -> PathBuf {
        self.directory().join("server")
    }

    /// The ingress controller's kubeconfig; it runs on the first node.
    pub fn ingress_kubeconfig(&self) -> PathBuf {
        self.directory().join("ingress.conf")
    }

    /// The server's configuration.
    pub fn server_config(&self) -> PathBuf {
        self.directory().join("server.yaml")
    }

    /// Archives that every node imports at its start.
    pub fn images(&self) -> PathBuf {
        self.directory().join("images")
    }

    /// The namespace that holds the bridges that join the nodes, one a segment, and routes between them.
    pub fn lan_namespace(&self) -> String {
        format!("skiff-{}", self.name)
    }

    /// The cgroup of the whole cluster, relative to each hierarchy's root.
    pub fn cgroup(&self) -> String {
        format!("/skiff/{}", self.name)
    }

    /// The node at `index`, counted from 0; the first one also runs the server.
    pub fn node(&self, index: usize) -> NodeLayout {
        let name = format!("node-{}", index + 1);
        let host = u8::try_from(index + 11).unwrap_or(u8::MAX);
        let segment = index % self.segments;
        NodeLayout {
            address: in_segment(segment, host),
            segment,
            directory: self.directory().join("nodes").join(&name),
            namespace: format!("{}-{name}", self.lan_namespace()),
            cgroup: format!("{}/{name}", self.cgroup()),
            name,
        }
    }
}

// === impl NodeLayout ===

impl NodeLayout {
    /// The node's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name of its network namespace, in [`NAMESPACES`].
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cgroup under which its pods' cgroups are.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// containerd's configuration file.
    pub fn containerd_config(&self) -> PathBuf {
        self.directory.join("containerd.toml")
    }

    /// containerd's persistent data.
    pub fn containerd_root(&self) -> PathBuf {
        self.directory.join("containerd/root")
    }

    /// containerd's state.
    pub fn containerd_state(&self) -> PathBuf {
        self.directory.join("containerd/state")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// Registry hosts files (`certs.d`).
    pub fn registries(&self) -> PathBuf {
        self.directory.join("containerd/certs.d")
    }

    /// The links that containerd executes as CNI plugins.
    pub fn cni_bin(&self) -> PathBuf {
        self.directory.join("cni/bin")
    }

    /// CNI configuration; the proxy process writes it.
    pub fn cni_config(&self) -> PathBuf {
        self.directory.join("cni/net.d")
    }

    /// IP leases.
    pub fn cni_data(&self) -> PathBuf {
        self.directory.join("cni/data")
    }

    /// The kubelet's root directory.
    pub fn kubelet_root(&self) -> PathBuf {
        self.directory.join("kubelet")
    }

    /// The kubelet's configuration file.
    pub fn kubelet_config(&self) -> PathBuf {
        self.directory.join("kubelet.yaml")
    }

    /// The kubelet's kubeconfig.
    pub fn kubelet_kubeconfig(&self) -> PathBuf {
        self.directory.join("kubelet.conf")
    }

    /// The proxy's configuration file.
    pub fn proxy_config(&self) -> PathBuf {
        self.directory.join("proxy.yaml")
    }

    /// The proxy's kubeconfig.
    pub fn proxy_kubeconfig(&self) -> PathBuf {
        self.directory.join("proxy.conf")
    }

    /// Manifests of static pods: whoever puts one there has it run on this node.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Containers' logs.
    pub fn pod_logs(&self) -> PathBuf {
        self.directory.join("logs/pods")
    }

    /// The log of one of the node's processes.
    pub fn log(&self, role: crate::Role) -> PathBuf {
        self.directory.join("logs").join(format!("{role}.log"))
    }

    /// The lock that `iptables` takes; nodes must not wait for each other.
    pub fn iptables_lock(&self) -> PathBuf {
        self.directory.join("xtables.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_part_of_paths_are_refused() {
        for name in ["", "A", "1a", "a_b", "a-", "../x", "a-node-1", "a".repeat(21).as_str()] {
            assert!(
                matches!(Layout::new(Path::new("/home"), name), Err(Error::Name { .. })),
                "{name:?}"
            );
        }
        assert!(Layout::new(Path::new("/home"), "dev-2").is_ok());
    }

    #[test]
    fn a_home_too_deep_for_sockets_is_refused() {
        let home = PathBuf::from(format!("/{}", "d".repeat(90)));
        assert!(matches!(Layout::new(&home, "dev"), Err(Error::PathTooLong { .. })));
    }

    #[test]
    fn every_node_has_a_place_and_an_address_of_its_own() {
        let layout = Layout::new(Path::new("/home"), "dev").unwrap();
        let (first, second) = (layout.node(0), layout.node(1));
        assert_eq!(first.address.to_string(), "172.30.0.11");
        assert_eq!(second.namespace(), "skiff-dev-node-2");
        assert_eq!(second.cgroup(), "/skiff/dev/node-2");
        assert_ne!(first.directory(), second.directory());
        assert!(segment(0).contains(&layout.node(MAX_NODES - 1).address));
        let two = layout.with_segments(2);
        let addresses = [0, 1, 2].map(|index| two.node(index).address.to_string());
        assert_eq!(addresses, ["172.30.0.11", "172.30.1.12", "172.30.0.13"]);
    }
}
