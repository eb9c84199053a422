//! The server's certificates, read anew when they are renewed.

use anyhow::Context as _;
use skiff_api::config::ServerConfiguration;
use skiff_apiserver::ApiServer;
use skiff_daemon::{Files, Shutdown, error_chain};
use skiff_pki::Identity;

use super::config::ca;

/// What is looked at: the names of kubeadm.
const NAMES: [&str; 5] = [
    "apiserver.crt",
    "apiserver.key",
    "ca.crt",
    "apiserver-kubelet-client.crt",
    "apiserver-kubelet-client.key",
];

/// Gives the API server what the files hold, whenever they change, until shutdown.
pub(super) async fn keep_current(
    server: ApiServer,
    config: ServerConfiguration,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let paths = NAMES.map(|name| config.pki_dir.join(name)).to_vec();
    let mut files = Files::new(paths);
    while shutdown.run_until_cancelled(files.changed()).await.is_some() {
        match read(&server, &config) {
            Ok(()) => tracing::info!("the API server's certificates are read anew"),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(error.as_ref()),
                    "still using the former certificates"
                );
                files.retry();
            }
        }
    }
    Ok(())
}

fn read(server: &ApiServer, config: &ServerConfiguration) -> anyhow::Result<()> {
    let identity = Identity::load(&config.pki_dir, "apiserver")?;
    let kubelet_client = Identity::load_if_there(&config.pki_dir, "apiserver-kubelet-client")?;
    let set = server.set_certificates(&identity, &ca(config)?, kubelet_client.as_ref());
    set.context("use the renewed certificates")
}
