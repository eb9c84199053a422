//! `skiff server`: API server, scheduler, controllers and DNS in one process.
//!
//! The scheduler, the controllers and DNS are clients like any other, but in-process: no socket, no TLS, the same code path.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use skiff_api::config::{API_VERSION, EtcdConfiguration, ServerConfiguration};
use skiff_apiserver::ApiServer;
use skiff_daemon::{Context, Shutdown};
use skiff_pki::{CertificateAuthority, Identity, ServiceAccountKey};
use skiff_store::{Store, etcd, sqlite};
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

    /// Serve the API on standard input too, a listening socket that the parent process opened
    #[arg(long)]
    listen_stdin: bool,
}

/// Upstream's flags for etcd; they come before what the file says.
#[derive(Args, Debug)]
struct EtcdArgs {
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

impl From<EtcdArgs> for EtcdConfiguration {
    fn from(args: EtcdArgs) -> Self {
        Self {
            endpoints: args.etcd_servers,
            ca_file: args.etcd_cafile,
            cert_file: args.etcd_certfile,
            key_file: args.etcd_keyfile,
        }
    }
}

/// Runs until asked to stop, or until one of the parts fails.
pub(crate) async fn run(args: ServerArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut config = read(&args.config)?;
    if !args.etcd.etcd_servers.is_empty() {
        config.etcd = Some(args.etcd.into());
    }
    let listeners = listen(&config, args.listen_stdin).await?;
    let daemon = Context {
        shutdown: shutdown.clone(),
        ..Context::default()
    };

    let store = open_store(&config).await.context("open the store")?;
    let server = ApiServer::start(api_config(&config)?, store, daemon.clone())
        .await
        .context("start the API server")?;

    let mut parts = JoinSet::new();
    let serving = server.clone();
    parts.spawn(async move { serving.serve(listeners).await.context("serve the API") });
    if config.scheduler {
        let client = server.client("system:kube-scheduler", &["system:authenticated"]);
        let scheduler = skiff_scheduler::run(skiff_scheduler::Config::default(), client, daemon.clone());
        parts.spawn(async move { scheduler.await.context("run the scheduler") });
    }
    if config.dns.enabled {
        let client = server.client("system:skiff-dns", &["system:authenticated"]);
        let dns = skiff_dns::Config::new(&config)?;
        let dns = skiff_dns::run(dns, client, daemon.clone());
        parts.spawn(async move { dns.await.context("run cluster DNS") });
    }
    let client = server.client("system:kube-controller-manager", &["system:authenticated"]);
    let controllers = skiff_controllers::run(controllers_config(&config)?, client, daemon);
    parts.spawn(async move { controllers.await.context("run the controllers") });

    skiff_daemon::notify_ready();
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the server panicked")??;
        anyhow::ensure!(shutdown.is_cancelled(), "a part of the server has ended by itself");
    }
    Ok(())
}

/// etcd where it is configured, a SQLite file of our own otherwise.
async fn open_store(config: &ServerConfiguration) -> anyhow::Result<Arc<dyn Store>> {
    if let Some(etcd) = &config.etcd {
        let options = etcd::Options {
            ca_file: etcd.ca_file.clone(),
            cert_file: etcd.cert_file.clone(),
            key_file: etcd.key_file.clone(),
            ..etcd::Options::new(&etcd.endpoints)
        };
        return Ok(Arc::new(etcd::connect(options).await?));
    }
    let database = config.data_dir.join("state.db");
    std::fs::create_dir_all(&config.data_dir).with_context(|| format!("create {}", config.data_dir.display()))?;
    let store = tokio::task::spawn_blocking(move || sqlite::open(database, sqlite::Options::default()));
    Ok(Arc::new(store.await??))
}

fn read(path: &std::path::Path) -> anyhow::Result<ServerConfiguration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let config: ServerConfiguration =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not a ServerConfiguration", path.display()))?;
    anyhow::ensure!(
        config.api_version == API_VERSION && config.kind == "ServerConfiguration",
        "{} is a {} {}, not a {API_VERSION} ServerConfiguration",
        path.display(),
        config.api_version,
        config.kind
    );
    Ok(config)
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

fn node_port_range(config: &ServerConfiguration) -> anyhow::Result<RangeInclusive<u16>> {
    let (first, last) = config
        .service_node_port_range
        .split_once('-')
        .context("serviceNodePortRange: not A-B")?;
    let port = |text: &str| {
        text.trim()
            .parse::<u16>()
            .with_context(|| format!("serviceNodePortRange: {text:?}"))
    };
    Ok(port(first)?..=port(last)?)
}

fn api_config(config: &ServerConfiguration) -> anyhow::Result<skiff_apiserver::Config> {
    let pki = &config.pki_dir;
    Ok(skiff_apiserver::Config {
        identity: Identity::load(pki, "apiserver")?,
        client_ca_pem: ca(config)?,
        service_cluster_ip_range: config.service_cluster_ip_range,
        node_port_range: node_port_range(config)?,
        service_account_key: ServiceAccountKey::load(pki)?,
        service_account_issuer: skiff_apiserver::DEFAULT_ISSUER.to_owned(),
        advertise_address: config.advertise_address,
        advertise_port: config.secure_port,
        kubelet_client: Identity::load_if_there(pki, "apiserver-kubelet-client")?,
        kubelet_ca_pem: None,
    })
}

fn controllers_config(config: &ServerConfiguration) -> anyhow::Result<skiff_controllers::Config> {
    Ok(skiff_controllers::Config {
        controllers: config.controllers.clone(),
        cluster_cidr: vec![config.cluster_cidr],
        node_cidr_mask_size: config.node_cidr_mask_size,
        service_cluster_ip_range: vec![config.service_cluster_ip_range],
        node_port_range: node_port_range(config)?,
        root_ca_pem: ca(config)?,
        node_monitor_grace_period: Duration::from_secs(config.node_monitor_grace_period_seconds.into()),
        ..skiff_controllers::Config::default()
    })
}

fn ca(config: &ServerConfiguration) -> anyhow::Result<String> {
    Ok(CertificateAuthority::load(&config.pki_dir, "ca")?
        .certificate_pem()
        .to_owned())
}
