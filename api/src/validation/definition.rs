//! Custom resource definitions: names, scope, versions. Their schemas are the business of the part that serves them.

use serde_json::Value;

use super::Errors;
use super::read::{at, complain, flag, get, is_empty, list, one_of, text};
use crate::field::{Error, Path};
use crate::meta;
use crate::names;

const SPEC: Path<'static> = Path::root("spec");

pub(super) fn definition(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    let group = text(spec, "group");
    let plural = at(spec, "names.plural").as_str().unwrap_or_default();
    let name = text(get(object, "metadata"), "name");
    if name != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(Error::invalid(&Path::root("metadata").child("name"), name, detail));
    }
    if group.is_empty() {
        errors.push(Error::required(&SPEC.child("group"), ""));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(Error::invalid(&SPEC.child("group"), group, detail));
    } else {
        complain(&SPEC.child("group"), group, names::dns1123_subdomain(group), errors);
    }
    one_of(&SPEC, "scope", spec, &["Cluster", "Namespaced"], true, errors);
    resource_names(get(spec, "names"), errors);
    versions(list(spec, "versions"), errors);
}

fn resource_names(of: &Value, errors: &mut Errors) {
    let path = SPEC.child("names");
    for (key, rule) in [
        ("plural", names::dns1035_label as fn(&str) -> Vec<String>),
        ("singular", names::dns1035_label),
        ("kind", |kind: &str| names::dns1035_label(&kind.to_lowercase())),
        ("listKind", |kind: &str| names::dns1035_label(&kind.to_lowercase())),
    ] {
        match text(of, key) {
            "" => errors.push(Error::required(&path.child(key), "")),
            name => complain(&path.child(key), name, rule(name), errors),
        }
    }
    let same = text(of, "kind");
    if !same.is_empty() && same == text(of, "listKind") {
        errors.push(Error::invalid(
            &path.child("listKind"),
            same,
            "kind and listKind may not be the same",
        ));
    }
}

fn versions(versions: &[Value], errors: &mut Errors) {
    let root = SPEC.child("versions");
    let stored = versions.iter().filter(|version| flag(version, "storage")).count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(&root, versions.to_vec(), detail));
    }
    for (i, version) in versions.iter().enumerate() {
        let path = root.index(i);
        let name = text(version, "name");
        complain(&path.child("name"), name, names::dns1035_label(name), errors);
        if versions[..i].iter().any(|other| text(other, "name") == name) {
            errors.push(Error::invalid(
                &root,
                versions.to_vec(),
                "must contain unique version names",
            ));
        }
        if is_empty(get(version, "schema"), "openAPIV3Schema") {
            errors.push(Error::required(
                &path.child("schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    if !meta::has_condition(old, "Established") {
        return;
    }
    for key in ["scope", "names.kind", "group", "names.plural"] {
        let (value, before) = (at(get(new, "spec"), key), at(get(old, "spec"), key));
        if value != before {
            errors.push(Error::invalid(&SPEC.child(key), value.clone(), super::read::IMMUTABLE));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::created;

    #[test]
    fn names_and_versions() {
        let crd = json!({"metadata": {"name": "widgets.example.org"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "storage": true, "served": true}]}});
        assert_eq!(
            created("apiextensions.k8s.io", "CustomResourceDefinition", &crd),
            [
                "metadata.name: Invalid value: \"widgets.example.org\": must be spec.names.plural+\".\"+spec.group",
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ]
        );
    }
}
