//! Putting the kubelet together.

mod agent;
mod machine;
mod servers;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::Runtime;
use skiff_daemon::{Context, Metrics, Shutdown, error_chain};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::certificates::Figures;
use crate::config::Config;
use crate::config::sources::manifests::Manifests;
use crate::config::sources::{self, Source, Update};
use crate::eviction::{self, Pressure};
use crate::image_gc::ImageGc;
use crate::local_path::Provisioner;
use crate::metrics::{Measured, Measures, Running};
use crate::node::NodeTask;
use crate::pods::{self, Directory, Inputs};
use crate::stats::{Stats, VolumeStats};
use crate::{events, local_storage, log_rotation, server};
use agent::Voices;

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
    mut config: Config,
    client: kube::Client,
    runtime: Arc<dyn Runtime>,
    daemon: Context,
) -> Result<(), Error> {
    let name = config.node_name();
    if name.is_empty() {
        return Err(Error::NoName);
    }
    let node_ips = agent::node_ips(&config)?;
    make_dirs(&mut config)?;
    let probe_metrics = skiff_daemon::Metrics::default();
    let measures = Measures::new(&daemon.metrics, &probe_metrics, &name);
    let runtime: Arc<dyn Runtime> = Arc::new(Measured::new(runtime, measures.clone()));
    let Some(runtime_name) = runtime_name(&runtime, &daemon).await else {
        return Ok(());
    };
    let shutdown = daemon.shutdown.clone();
    let (events, writer) = events::recorder(&name);
    let (told, pressure) = watch::channel(Pressure::default());
    let (wake, objects) = mpsc::unbounded_channel();
    let voices = Voices {
        events,
        measures,
        pressure,
        wake,
    };
    let agent = Arc::new(agent::build(config, client, (runtime, runtime_name), node_ips, voices).await?);
    let directory = Directory::default();
    register(&daemon.metrics, &agent, &directory);
    let limited = machine::limit_pods(&agent).await;
    let stats = Arc::new(Stats::new(agent.clone(), directory.clone()));
    let images = Arc::new(ImageGc::new(&agent));
    let mut evictions = eviction::Manager::new(agent.clone(), directory.clone(), stats.clone(), images.clone(), told);
    evictions.look().await;

    let mut tasks = JoinSet::new();
    if !limited {
        let agent = agent.clone();
        let limit = move || {
            let agent = agent.clone();
            async move { machine::limit_pods(&agent).await }
        };
        tasks.spawn(machine::each_minute(shutdown.clone(), limit));
    }
    if agent.config.kubelet.enable_server {
        let listener = servers::listen(&agent.config).await?;
        let metrics = (&daemon.metrics, probe_metrics);
        let server = server::Server::new(agent.clone(), directory.clone(), stats, metrics)
            .map_err(|error| Error::Server(Box::new(error)))?;
        tasks.spawn(server.run(listener, shutdown.clone()));
    }
    if let Some(listener) = servers::healthz(&agent.config).await {
        tasks.spawn(servers::serve_health(listener, daemon.clone()));
    }
    let (sources, updates) = spawn_sources(&mut tasks, &agent, &shutdown);
    tasks.spawn(writer.run(agent.client.clone(), shutdown.clone()));
    tasks.spawn(evictions.run(shutdown.clone()));
    tasks.spawn(images.run(shutdown.clone()));
    tasks.spawn(log_rotation::run(agent.clone(), directory.clone(), shutdown.clone()));
    tasks.spawn(agent.services.clone().run(agent.client.clone(), shutdown.clone()));
    let (seen, client, name) = (agent.seen.clone(), agent.client.clone(), agent.node_name.clone());
    tasks.spawn(seen.follow(client, name, shutdown.clone()));
    tasks.spawn(Provisioner::new(&agent).run(shutdown.clone()));
    let registered = daemon.health.readiness("node-registered");
    tasks.spawn(NodeTask::new(&agent).run(registered, shutdown.clone()));
    if agent.config.kubelet.local_storage_capacity_isolation {
        tasks.spawn(local_storage::watch(agent.clone(), directory.clone(), shutdown.clone()));
    }
    let inputs = Inputs {
        sources,
        updates,
        objects,
    };
    tasks.spawn(pods::run(agent, directory, inputs, shutdown.clone()));
    daemon.serving();
    shutdown.cancelled().await;
    // Pods live on without their kubelet; its own tasks get a moment to end.
    let ended = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(2), ended).await.ok();
    Ok(())
}

/// Figures that are read when somebody asks for them.
fn register(metrics: &Metrics, agent: &Arc<Agent>, directory: &Directory) {
    let running = Running(directory.clone());
    let volumes = VolumeStats {
        agent: agent.clone(),
        directory: directory.clone(),
    };
    let certificates = Figures {
        directory: agent.config.cert_dir(),
    };
    metrics.register(|registry| {
        registry.register_collector(Box::new(running));
        registry.register_collector(Box::new(volumes));
        registry.register_collector(Box::new(certificates));
    });
}

/// Starts what tells of pods: the API and, where one is configured, a directory of manifests.
fn spawn_sources(
    tasks: &mut JoinSet<()>,
    agent: &Agent,
    shutdown: &Shutdown,
) -> (HashSet<Source>, mpsc::Receiver<Update>) {
    let (updates, received) = mpsc::channel(UPDATES);
    let node = agent.node_name.clone();
    let mut sources = HashSet::from([Source::Api]);
    if let Some(path) = agent.config.kubelet.static_pod_path.clone() {
        sources.insert(Source::Manifests);
        let manifests = Manifests {
            path,
            node: node.clone(),
            period: agent.config.kubelet.file_check_frequency.0,
        };
        tasks.spawn(manifests.run(updates.clone(), shutdown.clone()));
    }
    tasks.spawn(sources::api(agent.client.clone(), node, updates, shutdown.clone()));
    (sources, received)
}

/// Makes the kubelet's own directories; from then on the root is known by its real path, as the kernel knows what is mounted in it.
fn make_dirs(config: &mut Config) -> Result<(), Error> {
    // Volumes are named as they were asked for: a link may be led to another disk one day.
    config.flags.local_path_dir = Some(config.local_path_dir());
    let root = &mut config.flags.root_dir;
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| Error::Directory { path, source }
    };
    for dir in [&*root, &root.join("pods"), &config.kubelet.pod_logs_dir] {
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
    }
    *root = root.canonicalize().map_err(failed(root))?;
    Ok(())
}

/// Asks the runtime for its name; waits for it to come up, since nothing can run without it. `None` when told to end meanwhile.
async fn runtime_name(runtime: &Arc<dyn Runtime>, daemon: &Context) -> Option<String> {
    let check = daemon.health.readiness("container-runtime");
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => return Some(version.name),
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
            () = daemon.shutdown.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_known_by_its_real_path_and_volumes_by_the_one_that_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        std::fs::create_dir(place.join("disk")).unwrap();
        std::os::unix::fs::symlink("disk", place.join("kubelet")).unwrap();
        let mut config = Config::default();
        config.flags.root_dir = place.join("kubelet");
        config.kubelet.pod_logs_dir = place.join("logs");
        make_dirs(&mut config).unwrap();
        assert_eq!(config.flags.root_dir, place.join("disk"));
        assert!(place.join("disk/pods").is_dir());
        assert_eq!(config.local_path_dir(), place.join("kubelet/local-path"));
    }
}
