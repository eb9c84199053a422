//! What the server is told at its start.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use skiff_pki::{Identity, ServiceAccountKey};

/// What the server is told at its start.
#[derive(Debug)]
pub struct Config {
    /// Certificate and key that clients see.
    pub identity: Identity,
    /// Who signs client certificates.
    pub client_ca_pem: String,
    /// Where cluster IPs come from.
    pub service_cluster_ip_range: IpNet,
    /// Where node ports come from.
    pub node_port_range: RangeInclusive<u16>,
    /// Signs service-account tokens.
    pub service_account_key: ServiceAccountKey,
    /// In whose name: upstream's default is `https://kubernetes.default.svc.cluster.local`.
    pub service_account_issuer: String,
    /// Where nodes and pods reach the server.
    pub advertise_address: IpAddr,
    /// The port there.
    pub advertise_port: u16,
    /// Who the server is to kubelets; without it, logs and exec cannot be served.
    pub kubelet_client: Option<Identity>,
    /// Who signs kubelets' serving certificates; the client CA when absent.
    pub kubelet_ca_pem: Option<String>,
    /// Admission plugins that are off by default: upstream's `--enable-admission-plugins`.
    pub enable_admission_plugins: Vec<String>,
}

impl Config {
    /// Upstream's defaults for everything that has one.
    pub fn new(
        identity: Identity,
        client_ca_pem: &str,
        service_account_key: ServiceAccountKey,
        (advertise_address, advertise_port): (IpAddr, u16),
    ) -> Self {
        Self {
            identity,
            client_ca_pem: client_ca_pem.to_owned(),
            service_cluster_ip_range: IpNet::new_assert([10, 96, 0, 0].into(), 12),
            node_port_range: 30_000..=32_767,
            service_account_key,
            service_account_issuer: DEFAULT_ISSUER.to_owned(),
            advertise_address,
            advertise_port,
            kubelet_client: None,
            kubelet_ca_pem: None,
            enable_admission_plugins: Vec::new(),
        }
    }
}

/// Upstream's name of the API inside a cluster.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
