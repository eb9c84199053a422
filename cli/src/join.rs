//! `skiff join`: this machine becomes a node of a cluster.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use skiff_daemon::Shutdown;
use skiff_machine::config::{Join, JoinFlags};
use skiff_machine::token::Token;
use skiff_machine::{CertificateKey, Error, duration, join};

use crate::args::{Output, OutputArgs};
use crate::machine::{Lines, NodeArgs, print_json, read_config, this_machine};

/// `skiff join` flags, under kubeadm's names; each goes before what the file says.
#[derive(Args, Debug)]
#[command(
    after_help = "The line to type is what `skiff init` or `skiff token create --print-join-command` prints on the control plane."
)]
pub(crate) struct JoinArgs {
    /// Where the API server is
    #[arg(value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// The token, for discovery and for the kubelet's certificate
    #[arg(long, value_name = "TOKEN")]
    token: Option<Token>,
    /// The token for discovery, where it is another
    #[arg(long, value_name = "TOKEN")]
    discovery_token: Option<Token>,
    /// The token for the kubelet's certificate, where it is another
    #[arg(long, value_name = "TOKEN")]
    tls_bootstrap_token: Option<Token>,
    /// The hash of the cluster's authority; may be given several times
    #[arg(long, value_name = "sha256:HASH", value_delimiter = ',')]
    discovery_token_ca_cert_hash: Vec<String>,
    /// Believe whoever knows the token, whatever its authority
    #[arg(long)]
    discovery_token_unsafe_skip_ca_verification: bool,
    /// How long an API server that does not answer is waited for [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    discovery_timeout: Option<Duration>,
    /// Join as a further control plane; the cluster must be on etcd
    #[arg(long)]
    control_plane: bool,
    /// What opens the keys that the cluster keeps for control planes; when absent, they must lie in /etc/kubernetes/pki
    #[arg(long, value_name = "KEY")]
    certificate_key: Option<CertificateKey>,
    /// The address at which this control plane's API server is reached
    #[arg(long, value_name = "IP")]
    apiserver_advertise_address: Option<IpAddr>,
    /// The port of this control plane's API server [default: 6443]
    #[arg(long, value_name = "PORT")]
    apiserver_bind_port: Option<u16>,
    /// A file with a JoinConfiguration, kubeadm's kind, and this machine's KubeletConfiguration and KubeProxyConfiguration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Joins the cluster.
pub(crate) async fn run(args: JoinArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let file = read_config(args.config.as_deref())?;
    let flags = JoinFlags {
        endpoint: args.endpoint,
        token: args.token,
        discovery_token: args.discovery_token,
        bootstrap_token: args.tls_bootstrap_token,
        pins: args.discovery_token_ca_cert_hash,
        unsafe_skip_ca_verification: args.discovery_token_unsafe_skip_ca_verification,
        discovery_timeout: args.discovery_timeout,
        control_plane: args.control_plane,
        certificate_key: args.certificate_key,
        advertise_address: args.apiserver_advertise_address,
        bind_port: args.apiserver_bind_port,
        node: args.node.into(),
    };
    let wish = Join::new(flags, file.as_deref()).map_err(Error::from)?;
    let lines = Lines(args.output.output);
    let machine = this_machine(&lines)?;
    if args.dry_run {
        let told = join::dry_run(&machine, wish).await?;
        return match args.output.output {
            Output::Json => print_json(&told),
            Output::Text => Ok(()),
        };
    }
    let done = tokio::select! {
        done = join::join(&machine, wish) => done?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted; run the same command again to go on, or `skiff reset` to undo"),
    };
    match args.output.output {
        Output::Json => print_json(&done),
        Output::Text => {
            let role = if done.control_plane { "a control plane, " } else { "" };
            println!(
                "\nThis machine is {role}node {} of the cluster at {} now.\n\nRun `kubectl get nodes` on a control plane to see it there.",
                done.node, done.server
            );
            Ok(())
        }
    }
}
