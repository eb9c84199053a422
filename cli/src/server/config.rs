//! From a ServerConfiguration to what each part is told.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skiff_api::config::{API_VERSION, EtcdConfiguration, ServerConfiguration};
use skiff_controllers::ClusterSigning;
use skiff_daemon::election::{Election, Timing};
use skiff_pki::{CertificateAuthority, Identity, Names, ServiceAccountKey};
use skiff_store::backup::Place;
use skiff_store::{Store, etcd, sqlite};
use tokio::sync::watch;

/// Where the store is: in etcd where that is configured, in a SQLite file of our own otherwise.
pub(crate) fn place(config: &ServerConfiguration) -> Place {
    match &config.etcd {
        Some(etcd) => etcd_at(etcd),
        None => sqlite_in(&config.data_dir),
    }
}

/// The store in a server's data directory.
pub(crate) fn sqlite_in(data_dir: &Path) -> Place {
    Place::Sqlite(data_dir.join("state.db"))
}

/// The store in an etcd cluster.
pub(crate) fn etcd_at(etcd: &EtcdConfiguration) -> Place {
    Place::Etcd(etcd::Options {
        ca_file: etcd.ca_file.clone(),
        cert_file: etcd.cert_file.clone(),
        key_file: etcd.key_file.clone(),
        ..etcd::Options::new(&etcd.endpoints)
    })
}

/// Opens the store, which is made where there is none.
pub(super) async fn open_store(config: &ServerConfiguration) -> anyhow::Result<Arc<dyn Store>> {
    match place(config) {
        Place::Etcd(options) => Ok(Arc::new(etcd::connect(options).await?)),
        Place::Sqlite(database) => {
            let store = tokio::task::spawn_blocking(move || sqlite::open(database, sqlite::Options::default()));
            Ok(Arc::new(store.await??))
        }
    }
}

/// The file, which must be of the right kind.
pub(crate) fn read(path: &Path) -> anyhow::Result<ServerConfiguration> {
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

pub(super) fn api_config(config: &ServerConfiguration) -> anyhow::Result<skiff_apiserver::Config> {
    let pki = &config.pki_dir;
    let identity = Identity::load(pki, "apiserver")?;
    let advertise = (config.advertise_address, config.secure_port);
    Ok(skiff_apiserver::Config {
        service_cluster_ip_range: config.service_cluster_ip_range,
        node_port_range: node_port_range(config)?,
        kubelet_client: Identity::load_if_there(pki, "apiserver-kubelet-client")?,
        enable_admission_plugins: config.enable_admission_plugins.clone(),
        ..skiff_apiserver::Config::new(identity, &ca(config)?, ServiceAccountKey::load(pki)?, advertise)
    })
}

/// What the controllers publish, sign with and keep from nodes; renewed while they run.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) root_ca_pem: watch::Sender<String>,
    pub(super) authority: watch::Sender<Arc<CertificateAuthority>>,
    pub(super) api_server_names: watch::Sender<Names>,
}

impl Trust {
    pub(super) fn load(config: &ServerConfiguration) -> anyhow::Result<Self> {
        let authority = CertificateAuthority::load(&config.pki_dir, "ca")?;
        Ok(Self {
            root_ca_pem: watch::channel(authority.certificate_pem().to_owned()).0,
            authority: watch::channel(Arc::new(authority)).0,
            api_server_names: watch::channel(Identity::load(&config.pki_dir, "apiserver")?.names()?).0,
        })
    }

    /// Nobody is told of what is as it was.
    pub(super) fn renew(&self, authority: CertificateAuthority, api_server_names: Names) {
        self.root_ca_pem.send_if_modified(|pem| {
            let modified = *pem != authority.certificate_pem();
            authority.certificate_pem().clone_into(pem);
            modified
        });
        self.authority.send_replace(Arc::new(authority));
        self.api_server_names.send_replace(api_server_names);
    }
}

pub(super) fn controllers_config(
    config: &ServerConfiguration,
    timing: Option<Timing>,
    trust: &Trust,
) -> anyhow::Result<skiff_controllers::Config> {
    Ok(skiff_controllers::Config {
        leader_election: timing.map(|timing| Election::new("kube-controller-manager", timing)),
        controllers: config.controllers.clone(),
        cluster_cidr: vec![config.cluster_cidr],
        node_cidr_mask_size: config.node_cidr_mask_size,
        service_cluster_ip_range: vec![config.service_cluster_ip_range],
        node_port_range: node_port_range(config)?,
        root_ca_pem: trust.root_ca_pem.subscribe(),
        api_server_names: trust.api_server_names.subscribe(),
        cluster_domain: config.dns.cluster_domain.clone(),
        cluster_signing: Some(ClusterSigning {
            authority: trust.authority.subscribe(),
            duration: skiff_pki::LEAF_LIFETIME,
        }),
        node_monitor_grace_period: Duration::from_secs(config.node_monitor_grace_period_seconds.into()),
        ..skiff_controllers::Config::default()
    })
}

pub(super) fn scheduler_config(timing: Option<Timing>) -> skiff_scheduler::Config {
    skiff_scheduler::Config {
        leader_election: timing.map(|timing| Election::new("kube-scheduler", timing)),
        ..skiff_scheduler::Config::default()
    }
}

/// How leaders are elected; `None` where no other server can be, unless it is asked for.
pub(super) fn election(config: &ServerConfiguration, store: &dyn Store) -> anyhow::Result<Option<Timing>> {
    let election = &config.leader_election;
    let timing = Timing {
        lease_duration: election.lease_duration.0,
        renew_deadline: election.renew_deadline.0,
        retry_period: election.retry_period.0,
    };
    timing.validate()?;
    let wanted = election.leader_elect.unwrap_or(store.is_shared());
    Ok(wanted.then_some(timing))
}

/// The authority that signs clients' certificates.
pub(super) fn ca(config: &ServerConfiguration) -> anyhow::Result<String> {
    Ok(CertificateAuthority::load(&config.pki_dir, "ca")?
        .certificate_pem()
        .to_owned())
}
