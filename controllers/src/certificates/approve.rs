//! Approves what needs no person: requests of a known kind whose requester is allowed to make them.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::json;
use skiff_api::k8s_openapi::api::authorization::v1::SubjectAccessReview;
use skiff_api::k8s_openapi::api::core::v1::Endpoints;
use skiff_daemon::error_chain;
use skiff_pki::Names;

use super::recognize::recognize;
use super::{KUBELET_SERVING, parse, serving, with_condition};
use crate::config::Renewable;
use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, Node, SigningRequest, View};
use crate::write::{Error, Writer};

/// Upstream's bounds for the time between two looks at a request that is not allowed.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(1000);

struct Controller {
    requests: Arc<Informer<SigningRequest>>,
    nodes: Arc<Informer<Node>>,
    endpoints: Arc<Informer<Endpoints>>,
    ranges: Vec<IpNet>,
    api_server: Renewable<Names>,
    cluster_domain: String,
    writer: Writer,
    queue: Arc<Queue<Key>>,
}

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let config = &shared.config;
    let controller = Arc::new(Controller {
        requests: shared.informers.signing_requests.want(),
        nodes: shared.informers.nodes.want(),
        endpoints: shared.informers.endpoints.want(),
        ranges: [&config.cluster_cidr[..], &config.service_cluster_ip_range].concat(),
        api_server: config.api_server_names.clone(),
        cluster_domain: config.cluster_domain.clone(),
        writer: shared.writer("certificate-controller"),
        queue: shared.queue("certificate"),
    });
    let this = Arc::clone(&controller);
    controller.requests.on_change(move |change| {
        if change.new.is_some_and(|request| !request.is_decided()) {
            this.queue.add(change.object().key());
        }
    });
    let this = Arc::clone(&controller);
    controller.nodes.on_change(move |change| {
        // A heartbeat is no news.
        let told = |node: Option<&Arc<Node>>| {
            let ready = |node: &Node| node.condition("Ready").map(|ready| ready.status.clone());
            node.map(|node| (node.status.addresses.clone(), node.labels().clone(), ready(node)))
        };
        if told(change.old) != told(change.new) {
            this.look_again();
        }
    });
    let synced = [
        controller.requests.synced(),
        controller.nodes.synced(),
        controller.endpoints.synced(),
    ];
    let queue = Arc::clone(&controller.queue);
    shared.work(&queue, 1, synced, move |key| {
        let this = Arc::clone(&controller);
        async move { this.sync(&key).await }
    })
}

impl Controller {
    /// What nodes asked for and were not given may be due now: that node's, or another's that it stood in the way of.
    fn look_again(&self) {
        let waits =
            |request: &Arc<SigningRequest>| !request.is_decided() && request.spec.signer_name == KUBELET_SERVING;
        for request in self.requests.list().iter().filter(|request| waits(request)) {
            self.queue.add(request.key());
        }
    }

    async fn sync(&self, key: &Key) -> Result<(), Error> {
        let Some(request) = self.requests.get(key) else {
            return Ok(());
        };
        if request.is_decided() || !request.status.certificate.is_empty() {
            return Ok(());
        }
        let parsed = match parse(&request) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(request = %key, error = error_chain(&error), "cannot read a certificate signing request");
                return Ok(());
            }
        };
        if request.spec.signer_name == KUBELET_SERVING {
            let world = serving::World {
                nodes: &self.nodes.list(),
                api_server: &self.api_server(),
                ranges: &self.ranges,
                cluster_domain: &self.cluster_domain,
                now: Timestamp::now(),
            };
            return match serving::judge(&request, &parsed, world) {
                Ok(()) => self.approve(&request, serving::MESSAGE).await,
                Err(serving::Refusal { why, again }) => {
                    tracing::info!(request = %key, user = request.spec.username, why, "a serving certificate waits for a decision");
                    if let Some(again) = again {
                        self.queue.add_after(key.clone(), again.unsigned_abs());
                    }
                    Ok(())
                }
            };
        }
        let recognized = recognize(&request, &parsed);
        for kind in &recognized {
            if self.is_allowed(&request, kind.permission).await? {
                return self.approve(&request, kind.message).await;
            }
        }
        if let Some(kind) = recognized.first() {
            tracing::info!(
                request = %key,
                user = request.spec.username,
                kind = kind.permission,
                "recognized a certificate signing request, but its requester may not have it approved by itself"
            );
            // Nothing tells when a role is given.
            let made = request.metadata.creation_timestamp.as_ref().map(|made| made.0);
            self.queue.add_after(key.clone(), look_again_in(made, Timestamp::now()));
        }
        Ok(())
    }

    async fn approve(&self, request: &SigningRequest, message: &str) -> Result<(), Error> {
        tracing::info!(request = request.name(), user = request.spec.username, "{message}");
        let patch = with_condition(request, "Approved", "AutoApproved", message, Timestamp::now());
        let approved = self
            .writer
            .patch_part::<SigningRequest>("approval", &request.key(), &patch)
            .await;
        match approved {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn is_allowed(&self, request: &SigningRequest, subresource: &str) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                    "subresource": subresource, "version": "*",
                },
            },
        });
        let answer = self
            .writer
            .create::<SubjectAccessReview>(&Key::cluster(""), &review)
            .await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// What API servers are reached by: this one's certificate tells its names, and load balancers before it; the others are at
    /// their addresses.
    fn api_server(&self) -> Names {
        let mut names = self.api_server.borrow().clone();
        let endpoints = self.endpoints.get(&Key::new("default", "kubernetes"));
        let subsets = endpoints
            .and_then(|endpoints| endpoints.subsets.clone())
            .unwrap_or_default();
        let addresses = subsets
            .into_iter()
            .flat_map(|subset| subset.addresses.unwrap_or_default());
        names
            .ip_addresses
            .extend(addresses.filter_map(|address| address.ip.parse::<std::net::IpAddr>().ok()));
        names
    }
}

/// As long as the request has waited: each look comes after twice the time of the one before.
fn look_again_in(made: Option<Timestamp>, now: Timestamp) -> Duration {
    let waited = made.map(|made| now.duration_since(made)).unwrap_or_default();
    // Another server's clock may be ahead.
    waited.unsigned_abs().clamp(FIRST_RETRY, LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer() {
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let cases = [(-5, 5_000), (0, 200), (4, 4_000), (90, 90_000), (86_000, 1_000_000)];
        for (age, expected) in cases {
            let now = made.checked_add(jiff::SignedDuration::from_secs(age)).unwrap();
            assert_eq!(look_again_in(Some(made), now).as_millis(), expected, "{age}");
        }
    }
}
