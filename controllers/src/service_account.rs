//! Gives each namespace its `default` ServiceAccount.

use serde_json::json;

use crate::manager::Shared;
use crate::per_namespace;
use crate::view::ServiceAccount;

const NAME: &str = "default";

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let writer = shared.writer("service-account-controller");
    let accounts = shared.informers.service_accounts.want();
    per_namespace::keep(shared, "serviceaccount", (accounts, NAME), None, move |key, present| {
        let writer = writer.clone();
        async move {
            if present.is_some() {
                return Ok(());
            }
            let body = json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": NAME, "namespace": &*key.namespace},
            });
            writer.create::<ServiceAccount>(&key, &body).await.map(drop)
        }
    })
}
