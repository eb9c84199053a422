//! Who may decide about certificates, sign them, and what nobody may ask for.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::defaults::from_base64;
use skiff_api::meta;
use skiff_api::status::Status;

use super::{Operation, Plugin, Review};
use crate::authentication::MASTERS;
use crate::authorization::{Attributes, Authorizer};
use crate::errors::Result;

const GROUP: &str = "certificates.k8s.io";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// The documented `CertificateApproval`, `CertificateSigning` and `CertificateSubjectRestriction` admission plugins.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) authorizer: Arc<Authorizer>,
}

impl Plugin for Certificates {
    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<()> {
        let resource = review.scope.served.resource;
        if resource.group != GROUP || resource.plural != "certificatesigningrequests" {
            return Ok(());
        }
        // What is stored counts: an update cannot change it.
        let signer = review.old.unwrap_or(object)["spec"]["signerName"]
            .as_str()
            .unwrap_or_default();
        let decision = match (review.operation, review.subresource) {
            (Operation::Create, None) => restrict_subject(signer, object),
            (Operation::Update, Some("approval")) if !self.may(review, "approve", signer) => Err(format!(
                "user not permitted to approve requests with signerName {signer:?}"
            )),
            (Operation::Update, Some("status")) if signs(review, object) && !self.may(review, "sign", signer) => Err(
                format!("user not permitted to sign requests with signerName {signer:?}"),
            ),
            _ => Ok(()),
        };
        decision.map_err(|why| Status::forbidden(resource.qualified(), meta::name(object), &why))
    }
}

impl Certificates {
    /// Whether the user may deal with a signer: with this one, or with all of its domain.
    fn may(&self, review: &Review<'_>, verb: &str, signer: &str) -> bool {
        let domain = signer.split('/').next().unwrap_or_default();
        [signer, &format!("{domain}/*")].into_iter().any(|name| {
            let attributes = Attributes {
                verb,
                is_resource: true,
                group: GROUP,
                resource: "signers",
                name,
                ..Attributes::default()
            };
            self.authorizer.is_allowed(review.scope.user, &attributes)
        })
    }
}

/// Whether an update of the status changes what a signer says.
fn signs(review: &Review<'_>, new: &Value) -> bool {
    let Some(old) = review.old else { return true };
    ["certificate", "conditions"]
        .iter()
        .any(|key| old["status"][*key] != new["status"][*key])
}

/// Nobody asks for a certificate that may do everything.
fn restrict_subject(signer: &str, object: &Value) -> std::result::Result<(), String> {
    if signer != API_CLIENT {
        return Ok(());
    }
    let pem = object["spec"]["request"]
        .as_str()
        .and_then(from_base64)
        .unwrap_or_default();
    let request = skiff_pki::SigningRequest::parse(&pem).map_err(|error| error.to_string())?;
    if request.organizations.iter().any(|group| group == MASTERS) {
        return Err(format!("use of {signer} signer with {MASTERS} group is not allowed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::defaults::base64;
    use skiff_pki::{Request, SigningRequest};

    use super::*;

    #[test]
    fn nobody_asks_to_be_a_master() {
        let key = SigningRequest::generate_key().unwrap();
        let object = |groups: &[&str]| {
            let pem = SigningRequest::make(&Request::client("joe", groups), &key).unwrap();
            json!({"spec": {"request": base64(pem.as_bytes())}})
        };
        assert_eq!(restrict_subject(API_CLIENT, &object(&["dev"])), Ok(()));
        assert_eq!(restrict_subject("example.com/a", &object(&[MASTERS])), Ok(()));
        assert_eq!(
            restrict_subject(API_CLIENT, &object(&["dev", MASTERS])),
            Err(
                "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed".to_owned()
            )
        );
        assert!(restrict_subject(API_CLIENT, &json!({"spec": {"request": "?"}})).is_err());
    }
}
