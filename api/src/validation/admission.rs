//! Admission webhooks.

use serde_json::Value;

use super::Errors;
use super::read::{get, has, int, list, one_of, required, text};
use super::selector;
use crate::field::{Error, Path};
use crate::names;

/// Webhook configurations; policies of the group have no `webhooks` and pass.
pub(super) fn any(object: &Value, errors: &mut Errors) {
    let root = Path::root("webhooks");
    let hooks = list(object, "webhooks");
    for (i, hook) in hooks.iter().enumerate() {
        let path = root.index(i);
        let name = text(hook, "name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else if name.split('.').count() < 3 {
            let detail = "should be a domain with at least three segments separated by dots";
            errors.push(Error::invalid(&path.child("name"), name, detail));
        } else {
            super::read::complain(&path.child("name"), name, names::dns1123_subdomain(name), errors);
        }
        if hooks[..i].iter().any(|other| text(other, "name") == name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        webhook(&path, hook, errors);
    }
}

fn webhook(path: &Path<'_>, hook: &Value, errors: &mut Errors) {
    let versions = list(hook, "admissionReviewVersions");
    if versions.is_empty() {
        let detail = "must specify one of v1, v1beta1";
        errors.push(Error::required(&path.child("admissionReviewVersions"), detail));
    }
    one_of(path, "failurePolicy", hook, &["Fail", "Ignore"], false, errors);
    one_of(path, "matchPolicy", hook, &["Equivalent", "Exact"], false, errors);
    match text(hook, "sideEffects") {
        "None" | "NoneOnDryRun" => {}
        "" => errors.push(Error::required(
            &path.child("sideEffects"),
            "must specify one of None, NoneOnDryRun",
        )),
        other => errors.push(Error::not_supported(
            &path.child("sideEffects"),
            other,
            &["None", "NoneOnDryRun"],
        )),
    }
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&path.child("timeoutSeconds"), seconds, detail));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        selector::selector(&path.child(key), get(hook, key), errors);
    }
    let (path, client) = (path.child("clientConfig"), get(hook, "clientConfig"));
    match (has(client, "url"), has(client, "service")) {
        (true, false) => {
            let url = text(client, "url");
            if !url.starts_with("https://") {
                let detail = format!(
                    "'https' is the only allowed URL scheme; desired format: https://host[/path] (got {url:?})"
                );
                errors.push(Error::invalid(&path.child("url"), url, detail));
            }
        }
        (false, true) => {
            for key in ["name", "namespace"] {
                required(&path.child("service"), key, get(client, "service"), errors);
            }
        }
        _ => errors.push(Error::required(&path, "exactly one of url or service is required")),
    }
}
