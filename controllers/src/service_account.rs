//! Gives each namespace its `default` ServiceAccount.

use std::sync::Arc;

use serde_json::json;

use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, Namespace, ServiceAccount, View};
use crate::write::{Error, Writer};

const NAME: &str = "default";

struct Controller {
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
    writer: Writer,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        namespaces: shared.informers.namespaces.want(),
        accounts: shared.informers.service_accounts.want(),
        writer: shared.writer.clone(),
    });
    let queue: Arc<Queue<Key>> = shared.queue("serviceaccount");
    let namespaces = Arc::clone(&queue);
    controller
        .namespaces
        .on_change(move |change| namespaces.add(change.object().key()));
    let accounts = Arc::clone(&queue);
    controller.accounts.on_change(move |change| {
        if change.is_deletion() && change.object().name() == NAME {
            accounts.add(Key::cluster(change.object().namespace()));
        }
    });
    let shutdown = shared.shutdown.clone();
    async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { controller.namespaces.wait_synced().await; controller.accounts.wait_synced().await } => {}
        }
        queue
            .work(1, shutdown, move |key| {
                let this = Arc::clone(&controller);
                async move { this.sync(key).await }
            })
            .await;
    }
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<(), Error> {
        let live = self
            .namespaces
            .get(&key)
            .is_some_and(|namespace| !namespace.is_being_deleted());
        let account = Key::new(&key.name, NAME);
        if !live || self.accounts.get(&account).is_some() {
            return Ok(());
        }
        let body = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": &*key.name},
        });
        match self.writer.create::<ServiceAccount>(&account, &body).await {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            other => other.map(drop),
        }
    }
}
