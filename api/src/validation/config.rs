//! Config maps and secrets.

use serde_json::Value;

use super::Errors;
use super::read::{IMMUTABLE, complain, config_key, entries, flag, get};
use crate::field::{Error, Path};
use crate::meta;

const LIMIT: usize = 1024 * 1024;
const SEALED: &str = "field is immutable when `immutable` is set";

pub(super) fn config_map(object: &Value, errors: &mut Errors) {
    let (data, binary) = (Path::root("data"), Path::root("binaryData"));
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        complain(&data.key(key), key, config_key(key), errors);
        if get(object, "binaryData").get(key).is_some() {
            errors.push(Error::invalid(
                &data.key(key),
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        complain(&binary.key(key), key, config_key(key), errors);
        size += decoded_length(value);
    }
    if size > LIMIT {
        errors.push(Error::too_long(&Path::OBJECT, LIMIT));
    }
}

pub(super) fn config_map_update(new: &Value, old: &Value, errors: &mut Errors) {
    sealed(new, old, &["data", "binaryData"], errors);
}

pub(super) fn secret(object: &Value, errors: &mut Errors) {
    let data = Path::root("data");
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        complain(&data.key(key), key, config_key(key), errors);
        size += decoded_length(value);
    }
    if size > LIMIT {
        errors.push(Error::too_long(&data, LIMIT));
    }
    let has = |key: &str| get(object, "data").get(key).is_some();
    let needed: &[&str] = match get(object, "type").as_str().unwrap_or_default() {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => &["username", "password"],
        "kubernetes.io/service-account-token" => {
            if meta::annotation(object, "kubernetes.io/service-account.name").is_none_or(str::is_empty) {
                let annotations = Path::root("metadata.annotations");
                errors.push(Error::required(
                    &annotations.key("kubernetes.io/service-account.name"),
                    "",
                ));
            }
            &[]
        }
        _ => &[],
    };
    for key in needed.iter().filter(|key| !has(key)) {
        errors.push(Error::required(&data.key(key), ""));
    }
}

pub(super) fn secret_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "type") != get(old, "type") {
        errors.push(Error::invalid(&Path::root("type"), get(new, "type").clone(), IMMUTABLE));
    }
    sealed(new, old, &["data"], errors);
}

fn sealed(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(new, "immutable") {
        errors.push(Error::forbidden(&Path::root("immutable"), SEALED));
    }
    for field in fields {
        let filled = |object: &Value| get(object, field).as_object().filter(|map| !map.is_empty()).cloned();
        if filled(new) != filled(old) {
            errors.push(Error::forbidden(&Path::root(field), SEALED));
        }
    }
}

/// Bytes behind a base64 text.
fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.trim_end_matches('=').len() * 3 / 4
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    fn object(fields: Value) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "default"}});
        for (key, value) in fields.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    }

    #[test]
    fn config_maps() {
        assert_eq!(
            created(
                "",
                "ConfigMap",
                &object(json!({"data": {"a.b": "c"}, "binaryData": {"d": "eA=="}}))
            ),
            [""; 0]
        );
        assert_eq!(
            created(
                "",
                "ConfigMap",
                &object(json!({"data": {"..": "c", "d": ""}, "binaryData": {"d": "eA=="}}))
            ),
            [
                "data[..]: Invalid value: \"..\": must not be '..'",
                "data[d]: Invalid value: \"d\": duplicate of key present in binaryData"
            ]
        );
        let huge = created("", "ConfigMap", &object(json!({"data": {"a": "x".repeat(LIMIT + 1)}})));
        assert_eq!(huge, [": Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn sealed_ones_do_not_change() {
        let old = object(json!({"data": {"a": "b"}, "immutable": true}));
        assert_eq!(
            updated("", "ConfigMap", &object(json!({"data": {"a": "c"}})), &old),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
    }

    #[test]
    fn secrets() {
        for (fields, messages) in [
            (json!({"type": "Opaque", "data": {"a": "eA=="}}), vec![]),
            (
                json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
                vec!["data[tls.key]: Required value"],
            ),
            (
                json!({"type": "kubernetes.io/basic-auth"}),
                vec!["data[username]: Required value", "data[password]: Required value"],
            ),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
        ] {
            assert_eq!(created("", "Secret", &object(fields)), messages);
        }
        assert_eq!(
            updated(
                "",
                "Secret",
                &object(json!({"type": "a/b"})),
                &object(json!({"type": "Opaque"}))
            ),
            ["type: Invalid value: \"a/b\": field is immutable"]
        );
    }
}
