//! Signs what was approved.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use skiff_api::defaults::base64;
use skiff_daemon::error_chain;

use super::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN, parse, recognize, with_condition};
use crate::config::ClusterSigning;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, SigningRequest, View};
use crate::write::{Error, Merge};

/// Nobody gets a shorter one, upstream's bound.
const SHORTEST: Duration = Duration::from_secs(600);

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared, signing: &ClusterSigning) -> impl Future<Output = ()> + Send + use<> {
    let requests = shared.informers.signing_requests.want();
    let queue: Arc<Queue<Key>> = shared.queue("certificate_signing");
    let waiting = Arc::clone(&queue);
    requests.on_change(move |change| {
        if change.new.is_some_and(|request| is_due(request)) {
            waiting.add(change.object().key());
        }
    });
    let (writer, signing) = (shared.writer("certificate-controller"), signing.clone());
    shared.work(&queue, 1, [requests.synced()], move |key: Key| {
        let (requests, writer, signing) = (Arc::clone(&requests), writer.clone(), signing.clone());
        async move {
            let Some(request) = requests.get(&key).filter(|request| is_due(request)) else {
                return Ok::<(), Error>(());
            };
            let patch = match sign(&request, &signing) {
                Ok(certificate) => json!({
                    "metadata": {"uid": request.uid(), "resourceVersion": request.resource_version()},
                    "status": {"certificate": base64(certificate.as_bytes())},
                }),
                Err(why) => {
                    tracing::warn!(request = %key, user = request.spec.username, why, "cannot sign a certificate");
                    with_condition(&request, "Failed", "SignerValidationFailure", &why, Timestamp::now())
                }
            };
            match writer.patch_status::<SigningRequest>(&key, Merge::Json, &patch).await {
                Err(error) if error.is_not_found() => Ok(()),
                other => other.map(drop),
            }
        }
    })
}

/// Whether it was approved, and waits for one of our signers.
fn is_due(request: &SigningRequest) -> bool {
    let ours = [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN];
    request.condition("Approved").is_some()
        && request.condition("Denied").is_none()
        && request.condition("Failed").is_none()
        && request.status.certificate.is_empty()
        && ours.contains(&request.spec.signer_name.as_str())
}

/// The certificate, or why the request gets none.
fn sign(request: &SigningRequest, signing: &ClusterSigning) -> Result<String, String> {
    let spec = &request.spec;
    let parsed = parse(request).map_err(|error| error_chain(&error))?;
    match spec.signer_name.as_str() {
        API_CLIENT => recognize::api_client(&spec.usages),
        KUBELET_CLIENT => recognize::kubelet_client(&parsed, &spec.usages),
        KUBELET_SERVING => recognize::kubelet_serving(&parsed, &spec.usages),
        // Upstream restricts nothing here, and lets nobody create one any more.
        _ => Ok(()),
    }?;
    let lifetime = lifetime(spec.expiration_seconds, signing.duration);
    let authority = Arc::clone(&signing.authority.borrow());
    authority
        .sign(&parsed, &spec.usages, lifetime)
        .map_err(|error| error_chain(&error))
}

/// As long as is asked for, within the bounds.
fn lifetime(asked: Option<i64>, longest: Duration) -> Duration {
    match asked.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) => Duration::from_secs(seconds).max(SHORTEST).min(longest),
        None => longest,
    }
}

#[cfg(test)]
mod tests {
    use skiff_pki::{CertificateAuthority, Request};

    use super::super::recognize::tests::{CLIENT, request};
    use super::*;

    #[test]
    fn lives_are_within_bounds() {
        let year = Duration::from_secs(365 * 24 * 3600);
        for (asked, expected) in [
            (None, year),
            (Some(3600), Duration::from_secs(3600)),
            (Some(5), SHORTEST),
            (Some(-5), year),
            (Some(i64::MAX), year),
        ] {
            assert_eq!(lifetime(asked, year), expected, "{asked:?}");
        }
        // A short one of the cluster beats the bound.
        assert_eq!(lifetime(Some(3600), Duration::from_secs(3)), Duration::from_secs(3));
    }

    #[test]
    fn what_is_not_of_its_kind_is_not_signed() {
        let signing = ClusterSigning::new(CertificateAuthority::generate("kubernetes").unwrap());
        let user = ("system:bootstrap:abcdef", &["system:bootstrappers"][..]);
        let try_sign = |signer, usages, wanted: &Request| sign(&request(signer, user, usages, wanted), &signing);
        let node = Request::client("system:node:n1", &["system:nodes"]);
        assert!(try_sign(KUBELET_CLIENT, CLIENT, &node).is_ok());
        assert!(try_sign(API_CLIENT, &["client auth"], &node).is_ok());
        for (signer, usages, wanted, why) in [
            (
                KUBELET_CLIENT,
                CLIENT,
                Request::client("joe", &["system:nodes"]),
                "subject common name does not begin with system:node:",
            ),
            (
                KUBELET_CLIENT,
                CLIENT,
                Request::client("system:node:n1", &["dev"]),
                "subject organization is not system:nodes",
            ),
            (
                KUBELET_SERVING,
                &["digital signature", "server auth"][..],
                node.clone(),
                "DNS or IP subjectAltName is required",
            ),
            (
                API_CLIENT,
                &["server auth"],
                node.clone(),
                "invalid usage for client certificate: server auth",
            ),
            (
                API_CLIENT,
                &["digital signature"],
                node.clone(),
                "missing required usage for client certificate: client auth",
            ),
        ] {
            assert_eq!(try_sign(signer, usages, &wanted), Err(why.to_owned()));
        }
    }

    #[test]
    fn only_what_was_approved_and_not_denied_is_due() {
        let node = Request::client("system:node:n1", &["system:nodes"]);
        let mut asked = request(KUBELET_CLIENT, ("u", &[]), CLIENT, &node);
        assert!(!is_due(&asked));
        asked.status.conditions.push(json!({"type": "Approved"}));
        assert!(is_due(&asked));
        let mut other = asked.clone();
        other.spec.signer_name = "example.com/other".to_owned();
        assert!(!is_due(&other));
        for more in ["Denied", "Failed"] {
            let mut asked = asked.clone();
            asked.status.conditions.push(json!({"type": more}));
            assert!(!is_due(&asked), "{more}");
        }
        asked.status.certificate = "x".to_owned();
        assert!(!is_due(&asked));
    }
}
