//! Publishes in each namespace the certificate authority that pods trust the API server by.

use std::sync::Arc;

use serde_json::json;

use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{ConfigMap, Key, Namespace, View};
use crate::write::{Error, Merge, Writer};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

struct Controller {
    namespaces: Arc<Informer<Namespace>>,
    config_maps: Arc<Informer<ConfigMap>>,
    writer: Writer,
    pem: String,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let controller = Arc::new(Controller {
        namespaces: shared.informers.namespaces.want(),
        config_maps: shared.informers.config_maps.want(),
        writer: shared.writer.clone(),
        pem: shared.config.root_ca_pem.clone(),
    });
    let queue: Arc<Queue<Key>> = shared.queue("root_ca_cert_publisher");
    let namespaces = Arc::clone(&queue);
    controller
        .namespaces
        .on_change(move |change| namespaces.add(change.object().key()));
    let config_maps = Arc::clone(&queue);
    controller.config_maps.on_change(move |change| {
        if change.object().name() == NAME {
            config_maps.add(Key::cluster(change.object().namespace()));
        }
    });
    let shutdown = shared.shutdown.clone();
    async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { controller.namespaces.wait_synced().await; controller.config_maps.wait_synced().await } => {}
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
        if !live {
            return Ok(());
        }
        let key = Key::new(&key.name, NAME);
        let result = match self.config_maps.get(&key) {
            Some(map) if map.data.len() == 1 && map.data.get(FILE) == Some(&self.pem) => return Ok(()),
            Some(map) => {
                let mut data: serde_json::Map<_, _> = map.data.keys().map(|name| (name.clone(), json!(null))).collect();
                data.insert(FILE.to_owned(), json!(self.pem));
                let patch = json!({"metadata": {"annotations": {DESCRIPTION: DESCRIPTION_TEXT}}, "data": data});
                self.writer.patch::<ConfigMap>(&key, Merge::Json, &patch).await
            }
            None => {
                let body = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": NAME,
                        "namespace": &*key.namespace,
                        "annotations": {DESCRIPTION: DESCRIPTION_TEXT},
                    },
                    "data": {FILE: self.pem},
                });
                self.writer.create::<ConfigMap>(&key, &body).await
            }
        };
        match result {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            other => other.map(drop),
        }
    }
}
