//! `KubeProxyConfiguration` as it is written: upstream's fields, all of them and no others.

use serde::{Deserialize, Serialize};

use super::Error;

pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// The configuration as upstream has it. Fields that this proxy has no use for are accepted, unknown ones are not.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // The names are upstream's, and so are their meanings.
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub bind_address: String,
    pub bind_address_hard_fail: bool,
    pub client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub config_sync_period: String,
    pub conntrack: ConntrackConfiguration,
    pub detect_local: DetectLocal,
    pub detect_local_mode: String,
    pub enable_profiling: bool,
    pub feature_gates: std::collections::BTreeMap<String, bool>,
    pub healthz_bind_address: String,
    pub hostname_override: String,
    pub iptables: IptablesConfiguration,
    pub ipvs: IpvsConfiguration,
    pub logging: LoggingConfiguration,
    pub metrics_bind_address: String,
    pub mode: String,
    pub nftables: NftablesConfiguration,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub port_range: String,
    pub show_hidden_metrics_for_version: String,
    pub winkernel: WinkernelConfiguration,
    pub windows_run_as_service: bool,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
        #[serde(default, rename_all = "camelCase", deny_unknown_fields)]
        #[allow(missing_docs)] // The names are upstream's, and so are their meanings.
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* }
    };
}

section! {
    /// How the API server is reached.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f32,
        burst: i32,
    }
}

section! {
    /// Connection tracking.
    ConntrackConfiguration {
        max_per_core: Option<i32>,
        min: Option<i32>,
        tcp_established_timeout: Option<String>,
        tcp_close_wait_timeout: Option<String>,
        tcp_be_liberal: bool,
        udp_timeout: String,
        udp_stream_timeout: String,
    }
}

section! {
    /// How pods' own traffic is known by its interface.
    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }
}

section! {
    /// The iptables mode.
    IptablesConfiguration {
        localhost_node_ports: Option<bool>,
        masquerade_all: bool,
        masquerade_bit: Option<i32>,
        min_sync_period: String,
        sync_period: String,
    }
}

section! {
    /// The nftables mode, which is for later.
    NftablesConfiguration {
        masquerade_all: bool,
        masquerade_bit: Option<i32>,
        min_sync_period: String,
        sync_period: String,
    }
}

section! {
    /// The IPVS mode, which upstream has deprecated.
    IpvsConfiguration {
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Option<Vec<String>>,
        min_sync_period: String,
        scheduler: String,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        sync_period: String,
        tcp_fin_timeout: String,
        tcp_timeout: String,
        udp_timeout: String,
    }
}

section! {
    /// Windows.
    WinkernelConfiguration {
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        #[serde(rename = "forwardHealthCheckVip")]
        forward_health_check_vip: bool,
        network_name: String,
        root_hns_endpoint_name: String,
        source_vip: String,
    }
}

section! {
    /// Logs. This program has flags of its own for them.
    LoggingConfiguration {
        flush_frequency: serde_json::Value,
        format: String,
        options: serde_json::Value,
        verbosity: u32,
        vmodule: Option<Vec<VmoduleItem>>,
    }
}

section! {
    /// The verbosity of some files.
    VmoduleItem {
        file_pattern: String,
        verbosity: u32,
    }
}

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            bind_address: String::new(),
            bind_address_hard_fail: false,
            client_connection: ClientConnection::default(),
            cluster_cidr: String::new(),
            config_sync_period: String::new(),
            conntrack: ConntrackConfiguration::default(),
            detect_local: DetectLocal::default(),
            detect_local_mode: String::new(),
            enable_profiling: false,
            feature_gates: std::collections::BTreeMap::new(),
            healthz_bind_address: String::new(),
            hostname_override: String::new(),
            iptables: IptablesConfiguration::default(),
            ipvs: IpvsConfiguration::default(),
            logging: LoggingConfiguration::default(),
            metrics_bind_address: String::new(),
            mode: String::new(),
            nftables: NftablesConfiguration::default(),
            node_port_addresses: None,
            oom_score_adj: None,
            port_range: String::new(),
            show_hidden_metrics_for_version: String::new(),
            winkernel: WinkernelConfiguration::default(),
            windows_run_as_service: false,
        }
    }
}

impl KubeProxyConfiguration {
    /// Reads a configuration file. Unknown and doubled fields are errors.
    ///
    /// # Errors
    /// When the text is not such a configuration.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| Error::Shape(error.into()))?;
        if config.kind != KIND || config.api_version != API_VERSION {
            return Err(Error::Kind {
                kind: config.kind,
                version: config.api_version,
            });
        }
        Ok(config)
    }

    /// The same with upstream's defaults where it says nothing, for the node of a name.
    pub(super) fn completed(&self, node_name: &str) -> Self {
        let mut file = self.clone();
        let text = |field: &mut String, default: &str| {
            if field.is_empty() {
                default.clone_into(field);
            }
        };
        text(&mut file.bind_address, "0.0.0.0");
        text(&mut file.detect_local_mode, "ClusterCIDR");
        text(&mut file.healthz_bind_address, "0.0.0.0:10256");
        text(&mut file.hostname_override, node_name);
        text(&mut file.iptables.min_sync_period, "0s");
        text(&mut file.iptables.sync_period, "30s");
        text(&mut file.metrics_bind_address, "127.0.0.1:10249");
        text(&mut file.mode, "iptables");
        text(
            file.conntrack.tcp_established_timeout.get_or_insert_default(),
            "24h0m0s",
        );
        text(file.conntrack.tcp_close_wait_timeout.get_or_insert_default(), "1h0m0s");
        file.conntrack.max_per_core.get_or_insert(32 * 1024);
        file.conntrack.min.get_or_insert(128 * 1024);
        file.iptables.localhost_node_ports.get_or_insert(true);
        file.iptables.masquerade_bit.get_or_insert(14);
        file.oom_score_adj.get_or_insert(-999);
        file
    }
}
