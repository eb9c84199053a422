//! Object metadata, the same for all kinds but for the rule of names.

use serde_json::Value;

use super::read::{IMMUTABLE, complain, entries, get, int, list, text};
use super::{Errors, selector};
use crate::field::{Error, Path, quote};
use crate::names::{self, Complaints};

/// What is wrong with a name.
pub(super) type NameRule = fn(&str) -> Complaints;

const META: Path<'static> = Path::root("metadata");
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

pub(super) fn create(object: &Value, rule: NameRule, namespaced: bool, errors: &mut Errors) {
    let meta = get(object, "metadata");
    let generate = text(meta, "generateName");
    if !generate.is_empty() {
        complain(
            &META.child("generateName"),
            generate,
            rule(&mask_trailing_dash(generate)),
            errors,
        );
    }
    match text(meta, "name") {
        "" => errors.push(Error::required(&META.child("name"), "name or generateName is required")),
        name => complain(&META.child("name"), name, rule(name), errors),
    }
    match (namespaced, text(meta, "namespace")) {
        (true, "") => errors.push(Error::required(&META.child("namespace"), "")),
        (true, namespace) => {
            complain(
                &META.child("namespace"),
                namespace,
                names::dns1123_label(namespace),
                errors,
            );
        }
        (false, "") => {}
        (false, _) => errors.push(Error::forbidden(&META.child("namespace"), "not allowed on this type")),
    }
    common(meta, errors);
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (meta, before) = (get(new, "metadata"), get(old, "metadata"));
    if !get(before, "deletionTimestamp").is_null() {
        let added: Vec<String> = list(meta, "finalizers")
            .iter()
            .filter(|f| !list(before, "finalizers").contains(f))
            .map(go_string)
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(Error::forbidden(&META.child("finalizers"), detail));
        }
    }
    if let Some(generation) = int(meta, "generation")
        && generation < int(before, "generation").unwrap_or(0)
    {
        errors.push(Error::invalid(
            &META.child("generation"),
            generation,
            "must not be decremented",
        ));
    }
    // What a client leaves out the registry brings back; only a different value is a mistake.
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let value = get(meta, key);
        if !value.is_null() && value != get(before, key) {
            errors.push(Error::invalid(&META.child(key), value.clone(), IMMUTABLE));
        }
    }
    common(meta, errors);
}

fn go_string(value: &Value) -> String {
    quote(value.as_str().unwrap_or_default())
}

fn common(meta: &Value, errors: &mut Errors) {
    selector::labels(&META.child("labels"), get(meta, "labels"), errors);
    annotations(&META.child("annotations"), get(meta, "annotations"), errors);
    owners(meta, errors);
    finalizers(&META.child("finalizers"), list(meta, "finalizers"), errors);
}

pub(super) fn annotations(path: &Path<'_>, annotations: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        complain(path, key, names::qualified_name(&key.to_lowercase()), errors);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(Error::too_long(path, ANNOTATIONS_LIMIT));
    }
}

fn owners(meta: &Value, errors: &mut Errors) {
    let path = META.child("ownerReferences");
    let mut controller: Option<&str> = None;
    for owner in list(meta, "ownerReferences") {
        let version = text(owner, "apiVersion").rsplit('/').next().unwrap_or_default();
        for (key, value, noun) in [
            ("apiVersion", version, "version"),
            ("kind", text(owner, "kind"), "kind"),
            ("name", text(owner, "name"), "name"),
            ("uid", text(owner, "uid"), "uid"),
        ] {
            if value.is_empty() {
                errors.push(Error::invalid(
                    &path.child(key),
                    text(owner, key),
                    format!("{noun} must not be empty"),
                ));
            }
        }
        if text(owner, "kind") == "Event" && text(owner, "apiVersion") == "v1" {
            errors.push(Error::invalid(
                &path,
                owner.clone(),
                "v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if get(owner, "controller") == &Value::Bool(true) {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                    text(owner, "name")
                );
                errors.push(Error::invalid(&path, get(meta, "ownerReferences").clone(), detail));
            } else {
                controller = Some(text(owner, "name"));
            }
        }
    }
}

pub(super) fn finalizers(path: &Path<'_>, finalizers: &[Value], errors: &mut Errors) {
    let mut seen = [false; 2];
    for finalizer in finalizers {
        let name = finalizer.as_str().unwrap_or_default();
        let complaints = names::qualified_name(name);
        if complaints.is_empty() && !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(Error::invalid(path, name, detail));
        }
        complain(path, name, complaints, errors);
        seen[0] |= name == "orphan";
        seen[1] |= name == "foregroundDeletion";
    }
    if seen == [true, true] {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(path, finalizers.to_vec(), detail));
    }
}

/// Metadata of a pod template: no name, and upstream leaves `metadata` out of the paths.
pub(super) fn template(path: &Path<'_>, template: &Value, errors: &mut Errors) {
    let meta = get(template, "metadata");
    selector::labels(&path.child("labels"), get(meta, "labels"), errors);
    annotations(&path.child("annotations"), get(meta, "annotations"), errors);
    for (key, value) in entries(template, "metadata").filter(|(key, _)| *key == "finalizers") {
        finalizers(&path.child(key), value.as_array().map_or(&[], Vec::as_slice), errors);
    }
}

/// The base of a generated name may end with a dash: the suffix follows.
fn mask_trailing_dash(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(base) if !base.is_empty() => format!("{}a", &name[..name.len() - 1]),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};

    #[test]
    fn names() {
        for (kind, metadata, messages) in [
            (
                "ServiceAccount",
                json!({"namespace": "default"}),
                vec!["metadata.name: Required value: name or generateName is required"],
            ),
            (
                "ServiceAccount",
                json!({"name": "a", "generateName": "b-", "namespace": "default"}),
                vec![],
            ),
            (
                "ServiceAccount",
                json!({"name": "a"}),
                vec!["metadata.namespace: Required value"],
            ),
            (
                "Namespace",
                json!({"name": "a.b"}),
                vec!["metadata.name: Invalid value: \"a.b\": must not contain dots"],
            ),
            (
                "Namespace",
                json!({"name": "a", "namespace": "b"}),
                vec!["metadata.namespace: Forbidden: not allowed on this type"],
            ),
        ] {
            assert_eq!(
                created("", kind, &json!({"metadata": metadata})),
                messages,
                "{metadata}"
            );
        }
        let bad = created(
            "",
            "ServiceAccount",
            &json!({"metadata": {"name": "Upper_Case", "namespace": "default"}}),
        );
        assert_eq!(
            bad,
            [
                "metadata.name: Invalid value: \"Upper_Case\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
              characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
              validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
    }

    #[test]
    fn labels_owners_finalizers() {
        let messages = created(
            "",
            "ServiceAccount",
            &json!({"metadata": {"name": "a", "namespace": "b", "labels": {"ok": "-bad-"}, "annotations": {"a/b/c": ""},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "", "uid": "u", "controller": true},
                    {"apiVersion": "v1", "kind": "Pod", "name": "q", "uid": "v", "controller": true}],
                "finalizers": ["plain"]}}),
        );
        assert_eq!(messages.len(), 5, "{messages:#?}");
        assert!(
            messages[0]
                .starts_with("metadata.labels: Invalid value: \"-bad-\": a valid label must be an empty string or")
        );
        assert!(
            messages[1]
                .starts_with("metadata.annotations: Invalid value: \"a/b/c\": a valid label key must consist of")
        );
        assert_eq!(
            messages[2],
            "metadata.ownerReferences.name: Invalid value: \"\": name must not be empty"
        );
        assert!(messages[3].contains("Only one reference can have Controller set to true."));
        assert_eq!(
            messages[4],
            "metadata.finalizers: Invalid value: \"plain\": name is neither a standard finalizer name nor is it fully qualified"
        );
    }

    #[test]
    fn updates() {
        let old = json!({"metadata": {"name": "a", "namespace": "b", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let mut new = old.clone();
        new["metadata"]["uid"] = "other".into();
        new["metadata"]["finalizers"] = json!(["a.b/c"]);
        assert_eq!(
            updated("", "ServiceAccount", &new, &old),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/c\"}",
                "metadata.uid: Invalid value: \"other\": field is immutable"
            ]
        );
        assert!(updated("", "ServiceAccount", &json!({"metadata": {"name": "a"}}), &old).is_empty());
    }
}
