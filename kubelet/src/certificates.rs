//! The kubelet's own certificates: asked for with a bootstrap token, kept on disk, renewed while they are in use.
//!
//! Tasks: one for each certificate that is to be renewed ([`rotate`]); it sleeps until 70 to 90 % of the certificate's life are over,
//! asks for the next, writes it ([`store`]), and puts it in the place of the old one: a new API client behind the one that everybody
//! holds ([`client`]), a new TLS configuration for connections that are still to come. Proxy and ingress renew what their kubeconfigs
//! hold in the same way ([`keep_kubeconfig`]).

mod client;
mod figures;
mod kubeconfig;
mod request;
mod rotate;
mod serving;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use skiff_daemon::{Shutdown, error_chain};
use skiff_pki::kubeconfig::{Cluster, Context, NamedCluster, NamedContext, NamedUser, User};
use skiff_pki::{Identity, Kubeconfig, Request};

use client::Replaceable;
use request::Wanted;
use store::Store;

pub(crate) use figures::Figures;
pub use kubeconfig::keep_kubeconfig;
pub(crate) use serving::{Serving, least_tls};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
/// Names of the files, as upstream's.
const CLIENT: &str = "kubelet-client";
const SERVER: &str = "kubelet-server";

/// Makes a client of a kubeconfig file.
pub type Connect = Arc<
    dyn Fn(PathBuf) -> BoxFuture<'static, Result<kube::Client, Box<dyn std::error::Error + Send + Sync>>> + Send + Sync,
>;

/// Why there is no way to the API server, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a bootstrap one.
    #[error(
        "{} does not exist, and no --bootstrap-kubeconfig says how to get one: join the machine to a cluster with skiff join",
        path.display()
    )]
    NoKubeconfig {
        /// What `--kubeconfig` names.
        path: PathBuf,
    },
    /// The certificate ended and there is no token to ask for another.
    #[error(
        "the kubelet's client certificate of {} is not valid any more (it ended at {end}); on a worker, join again with a new token: \
         skiff token create --print-join-command on the control plane, and that line here; on a control plane: skiff certs renew all",
        path.display()
    )]
    Expired {
        /// What `--kubeconfig` names.
        path: PathBuf,
        /// When.
        end: Timestamp,
    },
    /// A file of keys, certificates or a kubeconfig.
    #[error("set up the kubelet's certificates; check --cert-dir and --kubeconfig")]
    Files(#[from] skiff_pki::Error),
    /// A file or link in the directory of certificates.
    #[error("keep a certificate in {}; check --cert-dir", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// No client.
    #[error("make an API client from {}", path.display())]
    Connect {
        /// The kubeconfig.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request was not answered as wished.
    #[error("get a certificate signed for {user}")]
    Request {
        /// For whom.
        user: String,
        /// Why not.
        source: request::Error,
    },
    /// The process ends.
    #[error("told to stop")]
    Stopped,
}

/// What the kubelet is told about its credentials.
#[derive(Debug)]
pub struct Options {
    /// `--kubeconfig`: how to reach the API server; written when it is got by a token.
    pub kubeconfig: PathBuf,
    /// `--bootstrap-kubeconfig`: how to get a first one.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--cert-dir`: where certificates are kept.
    pub cert_dir: PathBuf,
    /// The node's name.
    pub node: String,
    /// `rotateCertificates`: whether the client's certificate is renewed.
    pub rotate: bool,
}

impl Options {
    fn store(&self) -> Store {
        Store::new(&self.cert_dir, CLIENT)
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            signer: CLIENT_SIGNER,
            usage: "client auth",
            subject: Request::client(format!("system:node:{}", self.node), &[NODES]),
        }
    }
}

/// A client of the API server, got by a token where there is none, that goes on working when its certificate is renewed.
///
/// # Errors
/// When there is no way to one, or the process is to end before it is there.
pub async fn connect(options: Options, connect: Connect, shutdown: Shutdown) -> Result<kube::Client, Error> {
    if options.node.is_empty() {
        // Nobody to ask a certificate for; the kubelet itself says what to do.
        return make(&connect, &options.kubeconfig).await;
    }
    if let Err(why) = usable(&options)? {
        let Some(bootstrap) = options.bootstrap_kubeconfig.clone().filter(|path| path.exists()) else {
            return Err(why);
        };
        tracing::info!(
            bootstrap = %bootstrap.display(),
            reason = error_chain(&why),
            "asking for the node's client certificate"
        );
        tokio::select! {
            () = shutdown.cancelled() => return Err(Error::Stopped),
            got = first(&options, &connect, &bootstrap) => got?,
        }
    }
    let client = make(&connect, &options.kubeconfig).await?;
    if !options.rotate {
        return Ok(client);
    }
    let place = Replaceable::new(client);
    let outside = place.client();
    tokio::spawn(rotate::client(options, connect, place, shutdown));
    Ok(outside)
}

async fn make(connect: &Connect, path: &std::path::Path) -> Result<kube::Client, Error> {
    connect(path.to_owned()).await.map_err(|source| Error::Connect {
        path: path.to_owned(),
        source,
    })
}

/// Whether the kubeconfig will do as it is; if not, why.
fn usable(options: &Options) -> Result<Result<(), Error>, Error> {
    let path = options.kubeconfig.clone();
    if !path.exists() {
        return Ok(Err(Error::NoKubeconfig { path }));
    }
    let credentials = match Kubeconfig::load(&path) {
        Ok(credentials) => credentials,
        // Its certificate may be lost; another can be asked for.
        Err(error) if options.bootstrap_kubeconfig.is_some() => return Ok(Err(error.into())),
        Err(error) => return Err(error.into()),
    };
    let Some(identity) = credentials.identity else {
        return Ok(Ok(()));
    };
    let end = identity.validity()?.not_after;
    if end <= Timestamp::now() {
        return Ok(Err(Error::Expired { path, end }));
    }
    Ok(Ok(()))
}

/// Gets the first certificate, and writes the kubeconfig that names it.
async fn first(options: &Options, connect: &Connect, bootstrap: &std::path::Path) -> Result<(), Error> {
    let client = make(connect, bootstrap).await?;
    let store = options.store();
    // A key that a former process asked with: its request may be answered by now.
    let key = store.pending_key()?;
    let wanted = options.wanted();
    let mut failures = 0;
    let certificate = loop {
        match request::ask(&client, &wanted, &key, Some(wanted.name(&key))).await {
            Ok(certificate) => break certificate,
            Err(error) if error.is_final() => {
                store.forget_pending_key()?;
                return Err(wanted.failed(error));
            }
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "no client certificate yet; asking again");
                tokio::time::sleep(rotate::pause(failures)).await;
                failures += 1;
            }
        }
    };
    let identity = Identity::from_pem(certificate, key)?;
    store.keep(&identity)?;
    write_kubeconfig(options, bootstrap)?;
    store.forget_pending_key()
}

/// The same cluster, with the node's own certificate.
fn write_kubeconfig(options: &Options, bootstrap: &std::path::Path) -> Result<(), Error> {
    const NAME: &str = "default";
    let from = Kubeconfig::load(bootstrap)?;
    let current = options.store().current();
    let named = |name: &str| name.to_owned();
    let config = Kubeconfig {
        api_version: named("v1"),
        kind: named("Config"),
        clusters: vec![NamedCluster {
            name: named(NAME),
            cluster: Cluster::at(&from.server, &from.ca_pem),
        }],
        contexts: vec![NamedContext {
            name: named(NAME),
            context: Context {
                cluster: named(NAME),
                user: named(NAME),
                ..Context::default()
            },
        }],
        current_context: named(NAME),
        users: vec![NamedUser {
            name: named(NAME),
            user: User {
                client_certificate: Some(current.clone()),
                client_key: Some(current),
                ..User::default()
            },
        }],
        other: std::collections::BTreeMap::new(),
    };
    Ok(config.write(&options.kubeconfig)?)
}

impl Wanted {
    fn failed(&self, source: request::Error) -> Error {
        Error::Request {
            user: self.subject.common_name.clone(),
            source,
        }
    }
}
