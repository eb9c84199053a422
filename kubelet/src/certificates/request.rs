//! Asking for a certificate: a CertificateSigningRequest, and waiting for what becomes of it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use skiff_api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use skiff_pki::{Request, SigningRequest};

/// How long somebody may take to approve, upstream's time; then a new request is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be made.
    #[error("make a certificate signing request")]
    Make(#[source] skiff_pki::Error),
    /// The API server did not take it.
    #[error(
        "create certificate signing request: is the API server reached, and is the bootstrap token still good \
         (skiff token list on the control plane)?"
    )]
    Create(#[source] Box<kube::Error>),
    /// What became of it cannot be seen.
    #[error("watch certificate signing request {name}")]
    Watch {
        /// Its name.
        name: String,
        /// Why not.
        source: Box<kube::runtime::wait::Error>,
    },
    /// Somebody said no.
    #[error("certificate signing request {name} is denied, reason: {reason}, message: {message}")]
    Denied {
        /// Its name.
        name: String,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// It was approved, but cannot be signed.
    #[error("certificate signing request {name} failed, reason: {reason}, message: {message}")]
    Failed {
        /// Its name.
        name: String,
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
    /// Somebody removed it.
    #[error("certificate signing request {name} was deleted")]
    Gone {
        /// Its name.
        name: String,
    },
    /// Nobody said anything.
    #[error(
        "certificate signing request {name} was not answered in time; approve it with: kubectl certificate approve {name}"
    )]
    Late {
        /// Its name.
        name: String,
    },
    /// The certificate is not text.
    #[error("certificate signing request {name} was answered with something that is not a certificate in PEM")]
    Garbled {
        /// Its name.
        name: String,
    },
}

impl Error {
    /// Whether asking again with the same key would only get the same answer.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Failed { .. } | Self::Make(_))
    }
}

/// What certificate is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) signer: &'static str,
    pub(super) usage: &'static str,
    pub(super) subject: Request,
}

impl Wanted {
    /// A name that is the same for the same key, so that a request that was made before is found again.
    pub(super) fn name(&self, key_pem: &str) -> String {
        let mut digest = Sha256::new();
        for part in [key_pem, self.signer, &self.subject.common_name] {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finalize()))
    }
}

/// Asks for a certificate for a key, under a name or under one that the server makes; returns it when it is signed.
pub(super) async fn ask(
    client: &kube::Client,
    wanted: &Wanted,
    key_pem: &str,
    name: Option<String>,
) -> Result<String, Error> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let pem = SigningRequest::make(&wanted.subject, key_pem).map_err(Error::Make)?;
    let metadata = match &name {
        Some(name) => json!({"name": name}),
        None => json!({"generateName": "csr-"}),
    };
    let request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": metadata,
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem),
            "signerName": wanted.signer,
            "usages": ["digital signature", wanted.usage],
        },
    }))
    .map_err(|error| Error::Create(Box::new(kube::Error::SerdeError(error))))?;
    let name = match (api.create(&PostParams::default(), &request).await, name) {
        (Ok(created), _) => created.metadata.name.unwrap_or_default(),
        (Err(kube::Error::Api(status)), Some(name)) if status.reason == "AlreadyExists" => name,
        (Err(error), _) => return Err(Error::Create(Box::new(error))),
    };
    tracing::info!(
        request = name,
        signer = wanted.signer,
        "waiting for a certificate to be approved and signed"
    );
    let waiting = await_condition(api, &name, is_answered);
    let answered = match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => {
            return Err(Error::Watch {
                name,
                source: Box::new(error),
            });
        }
        Err(_) => return Err(Error::Late { name }),
    };
    outcome(answered, name)
}

fn is_answered(request: Option<&CertificateSigningRequest>) -> bool {
    let status = request.and_then(|request| request.status.as_ref());
    let ended = |kind: &str| matches!(kind, "Denied" | "Failed");
    request.is_none()
        || status.is_some_and(|status| {
            status.certificate.is_some()
                || status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|condition| ended(&condition.type_))
        })
}

fn outcome(answered: Option<CertificateSigningRequest>, name: String) -> Result<String, Error> {
    let Some(answered) = answered else {
        return Err(Error::Gone { name });
    };
    let status = answered.status.unwrap_or_default();
    for condition in status.conditions.into_iter().flatten() {
        let (reason, message) = (
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default(),
        );
        match condition.type_.as_str() {
            "Denied" => return Err(Error::Denied { name, reason, message }),
            "Failed" => return Err(Error::Failed { name, reason, message }),
            _ => {}
        }
    }
    let pem = status
        .certificate
        .and_then(|certificate| String::from_utf8(certificate.0).ok());
    pem.ok_or(Error::Garbled { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_certificate_or_a_reason() {
        let request = |status: serde_json::Value| -> CertificateSigningRequest {
            let spec = json!({"request": "", "signerName": "s", "usages": []});
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec, "status": status})).unwrap()
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "M"});
        let waits = request(json!({"conditions": [condition("Approved")]}));
        assert!(!is_answered(Some(&waits)));
        assert!(is_answered(None));
        for (status, expected) in [
            (
                json!({"certificate": "cGVt", "conditions": [condition("Approved")]}),
                "pem",
            ),
            (
                json!({"conditions": [condition("Denied")]}),
                "certificate signing request c is denied, reason: R, message: M",
            ),
            (
                json!({"conditions": [condition("Approved"), condition("Failed")]}),
                "certificate signing request c failed, reason: R, message: M",
            ),
        ] {
            let request = request(status);
            assert!(is_answered(Some(&request)));
            let told = match outcome(Some(request), "c".to_owned()) {
                Ok(certificate) => certificate,
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected);
        }
        assert!(matches!(outcome(None, "c".to_owned()), Err(Error::Gone { .. })));
    }

    #[test]
    fn a_name_follows_the_key() {
        let wanted = Wanted {
            signer: "s/s",
            usage: "client auth",
            subject: Request::client("system:node:n", &["system:nodes"]),
        };
        assert_eq!(wanted.name("key"), wanted.name("key"));
        assert_ne!(wanted.name("key"), wanted.name("other"));
        assert!(!wanted.name("key").contains("key"));
    }
}
