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
}

/// Upstream's name of the API inside a cluster.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
