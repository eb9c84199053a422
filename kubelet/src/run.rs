//! Putting the kubelet together.

mod machine;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::Runtime;
use skiff_daemon::{Context, error_chain};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent::{Agent, Ids};
use crate::certificates::Figures;
use crate::cgroups::Rules;
use crate::config::Config;
use crate::config::sources::manifests::Manifests;
use crate::config::sources::{self, Source};
use crate::eviction::{self, Pressure};
use crate::image_gc::ImageGc;
use crate::images::Images;
use crate::local_path::Provisioner;
use crate::metrics::{Measured, Measures, Running};
use crate::node::{NodeTask, facts};
use crate::objects::Objects;
use crate::pods::{self, Directory, Inputs};
use crate::services::Services;
use crate::stats::Stats;
use crate::volumes::{Tokens, Volumes};
use crate::{admission, dns, events, local_storage, log_rotation, node, server};

const UPDATES: usize = 256;

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of its own cannot be made.
    #[error("cannot create the kubelet's directory {path}; check --root-dir")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// cgroups do not work.
    #[error("cannot set up the cgroups of pods; check cgroupRoot and that cgroups are mounted writable")]
    Cgroups(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime asks for systemd where there is none.
    #[error(
        "the container runtime uses the systemd cgroup driver, but systemd does not run here; set SystemdCgroup = false in \
         containerd's configuration, or cgroupDriver: cgroupfs where the runtime does not tell"
    )]
    NoSystemd,
    /// The machine swaps.
    #[error("running with swap on is not supported, please disable swap ({0}) or set --fail-swap-on flag to false")]
    Swap(String),
    /// The server's address is taken.
    #[error("cannot listen on {address}: is another kubelet running here?")]
    Listen {
        /// Address and port.
        address: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The server's certificates do not work.
    #[error("cannot set up the kubelet's server")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The node has no address.
    #[error("cannot find an address of this node; give one with --node-ip")]
    NoAddress,
    /// The node has no name.
    #[error("this node has no name; give one with --hostname-override")]
    NoName,
}

/// Runs the kubelet against the configured container runtime until shutdown.
pub async fn run(config: Config, client: kube::Client, daemon: Context) -> Result<(), Error> {
    machine::check_swap(&config)?;
    machine::protect_from_oom(config.kubelet.oom_score_adj);
    let endpoint = config.kubelet.container_runtime_endpoint.clone();
    let timeout = config.kubelet.runtime_request_timeout.0;
    let runtime = Arc::new(skiff_cri::Client::new(&endpoint).with_timeout(timeout));
    run_with(config, client, runtime, daemon).await
}

/// Runs the kubelet against a given runtime.
pub async fn run_with(
    config: Config,
    client: kube::Client,
    runtime: Arc<dyn Runtime>,
    daemon: Context,
) -> Result<(), Error> {
    let name = config.node_name();
    if name.is_empty() {
        return Err(Error::NoName);
    }
    for dir in [
        &config.flags.root_dir,
        &config.flags.root_dir.join("pods"),
        &config.kubelet.pod_logs_dir,
    ] {
        make_dir(dir)?;
    }
    let mut ips = config.flags.node_ips.clone();
    if ips.is_empty() {
        ips.push(facts::default_ip().ok_or(Error::NoAddress)?);
    }
    let facts = facts::read(&config.flags.root_dir);
    let probe_metrics = skiff_daemon::Metrics::default();
    let measures = Measures::new(&daemon.metrics, &probe_metrics, &name);
    let runtime: Arc<dyn Runtime> = Arc::new(Measured::new(runtime, measures.clone()));
    let runtime_name = runtime_name(&runtime, &daemon).await;
    if daemon.shutdown.is_cancelled() {
        return Ok(());
    }
    let cgroups = machine::open_cgroups(&config, &facts, &runtime).await?;
    let unified = cgroups.is_unified();
    // A runtime that is too busy to answer now is taken to know as little as an old one: pods are refused, never run wider.
    let strict_groups = runtime
        .status()
        .await
        .ok()
        .and_then(|status| status.supplemental_groups_policy);
    let strict_groups = strict_groups.unwrap_or(false);
    let shutdown = daemon.shutdown.clone();
    let (recorder, writer) = events::recorder(&name);
    let (told, pressure) = watch::channel(Pressure::default());
    let (object_sender, objects_changed) = mpsc::unbounded_channel();
    let objects = Objects::new(client.clone(), object_sender);
    let services = Services::new();
    let kubelet = &config.kubelet;
    let images = Images::new(runtime.clone(), recorder.clone(), measures.clone(), kubelet);
    let agent = Arc::new(Agent {
        node_name: name.clone(),
        node_ips: ips.clone(),
        runtime: runtime.clone(),
        runtime_name,
        client: client.clone(),
        events: recorder.clone(),
        images,
        volumes: Volumes::new(
            &config.flags.root_dir,
            client.clone(),
            &name,
            objects.clone(),
            Tokens::new(client.clone()),
        ),
        objects,
        services: services.clone(),
        cgroups,
        rules: rules(&config, &facts, unified),
        dns: dns_node(&config),
        allocatable: node::allocatable(&config, &facts),
        host: admission::Host::read(config.kubelet.allowed_unsafe_sysctls.clone(), strict_groups),
        ids: Ids::default(),
        machine: facts.clone(),
        measures: measures.clone(),
        pressure: pressure.clone(),
        config: config.clone(),
    });
    let directory = Directory::default();
    let running = Running(directory.clone());
    let directory_of_certificates = config.cert_dir();
    daemon.metrics.register(|registry| {
        registry.register_collector(Box::new(running));
        registry.register_collector(Box::new(Figures {
            directory: directory_of_certificates,
        }));
    });
    let stats = Arc::new(Stats::new(agent.clone(), directory.clone()));
    let images = Arc::new(ImageGc::new(
        runtime.clone(),
        recorder.clone(),
        measures,
        &config.kubelet,
    ));
    let mut evictions = eviction::Manager::new(agent.clone(), directory.clone(), stats.clone(), images.clone(), told);
    evictions.look().await;
    let mut tasks = JoinSet::new();
    if kubelet.enable_server {
        let listener = listen(&config).await?;
        let server = server::Server::new(
            agent.clone(),
            directory.clone(),
            stats.clone(),
            (&daemon.metrics, probe_metrics),
        )
        .map_err(|error| Error::Server(Box::new(error)))?;
        tasks.spawn(server.run(listener, shutdown.clone()));
    }
    if let Some(listener) = healthz(&config).await {
        let (health, metrics) = (daemon.health.clone(), daemon.metrics.clone());
        let serving = skiff_daemon::health::serve(listener, health, metrics, shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "cannot serve health checks any longer");
            }
        });
    }
    let (updates, received) = mpsc::channel(UPDATES);
    let mut sources = HashSet::from([Source::Api]);
    if let Some(path) = config.kubelet.static_pod_path.clone() {
        sources.insert(Source::Manifests);
        let manifests = Manifests {
            path,
            node: name.clone(),
            period: config.kubelet.file_check_frequency.0,
        };
        tasks.spawn(manifests.run(updates.clone(), shutdown.clone()));
    }
    tasks.spawn(sources::api(client.clone(), name.clone(), updates, shutdown.clone()));
    tasks.spawn(writer.run(client.clone(), shutdown.clone()));
    tasks.spawn(evictions.run(shutdown.clone()));
    tasks.spawn(images.run(shutdown.clone()));
    tasks.spawn(log_rotation::run(agent.clone(), directory.clone(), shutdown.clone()));
    tasks.spawn(services.run(client.clone(), shutdown.clone()));
    let provisioner = Provisioner {
        client: client.clone(),
        node: name.clone(),
        root: config.local_path_dir(),
        events: recorder.clone(),
    };
    tasks.spawn(provisioner.run(shutdown.clone()));
    let task = NodeTask {
        client,
        runtime,
        events: recorder,
        config,
        name,
        ips,
        facts,
        pressure,
        heard: parking_lot::Mutex::default(),
    };
    tasks.spawn(task.run(daemon.health.readiness("node-registered"), shutdown.clone()));
    if agent.config.kubelet.local_storage_capacity_isolation {
        tasks.spawn(local_storage::watch(agent.clone(), directory.clone(), shutdown.clone()));
    }
    let inputs = Inputs {
        sources,
        updates: received,
        objects: objects_changed,
    };
    tasks.spawn(pods::run(agent, directory, inputs, shutdown.clone()));
    daemon.serving();
    shutdown.cancelled().await;
    // Pods live on without their kubelet; its own tasks get a moment to end.
    tokio::time::timeout(Duration::from_secs(2), async {
        while tasks.join_next().await.is_some() {}
    })
    .await
    .ok();
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|source| Error::Directory {
        path: path.into(),
        source,
    })
}

/// Asks the runtime for its name; waits for it to come up, since nothing can run without it.
async fn runtime_name(runtime: &Arc<dyn Runtime>, daemon: &Context) -> String {
    let check = daemon.health.readiness("container-runtime");
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => return version.name,
            Err(error) => {
                check.fail(error_chain(&error));
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(
                        error = error_chain(&error),
                        "the container runtime does not answer; waiting for it"
                    );
                }
            }
        }
        tokio::select! {
            () = daemon.shutdown.cancelled() => return String::new(),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

fn rules(config: &Config, facts: &facts::Facts, unified: bool) -> Rules {
    Rules {
        quota: config.kubelet.cpu_cfs_quota,
        period: config.kubelet.cpu_cfs_quota_period.0,
        pids: config.kubelet.pod_pids_limit,
        memory_capacity: facts.memory,
        oom_group: unified && !config.kubelet.single_process_oom_kill.unwrap_or(false),
        page_sizes: facts.hugepages.keys().cloned().collect(),
    }
}

fn dns_node(config: &Config) -> dns::Node {
    let kubelet = &config.kubelet;
    let host = kubelet
        .resolv_conf
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty());
    dns::Node {
        servers: kubelet.cluster_dns.clone(),
        domain: kubelet.cluster_domain.clone(),
        host: host.map(dns::read).unwrap_or_default(),
    }
}

/// The listener for health checks; without one the kubelet still works.
async fn healthz(config: &Config) -> Option<TcpListener> {
    let kubelet = &config.kubelet;
    let port = u16::try_from(kubelet.healthz_port).ok().filter(|port| *port > 0)?;
    match TcpListener::bind((kubelet.healthz_bind_address.as_str(), port)).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%error, port, "cannot serve health checks: is healthzPort taken? Set another, or 0 for none");
            None
        }
    }
}

async fn listen(config: &Config) -> Result<TcpListener, Error> {
    let address = &config.kubelet.address;
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let address = format!("{host}:{}", config.kubelet.port);
    TcpListener::bind(&address)
        .await
        .map_err(|source| Error::Listen { address, source })
}
