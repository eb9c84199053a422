//! Configuration kinds of skiff's own processes, read from YAML files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;

/// `apiVersion` of the kinds in this module.
pub const API_VERSION: &str = "config.skiff/v1alpha1";

/// What `skiff server` runs: API server, scheduler, controllers and DNS in one process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfiguration {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `ServerConfiguration`.
    pub kind: String,
    /// Where the SQLite file lies.
    pub data_dir: PathBuf,
    /// Manifests that lie here are applied, and what no longer lies here is removed; nothing is where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests_dir: Option<PathBuf>,
    /// The etcd cluster that keeps everything, instead of the SQLite file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdConfiguration>,
    /// Certificates and keys under kubeadm's names: `ca`, `apiserver`, `apiserver-kubelet-client` (`.crt`, `.key`), `sa.{pub,key}`.
    pub pki_dir: PathBuf,
    /// Where to listen.
    #[serde(default = "any_address")]
    pub bind_address: IpAddr,
    /// The port to listen on.
    #[serde(default = "secure_port")]
    pub secure_port: u16,
    /// The address under which nodes and pods reach the server.
    pub advertise_address: IpAddr,
    /// Where Services get their cluster IPs from.
    #[serde(default = "service_range", rename = "serviceClusterIPRange")]
    pub service_cluster_ip_range: IpNet,
    /// Where nodes get their pod ranges from.
    #[serde(default = "cluster_range", rename = "clusterCIDR")]
    pub cluster_cidr: IpNet,
    /// Prefix length of a node's pod range.
    #[serde(default = "node_mask", rename = "nodeCIDRMaskSize")]
    pub node_cidr_mask_size: u8,
    /// Node ports are given from this range, both ends included.
    #[serde(default = "node_ports")]
    pub service_node_port_range: String,
    /// Upstream's `--enable-admission-plugins`: `DenyServiceExternalIPs` is the one that is off by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enable_admission_plugins: Vec<String>,
    /// Upstream's `--controllers`: `*` all, `name` on, `-name` off.
    #[serde(default = "all_controllers")]
    pub controllers: Vec<String>,
    /// Whether the scheduler runs in this process.
    #[serde(default = "yes")]
    pub scheduler: bool,
    /// Which of several servers runs the scheduler and the controllers.
    #[serde(default)]
    pub leader_election: LeaderElectionConfiguration,
    /// How long a silent node counts as Ready, in seconds; upstream's `--node-monitor-grace-period`.
    #[serde(default = "grace_period")]
    pub node_monitor_grace_period_seconds: u32,
    /// Cluster DNS in this process.
    #[serde(default)]
    pub dns: DnsConfiguration,
}

/// Cluster DNS: the names of Services and pods, and others' names through other servers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DnsConfiguration {
    /// Whether it runs in this process.
    pub enabled: bool,
    /// Below which domain the cluster's names are; the kubelets' `clusterDomain`.
    pub cluster_domain: String,
    /// How long clients may keep a cluster's name, in seconds.
    pub ttl_seconds: u32,
    /// Whose name servers are asked for others' names, where `upstream_nameservers` is empty.
    pub resolv_conf: PathBuf,
    /// `address` or `address:port` of servers for others' names.
    pub upstream_nameservers: Vec<String>,
    /// Domains with servers of their own.
    pub stub_domains: BTreeMap<String, Vec<String>>,
    /// Which server is asked first.
    pub policy: UpstreamPolicy,
    /// Who may ask, besides pods and Services: nodes at public addresses must be named here. Others are refused, since a server
    /// that answers everybody is one to attack third parties with.
    pub allowed_clients: Vec<IpNet>,
    /// How long others' answers are kept at most, in seconds; 0 keeps none.
    pub cache_seconds: u32,
    /// Port of `/health`, as CoreDNS; 0 for none.
    pub health_port: u16,
    /// Port of `/ready`, as CoreDNS; 0 for none.
    pub ready_port: u16,
    /// Port of `/metrics`, as CoreDNS; 0 for none.
    pub metrics_port: u16,
}

/// Which of several servers for others' names is asked first; CoreDNS's names.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamPolicy {
    /// A random one.
    #[default]
    Random,
    /// Each in its turn.
    RoundRobin,
    /// The first that is written.
    Sequential,
}

impl Default for DnsConfiguration {
    /// As kubeadm configures CoreDNS.
    fn default() -> Self {
        Self {
            enabled: true,
            cluster_domain: "cluster.local".to_owned(),
            ttl_seconds: 30,
            resolv_conf: "/etc/resolv.conf".into(),
            upstream_nameservers: Vec::new(),
            stub_domains: BTreeMap::new(),
            policy: UpstreamPolicy::Random,
            allowed_clients: private_addresses(),
            cache_seconds: 30,
            health_port: 8080,
            ready_port: 8181,
            metrics_port: 9153,
        }
    }
}

/// Which of several servers runs the scheduler and the controllers; fields and defaults of upstream's `LeaderElectionConfiguration`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElectionConfiguration {
    /// Whether they are elected; left out, they are where several servers can be: on etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_elect: Option<bool>,
    /// How long the others keep away from a leader that is silent.
    pub lease_duration: GoDuration,
    /// After how long without a sign of life that arrived a leader stops.
    pub renew_deadline: GoDuration,
    /// How often a leader gives a sign of life.
    pub retry_period: GoDuration,
}

impl Default for LeaderElectionConfiguration {
    fn default() -> Self {
        Self {
            leader_elect: None,
            lease_duration: GoDuration::seconds(15),
            renew_deadline: GoDuration::seconds(10),
            retry_period: GoDuration::seconds(2),
        }
    }
}

/// How to reach an etcd cluster; the fields are kubeadm's `etcd.external`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EtcdConfiguration {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// The authority of the members' certificates, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Our client certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl ServerConfiguration {
    /// A configuration with the defaults for everything that has one.
    pub fn new(data_dir: PathBuf, pki_dir: PathBuf, advertise_address: IpAddr) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "ServerConfiguration".to_owned(),
            data_dir,
            manifests_dir: None,
            etcd: None,
            pki_dir,
            bind_address: any_address(),
            secure_port: secure_port(),
            advertise_address,
            service_cluster_ip_range: service_range(),
            cluster_cidr: cluster_range(),
            node_cidr_mask_size: node_mask(),
            service_node_port_range: node_ports(),
            enable_admission_plugins: Vec::new(),
            controllers: all_controllers(),
            scheduler: yes(),
            leader_election: LeaderElectionConfiguration::default(),
            node_monitor_grace_period_seconds: grace_period(),
            dns: DnsConfiguration::default(),
        }
    }
}

/// Addresses that nobody outside has: private, shared, loopback and link-local ones.
fn private_addresses() -> Vec<IpNet> {
    let v4 = [
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
    ];
    let v6 = [(1_u128, 128), (0xfc00 << 112, 7), (0xfe80 << 112, 10)];
    let v4 = v4.map(|(bytes, length)| IpNet::new_assert(IpAddr::from(bytes), length));
    let v6 = v6.map(|(bits, length)| IpNet::new_assert(IpAddr::V6(bits.into()), length));
    v4.into_iter().chain(v6).collect()
}

fn any_address() -> IpAddr {
    IpAddr::from([0, 0, 0, 0])
}

fn secure_port() -> u16 {
    6443
}

fn service_range() -> IpNet {
    IpNet::new_assert(IpAddr::from([10, 96, 0, 0]), 12)
}

fn cluster_range() -> IpNet {
    IpNet::new_assert(IpAddr::from([10, 244, 0, 0]), 16)
}

fn node_mask() -> u8 {
    24
}

fn node_ports() -> String {
    "30000-32767".to_owned()
}

fn all_controllers() -> Vec<String> {
    vec!["*".to_owned()]
}

fn yes() -> bool {
    true
}

fn grace_period() -> u32 {
    40
}

#[cfg(test)]
mod tests {
    use super::ServerConfiguration;

    #[test]
    fn what_is_left_out_gets_its_default() {
        let full = ServerConfiguration::new("/data".into(), "/pki".into(), [10, 0, 0, 1].into());
        let short = serde_json::json!({
            "apiVersion": "config.skiff/v1alpha1", "kind": "ServerConfiguration",
            "dataDir": "/data", "pkiDir": "/pki", "advertiseAddress": "10.0.0.1",
        });
        assert_eq!(serde_json::from_value::<ServerConfiguration>(short).unwrap(), full);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let typo = serde_json::json!({
            "apiVersion": "config.skiff/v1alpha1", "kind": "ServerConfiguration",
            "dataDir": "/data", "pkiDir": "/pki", "advertiseAddress": "10.0.0.1", "securePrt": 1,
        });
        assert!(serde_json::from_value::<ServerConfiguration>(typo).is_err());
    }
}
