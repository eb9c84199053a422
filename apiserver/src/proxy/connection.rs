//! Connections to kubelets.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skiff_api::status::Status;
use skiff_daemon::error_chain;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::errors::Result;

const CONNECT: Duration = Duration::from_secs(10);

/// Makes connections to kubelets, as the kubelet client.
pub(crate) struct Kubelets {
    connector: ArcSwap<ClientConfig>,
}

impl std::fmt::Debug for Kubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelets").finish_non_exhaustive()
    }
}

impl Kubelets {
    /// Shows `identity` to kubelets, whose certificates `ca_pem` signs.
    pub(crate) fn new(identity: &skiff_pki::Identity, ca_pem: &str) -> std::result::Result<Self, skiff_pki::Error> {
        Ok(Self {
            connector: ArcSwap::from_pointee(configuration(identity, ca_pem)?),
        })
    }

    /// The same with others, from the next connection on.
    pub(crate) fn replace(
        &self,
        identity: &skiff_pki::Identity,
        ca_pem: &str,
    ) -> std::result::Result<(), skiff_pki::Error> {
        self.connector.store(Arc::new(configuration(identity, ca_pem)?));
        Ok(())
    }

    /// Sends one request over a connection of its own.
    pub(crate) async fn send(&self, address: &str, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        match tokio::time::timeout(CONNECT, self.connect(address)).await {
            Ok(Ok(stream)) => {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| unreachable(address, &error))?;
                tokio::spawn(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        tracing::debug!(error = error_chain(&error), "connection to a kubelet ended");
                    }
                });
                sender
                    .send_request(request)
                    .await
                    .map_err(|error| unreachable(address, &error))
            }
            Ok(Err(error)) => Err(unreachable(address, &error)),
            Err(_) => Err(unreachable(
                address,
                &std::io::Error::from(std::io::ErrorKind::TimedOut),
            )),
        }
    }

    async fn connect(&self, address: &str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
        TlsConnector::from(self.connector.load_full())
            .connect(name, stream)
            .await
    }
}

fn configuration(identity: &skiff_pki::Identity, ca_pem: &str) -> std::result::Result<ClientConfig, skiff_pki::Error> {
    let mut config = skiff_pki::client_config(Some(identity), ca_pem)?;
    // Upgrades need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The kubelet cannot be reached: the text names the address, as upstream's does.
fn unreachable(address: &str, error: &(dyn std::error::Error + 'static)) -> Status {
    Status::failure(
        500,
        "InternalError",
        format!(
            "Internal error occurred: error dialing backend: {address}: {}",
            error_chain(error)
        ),
    )
}
