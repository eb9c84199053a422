//! Certificate signing requests.

use serde_json::Value;

use super::Errors;
use super::read::{get, int, list, required, text};
use crate::field::{Error, Path};

const SPEC: Path<'static> = Path::root("spec");

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
        if list(spec, "usages")[..i].contains(usage) {
            errors.push(Error::duplicate(&usages.index(i), usage.clone()));
        }
    }
    let path = SPEC.child("signerName");
    match text(spec, "signerName") {
        "" => errors.push(Error::required(&path, "")),
        name if !name.contains('/') => {
            let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(Error::invalid(&path, name, detail));
        }
        _ => {}
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(Error::invalid(&SPEC.child("expirationSeconds"), seconds, detail));
    }
}

pub(super) fn subresource(_name: &str, new: &Value, _old: &Value, errors: &mut Errors) {
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
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn requests() {
        let request = json!({"metadata": {"name": "a"}, "spec": {"signerName": "x", "usages": ["client auth"], "expirationSeconds": 5}});
        assert_eq!(
            created("certificates.k8s.io", "CertificateSigningRequest", &request),
            [
                "spec.request: Required value",
                "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
                "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)",
            ]
        );
    }
}
