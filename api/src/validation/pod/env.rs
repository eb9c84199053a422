//! Environment variables.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{complain, config_key, get, has, list, local_path, required, text};
use crate::field::{Error, Path};
use crate::names::{self, Complaints};

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub(super) const VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// What is wrong with a variable's name: anything printable goes but `=`.
fn name_complaints(name: &str) -> Complaints {
    let printable = !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    if printable {
        Complaints::new()
    } else {
        vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ]
    }
}

pub(super) fn env(path: &Path<'_>, variables: &[Value], errors: &mut Errors) {
    for (i, variable) in variables.iter().enumerate() {
        let path = path.index(i);
        match text(variable, "name") {
            "" => errors.push(Error::required(&path.child("name"), "")),
            name => complain(&path.child("name"), name, name_complaints(name), errors),
        }
        if has(variable, "valueFrom") {
            value_from(&path.child("valueFrom"), variable, errors);
        }
    }
}

fn value_from(path: &Path<'_>, variable: &Value, errors: &mut Errors) {
    let source = get(variable, "valueFrom");
    let mut sources = 0;
    if has(source, "fieldRef") {
        sources += 1;
        field_ref(&path.child("fieldRef"), get(source, "fieldRef"), &ENV_FIELDS, errors);
    }
    if has(source, "resourceFieldRef") {
        sources += 1;
        resource_ref(
            &path.child("resourceFieldRef"),
            get(source, "resourceFieldRef"),
            false,
            errors,
        );
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if has(source, key) {
            sources += 1;
            key_ref(&path.child(key), get(source, key), errors);
        }
    }
    if has(source, "fileKeyRef") {
        sources += 1;
        for key in ["volumeName", "path", "key"] {
            required(&path.child("fileKeyRef"), key, get(source, "fileKeyRef"), errors);
        }
        let file = text(get(source, "fileKeyRef"), "path");
        local_path(&path.child("fileKeyRef").child("path"), file, errors);
    }
    if sources == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(Error::invalid(path, "", detail));
    }
    if !text(variable, "value").is_empty() {
        if sources != 0 {
            errors.push(Error::invalid(
                path,
                "",
                "may not be specified when `value` is not empty",
            ));
        }
    } else if sources > 1 {
        errors.push(Error::invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        ));
    }
}

/// A field of the pod; `metadata.labels['key']` and annotations may be subscripted.
pub(super) fn field_ref(path: &Path<'_>, field: &Value, supported: &[&str], errors: &mut Errors) {
    if text(field, "apiVersion").is_empty() {
        errors.push(Error::required(&path.child("apiVersion"), ""));
        return;
    }
    let target = text(field, "fieldPath");
    if target.is_empty() {
        errors.push(Error::required(&path.child("fieldPath"), ""));
        return;
    }
    let subscript = target
        .split_once("['")
        .and_then(|(map, rest)| Some((map, rest.strip_suffix("']")?)));
    match subscript {
        Some(("metadata.annotations", key)) => {
            complain(path, key, names::qualified_name(&key.to_lowercase()), errors);
        }
        Some(("metadata.labels", key)) => complain(path, key, names::qualified_name(key), errors),
        Some((map, _)) => {
            errors.push(Error::invalid(
                path,
                map,
                format!("does not support subscript, got {target}"),
            ));
        }
        None if supported.contains(&target) => {}
        None if ENV_FIELDS.contains(&target) || VOLUME_FIELDS.contains(&target) => {
            errors.push(Error::not_supported(&path.child("fieldPath"), target, supported));
        }
        None => {
            let detail = format!("error converting fieldPath: field label not supported: {target}");
            errors.push(Error::invalid(&path.child("fieldPath"), target, detail));
        }
    }
}

pub(super) fn resource_ref(path: &Path<'_>, reference: &Value, volume: bool, errors: &mut Errors) {
    if volume && text(reference, "containerName").is_empty() {
        errors.push(Error::required(&path.child("containerName"), ""));
    }
    match text(reference, "resource") {
        "" => errors.push(Error::required(&path.child("resource"), "")),
        resource => {
            let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
            if !huge && !RESOURCES.contains(&resource) {
                errors.push(Error::not_supported(&path.child("resource"), resource, &RESOURCES));
            }
        }
    }
}

fn key_ref(path: &Path<'_>, reference: &Value, errors: &mut Errors) {
    let name = text(reference, "name");
    if !name.is_empty() {
        complain(&path.child("name"), name, names::dns1123_subdomain(name), errors);
    }
    match text(reference, "key") {
        "" => errors.push(Error::required(&path.child("key"), "")),
        key => complain(&path.child("key"), key, config_key(key), errors),
    }
}

pub(super) fn from(path: &Path<'_>, sources: &[Value], errors: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let path = path.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            complain(&path.child("prefix"), prefix, name_complaints(prefix), errors);
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            if has(source, key) {
                count += 1;
                let name = text(get(source, key), "name");
                if !name.is_empty() {
                    complain(
                        &path.child(key).child("name"),
                        name,
                        names::dns1123_subdomain(name),
                        errors,
                    );
                }
            }
        }
        match count {
            0 => errors.push(Error::invalid(
                &path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(Error::invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

/// Items that put fields of the pod into files.
pub(super) fn downward_items(path: &Path<'_>, source: &Value, errors: &mut Errors) {
    let root = path.child("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = root.index(i);
        super::volume::file_path(&path, item, errors);
        if has(item, "fieldRef") {
            field_ref(&path.child("fieldRef"), get(item, "fieldRef"), &VOLUME_FIELDS, errors);
            if has(item, "resourceFieldRef") {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(Error::invalid(&path, "resource", detail));
            }
        } else if has(item, "resourceFieldRef") {
            resource_ref(
                &path.child("resourceFieldRef"),
                get(item, "resourceFieldRef"),
                true,
                errors,
            );
        } else {
            errors.push(Error::required(
                &path.child("fieldRef"),
                "one of fieldRef and resourceFieldRef is required",
            ));
        }
        super::container::file_mode(&path, "mode", item, errors);
    }
}
