//! `skiff proxy`: the service proxy, and the routes to the other nodes' pods.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{ArgAction, Args};
use skiff_daemon::{Context, Shutdown};
use skiff_overlay::Mode;
use skiff_proxy::KubeProxyConfiguration;

use crate::client;

/// `skiff proxy` flags, under upstream's names.
#[derive(Args, Debug)]
#[command(after_help = "With --config, the flags of the second group are not looked at.\n\n\
Example:\n  skiff proxy --config /var/lib/kube-proxy/config.conf --hostname-override worker-1")]
pub(crate) struct ProxyArgs {
    /// The file with a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Remove the rules of Services, the routes to other nodes and the CNI configuration from this node, and exit
    #[arg(long)]
    cleanup: bool,
    /// How to reach the API server, and as whom; the file's clientConnection.kubeconfig when absent
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The node's name; the file's hostnameOverride, or the host's name, when absent
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// How packets get to other nodes' pods: auto (directly on a shared segment, by VXLAN otherwise), direct, vxlan, or
    /// none (another CNI does it)
    #[arg(long, value_name = "MODE", default_value_t = Mode::Auto)]
    network: Mode,
    /// Where the container runtime looks for its network configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where pods' address leases are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    cni_data_dir: PathBuf,
    #[command(flatten, next_help_heading = "Instead of a configuration file")]
    settings: SettingArgs,
}

/// What a configuration file says otherwise.
#[derive(Args, Debug)]
struct SettingArgs {
    /// The node's address, as others see it
    #[arg(long, value_name = "IP")]
    bind_address: Option<String>,
    /// End when an address to serve at is taken
    #[arg(long)]
    bind_address_hard_fail: bool,
    /// Addresses of pods in the cluster
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Option<String>,
    /// How often all is read from the API server again
    #[arg(long, value_name = "DURATION")]
    config_sync_period: Option<String>,
    /// Tracked connections for each core; 0 leaves the kernel's limit
    #[arg(long, value_name = "N")]
    conntrack_max_per_core: Option<i32>,
    /// Tracked connections at least
    #[arg(long, value_name = "N")]
    conntrack_min: Option<i32>,
    /// Do not take packets outside of a connection's window for invalid
    #[arg(long)]
    conntrack_tcp_be_liberal: bool,
    /// The end of a TCP connection that one side has closed
    #[arg(long, value_name = "DURATION")]
    conntrack_tcp_timeout_close_wait: Option<String>,
    /// The end of an idle TCP connection
    #[arg(long, value_name = "DURATION")]
    conntrack_tcp_timeout_established: Option<String>,
    /// The end of a UDP flow without an answer
    #[arg(long, value_name = "DURATION")]
    conntrack_udp_timeout: Option<String>,
    /// The end of a UDP flow
    #[arg(long, value_name = "DURATION")]
    conntrack_udp_timeout_stream: Option<String>,
    /// How pods' traffic is known: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    detect_local_mode: Option<String>,
    /// Where health is served
    #[arg(long, value_name = "IP:PORT")]
    healthz_bind_address: Option<String>,
    /// Let node ports answer at 127.0.0.1
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    iptables_localhost_nodeports: Option<bool>,
    /// The bit of the packet mark that asks for masquerading
    #[arg(long, value_name = "BIT")]
    iptables_masquerade_bit: Option<i32>,
    /// The least time between two writings of rules
    #[arg(long, value_name = "DURATION")]
    iptables_min_sync_period: Option<String>,
    /// How often the rules are looked over
    #[arg(long, value_name = "DURATION")]
    iptables_sync_period: Option<String>,
    /// Masquerade all packets to Services
    #[arg(long)]
    masquerade_all: bool,
    /// Where metrics are served
    #[arg(long, value_name = "IP:PORT")]
    metrics_bind_address: Option<String>,
    /// Addresses of this node that node ports answer at: ranges, or "primary"
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    nodeport_addresses: Option<Vec<String>>,
    /// The score for the kernel's killer
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// The bridge that pods' traffic comes from
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,
    /// The start of the names of the interfaces that pods' traffic comes from
    #[arg(long, value_name = "PREFIX")]
    pod_interface_name_prefix: Option<String>,
    /// The kind of rules: iptables
    #[arg(long, value_name = "MODE")]
    proxy_mode: Option<String>,
}

impl SettingArgs {
    fn configuration(self) -> KubeProxyConfiguration {
        let mut file = KubeProxyConfiguration {
            bind_address: self.bind_address.unwrap_or_default(),
            bind_address_hard_fail: self.bind_address_hard_fail,
            cluster_cidr: self.cluster_cidr.unwrap_or_default(),
            config_sync_period: self.config_sync_period.unwrap_or_default(),
            detect_local_mode: self.detect_local_mode.unwrap_or_default(),
            healthz_bind_address: self.healthz_bind_address.unwrap_or_default(),
            metrics_bind_address: self.metrics_bind_address.unwrap_or_default(),
            mode: self.proxy_mode.unwrap_or_default(),
            node_port_addresses: self.nodeport_addresses,
            oom_score_adj: self.oom_score_adj,
            ..KubeProxyConfiguration::default()
        };
        file.conntrack.max_per_core = self.conntrack_max_per_core;
        file.conntrack.min = self.conntrack_min;
        file.conntrack.tcp_be_liberal = self.conntrack_tcp_be_liberal;
        file.conntrack.tcp_close_wait_timeout = self.conntrack_tcp_timeout_close_wait;
        file.conntrack.tcp_established_timeout = self.conntrack_tcp_timeout_established;
        file.conntrack.udp_timeout = self.conntrack_udp_timeout.unwrap_or_default();
        file.conntrack.udp_stream_timeout = self.conntrack_udp_timeout_stream.unwrap_or_default();
        file.detect_local.bridge_interface = self.pod_bridge_interface.unwrap_or_default();
        file.detect_local.interface_name_prefix = self.pod_interface_name_prefix.unwrap_or_default();
        file.iptables.localhost_node_ports = self.iptables_localhost_nodeports;
        file.iptables.masquerade_all = self.masquerade_all;
        file.iptables.masquerade_bit = self.iptables_masquerade_bit;
        file.iptables.min_sync_period = self.iptables_min_sync_period.unwrap_or_default();
        file.iptables.sync_period = self.iptables_sync_period.unwrap_or_default();
        file
    }
}

/// Runs until asked to stop, or until one of the parts fails.
pub(crate) async fn run(args: ProxyArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    if args.cleanup {
        let overlay = skiff_overlay::Config {
            cni_config_dir: args.cni_conf_dir,
            cni_data_dir: args.cni_data_dir,
            ..skiff_overlay::Config::new("")
        };
        skiff_overlay::clean(&overlay)
            .await
            .context("remove routes and the CNI configuration")?;
        return skiff_proxy::cleanup().context("clean up");
    }
    let (file, origin) = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let origin = format!("use {}", path.display());
            (KubeProxyConfiguration::parse(&text).context(origin.clone())?, origin)
        }
        None => (args.settings.configuration(), "use the flags".to_owned()),
    };
    let given = args.hostname_override.unwrap_or_else(|| file.hostname_override.clone());
    let node_name = if given.is_empty() { host_name()? } else { given };
    let kubeconfig = args
        .kubeconfig
        .unwrap_or_else(|| file.client_connection.kubeconfig.clone().into());
    anyhow::ensure!(
        !kubeconfig.as_os_str().is_empty(),
        "how to reach the API server is needed: give --kubeconfig, or clientConnection.kubeconfig in the file"
    );
    let client = client::from_file(&kubeconfig, "kube-proxy").await?;
    tokio::spawn(skiff_kubelet::certificates::keep_kubeconfig(
        client.clone(),
        kubeconfig,
        "system:kube-proxy",
        shutdown.clone(),
    ));

    let cluster_cidr = file
        .cluster_cidr
        .split(',')
        .filter(|range| !range.is_empty())
        .map(str::parse);
    let overlay = skiff_overlay::Config {
        mode: args.network,
        cluster_cidr: cluster_cidr.collect::<Result<_, _>>().context("clusterCIDR")?,
        cni_config_dir: args.cni_conf_dir,
        cni_data_dir: args.cni_data_dir,
        ..skiff_overlay::Config::new(&node_name)
    };
    let proxy = file.for_node(&node_name).context(origin)?;
    let daemon = Context {
        shutdown: shutdown.clone(),
        ..Context::default()
    };
    let services = skiff_proxy::run(proxy, client.clone(), daemon.clone());
    let routes = skiff_overlay::run(overlay, client, daemon);
    tokio::try_join!(async { services.await.context("run the service proxy") }, async {
        routes.await.context("keep the routes between nodes")
    },)?;
    Ok(())
}

/// The host's name as upstream takes it: in small letters, without spaces around it.
fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(name.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ProxyArgs,
    }

    #[test]
    fn flags_say_what_a_file_would() {
        let line = "proxy --kubeconfig k --cluster-cidr 10.244.0.0/16 --detect-local-mode BridgeInterface --pod-bridge-interface cni0 \
                    --iptables-sync-period 10s --iptables-min-sync-period 1s --iptables-masquerade-bit 3 --masquerade-all \
                    --iptables-localhost-nodeports=false --nodeport-addresses 172.30.0.0/24,127.0.0.0/8 --oom-score-adj -5 \
                    --conntrack-max-per-core 0 --conntrack-udp-timeout 5s --metrics-bind-address 0.0.0.0:1 --proxy-mode iptables";
        let line = Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
                    detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nmetricsBindAddress: \"0.0.0.0:1\"\n\
                    iptables: {syncPeriod: 10s, minSyncPeriod: 1s, masqueradeBit: 3, masqueradeAll: true, localhostNodePorts: false}\n\
                    nodePortAddresses: [\"172.30.0.0/24\", \"127.0.0.0/8\"]\noomScoreAdj: -5\n\
                    conntrack: {maxPerCore: 0, udpTimeout: 5s}\nmode: iptables\n";
        let wanted = KubeProxyConfiguration::parse(file).and_then(|file| file.for_node("n"));
        let given = line.args.settings.configuration().for_node("n");
        assert_eq!(given.ok(), wanted.ok());
    }
}
