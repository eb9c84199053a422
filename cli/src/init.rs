//! `skiff init`: this machine begins a cluster.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use skiff_daemon::Shutdown;
use skiff_machine::config::{Init, InitFlags};
use skiff_machine::init::{self, Initialized, upload_certs};
use skiff_machine::token::Token;
use skiff_machine::{CertificateKey, Error, duration};
use skiff_overlay::Mode;

use crate::args::{Output, OutputArgs};
use crate::machine::{Lines, NodeArgs, print_json, read_config, this_machine};
use crate::server::EtcdArgs;

/// `skiff init` flags, under kubeadm's names; each goes before what the file says.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  skiff init
  skiff init --apiserver-advertise-address 192.168.56.10 --pod-network-cidr 10.244.0.0/16
  skiff init --config cluster.yaml --dry-run
  skiff init --control-plane-endpoint 10.0.0.100 --upload-certs --etcd-servers https://10.0.0.5:2379 \\
      --etcd-cafile /etc/kubernetes/pki/etcd/ca.crt --etcd-certfile /etc/kubernetes/pki/apiserver-etcd-client.crt \\
      --etcd-keyfile /etc/kubernetes/pki/apiserver-etcd-client.key"
)]
pub(crate) struct InitArgs {
    #[command(subcommand)]
    command: Option<InitCommand>,
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
    /// Keep the control plane's keys in the cluster for two hours, encrypted, for further control planes
    #[arg(long)]
    upload_certs: bool,
    /// What they are encrypted with: 64 hexadecimal digits; made up when absent
    #[arg(long, value_name = "KEY")]
    certificate_key: Option<CertificateKey>,
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

#[derive(Debug, Subcommand)]
enum InitCommand {
    /// Run one phase again
    #[command(subcommand)]
    Phase(Phase),
}

#[derive(Debug, Subcommand)]
enum Phase {
    /// Keep the control plane's keys in the cluster for two more hours, and print what opens them
    #[command(after_help = "Example:\n  skiff init phase upload-certs --upload-certs")]
    UploadCerts {
        /// Do it
        #[arg(long)]
        upload_certs: bool,
        /// What they are encrypted with: 64 hexadecimal digits; made up when absent
        #[arg(long, value_name = "KEY")]
        certificate_key: Option<CertificateKey>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

async fn phase(phase: Phase) -> anyhow::Result<()> {
    let Phase::UploadCerts {
        upload_certs: wanted,
        certificate_key,
        output,
    } = phase;
    anyhow::ensure!(wanted, "nothing was done; say so with --upload-certs");
    let lines = Lines(output.output);
    let key = upload_certs::again(&this_machine(&lines)?, certificate_key).await?;
    match output.output {
        Output::Json => print_json(&serde_json::json!({ "certificateKey": key.to_string() })),
        Output::Text => {
            println!("[upload-certs] Using certificate key:\n{key}");
            Ok(())
        }
    }
}

/// Runs the phases, or tells what they would do.
pub(crate) async fn run(args: InitArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    if let Some(InitCommand::Phase(wanted)) = args.command {
        return phase(wanted).await;
    }
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
        upload_certs: args.upload_certs,
        certificate_key: args.certificate_key,
        skip_phases: args.skip_phases,
        node: args.node.into(),
    };
    let directory = std::env::current_dir().context("find the current directory")?;
    let wish = Init::new(flags, file.as_deref())
        .map_err(Error::from)?
        .typed_in(&directory);
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
    let further = done
        .control_plane_join_command
        .as_ref()
        .map_or_else(String::new, |line| {
            format!(
                "
To add a further control plane, within two hours, run this there as root (whoever has this line has the cluster):

{line}
"
            )
        });
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
{further}",
        done.join_command
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_shows_how_to_go_on_in_words_that_people_know() {
        let mut done = Initialized {
            node: "master".to_owned(),
            server: "https://10.0.0.1:6443".to_owned(),
            kubeconfig: "/etc/kubernetes/admin.conf".into(),
            join_command: "skiff join 10.0.0.1:6443 --token t".to_owned(),
            control_plane_join_command: None,
        };
        let told = farewell(&done);
        for line in [
            "  mkdir -p $HOME/.kube",
            "  sudo cp -i /etc/kubernetes/admin.conf $HOME/.kube/config",
            "  sudo chown $(id -u):$(id -g) $HOME/.kube/config",
            "  export KUBECONFIG=/etc/kubernetes/admin.conf",
            "skiff join 10.0.0.1:6443 --token t",
        ] {
            assert!(told.lines().any(|found| found == line), "{line}\n{told}");
        }
        assert!(!told.contains("further control plane"));
        let json = serde_json::to_value(&done).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["joinCommand", "kubeconfig", "node", "server"]);
        done.control_plane_join_command = Some("skiff join 10.0.0.1:6443 --control-plane".to_owned());
        assert!(farewell(&done).contains("skiff join 10.0.0.1:6443 --control-plane\n"));
    }
}
