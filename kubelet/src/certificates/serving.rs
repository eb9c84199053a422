//! What the kubelet's server shows of itself: replaced while it runs; connections that are open stay as they are.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use skiff_daemon::{Shutdown, error_chain};
use skiff_pki::{Identity, Request};
use tokio_rustls::TlsAcceptor;

use super::request::Wanted;
use super::store::Store;
use super::{NODES, SERVER, SERVING_SIGNER, rotate};

/// The server's TLS of the moment.
#[derive(Clone)]
pub(crate) struct Serving {
    acceptor: Arc<RwLock<Option<TlsAcceptor>>>,
    /// Whom clients are vouched for by.
    client_ca_pem: Option<Arc<str>>,
}

impl Serving {
    /// Shows nothing yet.
    pub(crate) fn new(client_ca_pem: Option<&str>) -> Self {
        Self {
            acceptor: Arc::default(),
            client_ca_pem: client_ca_pem.map(Arc::from),
        }
    }

    /// From the next connection on this one.
    pub(crate) fn show(&self, identity: &Identity) -> Result<(), skiff_pki::Error> {
        let config = skiff_pki::server_config(identity, self.client_ca_pem.as_deref())?;
        *self.acceptor.write() = Some(TlsAcceptor::from(Arc::new(config)));
        Ok(())
    }

    /// Those whom clients are vouched for by, PEM; empty when there are none.
    pub(super) fn authorities(&self) -> &str {
        self.client_ca_pem.as_deref().unwrap_or_default()
    }

    /// For the next connection; `None` while there is no certificate.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.acceptor.read().clone()
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
