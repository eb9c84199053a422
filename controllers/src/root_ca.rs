//! Publishes in each namespace the certificate authority that pods trust the API server by.

use serde_json::json;

use crate::manager::Shared;
use crate::per_namespace;
use crate::view::{ConfigMap, Key};
use crate::write::{Error, Merge, Writer};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let (writer, pem) = (
        shared.writer("root-ca-cert-publisher"),
        shared.config.root_ca_pem.clone(),
    );
    let maps = shared.informers.config_maps.want();
    let renewed = Some(pem.clone());
    per_namespace::keep(
        shared,
        "root_ca_cert_publisher",
        (maps, NAME),
        renewed,
        move |key, map| {
            let (writer, pem) = (writer.clone(), pem.borrow().clone());
            async move { publish(&writer, &key, map.as_deref(), &pem).await }
        },
    )
}

async fn publish(writer: &Writer, key: &Key, present: Option<&ConfigMap>, pem: &str) -> Result<(), Error> {
    let result = match present {
        Some(map) if map.data.len() == 1 && map.data.get(FILE).is_some_and(|text| text == pem) => return Ok(()),
        Some(map) => {
            let mut data: serde_json::Map<_, _> = map.data.keys().map(|name| (name.clone(), json!(null))).collect();
            data.insert(FILE.to_owned(), json!(pem));
            let patch = json!({"metadata": {"annotations": {DESCRIPTION: DESCRIPTION_TEXT}}, "data": data});
            writer.patch::<ConfigMap>(key, Merge::Json, &patch).await
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
                "data": {FILE: pem},
            });
            writer.create::<ConfigMap>(key, &body).await
        }
    };
    result.map(drop)
}
