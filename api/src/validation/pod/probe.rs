//! Probes and lifecycle hooks.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{
    complain, get, has, int, list, non_negative, one_of, port_number, port_or_name, required, text,
};
use crate::field::{Error, Path};

pub(super) fn lifecycle(path: &Path<'_>, lifecycle: &Value, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        if has(lifecycle, hook) {
            handler(
                &path.child(hook),
                get(lifecycle, hook),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

pub(super) fn probes(path: &Path<'_>, container: &Value, errors: &mut Errors) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = get(container, key);
        if probe.is_null() {
            continue;
        }
        let path = path.child(key);
        one_probe(&path, probe, errors);
        if key == "readinessProbe" {
            if let Some(seconds) = int(probe, "terminationGracePeriodSeconds") {
                let detail = "must not be set for readinessProbes";
                errors.push(Error::invalid(
                    &path.child("terminationGracePeriodSeconds"),
                    seconds,
                    detail,
                ));
            }
        } else if let Some(threshold) = int(probe, "successThreshold").filter(|threshold| *threshold != 1) {
            errors.push(Error::invalid(&path.child("successThreshold"), threshold, "must be 1"));
        }
    }
}

fn one_probe(path: &Path<'_>, probe: &Value, errors: &mut Errors) {
    handler(path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(path, key, probe, errors);
    }
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(Error::invalid(
            &path.child("terminationGracePeriodSeconds"),
            seconds,
            super::super::read::POSITIVE,
        ));
    }
}

fn handler(path: &Path<'_>, handler: &Value, kinds: &[&str], errors: &mut Errors) {
    let mut found = false;
    for kind in kinds.iter().filter(|kind| has(handler, kind)) {
        let (path, action) = (path.child(kind), get(handler, kind));
        if found {
            errors.push(Error::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *kind {
            "exec" => required(&path, "command", action, errors),
            "httpGet" => http_get(&path, action, errors),
            "tcpSocket" => port_or_name(&path.child("port"), get(action, "port"), errors),
            "grpc" => port_number(&path.child("port"), int(action, "port").unwrap_or(0), errors),
            _ => {}
        }
    }
    if !found {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}

fn http_get(path: &Path<'_>, get_action: &Value, errors: &mut Errors) {
    required(path, "path", get_action, errors);
    port_or_name(&path.child("port"), get(get_action, "port"), errors);
    one_of(path, "scheme", get_action, &["HTTP", "HTTPS"], false, errors);
    let root = path.child("httpHeaders");
    for (i, header) in list(get_action, "httpHeaders").iter().enumerate() {
        let name = text(header, "name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                          validation is '[-A-Za-z0-9]+')";
            complain(&root.index(i).child("name"), name, vec![detail.to_owned()], errors);
        }
    }
}
