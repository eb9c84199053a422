//! DefaultBinder: posts the pod's binding.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use serde_json::json;

use crate::Error;
use crate::framework::{Bind, Plugin};
use crate::model::Pod;
use crate::request::post;

/// Tells the API server where a pod goes.
pub(crate) struct DefaultBinder {
    client: Client,
}

impl DefaultBinder {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }
}

impl Bind for DefaultBinder {
    fn bind<'a>(&'a self, pod: &'a Pod, node: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let path = format!("/api/v1/namespaces/{}/pods/{}/binding", pod.namespace, pod.name);
            // With the UID, a pod that was deleted and made again meanwhile is not taken for this one.
            let binding = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": &*pod.name, "namespace": &*pod.namespace, "uid": &*pod.uid},
                "target": {"kind": "Node", "name": node},
            });
            post(&self.client, &path, &binding).await.map_err(|source| Error::Bind {
                pod: pod.full_name(),
                node: node.to_owned(),
                source,
            })
        }
        .boxed()
    }
}
