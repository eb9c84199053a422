//! Certificate signing requests.

use serde_json::Value;

use super::Errors;
use super::read::{get, int, list, required, text};
use crate::field::{Error, Path};
use crate::names;

const SPEC: Path<'static> = Path::root("spec");

/// Every usage that may be asked for, sorted as the message lists them.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
/// A label's worth of domain and a path of 571 - 253 - 1, as upstream counts.
const LONGEST_SIGNER: usize = 571;

pub(super) fn request(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    required(&SPEC, "request", spec, errors);
    let encoded = text(spec, "request");
    let pem = crate::defaults::from_base64(encoded).and_then(|bytes| String::from_utf8(bytes).ok());
    if !encoded.is_empty() && !pem.is_some_and(|pem| pem.contains("-----BEGIN CERTIFICATE REQUEST-----")) {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        errors.push(Error::invalid(&SPEC.child("request"), encoded, detail));
    }
    if list(spec, "usages").is_empty() {
        errors.push(Error::required(&SPEC.child("usages"), ""));
    }
    let usages = SPEC.child("usages");
    for (i, usage) in list(spec, "usages").iter().enumerate() {
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            errors.push(Error::not_supported(&usages.index(i), usage.clone(), USAGES));
        }
        if list(spec, "usages")[..i].contains(usage) {
            errors.push(Error::duplicate(&usages.index(i), usage.clone()));
        }
    }
    signer(text(spec, "signerName"), errors);
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(Error::invalid(&SPEC.child("expirationSeconds"), seconds, detail));
    }
}

fn signer(name: &str, errors: &mut Errors) {
    let path = SPEC.child("signerName");
    if name.is_empty() {
        errors.push(Error::required(&path, ""));
        return;
    }
    if name == LEGACY_SIGNER {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.push(Error::invalid(&path, name, detail));
        return;
    }
    let (domain, rest) = name.split_once('/').unwrap_or(("", name));
    let whole = names::dns1123_subdomain(domain).is_empty() && domain.contains('.') && !rest.is_empty();
    let parts_are_good =
        rest.split('/').count() == 1 && rest.split('.').all(|part| names::dns1123_label(part).is_empty());
    if !whole || !parts_are_good {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(Error::invalid(&path, name, detail));
    } else if name.len() > LONGEST_SIGNER {
        errors.push(Error::too_long(&path, LONGEST_SIGNER));
    }
}

pub(super) fn subresource(name: &str, new: &Value, old: &Value, errors: &mut Errors) {
    conditions(new, errors);
    let status = Path::root("status");
    let count = |object: &Value, kind: &str| {
        let conditions = list(get(object, "status"), "conditions");
        conditions.iter().filter(|found| text(found, "type") == kind).count()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if count(new, kind) < count(old, kind) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(Error::forbidden(&status.child("conditions"), detail));
        }
    }
    let (issued, wanted) = (
        text(get(old, "status"), "certificate"),
        text(get(new, "status"), "certificate"),
    );
    if issued == wanted {
        return;
    }
    let path = status.child("certificate");
    if name != "status" {
        errors.push(Error::forbidden(&path, "updates may not set certificate content"));
    } else if !issued.is_empty() {
        errors.push(Error::forbidden(
            &path,
            "updates may not modify existing certificate content",
        ));
    }
}

fn conditions(new: &Value, errors: &mut Errors) {
    let conditions = list(get(new, "status"), "conditions");
    let path = Path::root("status.conditions");
    let kinds: Vec<&str> = conditions.iter().map(|condition| text(condition, "type")).collect();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let kind = kinds[i];
        required(&path, "type", condition, errors);
        if matches!(kind, "Approved" | "Denied" | "Failed") && text(condition, "status") != "True" {
            errors.push(Error::not_supported(
                &path.child("status"),
                text(condition, "status"),
                &["True"],
            ));
        }
        let other = if kind == "Approved" { "Denied" } else { "Approved" };
        if matches!(kind, "Approved" | "Denied") && kinds[..i].contains(&other) {
            let detail = format!("{} and {} conditions are mutually exclusive", kinds[i], other);
            errors.push(Error::invalid(&path.child("type"), kind, detail));
        }
        if kinds[..i].contains(&kind) {
            errors.push(Error::duplicate(&path.child("type"), kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::created;
    use super::super::validate_update;

    const FORM: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";

    #[test]
    fn requests() {
        let request = json!({"metadata": {"name": "a"}, "spec": {"signerName": "x", "usages": ["client auth", "client auth"], "expirationSeconds": 5}});
        assert_eq!(
            created("certificates.k8s.io", "CertificateSigningRequest", &request),
            [
                "spec.request: Required value".to_owned(),
                "spec.usages[1]: Duplicate value: \"client auth\"".to_owned(),
                format!("spec.signerName: Invalid value: \"x\": {FORM}"),
                "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)".to_owned(),
            ]
        );
    }

    #[test]
    fn signers_and_usages() {
        let pem = crate::defaults::base64(b"-----BEGIN CERTIFICATE REQUEST-----");
        let faults = |signer: &str, usage: &str| {
            let request =
                json!({"metadata": {"name": "a"}, "spec": {"request": pem, "signerName": signer, "usages": [usage]}});
            created("certificates.k8s.io", "CertificateSigningRequest", &request).join("; ")
        };
        assert_eq!(faults("kubernetes.io/kube-apiserver-client", "client auth"), "");
        assert_eq!(faults("a.example.com/b.c", "server auth"), "");
        assert!(faults("kubernetes.io/legacy-unknown", "client auth").contains("is not allowed via this API version"));
        for signer in ["example/a", "example.com/", "example.com/a/b", "example.com/A", "/a"] {
            assert!(faults(signer, "client auth").contains(FORM), "{signer}");
        }
        assert!(
            faults("a.b/c", "anything").starts_with(
                "spec.usages[0]: Unsupported value: \"anything\": supported values: \"any\", \"cert sign\""
            )
        );
    }

    #[test]
    fn decisions_stay_and_certificates_come_once() {
        let object =
            |status: Value| json!({"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {}, "status": status});
        let change = |subresource, old: Value, new: Value| {
            let faults = validate_update(
                "certificates.k8s.io",
                "v1",
                "CertificateSigningRequest",
                &object(new),
                &object(old),
                Some(subresource),
            );
            faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(change("approval", json!({}), approved.clone()), "");
        assert!(
            change("approval", approved.clone(), json!({}))
                .contains("updates may not remove a condition of type \"Approved\"")
        );
        let both =
            json!({"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]});
        assert!(change("approval", json!({}), both).contains("mutually exclusive"));
        let unsure = json!({"conditions": [{"type": "Approved", "status": "False"}]});
        assert!(change("approval", json!({}), unsure).contains("Unsupported value"));
        assert_eq!(change("status", json!({}), json!({"certificate": "YQ=="})), "");
        assert!(
            change("approval", json!({}), json!({"certificate": "YQ=="})).contains("may not set certificate content")
        );
        assert!(
            change("status", json!({"certificate": "YQ=="}), json!({"certificate": "Yg=="}))
                .contains("may not modify existing certificate content")
        );
    }
}
