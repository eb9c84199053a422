//! `skiff init`: this machine begins a cluster.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use skiff_daemon::Shutdown;
use skiff_machine::config::{Init, InitFlags};
use skiff_machine::init::{self, Initialized};
use skiff_machine::token::Token;
use skiff_machine::{Error, duration};
use skiff_overlay::Mode;

use crate::args::{Output, OutputArgs};
use crate::machine::{Lines, NodeArgs, print_json, read_config, this_machine};
use crate::server::EtcdArgs;

/// `skiff init` flags, under kubeadm's names; each goes before what the file says.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  skiff init
  skiff init --apiserver-advertise-address 192.168.56.10 --pod-network-cidr 10.244.0.0/16
  skiff init --config cluster.yaml --dry-run")]
pub(crate) struct InitArgs {
    /// The address at which the API server is reached; that of the way out of this machine when absent
    #[arg(long, value_name = "IP")]
    apiserver_advertise_address: Option<IpAddr>,
    /// The API server's port [default: 6443]
    #[arg(long, value_name = "PORT")]
    apiserver_bind_port: Option<u16>,
    /// Further names and addresses in the API server's certificate
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    apiserver_cert_extra_sans: Vec<String>,
    /// A name or address, with or without port, that stays when the machine behind it changes
    #[arg(long, value_name = "HOST:PORT")]
    control_plane_endpoint: Option<String>,
    /// Where pods get their addresses from [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pod_network_cidr: Option<IpNet>,
    /// Where Services get their addresses from [default: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<IpNet>,
    /// The domain of the cluster's names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    service_dns_domain: Option<String>,
    /// The bootstrap token; one is made up when absent
    #[arg(long, value_name = "TOKEN")]
    token: Option<Token>,
    /// How long the token is valid, 0 for ever [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    token_ttl: Option<Duration>,
    /// How packets get to other nodes' pods: auto, direct, vxlan, or none to install another CNI [default: auto]
    #[arg(long, value_name = "MODE")]
    network: Option<Mode>,
    /// A file with kubeadm's kinds (InitConfiguration, ClusterConfiguration), KubeletConfiguration, KubeProxyConfiguration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Phases to leave out
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    skip_phases: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the phases, or tells what they would do.
pub(crate) async fn run(args: InitArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let file = read_config(args.config.as_deref())?;
    let (output, dry_run) = (args.output.output, args.dry_run);
    let flags = InitFlags {
        advertise_address: args.apiserver_advertise_address,
        bind_port: args.apiserver_bind_port,
        cert_sans: args.apiserver_cert_extra_sans,
        endpoint: args.control_plane_endpoint,
        pod_subnet: args.pod_network_cidr,
        service_subnet: args.service_cidr,
        dns_domain: args.service_dns_domain,
        token: args.token,
        token_ttl: args.token_ttl,
        etcd: args.etcd.given(),
        network: args.network.map(|mode| mode.to_string()),
        skip_phases: args.skip_phases,
        node: args.node.into(),
    };
    let wish = Init::new(flags, file.as_deref()).map_err(Error::from)?;
    let lines = Lines(output);
    let machine = this_machine(&lines)?;
    if dry_run {
        let told = init::dry_run(&machine, wish).await?;
        return match output {
            Output::Json => print_json(&told),
            Output::Text => Ok(()),
        };
    }
    let done = tokio::select! {
        done = init::init(&machine, wish) => done?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted; run the same command again to go on, or `skiff reset` to undo"),
    };
    match output {
        Output::Json => print_json(&done),
        Output::Text => {
            println!("{}", farewell(&done));
            Ok(())
        }
    }
}

/// How to go on, in the words that people know.
fn farewell(done: &Initialized) -> String {
    let kubeconfig = done.kubeconfig.display();
    format!(
        "
The control plane of your cluster is up.

To use it as an ordinary user, run:

  mkdir -p $HOME/.kube
  sudo cp -i {kubeconfig} $HOME/.kube/config
  sudo chown $(id -u):$(id -g) $HOME/.kube/config

Or, as root:

  export KUBECONFIG={kubeconfig}

To add a machine to it, run this there as root:

{}
",
        done.join_command
    )
}
