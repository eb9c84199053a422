//! `skiff server`: API server, scheduler, controllers and DNS in one process.
//!
//! The scheduler, the controllers and DNS are clients like any other, but in-process: no socket, no TLS, the same code path.
//! Where several servers can share a store, the scheduler and the controllers of one of them work, elected by Leases. At the end
//! the clients stop first: they give their Leases back through the API.

mod certificates;
pub(crate) mod config;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use skiff_api::config::{EtcdConfiguration, LeaderElectionConfiguration, ServerConfiguration};
use skiff_api::duration::GoDuration;
use skiff_apiserver::ApiServer;
use skiff_controllers::{Clients, Manifests};
use skiff_daemon::{Context, Shutdown};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// `skiff server` flags.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  skiff server --config /etc/skiff/server.yaml")]
pub(crate) struct ServerArgs {
    /// The file with a ServerConfiguration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    #[command(flatten)]
    etcd: EtcdArgs,

    #[command(flatten)]
    election: ElectionArgs,

    /// Serve the API on standard input too, a listening socket that the parent process opened
    #[arg(long)]
    listen_stdin: bool,
}

/// Upstream's flags for etcd; they come before what the file says.
#[derive(Args, Debug)]
pub(crate) struct EtcdArgs {
    /// Keep everything in this etcd cluster instead of a SQLite file: URLs of its members
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd_servers: Vec<String>,

    /// The authority of the members' certificates
    #[arg(long, value_name = "FILE", requires = "etcd_servers")]
    etcd_cafile: Option<PathBuf>,

    /// Our client certificate
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
}

impl EtcdArgs {
    /// The cluster, if they name one.
    pub(crate) fn given(self) -> Option<EtcdConfiguration> {
        (!self.etcd_servers.is_empty()).then_some(EtcdConfiguration {
            endpoints: self.etcd_servers,
            ca_file: self.etcd_cafile,
            cert_file: self.etcd_certfile,
            key_file: self.etcd_keyfile,
        })
    }
}

/// Upstream's flags for leader election; they come before what the file says.
#[derive(Args, Debug)]
struct ElectionArgs {
    /// Elect one of several servers to run the scheduler and the controllers [default: with etcd]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    leader_elect: Option<bool>,

    /// How long the others keep away from a leader that is silent [default: 15s]
    #[arg(long, value_name = "DURATION")]
    leader_elect_lease_duration: Option<GoDuration>,

    /// After how long without a renewed Lease a leader stops [default: 10s]
    #[arg(long, value_name = "DURATION")]
    leader_elect_renew_deadline: Option<GoDuration>,

    /// How often a leader renews its Lease [default: 2s]
    #[arg(long, value_name = "DURATION")]
    leader_elect_retry_period: Option<GoDuration>,
}

impl ElectionArgs {
    fn over(self, file: LeaderElectionConfiguration) -> LeaderElectionConfiguration {
        LeaderElectionConfiguration {
            leader_elect: self.leader_elect.or(file.leader_elect),
            lease_duration: self.leader_elect_lease_duration.unwrap_or(file.lease_duration),
            renew_deadline: self.leader_elect_renew_deadline.unwrap_or(file.renew_deadline),
            retry_period: self.leader_elect_retry_period.unwrap_or(file.retry_period),
        }
    }
}

/// Runs until asked to stop, or until one of the parts fails.
pub(crate) async fn run(args: ServerArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut config = config::read(&args.config)?;
    config.etcd = args.etcd.given().or(config.etcd);
    config.leader_election = args.election.over(config.leader_election);
    let listeners = listen(&config, args.listen_stdin).await?;
    // The API server's own: it stops when its clients have.
    let api = Context::default();
    let daemon = Context {
        shutdown: shutdown.clone(),
        ..api.clone()
    };

    // Before they are read: what ended while no server ran is good again, and a renewal that was interrupted is whole.
    let mut renewals = certificates::Renewals::new(&config.pki_dir);
    renewals.look();
    let store = config::open_store(&config).await.context("open the store")?;
    let election = config::election(&config, &*store)?;
    let server = ApiServer::start(config::api_config(&config)?, store, api.clone())
        .await
        .context("start the API server")?;

    let mut serving = JoinSet::new();
    let api_server = server.clone();
    serving.spawn(async move { api_server.serve(listeners).await.context("serve the API") });
    let mut clients = JoinSet::new();
    if config.scheduler {
        let client = server.client("system:kube-scheduler", &["system:authenticated"]);
        let scheduler = skiff_scheduler::run(config::scheduler_config(election), client, daemon.clone());
        clients.spawn(async move { scheduler.await.context("run the scheduler") });
    }
    if config.dns.enabled {
        let client = server.client("system:skiff-dns", &["system:authenticated"]);
        let dns = skiff_dns::Config::new(&config)?;
        let dns = skiff_dns::run(dns, client, daemon.clone());
        clients.spawn(async move { dns.await.context("run cluster DNS") });
    }
    let manager = server.client("system:kube-controller-manager", &["system:authenticated"]);
    let accounts = server.clone();
    let each = Clients::each(manager, move |name| accounts.account_client("kube-system", name));
    let trust = config::Trust::load(&config)?;
    let manager = config::controllers_config(&config, election, &trust)?;
    let controllers = skiff_controllers::run(manager, each, daemon.clone());
    clients.spawn(async move { controllers.await.context("run the controllers") });

    if let Some(directory) = config.manifests_dir.clone() {
        let (client, shutdown) = (
            server.client("system:skiff-manifests", &["system:authenticated"]),
            shutdown.clone(),
        );
        let server = config.advertise_address;
        clients.spawn(async move {
            Manifests { directory, server }.run(client, shutdown).await;
            Ok(())
        });
    }
    clients.spawn(certificates::keep_current(
        server.clone(),
        trust,
        config,
        renewals,
        shutdown.clone(),
    ));
    daemon.serving();
    tokio::select! {
        ended = end_of(&mut clients, &shutdown) => ended?,
        ended = end_of(&mut serving, &api.shutdown) => ended?,
    }
    server.leave().await;
    api.shutdown.cancel();
    end_of(&mut serving, &api.shutdown).await
}

/// Waits for the end of all of them; none may end before the shutdown.
async fn end_of(parts: &mut JoinSet<anyhow::Result<()>>, shutdown: &Shutdown) -> anyhow::Result<()> {
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the server panicked")??;
        anyhow::ensure!(shutdown.is_cancelled(), "a part of the server has ended by itself");
    }
    Ok(())
}

async fn listen(config: &ServerConfiguration, stdin: bool) -> anyhow::Result<Vec<TcpListener>> {
    let address = SocketAddr::new(config.bind_address, config.secure_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: is another API server running there?"))?;
    let mut listeners = vec![listener];
    if stdin {
        let socket = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("take over the socket on standard input")?;
        let socket = std::net::TcpListener::from(socket);
        socket
            .set_nonblocking(true)
            .context("use the socket on standard input")?;
        listeners.push(TcpListener::from_std(socket).context("standard input is not a listening TCP socket")?);
    }
    Ok(listeners)
}
