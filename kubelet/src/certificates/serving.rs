//! What the kubelet's server shows of itself: replaced while it runs; connections that are open stay as they are.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use skiff_daemon::{Shutdown, error_chain};
use skiff_pki::{Identity, OldestTls, Request};
use tokio_rustls::TlsAcceptor;

use super::request::Wanted;
use super::store::Store;
use super::{NODES, SERVER, SERVING_SIGNER, rotate};

/// The server's TLS of the moment.
#[derive(Clone)]
pub(crate) struct Serving {
    oldest: OldestTls,
    shown: Arc<RwLock<Shown>>,
}

/// What is made anew when one of its parts is replaced.
#[derive(Default)]
struct Shown {
    identity: Option<Identity>,
    /// Whom clients are vouched for by.
    client_ca_pem: Option<Arc<str>>,
    acceptor: Option<TlsAcceptor>,
}

/// The oldest TLS that a `tlsMinVersion` allows: this server has none before 1.2. `None` when it is no such name.
pub(crate) fn least_tls(version: &str) -> Option<OldestTls> {
    match version {
        "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => Some(OldestTls::V12),
        "VersionTLS13" => Some(OldestTls::V13),
        _ => None,
    }
}

impl Serving {
    /// Shows nothing yet.
    pub(crate) fn new(oldest: OldestTls, client_ca_pem: Option<&str>) -> Self {
        let shown = Shown {
            client_ca_pem: client_ca_pem.map(Arc::from),
            ..Shown::default()
        };
        Self {
            oldest,
            shown: Arc::new(RwLock::new(shown)),
        }
    }

    /// From the next connection on this one.
    pub(crate) fn show(&self, identity: &Identity) -> Result<(), skiff_pki::Error> {
        self.replace(Some(identity.clone()), None)
    }

    /// From the next connection on what is given of these: all of it or, when some of it cannot be used, nothing.
    pub(crate) fn replace(
        &self,
        identity: Option<Identity>,
        client_ca_pem: Option<&str>,
    ) -> Result<(), skiff_pki::Error> {
        let mut shown = self.shown.write();
        let identity = identity.or_else(|| shown.identity.clone());
        let authority = client_ca_pem.map(Arc::from).or_else(|| shown.client_ca_pem.clone());
        shown.set(self.oldest, identity, authority)
    }

    /// Those whom clients are vouched for by, PEM; empty when there are none.
    pub(super) fn authorities(&self) -> Arc<str> {
        self.shown.read().client_ca_pem.clone().unwrap_or_default()
    }

    /// For the next connection; `None` while there is no certificate.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.shown.read().acceptor.clone()
    }

    /// Shows a certificate that was kept, unless it does not name what it should, or has ended.
    pub(super) fn uses(&self, identity: &Identity, wanted: &Request) -> bool {
        let names = match identity.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot read the serving certificate");
                return false;
            }
        };
        let has_all = wanted.dns_names.iter().all(|name| names.dns_names.contains(name))
            && wanted.ip_addresses.iter().all(|ip| names.ip_addresses.contains(ip));
        let valid = identity
            .validity()
            .is_ok_and(|validity| validity.not_after > jiff::Timestamp::now());
        has_all && valid && self.show(identity).is_ok()
    }

    /// Keeps a certificate that the cluster's authority signs, until shutdown (`serverTLSBootstrap`).
    pub(crate) async fn keep(self, client: kube::Client, dir: &Path, node: &str, ips: &[IpAddr], shutdown: Shutdown) {
        let mut subject = Request::server(format!("system:node:{node}"), &[node], ips);
        subject.organizations = vec![NODES.to_owned()];
        let wanted = Wanted {
            signer: SERVING_SIGNER,
            usage: "server auth",
            subject,
        };
        let store = Store::new(dir, SERVER);
        rotate::serving(self, client, wanted, store, shutdown).await;
    }
}

impl Shown {
    /// All or nothing: what cannot be used leaves the former in its place.
    fn set(
        &mut self,
        oldest: OldestTls,
        identity: Option<Identity>,
        client_ca_pem: Option<Arc<str>>,
    ) -> Result<(), skiff_pki::Error> {
        if let Some(identity) = &identity {
            let config = skiff_pki::server_config_since(oldest, identity, client_ca_pem.as_deref())?;
            self.acceptor = Some(TlsAcceptor::from(Arc::new(config)));
        } else if let Some(pem) = &client_ca_pem {
            skiff_pki::check_client_ca(pem)?;
        }
        self.identity = identity;
        self.client_ca_pem = client_ca_pem;
        Ok(())
    }
}
