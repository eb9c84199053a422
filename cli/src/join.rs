//! `skiff join`: this machine becomes a worker of a cluster.

use std::path::PathBuf;

use clap::Args;
use skiff_daemon::Shutdown;
use skiff_machine::config::{Join, JoinFlags};
use skiff_machine::token::Token;
use skiff_machine::{Error, join};

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
    /// A file with a JoinConfiguration, kubeadm's kind
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
        node: args.node.into(),
    };
    let wish = Join::new(flags, file.as_deref()).map_err(Error::from)?;
    let lines = Lines(args.output.output);
    let machine = this_machine(&lines)?;
    let done = tokio::select! {
        done = join::join(&machine, wish) => done?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted; run the same command again to go on, or `skiff reset` to undo"),
    };
    match args.output.output {
        Output::Json => print_json(&done),
        Output::Text => {
            println!(
                "\nThis machine is node {} of the cluster at {} now.\n\nRun `kubectl get nodes` on the control plane to see it there.",
                done.node, done.server
            );
            Ok(())
        }
    }
}
