//! `skiff kubelet`: the node agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use futures::FutureExt as _;
use skiff_cri::Client;
use skiff_daemon::{Context, Shutdown};
use skiff_kubelet::certificates;
use skiff_kubelet::config::{Config, FLAGS, Flags, Kind};

use crate::{client, image};

/// `skiff kubelet` flags, under upstream's names.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  skiff kubelet --config /var/lib/kubelet/config.yaml --kubeconfig /etc/kubernetes/kubelet.conf --node-ip 192.168.56.11")]
pub(crate) struct KubeletArgs {
    /// The file with a KubeletConfiguration (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to reach the API server, and as whom; written when it is got with --bootstrap-kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// How to get a first certificate, where --kubeconfig does not exist or its certificate has ended
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Where the node's certificates are kept; the root directory's pki otherwise
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The node's name, where it is not the host's
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// The node's address
    #[arg(long = "node-ip", value_name = "IP", value_delimiter = ',')]
    node_ips: Vec<IpAddr>,
    /// Where pods' directories live
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// The container runtime's socket
    #[arg(long, value_name = "URL")]
    container_runtime_endpoint: Option<String>,
    /// A directory of manifests, or one file: pods that run whatever the API server says
    #[arg(long, value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// Labels to register the node with, as key=value
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = key_value)]
    node_labels: Vec<(String, String)>,
    /// A directory of image archives to import at the start
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// The cgroup under which pods' cgroups are made
    #[arg(long, value_name = "CGROUP")]
    cgroup_root: Option<String>,
    /// Where the local-path provisioner makes volumes; the root directory's local-path otherwise
    #[arg(long, value_name = "DIR")]
    local_path_dir: Option<PathBuf>,
    /// A directory of drop-ins (*.conf) that are laid over the file, in the order of their names
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Instead of a field of the file")]
    overrides: Overrides,
}

/// Flags that say the same as a field of the file, made from the kubelet's own table of them.
#[derive(Debug, Default)]
struct Overrides {
    fields: serde_json::Map<String, serde_json::Value>,
    /// Flags that were given and that nothing acts on.
    unheeded: Vec<&'static str>,
}

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Self::default();
        overrides.update_from_arg_matches(matches)?;
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for flag in FLAGS {
            if let Some(text) = matches.get_one::<String>(flag.name) {
                let refuse = |error: String| {
                    let text = format!("invalid value for '--{}': {error}\n", flag.name);
                    clap::Error::raw(clap::error::ErrorKind::ValueValidation, text)
                };
                flag.set(text, &mut self.fields).map_err(refuse)?;
                if !flag.has_field() {
                    self.unheeded.push(flag.name);
                }
            }
        }
        Ok(())
    }
}

impl Args for Overrides {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(FLAGS.iter().map(|flag| {
            let arg = clap::Arg::new(flag.name).long(flag.name).help(flag.help);
            match flag.kind {
                Kind::Switch => arg
                    .value_name("BOOL")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                Kind::Number => arg.value_name("N").allow_negative_numbers(true),
                Kind::Text => arg.value_name("VALUE"),
                _ => arg.value_name("LIST"),
            }
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Runs until asked to stop.
pub(crate) async fn run(args: KubeletArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let flags = Flags {
        hostname_override: args.hostname_override,
        node_ips: args.node_ips,
        root_dir: args.root_dir,
        container_runtime_endpoint: args.container_runtime_endpoint,
        pod_manifest_path: args.pod_manifest_path,
        node_labels: args.node_labels.into_iter().collect(),
        cgroup_root: args.cgroup_root,
        config_dir: args.config_dir,
        overrides: args.overrides.fields,
        unheeded: args.overrides.unheeded,
        local_path_dir: args.local_path_dir,
        cert_dir: args.cert_dir,
    };
    let config = Config::load(args.config.as_deref(), flags).context("configure the kubelet")?;
    if let Some(directory) = &args.image_dir {
        let runtime = Client::new(&config.kubelet.container_runtime_endpoint);
        image::import_directory(&runtime, directory).await?;
    }
    let credentials = certificates::Options {
        kubeconfig: args.kubeconfig,
        bootstrap_kubeconfig: args.bootstrap_kubeconfig,
        cert_dir: config.cert_dir(),
        node: config.node_name(),
        rotate: config.kubelet.rotate_certificates,
    };
    let make: certificates::Connect =
        Arc::new(|path| async move { client::from_file(&path, "kubelet").await.map_err(Into::into) }.boxed());
    let client = match certificates::connect(credentials, make, shutdown.clone()).await {
        Err(certificates::Error::Stopped) => return Ok(()),
        connected => connected.context("reach the API server")?,
    };
    let daemon = Context {
        shutdown,
        ..Context::default()
    };
    skiff_kubelet::run(config, client, daemon)
        .await
        .context("run the kubelet")
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        kubelet: KubeletArgs,
        #[command(flatten)]
        _logs: crate::args::LogArgs,
    }

    /// Flags of upstream's, as units and kubeadm's environment files have them.
    #[test]
    fn upstreams_command_lines_are_understood() {
        let line = "kubelet --bootstrap-kubeconfig=/b.conf --kubeconfig=/k.conf --config=/config.yaml --config-dir=/conf.d \
            --container-runtime-endpoint=unix:///run/containerd/containerd.sock --pod-infra-container-image=pause:3.9 \
            --hostname-override=n --node-ip=192.0.2.1,2001:db8::1 --node-labels=a=b,c= --cert-dir=/pki --root-dir=/k --v=2 \
            --logging-format=json --cloud-provider=external --address=0.0.0.0 --allowed-unsafe-sysctls=net.core.*,kernel.msg* \
            --anonymous-auth=false --authentication-token-webhook --authentication-token-webhook-cache-ttl=1m \
            --authorization-mode=Webhook --authorization-webhook-cache-authorized-ttl=1m0s \
            --authorization-webhook-cache-unauthorized-ttl=5s --cgroup-driver=systemd --cgroup-root=/ --cgroups-per-qos=true \
            --client-ca-file=/ca.crt --cluster-dns=10.96.0.10 --cluster-domain=cluster.local --container-log-max-files=3 \
            --container-log-max-size=1Mi --contention-profiling=false --cpu-cfs-quota --cpu-cfs-quota-period=100ms \
            --cpu-manager-policy=none --cpu-manager-policy-options=full-pcpus-only=true --cpu-manager-reconcile-period=10s \
            --enable-controller-attach-detach=true --enable-debugging-handlers=true --enable-server --enforce-node-allocatable=pods \
            --event-burst=100 --event-qps=50 --eviction-hard=memory.available<100Mi --eviction-max-pod-grace-period=60 \
            --eviction-minimum-reclaim=memory.available=10Mi --eviction-pressure-transition-period=1m \
            --eviction-soft=memory.available<1Gi --eviction-soft-grace-period=memory.available=90s --exit-on-lock-contention=false \
            --fail-swap-on=false --feature-gates=A=true,B=false --file-check-frequency=20s --hairpin-mode=promiscuous-bridge \
            --healthz-bind-address=127.0.0.1 --healthz-port=10248 --http-check-frequency=20s \
            --image-credential-provider-bin-dir=/bin --image-credential-provider-config=/p.yaml --image-gc-high-threshold=85 \
            --image-gc-low-threshold=80 --image-service-endpoint=unix:///i.sock --kernel-memcg-notification \
            --keep-terminated-pod-volumes=false --kube-api-burst=100 --kube-api-content-type=application/json --kube-api-qps=50 \
            --kube-reserved=cpu=100m --kube-reserved-cgroup=/kube --kubelet-cgroups=/systemd/system.slice \
            --local-storage-capacity-isolation=true --lock-file=/lock --log-flush-frequency=5s --make-iptables-util-chains=true \
            --manifest-url=http://192.0.2.9/ --max-open-files=1000000 --max-pods=110 --maximum-dead-containers=-1 \
            --maximum-dead-containers-per-container=1 --memory-manager-policy=None --minimum-container-ttl-duration=0s \
            --minimum-image-ttl-duration=2m --node-status-max-images=50 --node-status-update-frequency=10s --oom-score-adj=-999 \
            --pod-cidr=10.0.0.0/24 --pod-manifest-path=/manifests --pod-max-pids=-1 --pods-per-core=10 --port=10250 \
            --protect-kernel-defaults --provider-id=cloud://1 --qos-reserved=memory=50% --read-only-port=0 --register-node=true \
            --register-schedulable=true --register-with-taints=a=b:NoSchedule --registry-burst=10 --registry-qps=5 \
            --reserved-cpus=0-1 --reserved-memory=0:memory=1Gi --resolv-conf=/etc/resolv.conf --rotate-certificates \
            --rotate-server-certificates --runonce=false --runtime-cgroups=/runtime --runtime-request-timeout=2m \
            --seccomp-default --serialize-image-pulls=false --streaming-connection-idle-timeout=4h --sync-frequency=1m \
            --system-cgroups= --system-reserved=cpu=100m --system-reserved-cgroup=/system --tls-cert-file=/c --tls-private-key-file=/k \
            --tls-cipher-suites=TLS_AES_128_GCM_SHA256 --tls-min-version=VersionTLS13 --topology-manager-policy=none \
            --topology-manager-policy-options=max-allowable-numa-nodes=9 --topology-manager-scope=container \
            --volume-plugin-dir=/plugins --volume-stats-agg-period=1m";
        let line = Line::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"));
        let Overrides { fields, unheeded } = line.kubelet.overrides;
        assert!(unheeded.contains(&"maximum-dead-containers") && !unheeded.contains(&"event-qps"));
        let flags = Flags {
            overrides: fields,
            unheeded,
            ..Flags::default()
        };
        let config = Config::load(None, flags).unwrap_or_else(|error| panic!("{}", skiff_daemon::error_chain(&error)));
        assert_eq!(
            (config.kubelet.pods_per_core, config.kubelet.provider_id.as_str()),
            (10, "cloud://1")
        );
        assert_eq!(
            config.kubelet.other["featureGates"],
            serde_json::json!({"A": true, "B": false})
        );
        assert!(Line::try_parse_from(["kubelet", "--kubeconfig=/k", "--feature-gates=A"]).is_err());
    }
}
