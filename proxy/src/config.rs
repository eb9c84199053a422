//! `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`), read strictly, and what it means here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::plan::{LocalTraffic, Settings};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not of this kind's shape.
    #[error("cannot read the KubeProxyConfiguration: check the field that the cause names")]
    Shape(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another kind.
    #[error("the proxy's configuration is of kind {kind} in {version}: {KIND} in {API_VERSION} is wanted")]
    Kind {
        /// What it says.
        kind: String,
        /// What it says.
        version: String,
    },
    /// A field with a value that makes no sense.
    #[error("{field}: Invalid value: {value:?}: {reason}")]
    Field {
        /// Its path.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The configuration as upstream has it. Fields that this proxy has no use for are accepted, unknown ones are not.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    pub ipvs: serde_json::Value,
    pub logging: serde_json::Value,
    pub metrics_bind_address: String,
    pub mode: String,
    pub nftables: serde_json::Value,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub port_range: String,
    pub show_hidden_metrics_for_version: String,
    pub udp_idle_timeout: String,
    pub winkernel: serde_json::Value,
    pub windows_run_as_service: bool,
}

/// How the API server is reached.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: i32,
}

/// Connection tracking.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct ConntrackConfiguration {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<String>,
    pub tcp_close_wait_timeout: Option<String>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: String,
    pub udp_stream_timeout: String,
}

/// How pods' own traffic is known by its interface.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// The iptables mode.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct IptablesConfiguration {
    pub localhost_node_ports: Option<bool>,
    pub masquerade_all: bool,
    pub masquerade_bit: Option<u8>,
    pub min_sync_period: String,
    pub sync_period: String,
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
            ipvs: serde_json::Value::Null,
            logging: serde_json::Value::Null,
            metrics_bind_address: String::new(),
            mode: String::new(),
            nftables: serde_json::Value::Null,
            node_port_addresses: None,
            oom_score_adj: None,
            port_range: String::new(),
            show_hidden_metrics_for_version: String::new(),
            udp_idle_timeout: String::new(),
            winkernel: serde_json::Value::Null,
            windows_run_as_service: false,
        }
    }
}

/// What the proxy of one node needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The name of this node's Node object: endpoints with it are local.
    pub node_name: String,
    /// How Services are treated.
    pub settings: Settings,
    /// Where health is served; nowhere when absent.
    pub healthz: Option<SocketAddr>,
    /// Where metrics are served; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// An address that is in use ends the process.
    pub bind_hard_fail: bool,
    /// How often the rules are looked over.
    pub sync_period: Duration,
    /// The least time between two transactions.
    pub min_sync_period: Duration,
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

    /// Checks the configuration and fills in upstream's defaults, for the node of a name.
    ///
    /// # Errors
    /// When a field's value makes no sense.
    pub fn for_node(&self, node_name: &str) -> Result<Config, Error> {
        let invalid = |field, value: &str, reason| Error::Field {
            field,
            value: value.to_owned(),
            reason,
        };
        if !matches!(self.mode.as_str(), "" | "iptables") {
            return Err(invalid("mode", &self.mode, "supported values: iptables"));
        }
        let masquerade_bit = self.iptables.masquerade_bit.unwrap_or(14);
        if masquerade_bit > 31 {
            let value = masquerade_bit.to_string();
            return Err(invalid(
                "iptables.masqueradeBit",
                &value,
                "must be within the range [0, 31]",
            ));
        }
        let mut node_port_addresses = Vec::new();
        for text in self.node_port_addresses.iter().flatten() {
            let range = text.parse::<IpNet>();
            let range = range.map_err(|_| invalid("nodePortAddresses", text, "must be a valid CIDR block"))?;
            if range.addr().is_ipv4() {
                node_port_addresses.push(range);
            }
        }
        let settings = Settings {
            local: self.local_traffic()?,
            masquerade_all: self.iptables.masquerade_all,
            masquerade_bit,
            localhost_node_ports: self.iptables.localhost_node_ports.unwrap_or(true),
            node_port_addresses,
            // Told by the API server.
            service_ranges: Vec::new(),
        };
        let name = Some(self.hostname_override.as_str()).filter(|name| !name.is_empty());
        Ok(Config {
            node_name: name.unwrap_or(node_name).to_owned(),
            settings,
            healthz: address("healthzBindAddress", &self.healthz_bind_address, "0.0.0.0", 10256)?,
            metrics: address("metricsBindAddress", &self.metrics_bind_address, "127.0.0.1", 10249)?,
            bind_hard_fail: self.bind_address_hard_fail,
            sync_period: duration(
                "iptables.syncPeriod",
                &self.iptables.sync_period,
                Duration::from_secs(30),
            )?,
            // Upstream's default is a second. A change costs what it is worth here, so nothing waits unless told to.
            min_sync_period: duration("iptables.minSyncPeriod", &self.iptables.min_sync_period, Duration::ZERO)?,
        })
    }

    fn local_traffic(&self) -> Result<LocalTraffic, Error> {
        let invalid = |field, value: &str, reason| Error::Field {
            field,
            value: value.to_owned(),
            reason,
        };
        let mode = self.detect_local_mode.as_str();
        match mode {
            "" | "ClusterCIDR" => {
                let texts = self
                    .cluster_cidr
                    .split(',')
                    .map(str::trim)
                    .filter(|text| !text.is_empty());
                let ranges: Result<Vec<IpNet>, _> = texts.map(str::parse).collect();
                let reason = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
                let ranges = ranges.map_err(|_| invalid("clusterCIDR", &self.cluster_cidr, reason))?;
                let range = ranges.into_iter().find(|range| range.addr().is_ipv4());
                Ok(range.map_or(LocalTraffic::Unknown, LocalTraffic::Range))
            }
            "BridgeInterface" => match self.detect_local.bridge_interface.as_str() {
                "" => Err(invalid(
                    "detectLocal.bridgeInterface",
                    "",
                    "is required by detectLocalMode BridgeInterface",
                )),
                name => Ok(LocalTraffic::Bridge(name.to_owned())),
            },
            "InterfaceNamePrefix" => match self.detect_local.interface_name_prefix.as_str() {
                "" => Err(invalid(
                    "detectLocal.interfaceNamePrefix",
                    "",
                    "is required by detectLocalMode InterfaceNamePrefix",
                )),
                prefix => Ok(LocalTraffic::InterfacePrefix(prefix.to_owned())),
            },
            _ => {
                let reason = "supported values: ClusterCIDR, BridgeInterface, InterfaceNamePrefix";
                Err(invalid("detectLocalMode", mode, reason))
            }
        }
    }
}

/// `address:port`, `address` or `:port`; a port of 0 turns the server off.
fn address(field: &'static str, text: &str, host: &str, port: u16) -> Result<Option<SocketAddr>, Error> {
    let text = if text.is_empty() { host } else { text };
    let parsed = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .or_else(|_| format!("{host}{text}").parse());
    let reason = "must be an IP address with an optional port (10.0.0.1:10256, 0.0.0.0, :10256)";
    let address = parsed.map_err(|_| Error::Field {
        field,
        value: text.to_owned(),
        reason,
    })?;
    Ok(Some(address).filter(|address| address.port() != 0))
}

/// A duration as Go writes it: `1m30s`, `500ms`, `0`.
fn duration(field: &'static str, text: &str, default: Duration) -> Result<Duration, Error> {
    let reason = "must be a duration like 30s, 1m30s or 500ms";
    let bad = || Error::Field {
        field,
        value: text.to_owned(),
        reason,
    };
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() && rest != "0" {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        let after = &rest[end..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let seconds = match &after[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        total += number * seconds;
        rest = &after[unit..];
    }
    let given = Duration::try_from_secs_f64(total).map_err(|_| bad())?;
    // Upstream takes zero for "not set".
    Ok(if given.is_zero() { default } else { given })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let text = format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}");
        let config = KubeProxyConfiguration::parse(&text).map_err(|error| error.to_string())?;
        config.for_node("node-1").map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_upstreams() {
        let config = read("").unwrap();
        assert_eq!(config.settings, Settings::default());
        assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!(
            (config.sync_period, config.min_sync_period),
            (Duration::from_secs(30), Duration::ZERO)
        );
        assert_eq!(config.node_name, "node-1");
    }

    #[test]
    fn what_is_written_counts() {
        let config = read(
            "clusterCIDR: 10.244.0.0/16\nhostnameOverride: other\nhealthzBindAddress: 1.2.3.4\nmetricsBindAddress: \":0\"\n\
             iptables: {masqueradeAll: true, masqueradeBit: 3, minSyncPeriod: 1m0.5s, syncPeriod: 10s, localhostNodePorts: false}\n\
             nodePortAddresses: [\"172.30.0.0/24\"]\nipvs: {scheduler: rr}\nmode: iptables\n",
        )
        .unwrap();
        assert_eq!(
            config.settings.local,
            LocalTraffic::Range("10.244.0.0/16".parse().unwrap())
        );
        assert_eq!(
            (config.settings.masquerade_all, config.settings.masquerade_bit),
            (true, 3)
        );
        assert_eq!(config.healthz, Some("1.2.3.4:10256".parse().unwrap()));
        assert_eq!(config.metrics, None);
        assert_eq!(config.min_sync_period, Duration::from_millis(60_500));
        assert_eq!(config.node_name, "other");
    }

    #[test]
    fn mistakes_are_told() {
        for (text, wanted) in [
            ("clusterCidr: 10.0.0.0/8\n", "cannot read the KubeProxyConfiguration"),
            (
                "mode: ipvs\n",
                "mode: Invalid value: \"ipvs\": supported values: iptables",
            ),
            (
                "clusterCIDR: junk\n",
                "clusterCIDR: Invalid value: \"junk\": must be a valid CIDR block",
            ),
            (
                "iptables: {masqueradeBit: 32}\n",
                "iptables.masqueradeBit: Invalid value: \"32\"",
            ),
            (
                "iptables: {syncPeriod: 3 days}\n",
                "iptables.syncPeriod: Invalid value: \"3 days\"",
            ),
            (
                "healthzBindAddress: nowhere\n",
                "healthzBindAddress: Invalid value: \"nowhere\"",
            ),
            (
                "detectLocalMode: BridgeInterface\n",
                "detectLocal.bridgeInterface: Invalid value",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
        let error = KubeProxyConfiguration::parse("apiVersion: v1\nkind: Pod\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("kind Pod in v1"), "{error}");
    }
}
