//! Volumes of a pod.

use serde_json::Value;

use super::super::Errors;
use super::super::core::quantity;
use super::super::read::{
    complain, get, has, int, list, local_path, no_back_steps, non_negative, one_of, required, text,
};
use super::container::{Volumes, file_mode};
use super::env;
use crate::field::{Error, Path};
use crate::names;

const HOST_PATH_TYPES: [&str; 7] = [
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// The names of the pod's volumes, for mounts to refer to.
pub(super) fn volumes<'a>(path: &Path<'_>, volumes: &'a [Value], errors: &mut Errors) -> Volumes<'a> {
    let mut seen: Volumes<'a> = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        source(&path, volume, errors);
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
            continue;
        }
        let complaints = names::dns1123_label(name);
        if complaints.is_empty() && seen.contains(&name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        complain(&path.child("name"), name, complaints, errors);
        seen.push(name);
    }
    seen
}

fn source(path: &Path<'_>, volume: &Value, errors: &mut Errors) {
    let mut kinds = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "name" && !value.is_null());
    let Some((kind, first)) = kinds.next() else {
        errors.push(Error::required(path, "must specify a volume type"));
        return;
    };
    one_source(&path.child(kind), kind, first, errors);
    for (kind, _) in kinds {
        errors.push(Error::forbidden(
            &path.child(kind),
            "may not specify more than 1 volume type",
        ));
    }
}

fn one_source(path: &Path<'_>, kind: &str, source: &Value, errors: &mut Errors) {
    match kind {
        "emptyDir" if quantity(get(source, "sizeLimit")).is_some_and(|limit| limit.as_milli() < 0) => {
            let detail = "SizeLimit field must be a valid resource quantity";
            errors.push(Error::forbidden(&path.child("sizeLimit"), detail));
        }
        "hostPath" => {
            required(path, "path", source, errors);
            no_back_steps(&path.child("path"), text(source, "path"), errors);
            one_of(path, "type", source, &HOST_PATH_TYPES, false, errors);
        }
        "secret" => {
            required(path, "secretName", source, errors);
            file_mode(path, "defaultMode", source, errors);
            key_to_path(path, source, errors);
        }
        "configMap" => {
            required(path, "name", source, errors);
            file_mode(path, "defaultMode", source, errors);
            key_to_path(path, source, errors);
        }
        "persistentVolumeClaim" => required(path, "claimName", source, errors),
        "nfs" => {
            required(path, "server", source, errors);
            required(path, "path", source, errors);
            if !text(source, "path").is_empty() && !text(source, "path").starts_with('/') {
                errors.push(Error::invalid(
                    &path.child("path"),
                    text(source, "path"),
                    "must be an absolute path",
                ));
            }
        }
        "csi" => required(path, "driver", source, errors),
        "downwardAPI" => {
            file_mode(path, "defaultMode", source, errors);
            env::downward_items(path, source, errors);
        }
        "projected" => projected(path, source, errors),
        _ => {}
    }
}

fn key_to_path(path: &Path<'_>, source: &Value, errors: &mut Errors) {
    let root = path.child("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = root.index(i);
        required(&path, "key", item, errors);
        file_path(&path, item, errors);
        file_mode(&path, "mode", item, errors);
    }
}

/// The `path` of a file inside a volume.
pub(super) fn file_path(path: &Path<'_>, item: &Value, errors: &mut Errors) {
    required(path, "path", item, errors);
    let target = text(item, "path");
    local_path(&path.child("path"), target, errors);
    if target.starts_with("..") && !target.starts_with("../") && target != ".." {
        errors.push(Error::invalid(&path.child("path"), target, "must not start with '..'"));
    }
}

fn projected(path: &Path<'_>, source: &Value, errors: &mut Errors) {
    file_mode(path, "defaultMode", source, errors);
    let root = path.child("sources");
    for (i, part) in list(source, "sources").iter().enumerate() {
        let path = root.index(i);
        let kinds: Vec<&String> = part
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, _)| key)
            .collect();
        if kinds.len() > 1 {
            errors.push(Error::forbidden(
                &path,
                "may not specify more than 1 volume type per source",
            ));
        }
        for key in ["secret", "configMap"] {
            if has(part, key) {
                required(&path.child(key), "name", get(part, key), errors);
                key_to_path(&path.child(key), get(part, key), errors);
            }
        }
        if has(part, "downwardAPI") {
            env::downward_items(&path.child("downwardAPI"), get(part, "downwardAPI"), errors);
        }
        if has(part, "serviceAccountToken") {
            token(
                &path.child("serviceAccountToken"),
                get(part, "serviceAccountToken"),
                errors,
            );
        }
    }
}

fn token(path: &Path<'_>, token: &Value, errors: &mut Errors) {
    match int(token, "expirationSeconds") {
        Some(seconds) if seconds < 600 => {
            let detail = "may not specify a duration less than 10 minutes";
            errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, detail));
        }
        Some(seconds) if seconds > 1 << 32 => {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, detail));
        }
        _ => non_negative(path, "expirationSeconds", token, errors),
    }
    file_path(path, token, errors);
}
