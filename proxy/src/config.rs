//! `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`), read strictly, and what it means here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use skiff_api::duration::GoDuration;

use crate::plan::{LocalTraffic, NodePorts, Settings};

mod file;

use file::{API_VERSION, KIND};
pub use file::{
    ClientConnection, ConntrackConfiguration, DetectLocal, IptablesConfiguration, IpvsConfiguration,
    KubeProxyConfiguration, LoggingConfiguration, NftablesConfiguration, VmoduleItem, WinkernelConfiguration,
};

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
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// How readily the kernel kills this process when memory is short.
    pub oom_score_adj: i32,
    /// What all this was read from, with the defaults of what it leaves open: what `/configz` shows.
    pub shown: Box<KubeProxyConfiguration>,
    /// Another lock file than `/run/xtables.lock`, for nodes that share a file system (legacy backend).
    pub lock_file: Option<PathBuf>,
}

/// What connection tracking is told. Zero leaves a setting as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each core …
    pub max_per_core: u32,
    /// … but no fewer than these.
    pub min: u32,
    /// The end of an idle TCP connection.
    pub tcp_established: Duration,
    /// The end of a TCP connection that one side has closed.
    pub tcp_close_wait: Duration,
    /// Packets outside of a TCP connection's window are not invalid.
    pub tcp_be_liberal: bool,
    /// The end of a UDP flow that nobody answered.
    pub udp: Duration,
    /// The end of a UDP flow.
    pub udp_stream: Duration,
}

fn invalid(field: &'static str, value: impl ToString, reason: &'static str) -> Error {
    Error::Field {
        field,
        value: value.to_string(),
        reason,
    }
}

impl KubeProxyConfiguration {
    /// Checks the configuration and fills in upstream's defaults, for the node of a name.
    ///
    /// # Errors
    /// When a field's value makes no sense.
    pub fn for_node(&self, node_name: &str) -> Result<Config, Error> {
        self.check()?;
        let masquerade_bit = self.iptables.masquerade_bit.unwrap_or(14);
        let bit = u8::try_from(masquerade_bit).ok().filter(|bit| *bit <= 31);
        let bit = bit.ok_or_else(|| {
            invalid(
                "iptables.masqueradeBit",
                masquerade_bit,
                "must be within the range [0, 31]",
            )
        })?;
        let node_ports = self.node_ports()?;
        let localhost = self.iptables.localhost_node_ports.unwrap_or(true);
        let settings = Settings {
            local: self.local_traffic()?,
            masquerade_all: self.iptables.masquerade_all,
            masquerade_bit: bit,
            // As upstream: where loopback is not among the addresses, nothing of it is opened.
            localhost_node_ports: localhost && node_ports.have_loopback(),
            node_ports,
            pass_invalid: self.conntrack.tcp_be_liberal,
            ..Settings::default()
        };
        let name = Some(self.hostname_override.as_str()).filter(|name| !name.is_empty());
        let sync_period = duration(
            "iptables.syncPeriod",
            &self.iptables.sync_period,
            Duration::from_secs(30),
        )?;
        // Upstream's default is a second. A change costs what it is worth here, so nothing waits unless told to.
        let min_sync_period = duration("iptables.minSyncPeriod", &self.iptables.min_sync_period, Duration::ZERO)?;
        if min_sync_period > sync_period {
            let reason = "must be greater than or equal to iptables.minSyncPeriod";
            return Err(invalid("iptables.syncPeriod", &self.iptables.sync_period, reason));
        }
        Ok(Config {
            node_name: name.unwrap_or(node_name).to_owned(),
            settings,
            healthz: address("healthzBindAddress", &self.healthz_bind_address, "0.0.0.0", 10256)?,
            metrics: address("metricsBindAddress", &self.metrics_bind_address, "127.0.0.1", 10249)?,
            bind_hard_fail: self.bind_address_hard_fail,
            sync_period,
            min_sync_period,
            conntrack: self.conntrack()?,
            oom_score_adj: self.oom_score_adj.unwrap_or(-999),
            shown: Box::new(self.completed(node_name)),
            lock_file: None,
        })
    }

    /// Checks what is not used further.
    fn check(&self) -> Result<(), Error> {
        if !matches!(self.mode.as_str(), "" | "iptables") {
            let reason = "must be iptables or blank (the other modes are not part of this proxy)";
            return Err(invalid("mode", &self.mode, reason));
        }
        if self.client_connection.burst < 0 {
            let burst = self.client_connection.burst;
            return Err(invalid("clientConnection.burst", burst, "must be non-negative"));
        }
        if let Some(score) = self.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            return Err(invalid("oomScoreAdj", score, "must be within the range [-1000, 1000]"));
        }
        if !self.bind_address.is_empty() && self.bind_address.parse::<IpAddr>().is_err() {
            return Err(invalid(
                "bindAddress",
                &self.bind_address,
                "not a valid textual representation of an IP address",
            ));
        }
        duration("configSyncPeriod", &self.config_sync_period, Duration::ZERO).map(drop)
    }

    fn node_ports(&self) -> Result<NodePorts, Error> {
        let texts = self.node_port_addresses.as_deref().unwrap_or_default();
        let mut ranges = Vec::new();
        for text in texts.iter().filter(|text| *text != "primary") {
            let reason = "must be a valid CIDR block (e.g. 10.100.0.0/16) or \"primary\"";
            let range: IpNet = text.parse().map_err(|_| invalid("nodePortAddresses", text, reason))?;
            if range.addr().is_ipv4() {
                ranges.push(range);
            }
        }
        let primary = texts.iter().any(|text| text == "primary");
        if primary && texts.len() > 1 {
            let reason = "\"primary\" can only be used alone";
            return Err(invalid("nodePortAddresses", texts.join(","), reason));
        }
        let any = texts.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0);
        Ok(if any {
            NodePorts::Any
        } else {
            NodePorts::At { ranges, primary }
        })
    }

    fn conntrack(&self) -> Result<Conntrack, Error> {
        let given = &self.conntrack;
        let count = |field, value: Option<i32>, default: u32| match value {
            None => Ok(default),
            Some(value) => {
                u32::try_from(value).map_err(|_| invalid(field, value, "must be greater than or equal to 0"))
            }
        };
        // Upstream's `null` is its default, and zero leaves the kernel's own value.
        let optional = |field, value: &Option<String>, default| match value {
            None => Ok(default),
            Some(text) => duration(field, text, Duration::ZERO),
        };
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        Ok(Conntrack {
            max_per_core: count("conntrack.maxPerCore", given.max_per_core, 32 * 1024)?,
            min: count("conntrack.min", given.min, 128 * 1024)?,
            tcp_established: optional(
                "conntrack.tcpEstablishedTimeout",
                &given.tcp_established_timeout,
                hours(24),
            )?,
            tcp_close_wait: optional("conntrack.tcpCloseWaitTimeout", &given.tcp_close_wait_timeout, hours(1))?,
            tcp_be_liberal: given.tcp_be_liberal,
            udp: duration("conntrack.udpTimeout", &given.udp_timeout, Duration::ZERO)?,
            udp_stream: duration("conntrack.udpStreamTimeout", &given.udp_stream_timeout, Duration::ZERO)?,
        })
    }

    fn local_traffic(&self) -> Result<LocalTraffic, Error> {
        let named = |field, text: &String| match text.is_empty() {
            true => Err(invalid(field, "", "must not be empty with this detectLocalMode")),
            false => Ok(text.clone()),
        };
        // Checked in every mode, as upstream does.
        let texts = self
            .cluster_cidr
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty());
        let ranges: Result<Vec<IpNet>, _> = texts.map(str::parse).collect();
        let reason = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
        let ranges = ranges.map_err(|_| invalid("clusterCIDR", &self.cluster_cidr, reason))?;
        let interfaces = &self.detect_local;
        Ok(match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => {
                let range = ranges.into_iter().find(|range| range.addr().is_ipv4());
                range.map_or(LocalTraffic::Unknown, LocalTraffic::Range)
            }
            "NodeCIDR" => LocalTraffic::NodeRange,
            "BridgeInterface" => {
                LocalTraffic::Bridge(named("detectLocal.bridgeInterface", &interfaces.bridge_interface)?)
            }
            "InterfaceNamePrefix" => {
                let prefix = named("detectLocal.interfaceNamePrefix", &interfaces.interface_name_prefix)?;
                LocalTraffic::InterfacePrefix(prefix)
            }
            mode => {
                let reason = "supported values: BridgeInterface, ClusterCIDR, InterfaceNamePrefix, NodeCIDR";
                return Err(invalid("detectLocalMode", mode, reason));
            }
        })
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
    let address = parsed.map_err(|_| invalid(field, text, reason))?;
    Ok(Some(address).filter(|address| address.port() != 0))
}

/// A duration as Go writes it; upstream takes zero for "not set".
fn duration(field: &'static str, text: &str, default: Duration) -> Result<Duration, Error> {
    if text.is_empty() {
        return Ok(default);
    }
    let reason = "must be a duration like 30s, 1m30s or 500ms";
    let GoDuration(given) = text.parse().map_err(|_: String| invalid(field, text, reason))?;
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
             iptables: {masqueradeAll: true, masqueradeBit: 3, minSyncPeriod: 1m0.5s, syncPeriod: 2m, localhostNodePorts: false}\n\
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
    fn detection_modes_and_node_port_addresses() {
        let local = |text: &str| read(text).unwrap().settings.local;
        assert_eq!(
            local("detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8\n"),
            LocalTraffic::NodeRange
        );
        assert_eq!(
            local("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n"),
            LocalTraffic::Bridge("cni0".into())
        );
        assert_eq!(
            local("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n"),
            LocalTraffic::InterfacePrefix("veth".into())
        );
        let range = |text: &str| text.parse().unwrap();
        assert_eq!(
            local("clusterCIDR: \"fd00::/48,10.244.0.0/16\"\n"),
            LocalTraffic::Range(range("10.244.0.0/16"))
        );

        let ports = |text: &str| {
            let settings = read(&format!("nodePortAddresses: {text}\n")).unwrap().settings;
            (settings.node_ports, settings.localhost_node_ports)
        };
        let at = |ranges: &[&str], primary| NodePorts::At {
            ranges: ranges.iter().map(|text| range(text)).collect(),
            primary,
        };
        assert_eq!(ports("[]"), (NodePorts::Any, true));
        assert_eq!(ports("[\"0.0.0.0/0\"]"), (NodePorts::Any, true));
        assert_eq!(ports("[primary]"), (at(&[], true), false));
        assert_eq!(ports("[\"172.30.0.0/24\"]"), (at(&["172.30.0.0/24"], false), false));
        let both = "[\"172.30.0.0/24\", \"127.0.0.0/8\"]";
        assert_eq!(ports(both), (at(&["172.30.0.0/24", "127.0.0.0/8"], false), true));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, wanted) in [
            ("clusterCidr: 10.0.0.0/8\n", "cannot read the KubeProxyConfiguration"),
            (
                "mode: ipvs\n",
                "mode: Invalid value: \"ipvs\": must be iptables or blank",
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
            ("udpIdleTimeout: 1s\n", "cannot read the KubeProxyConfiguration"),
            ("ipvs: {schedule: rr}\n", "cannot read the KubeProxyConfiguration"),
            (
                "iptables: {syncPeriod: 1s, minSyncPeriod: 2s}\n",
                "iptables.syncPeriod: Invalid value: \"1s\": must be greater than or equal to iptables.minSyncPeriod",
            ),
            (
                "conntrack: {min: -1}\n",
                "conntrack.min: Invalid value: \"-1\": must be greater",
            ),
            ("oomScoreAdj: -1001\n", "oomScoreAdj: Invalid value: \"-1001\""),
            (
                "bindAddress: here\n",
                "bindAddress: Invalid value: \"here\": not a valid",
            ),
            (
                "nodePortAddresses: [all]\n",
                "nodePortAddresses: Invalid value: \"all\"",
            ),
            (
                "nodePortAddresses: [primary, 10.0.0.0/8]\n",
                "nodePortAddresses: Invalid value: \"primary,10.0.0.0/8\"",
            ),
            (
                "detectLocalMode: Guess\n",
                "detectLocalMode: Invalid value: \"Guess\": supported values: BridgeInterface",
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
