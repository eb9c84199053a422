//! Puts the server together.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use skiff_daemon::serve::Door;
use skiff_daemon::{Check, Context, Shutdown};
use skiff_pki::Identity;
use skiff_store::Store;
use tokio::net::TcpListener;

use crate::admission::Admission;
use crate::allocate::Allocator;
use crate::authentication::{Authenticator, Lookup, Tokens, User, service_account_groups, username};
use crate::authorization::{Authorizer, NodeSources, Rbac, Sources};
use crate::cache::{self, Cache, Caches};
use crate::client::InProcess;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::metrics::Metrics;
use crate::metrics_server;
use crate::openid::OpenId;
use crate::proxy::Kubelets;
use crate::registry::Registry;
use crate::resources::Resources;
use crate::server::{Limits, Server};
use crate::servers::Servers;
use crate::{bootstrap, http};

/// How long the store may be away before the process counts as dead: what helps is not a restart, but the store.
const WITHOUT_STORE: Duration = Duration::from_secs(60);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error("fill the cache from the store")]
    Load(#[source] cache::Error),
    /// The certificates cannot be used.
    #[error("set up TLS")]
    Tls(#[source] skiff_pki::Error),
    /// The service-account key cannot be used.
    #[error("use the service-account key: it must be an EC P-256 key")]
    ServiceAccountKey(#[source] jsonwebtoken::errors::Error),
    /// An admission plugin is asked for that does not exist.
    #[error(
        "enableAdmissionPlugins: there is no admission plugin {name:?}; off by default is DenyServiceExternalIPs alone"
    )]
    AdmissionPlugin {
        /// What was asked for.
        name: String,
    },
    /// A built-in resource is missing.
    #[error("the schema has no resource {0}: the build is incomplete")]
    Incomplete(&'static str),
    /// What every cluster has cannot be created.
    #[error("create {what} that every cluster has")]
    Bootstrap {
        /// What.
        what: String,
        /// Why not.
        #[source]
        source: skiff_api::status::Status,
    },
    /// What was written for a server that is gone cannot be removed.
    #[error("remove {what} of a server that is gone")]
    Remove {
        /// What.
        what: String,
        /// Why not.
        #[source]
        source: skiff_api::status::Status,
    },
    /// The other servers on the store cannot be told of this one.
    #[error("join the other servers on the store")]
    Join(#[source] skiff_store::Error),
    /// A task of the server died.
    #[error("serve connections")]
    Serve(#[source] tokio::task::JoinError),
}

/// The API server.
#[derive(Clone)]
pub struct ApiServer {
    server: Arc<Server>,
    servers: Arc<Servers>,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    /// Who signs kubelets' serving certificates, where that is not the client CA.
    kubelet_ca: Option<Arc<str>>,
    _ready: Arc<Check>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Starts the server: fills its cache, follows the store, creates what every cluster has. It answers in-process clients from
    /// then on; [`ApiServer::serve`] lets others in.
    pub async fn start(config: Config, store: Arc<dyn Store>, daemon: Context) -> Result<Self, Error> {
        let tls = skiff_pki::server_config(&config.identity, Some(&config.client_ca_pem)).map_err(Error::Tls)?;
        let caches = Arc::new(Caches::new(Arc::clone(&store)));
        let resources = Arc::new(Resources::builtin(&caches));
        let revision = caches.load().await.map_err(Error::Load)?;
        let fed = daemon.health.patient_liveness("etcd", WITHOUT_STORE);
        tokio::spawn(Arc::clone(&caches).feed(revision, fed, daemon.shutdown.clone()));

        let tokens = Arc::new(tokens(&config, &resources)?);
        let authenticator = Authenticator::new(Arc::clone(&tokens), cache_of(&resources, "", "secrets")?);
        let authorizer = Arc::new(authorizer(&resources)?);
        let admission = Admission::builtin(&resources, Arc::clone(&authorizer), &config.enable_admission_plugins)
            .map_err(|name| Error::AdmissionPlugin { name })?;
        let registry = Arc::new(Registry {
            allocator: allocator(&config, &resources, &store, &caches)?,
            store,
            caches,
            admission,
            resources,
        });
        let kubelets = kubelets(&config)?;
        // Without a way to the kubelets there are no figures.
        let more: &[_] = if kubelets.is_some() {
            &metrics_server::RESOURCES
        } else {
            &[]
        };
        let address = format!("{}:{}", config.advertise_address, config.advertise_port);
        let ready = daemon.health.readiness("poststarthook/rbac/bootstrap-roles");
        let server = Arc::new(Server {
            authenticator,
            openid: OpenId::new(&config),
            tokens,
            authorizer,
            discovery: Discovery::new(&registry.resources, more, &address),
            metrics: Metrics::new(&daemon.metrics, &registry.resources),
            limits: Limits::default(),
            kubelets,
            nodes: metrics_server::Nodes::default(),
            registry,
            daemon,
        });
        bootstrap::run(&server.registry, &config).await?;
        let servers = Arc::new(Servers::new(Arc::clone(&server.registry), &config));
        servers.join().await?;
        ready.pass();
        spawn_keepers(&server, &servers);
        Ok(Self {
            server,
            servers,
            tls: Arc::new(ArcSwap::from_pointee(tls)),
            kubelet_ca: config.kubelet_ca_pem.map(Arc::from),
            _ready: Arc::new(ready),
        })
    }

    /// A client in this process that acts as `user`, a member of `groups`.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let service = InProcess {
            server: Arc::clone(&self.server),
            user: Arc::new(User::new(user, groups.iter().copied())),
        };
        kube::Client::new(service, "default")
    }

    /// Shows another certificate and trusts other clients from the next connection on; kubelets are shown the kubelet client's.
    ///
    /// # Errors
    /// When one of them cannot be used: then nothing changes.
    pub fn set_certificates(
        &self,
        identity: &Identity,
        client_ca_pem: &str,
        kubelet_client: Option<&Identity>,
    ) -> Result<(), Error> {
        let tls = skiff_pki::server_config(identity, Some(client_ca_pem)).map_err(Error::Tls)?;
        if let (Some(kubelets), Some(identity)) = (&self.server.kubelets, kubelet_client) {
            let authority = self.kubelet_ca.as_deref().unwrap_or(client_ca_pem);
            kubelets.replace(identity, authority).map_err(Error::Tls)?;
        }
        self.tls.store(Arc::new(tls));
        Ok(())
    }

    /// Says to clients of the Service `kubernetes` that this server goes; to be called before its shutdown.
    pub async fn leave(&self) {
        self.servers.leave().await;
    }

    /// A client in this process that acts as a service account.
    pub fn account_client(&self, namespace: &str, name: &str) -> kube::Client {
        let groups = service_account_groups(namespace);
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        self.client(&username(namespace, name), &groups)
    }

    /// Serves connections on the listeners until shutdown, then drains them.
    pub async fn serve(&self, listeners: Vec<TcpListener>) -> Result<(), Error> {
        let shutdown: &Shutdown = self.server.shutdown();
        let door = Arc::new(Door::new(http::STRANGERS));
        let mut tasks = tokio::task::JoinSet::new();
        for listener in listeners {
            tasks.spawn(http::serve(
                Arc::clone(&self.server),
                listener,
                Arc::clone(&self.tls),
                Arc::clone(&door),
                shutdown.clone(),
            ));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(Error::Serve)?;
        }
        Ok(())
    }
}

/// What goes on for as long as the server lives: objects end, addresses of the gone come free, the server's own is kept published.
fn spawn_keepers(server: &Server, servers: &Arc<Servers>) {
    let shutdown = server.shutdown();
    tokio::spawn(crate::expiry::run(Arc::clone(&server.registry), shutdown.clone()));
    tokio::spawn(server.registry.allocator.sweep(shutdown.clone()));
    let (keeper, until) = (Arc::clone(servers), shutdown.clone());
    tokio::spawn(async move { keeper.keep(until).await });
}

/// The objects of a built-in resource.
fn cache_of(resources: &Resources, group: &str, plural: &'static str) -> Result<Arc<Cache>, Error> {
    let served = resources.any_version(group, plural).ok_or(Error::Incomplete(plural))?;
    Ok(Arc::clone(&served.cache))
}

fn tokens(config: &Config, resources: &Resources) -> Result<Tokens, Error> {
    let lookup = Lookup {
        service_accounts: cache_of(resources, "", "serviceaccounts")?,
        pods: cache_of(resources, "", "pods")?,
        secrets: cache_of(resources, "", "secrets")?,
        nodes: cache_of(resources, "", "nodes")?,
    };
    Tokens::new(&config.service_account_key, &config.service_account_issuer, lookup).map_err(Error::ServiceAccountKey)
}

fn authorizer(resources: &Resources) -> Result<Authorizer, Error> {
    let nodes = NodeSources {
        pods: cache_of(resources, "", "pods")?,
        volumes: cache_of(resources, "", "persistentvolumes")?,
    };
    let rbac = |plural| cache_of(resources, "rbac.authorization.k8s.io", plural);
    let rbac = Rbac::new(Sources {
        roles: rbac("roles")?,
        cluster_roles: rbac("clusterroles")?,
        role_bindings: rbac("rolebindings")?,
        cluster_role_bindings: rbac("clusterrolebindings")?,
    });
    Ok(Authorizer::new(nodes, rbac))
}

fn allocator(
    config: &Config,
    resources: &Resources,
    store: &Arc<dyn Store>,
    caches: &Arc<Caches>,
) -> Result<Allocator, Error> {
    let services = cache_of(resources, "", "services")?;
    let own = Allocator::new(
        config.service_cluster_ip_range,
        config.node_port_range.clone(),
        services,
    );
    Ok(match store.is_shared() {
        true => own.sharing(Arc::clone(store), Arc::clone(caches)),
        false => own,
    })
}

/// The way to the kubelets, for a server that has a certificate for it.
fn kubelets(config: &Config) -> Result<Option<Kubelets>, Error> {
    let authority = config.kubelet_ca_pem.as_ref().unwrap_or(&config.client_ca_pem);
    let own = config.kubelet_client.as_ref();
    own.map(|identity| Kubelets::new(identity, authority))
        .transpose()
        .map_err(Error::Tls)
}
