//! What `init` and `join` are asked for: flags, laid over a file with kubeadm's kinds. Pure.

pub(crate) mod etcd;
mod join;
mod kubeadm;
mod tokens;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};
use skiff_api::config::EtcdConfiguration;

pub use join::{ControlPlane, Join, JoinFlags};
pub use kubeadm::{Argument, Files};
pub use tokens::TokenWish;

use crate::certificate_key::CertificateKey;
use crate::token::Token;

/// Where pods get their addresses from, where nothing else is said: the habit of the field.
const POD_SUBNET: &str = "10.244.0.0/16";
/// Where Services get theirs from: kubeadm's default.
const SERVICE_SUBNET: &str = "10.96.0.0/12";
/// A node's part of the pods' range.
const NODE_MASK: u8 = 24;
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// How long a token is valid, where nothing else is said.
pub const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// What is wrong with flags or file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not YAML.
    #[error("the configuration file is not YAML: {reason}")]
    Syntax {
        /// The parser's words.
        reason: String,
    },
    /// A document of a kind that has no place here.
    #[error(
        "the configuration file holds a {found}; the kinds are kubeadm.k8s.io/v1beta4 {wanted}, KubeletConfiguration and KubeProxyConfiguration"
    )]
    Kind {
        /// What was found.
        found: String,
        /// What is looked for.
        wanted: &'static str,
    },
    /// A document with a wrong field.
    #[error("the {kind} in the configuration file: {reason}")]
    Field {
        /// The document's kind.
        kind: String,
        /// The decoder's words.
        reason: String,
    },
    /// A value that cannot work.
    #[error("{what}: {reason}")]
    Invalid {
        /// The flag or field.
        what: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

/// A host and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What all machines of a cluster have in common.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where clients find the API server, when not at the first machine's own address.
    pub endpoint: Option<Endpoint>,
    /// The API server's port.
    pub port: u16,
    /// Where pods get their addresses from.
    pub pod_subnet: IpNet,
    /// Where Services get theirs from.
    pub service_subnet: IpNet,
    /// The domain of the cluster's names.
    pub dns_domain: String,
    /// Further names and addresses in the API server's certificate.
    pub cert_sans: Vec<String>,
    /// An etcd cluster instead of SQLite.
    pub etcd: Option<EtcdConfiguration>,
    /// Fields of every kubelet's configuration that a person gave.
    pub kubelet: Map<String, Value>,
    /// The same of every proxy.
    pub proxy: Map<String, Value>,
    /// How packets get to other nodes' pods (`skiff proxy --network`).
    pub network: String,
}

/// What is wished for one machine.
#[derive(Clone, Debug, Default)]
pub struct NodeWish {
    /// The node's name, where it is not the host's.
    pub name: Option<String>,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// The container runtime's socket.
    pub runtime_endpoint: Option<String>,
    /// Its taints, where not kubeadm's.
    pub taints: Option<Vec<Value>>,
    /// Arguments for its kubelet.
    pub kubelet_args: Vec<Argument>,
    /// Preflight checks whose failure is only told.
    pub ignore: BTreeSet<String>,
}

/// `skiff init`, all told.
#[derive(Clone, Debug)]
pub struct Init {
    /// The cluster.
    pub cluster: Cluster,
    /// This machine.
    pub node: NodeWish,
    /// Bootstrap tokens, one at least; others join with the first.
    pub tokens: Vec<TokenWish>,
    /// Whether the keys of the control plane are kept in the cluster for a while, encrypted, for others that join it.
    pub upload_certs: bool,
    /// What they are encrypted with; one is made up where none is given.
    pub certificate_key: Option<CertificateKey>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Phases to leave out.
    pub skip_phases: BTreeSet<String>,
}

/// How long `init` and `join` wait; kubeadm's names and, but for discovery, its defaults.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// For the API server to become healthy.
    pub control_plane: Duration,
    /// For the node to become Ready.
    pub kubelet: Duration,
    /// For an API server that answers: one that is just being started is waited for; then the address is wrong, or something is in
    /// the way. kubeadm waits for five minutes.
    pub discovery: Duration,
    /// For the kubelet to get its certificate.
    pub tls_bootstrap: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            control_plane: Duration::from_secs(240),
            kubelet: Duration::from_secs(240),
            discovery: Duration::from_secs(30),
            tls_bootstrap: Duration::from_secs(300),
        }
    }
}

/// The flags of `skiff init`.
#[derive(Clone, Debug, Default)]
pub struct InitFlags {
    /// `--apiserver-advertise-address`.
    pub advertise_address: Option<IpAddr>,
    /// `--apiserver-bind-port`.
    pub bind_port: Option<u16>,
    /// `--apiserver-cert-extra-sans`.
    pub cert_sans: Vec<String>,
    /// `--control-plane-endpoint`.
    pub endpoint: Option<String>,
    /// `--pod-network-cidr`.
    pub pod_subnet: Option<IpNet>,
    /// `--service-cidr`.
    pub service_subnet: Option<IpNet>,
    /// `--service-dns-domain`.
    pub dns_domain: Option<String>,
    /// `--token`.
    pub token: Option<Token>,
    /// `--token-ttl`; zero is for ever.
    pub token_ttl: Option<Duration>,
    /// `--etcd-servers` and its companions.
    pub etcd: Option<EtcdConfiguration>,
    /// `--network`.
    pub network: Option<String>,
    /// `--upload-certs`.
    pub upload_certs: bool,
    /// `--certificate-key`.
    pub certificate_key: Option<CertificateKey>,
    /// `--skip-phases`.
    pub skip_phases: Vec<String>,
    /// What `init` and `join` share.
    pub node: NodeFlags,
}

/// The flags that `init` and `join` share.
#[derive(Clone, Debug, Default)]
pub struct NodeFlags {
    /// `--node-name`.
    pub name: Option<String>,
    /// `--node-ip`.
    pub ip: Option<IpAddr>,
    /// `--cri-socket`.
    pub runtime_endpoint: Option<String>,
    /// `--ignore-preflight-errors`.
    pub ignore: Vec<String>,
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads `host`, `host:port`, `address` or `[address]:port`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let bad = || format!("{text:?} is not of the form HOST or HOST:PORT");
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self {
                host: address.to_string(),
                port: default_port,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
            None => (text, default_port),
        };
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// `https://host:port`.
    pub fn url(&self) -> String {
        format!("https://{self}")
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Whether this can name a host, and a node: RFC 1123.
pub(crate) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let edges = |end: Option<u8>| end.is_some_and(|byte| byte.is_ascii_alphanumeric());
        (1..=63).contains(&label.len())
            && edges(label.bytes().next())
            && edges(label.bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

// === impl Init ===

impl Init {
    /// Lays the flags over the file.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn new(flags: InitFlags, file: Option<&str>) -> Result<Self, Error> {
        let Files {
            init,
            cluster,
            kubelet,
            proxy,
            ..
        } = Files::read(file.unwrap_or_default(), "InitConfiguration, ClusterConfiguration")?;
        let init = init.unwrap_or_default();
        let cluster = cluster.unwrap_or_default();
        let port = flags
            .bind_port
            .or(init.local_api_endpoint.bind_port)
            .unwrap_or(API_PORT);
        let endpoint = flags
            .endpoint
            .or(cluster.control_plane_endpoint)
            .filter(|endpoint| !endpoint.is_empty());
        let tokens = tokens::read(flags.token, flags.token_ttl, init.bootstrap_tokens)?;
        let mut node = NodeWish::new(flags.node, init.node_registration)?;
        node.ip = flags
            .advertise_address
            .or(node.ip)
            .or(init.local_api_endpoint.advertise_address);
        let settings = Self {
            cluster: Cluster {
                endpoint: endpoint
                    .map(|text| Endpoint::parse(&text, port).map_err(invalid("--control-plane-endpoint")))
                    .transpose()?,
                port,
                pod_subnet: (flags.pod_subnet.or(cluster.networking.pod_subnet)).unwrap_or_else(|| subnet(POD_SUBNET)),
                service_subnet: (flags.service_subnet.or(cluster.networking.service_subnet))
                    .unwrap_or_else(|| subnet(SERVICE_SUBNET)),
                dns_domain: (flags.dns_domain.or(cluster.networking.dns_domain))
                    .unwrap_or_else(|| "cluster.local".to_owned()),
                cert_sans: flags
                    .cert_sans
                    .into_iter()
                    .chain(cluster.api_server.cert_sans)
                    .collect(),
                etcd: flags.etcd.or(cluster.etcd.external),
                kubelet,
                proxy,
                network: flags.network.unwrap_or_else(|| "auto".to_owned()),
            },
            node,
            tokens,
            upload_certs: flags.upload_certs,
            certificate_key: flags.certificate_key.or(init.certificate_key),
            timeouts: init.timeouts.into(),
            skip_phases: flags.skip_phases.into_iter().chain(init.skip_phases).collect(),
        };
        settings.cluster.check()?;
        settings.check_upload()?;
        Ok(settings)
    }

    /// The same as a person means it who types it in this directory.
    #[must_use]
    pub fn typed_in(mut self, directory: &Path) -> Self {
        self.cluster.etcd = self.cluster.etcd.map(|etcd| etcd::below(directory, etcd));
        self
    }

    fn check_upload(&self) -> Result<(), Error> {
        let refuse = |what, reason: &str| {
            let reason = reason.to_owned();
            Err(Error::Invalid { what, reason })
        };
        match (&self.certificate_key, self.upload_certs) {
            (Some(_), false) => refuse("--certificate-key", "has a meaning together with --upload-certs alone"),
            (_, true) if self.cluster.etcd.is_none() => refuse(
                "--upload-certs",
                "is for further control planes, and a cluster on SQLite has one alone; give --etcd-servers, too",
            ),
            (_, true) if self.cluster.endpoint.is_none() => refuse(
                "--upload-certs",
                "is for further control planes, and nodes must find those at one address: give --control-plane-endpoint, too",
            ),
            _ => Ok(()),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// The address of cluster DNS: the tenth of the Services'.
    pub fn dns_address(&self) -> IpAddr {
        nth(self.service_subnet, 10)
    }

    /// The address of the `kubernetes` Service: the first of the Services'.
    pub fn kubernetes_address(&self) -> IpAddr {
        nth(self.service_subnet, 1)
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |what, reason: String| Err(Error::Invalid { what, reason });
        let (pods, services) = (self.pod_subnet, self.service_subnet);
        if pods.contains(&services) || services.contains(&pods) {
            return refuse(
                "--pod-network-cidr",
                format!("{pods} and --service-cidr {services} overlap; choose others"),
            );
        }
        if pods.addr().is_ipv4() && pods.prefix_len() > NODE_MASK {
            return refuse(
                "--pod-network-cidr",
                format!("{pods} is too small: each node gets a /{NODE_MASK} of it"),
            );
        }
        if services.max_prefix_len() - services.prefix_len() < 4 {
            return refuse(
                "--service-cidr",
                format!("{services} is too small: it must hold 16 addresses at least"),
            );
        }
        if !is_host_name(&self.dns_domain) {
            return refuse("--service-dns-domain", format!("{:?} is not a domain", self.dns_domain));
        }
        for san in &self.cert_sans {
            let name = san.strip_prefix("*.").unwrap_or(san);
            if san.parse::<IpAddr>().is_err() && !is_host_name(name) {
                return refuse(
                    "--apiserver-cert-extra-sans",
                    format!("{san:?} is neither a name nor an address"),
                );
            }
        }
        Ok(())
    }
}

// === impl NodeWish ===

impl NodeWish {
    pub(crate) fn new(flags: NodeFlags, file: kubeadm::NodeRegistration) -> Result<Self, Error> {
        let name = flags.name.or(file.name).map(|name| name.trim().to_lowercase());
        if let Some(name) = name.as_ref().filter(|name| !is_host_name(name)) {
            return Err(Error::Invalid {
                what: "--node-name",
                reason: format!("{name:?} cannot name a node: use letters, digits, dashes and dots"),
            });
        }
        Ok(Self {
            name,
            ip: flags.ip,
            runtime_endpoint: (flags.runtime_endpoint.or(file.cri_socket))
                .filter(|text| !text.is_empty())
                .map(|text| socket_url(&text).map_err(invalid("--cri-socket")))
                .transpose()?,
            taints: file.taints,
            kubelet_args: file.kubelet_extra_args,
            ignore: flags
                .ignore
                .into_iter()
                .chain(file.ignore_preflight_errors)
                .map(|name| name.to_lowercase())
                .collect(),
        })
    }
}

/// A runtime's socket in its one form, by which containerd's own is known: people also give the path alone, and kubeadm has the place that
/// `/run` had before.
fn socket_url(text: &str) -> Result<String, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') {
        return Err(format!(
            "{text:?} is not a socket of a container runtime: it has the form unix:///run/containerd/containerd.sock"
        ));
    }
    let path = path
        .strip_prefix("/var")
        .filter(|path| path.starts_with("/run/"))
        .unwrap_or(path);
    Ok(format!("unix://{path}"))
}

fn invalid(what: &'static str) -> impl FnOnce(String) -> Error {
    move |reason| Error::Invalid { what, reason }
}

fn subnet(text: &str) -> IpNet {
    text.parse().expect("a constant of this file")
}

/// The address that many places after a network's first.
fn nth(net: IpNet, number: u8) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::from(number)).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(number)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(file: &str) -> Result<Init, String> {
        Init::new(InitFlags::default(), Some(file)).map_err(|error| error.to_string())
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let init = Init::new(InitFlags::default(), None).unwrap();
        assert_eq!(init.cluster.dns_address().to_string(), "10.96.0.10");
        assert_eq!(init.cluster.kubernetes_address().to_string(), "10.96.0.1");
        assert_eq!(init.cluster.pod_subnet.to_string(), "10.244.0.0/16");
        assert_eq!(init.cluster.port, 6443);
        let [TokenWish { token: None, purpose }] = &init.tokens[..] else {
            panic!("{:?}", init.tokens)
        };
        assert_eq!(purpose.ttl, Some(TOKEN_TTL));
    }

    #[test]
    fn kubeadms_file_is_understood_and_flags_win() {
        let file = "
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{token: abcdef.0123456789abcdef, ttl: 1h0m0s}]
localAPIEndpoint: {advertiseAddress: 192.168.56.10, bindPort: 7443}
nodeRegistration: {name: Master, taints: [], kubeletExtraArgs: [{name: v, value: '2'}], ignorePreflightErrors: [Swap]}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
controlPlaneEndpoint: api.example
networking: {podSubnet: 10.0.0.0/16, serviceSubnet: 10.1.0.0/16, dnsDomain: k.local}
apiServer: {certSANs: [a.example, 1.2.3.4]}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 20
";
        let flags = InitFlags {
            pod_subnet: Some("10.9.0.0/16".parse().unwrap()),
            ..InitFlags::default()
        };
        let init = Init::new(flags, Some(file)).unwrap();
        assert_eq!(init.node.name.as_deref(), Some("master"));
        assert_eq!(init.node.ip.unwrap().to_string(), "192.168.56.10");
        assert_eq!(init.node.taints, Some(vec![]));
        assert!(init.node.ignore.contains("swap"));
        assert_eq!(
            init.cluster.endpoint.as_ref().unwrap().url(),
            "https://api.example:7443"
        );
        assert_eq!(init.cluster.pod_subnet.to_string(), "10.9.0.0/16");
        assert_eq!(init.cluster.service_subnet.to_string(), "10.1.0.0/16");
        assert_eq!(init.cluster.kubelet["maxPods"], 20);
        assert_eq!(init.tokens[0].token.as_ref().unwrap().id(), "abcdef");
        assert_eq!(init.tokens[0].purpose.ttl, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let kubeadm = |kind: &str, rest: &str| format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: {kind}\n{rest}\n");
        let cases = [
            ("[".to_owned(), "not YAML"),
            ("kind: Pod\napiVersion: v1\n".to_owned(), "holds a v1 Pod"),
            (kubeadm("InitConfiguration", "nodeRegistraton: {}"), "nodeRegistraton"),
            (
                kubeadm("ClusterConfiguration", "networking: {podSubnet: 10.96.0.0/16}"),
                "overlap",
            ),
            (
                kubeadm("ClusterConfiguration", "networking: {podSubnet: 10.0.0.0/25}"),
                "too small",
            ),
            (
                kubeadm("ClusterConfiguration", "networking: {serviceSubnet: 10.0.0.0/30}"),
                "16 addresses",
            ),
            (
                kubeadm("ClusterConfiguration", "controlPlaneEndpoint: 'a b'"),
                "HOST:PORT",
            ),
            (
                kubeadm("ClusterConfiguration", "apiServer: {certSANs: ['no name!']}"),
                "neither a name nor an address",
            ),
            (
                kubeadm("InitConfiguration", "nodeRegistration: {name: a_b}"),
                "cannot name a node",
            ),
            (
                kubeadm("InitConfiguration", "bootstrapTokens: [{token: short}]"),
                "token",
            ),
            (
                kubeadm("InitConfiguration", "bootstrapTokens: [{usages: [joining]}]"),
                "signing, authentication",
            ),
            (
                kubeadm("InitConfiguration", "bootstrapTokens: [{groups: [system:masters]}]"),
                "begins with system:bootstrappers:",
            ),
        ];
        for (file, wanted) in cases {
            let error = init(&file).unwrap_err();
            assert!(error.contains(wanted), "{file}: {error}");
        }
    }

    #[test]
    fn a_runtimes_socket_has_one_form() {
        let containerd = Ok("unix:///run/containerd/containerd.sock");
        let cases = [
            ("unix:///run/containerd/containerd.sock", containerd),
            ("unix:///var/run/containerd/containerd.sock", containerd),
            ("/run/containerd/containerd.sock", containerd),
            ("/var/run/containerd/containerd.sock", containerd),
            ("unix:///var/runtime/own.sock", Ok("unix:///var/runtime/own.sock")),
            ("containerd.sock", Err(())),
            ("unix://", Err(())),
            ("tcp://10.0.0.1:80", Err(())),
        ];
        for (text, wanted) in cases {
            let flags = NodeFlags {
                runtime_endpoint: Some(text.to_owned()),
                ..NodeFlags::default()
            };
            let found = NodeWish::new(flags, kubeadm::NodeRegistration::default());
            let found = found.map(|node| node.runtime_endpoint.unwrap_or_default());
            match found {
                Err(error) => {
                    assert!(
                        wanted.is_err() && error.to_string().contains("unix:///run/containerd"),
                        "{text}: {error}"
                    );
                }
                Ok(found) => assert_eq!(Ok(found.as_str()), wanted, "{text}"),
            }
        }
        let file = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nnodeRegistration: {criSocket: /run/crio/crio.sock}\n";
        let node = init(file).unwrap().node;
        assert_eq!(node.runtime_endpoint.as_deref(), Some("unix:///run/crio/crio.sock"));
    }

    #[test]
    fn endpoints() {
        let cases = [
            ("10.0.0.1", Ok("10.0.0.1:6443")),
            ("10.0.0.1:1", Ok("10.0.0.1:1")),
            ("api.example:443", Ok("api.example:443")),
            ("fd00::1", Ok("[fd00::1]:6443")),
            ("[fd00::1]:1", Ok("[fd00::1]:1")),
            ("", Err(())),
            ("a:0", Err(())),
            ("a:b", Err(())),
            ("https://a", Err(())),
        ];
        for (text, wanted) in cases {
            let parsed = Endpoint::parse(text, API_PORT)
                .map(|endpoint| endpoint.to_string())
                .map_err(drop);
            assert_eq!(parsed, wanted.map(str::to_owned), "{text}");
        }
    }
}
