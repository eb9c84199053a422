//! What the controller manager is told, under the names of upstream's flags.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use skiff_daemon::election::Election;
use skiff_pki::{CertificateAuthority, Names};
use tokio::sync::watch;

/// What may be replaced while the manager runs; each use takes what is there then.
pub type Renewable<T> = watch::Receiver<T>;

/// Something that stays as it is.
pub fn fixed<T>(value: T) -> Renewable<T> {
    watch::channel(value).1
}

/// The flags of the controller manager that skiff honours.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--controllers`: `*` is every controller, `foo` adds one, `-foo` leaves one out.
    pub controllers: Vec<String>,
    /// `--cluster-cidr`: where pod addresses come from, one range an IP family.
    pub cluster_cidr: Vec<IpNet>,
    /// `--node-cidr-mask-size`: how much of an IPv4 range each node gets.
    pub node_cidr_mask_size: u8,
    /// `--node-cidr-mask-size-ipv6`.
    pub node_cidr_mask_size_ipv6: u8,
    /// `--service-cluster-ip-range`: never given to nodes.
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Where node ports come from (`serviceNodePortRange` of the server): load balancers get none of these.
    pub node_port_range: RangeInclusive<u16>,
    /// `--root-ca-file`, read: what pods trust the API server by; published anew when it changes. Empty: no `kube-root-ca.crt` is.
    pub root_ca_pem: Renewable<String>,
    /// What the API server's serving certificate is for: no worker gets a certificate for any of it.
    pub api_server_names: Renewable<Names>,
    /// Below which domain the names of Services and pods are: no node's name.
    pub cluster_domain: String,
    /// `--node-monitor-period`: how often leases are looked at.
    pub node_monitor_period: Duration,
    /// `--node-monitor-grace-period`: how long a node may be silent.
    pub node_monitor_grace_period: Duration,
    /// `--node-startup-grace-period`: the same for a node that never spoke.
    pub node_startup_grace_period: Duration,
    /// `--node-eviction-rate`: nodes a second whose pods may be evicted in a healthy zone.
    pub node_eviction_rate: f64,
    /// `--unhealthy-zone-threshold`: the share of silent nodes from which a zone counts as disrupted.
    pub unhealthy_zone_threshold: f64,
    /// How long a node may be gone before its pods are removed; 40 s, not a flag, upstream.
    pub node_quarantine: Duration,
    /// `--cluster-signing-cert-file` and `--cluster-signing-key-file`, read, and `--cluster-signing-duration`. `None`: nobody signs.
    pub cluster_signing: Option<ClusterSigning>,
    /// `--terminated-pod-gc-threshold`: how many ended pods are kept; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
    /// `--leader-elect`, where several managers could run at once.
    pub leader_election: Option<Election>,
}

/// What signs certificates that were approved.
#[derive(Clone, Debug)]
pub struct ClusterSigning {
    /// Who signs.
    pub authority: Renewable<Arc<CertificateAuthority>>,
    /// How long a certificate is valid, at most and where nothing shorter is asked for; upstream's default is a year.
    pub duration: Duration,
}

impl ClusterSigning {
    /// Signs with an authority, for upstream's default duration.
    pub fn new(authority: CertificateAuthority) -> Self {
        Self {
            authority: fixed(Arc::new(authority)),
            duration: skiff_pki::LEAF_LIFETIME,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            cluster_cidr: Vec::new(),
            node_cidr_mask_size: 24,
            node_cidr_mask_size_ipv6: 64,
            service_cluster_ip_range: Vec::new(),
            node_port_range: 30_000..=32_767,
            root_ca_pem: fixed(String::new()),
            api_server_names: fixed(Names::default()),
            cluster_domain: "cluster.local".to_owned(),
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            unhealthy_zone_threshold: 0.55,
            node_quarantine: Duration::from_secs(40),
            cluster_signing: None,
            terminated_pod_gc_threshold: 12500,
            leader_election: None,
        }
    }
}

/// A configuration that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--controllers` names what does not exist.
    #[error("--controllers: {name:?} is not a known controller; known are {known}")]
    UnknownController {
        /// What was asked for.
        name: String,
        /// What could have been.
        known: String,
    },
    /// A node's share is not a part of the cluster's range.
    #[error(
        "--cluster-cidr {cidr} cannot be cut into ranges of /{mask}: choose a --node-cidr-mask-size from {prefix} to {most}"
    )]
    MaskSize {
        /// The range.
        cidr: IpNet,
        /// The mask asked for.
        mask: u8,
        /// The range's own prefix length.
        prefix: u8,
        /// The longest usable mask.
        most: u8,
    },
}

/// Every controller, with the short name that upstream still takes.
pub(crate) const CONTROLLERS: &[(&str, &str)] = &[
    ("bootstrap-signer-controller", "bootstrapsigner"),
    ("certificatesigningrequest-approving-controller", "csrapproving"),
    ("certificatesigningrequest-cleaner-controller", "csrcleaner"),
    ("certificatesigningrequest-signing-controller", "csrsigning"),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation"),
    ("deployment-controller", "deployment"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpointslice"),
    ("endpointslice-mirroring-controller", "endpointslicemirroring"),
    ("ephemeral-volume-controller", "ephemeral-volume"),
    ("garbage-collector-controller", "garbagecollector"),
    ("namespace-controller", "namespace"),
    ("node-ipam-controller", "nodeipam"),
    ("node-lifecycle-controller", "nodelifecycle"),
    ("persistentvolume-binder-controller", "persistentvolume-binder"),
    ("persistentvolume-protection-controller", "pv-protection"),
    ("persistentvolumeclaim-protection-controller", "pvc-protection"),
    ("pod-garbage-collector-controller", "podgc"),
    ("replicaset-controller", "replicaset"),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher"),
    ("service-lb-controller", "service"),
    ("serviceaccount-controller", "serviceaccount"),
    ("taint-eviction-controller", "taint-eviction"),
    ("token-cleaner-controller", "tokencleaner"),
];

impl Config {
    /// Refuses what cannot be run.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for name in &self.controllers {
            let bare = name.trim_start_matches('-');
            if bare != "*" && !CONTROLLERS.iter().any(|(long, short)| bare == *long || bare == *short) {
                let known = CONTROLLERS.iter().map(|(long, _)| *long).collect::<Vec<_>>().join(", ");
                return Err(Error::UnknownController {
                    name: name.clone(),
                    known,
                });
            }
        }
        for cidr in &self.cluster_cidr {
            let mask = self.mask_for(cidr);
            let prefix = cidr.prefix_len();
            // Upstream's limit: 16 bits of node numbers.
            let most = prefix.saturating_add(16).min(cidr.max_prefix_len());
            if mask < prefix || mask > most {
                return Err(Error::MaskSize {
                    cidr: *cidr,
                    mask,
                    prefix,
                    most,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn mask_for(&self, cidr: &IpNet) -> u8 {
        match cidr {
            IpNet::V4(_) => self.node_cidr_mask_size,
            IpNet::V6(_) => self.node_cidr_mask_size_ipv6,
        }
    }

    /// Whether a controller (by its long name) is to run. A name beats `*`, and the first mention of a name counts.
    pub(crate) fn enables(&self, controller: &str) -> bool {
        let short = CONTROLLERS
            .iter()
            .find(|(long, _)| *long == controller)
            .map_or(controller, |(_, short)| short);
        for name in &self.controllers {
            match name.strip_prefix('-') {
                Some(left_out) if left_out == controller || left_out == short => return false,
                None if name == controller || name == short => return true,
                _ => {}
            }
        }
        self.controllers.iter().any(|name| name == "*")
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, Error};

    fn with(controllers: &[&str]) -> Config {
        Config {
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            ..Config::default()
        }
    }

    #[test]
    fn controllers_are_picked_as_upstream_picks_them() {
        let cases = [
            (&["*"][..], "deployment-controller", true),
            (&["*", "-deployment-controller"], "deployment-controller", false),
            (&["*", "-deployment"], "deployment-controller", false),
            (&["*", "-deployment"], "replicaset-controller", true),
            (&["replicaset"], "replicaset-controller", true),
            (&["replicaset"], "deployment-controller", false),
            (&[], "deployment-controller", false),
        ];
        for (controllers, name, enabled) in cases {
            assert_eq!(with(controllers).enables(name), enabled, "{controllers:?} {name}");
        }
        assert!(matches!(
            with(&["*", "-deploymnt"]).validate(),
            Err(Error::UnknownController { .. })
        ));
    }

    #[test]
    fn a_mask_must_cut_the_range() {
        let config = |cidr: &str, mask| Config {
            cluster_cidr: vec![cidr.parse().unwrap()],
            node_cidr_mask_size: mask,
            ..Config::default()
        };
        assert!(config("10.244.0.0/16", 24).validate().is_ok());
        assert!(config("10.244.0.0/16", 8).validate().is_err());
        assert!(config("10.0.0.0/8", 25).validate().is_err());
    }
}
