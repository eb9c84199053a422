//! Deployments, replica sets, replication controllers, daemon sets, stateful sets.

use serde_json::Value;

use super::read::{
    IMMUTABLE, NON_NEGATIVE, at, get, has, immutable, int, int_or_percent, non_negative, one_of, percent, text,
};
use super::{Errors, pod, selector};
use crate::field::{Error, Path};

const SPEC: Path<'static> = Path::root("spec");
const ROLLING: &str = "RollingUpdate";

pub(super) fn deployment(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    non_negative(&SPEC, "replicas", spec, errors);
    selected_template(spec, "deployment", errors);
    strategy(spec, errors);
    for key in ["minReadySeconds", "revisionHistoryLimit"] {
        non_negative(&SPEC, key, spec, errors);
    }
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        let path = SPEC.child("progressDeadlineSeconds");
        non_negative(&SPEC, "progressDeadlineSeconds", spec, errors);
        if deadline <= int(spec, "minReadySeconds").unwrap_or(0) {
            errors.push(Error::invalid(&path, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn strategy(spec: &Value, errors: &mut Errors) {
    let path = SPEC.child("strategy");
    let strategy = get(spec, "strategy");
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(Error::forbidden(&path.child("rollingUpdate"), detail));
        }
        "Recreate" => {}
        ROLLING if !has(strategy, "rollingUpdate") => {
            errors.push(Error::required(
                &path.child("rollingUpdate"),
                "this should be defaulted and never be nil",
            ));
        }
        ROLLING => rolling(&path.child("rollingUpdate"), get(strategy, "rollingUpdate"), errors),
        other => {
            errors.push(Error::not_supported(&path, other, &["Recreate", ROLLING]));
        }
    }
}

fn rolling(path: &Path<'_>, rolling: &Value, errors: &mut Errors) {
    int_or_percent(path, "maxUnavailable", rolling, errors);
    int_or_percent(path, "maxSurge", rolling, errors);
    let (unavailable, surge) = (get(rolling, "maxUnavailable"), get(rolling, "maxSurge"));
    if number(unavailable) == 0 && number(surge) == 0 {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(Error::invalid(
            &path.child("maxUnavailable"),
            unavailable.clone(),
            detail,
        ));
    }
    not_above_everything(path, "maxUnavailable", unavailable, errors);
}

fn not_above_everything(path: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.push(Error::invalid(
            &path.child(key),
            value.clone(),
            "must not be greater than 100%",
        ));
    }
}

fn number(value: &Value) -> i64 {
    percent(value).or_else(|| value.as_i64()).unwrap_or(0)
}

pub(super) fn replica_set(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    for key in ["replicas", "minReadySeconds"] {
        non_negative(&SPEC, key, spec, errors);
    }
    // Upstream's text says deployment here too.
    selected_template(spec, "deployment", errors);
}

pub(super) fn replication_controller(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    non_negative(&SPEC, "minReadySeconds", spec, errors);
    let labels = get(spec, "selector");
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        errors.push(Error::required(&SPEC.child("selector"), ""));
    }
    non_negative(&SPEC, "replicas", spec, errors);
    if !has(spec, "template") {
        errors.push(Error::required(&SPEC.child("template"), ""));
        return;
    }
    template(spec, &serde_json::json!({"matchLabels": labels}), errors);
}

pub(super) fn daemon_set(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    selected_template(spec, "daemonset", errors);
    for key in ["minReadySeconds", "revisionHistoryLimit"] {
        non_negative(&SPEC, key, spec, errors);
    }
    let strategy = get(spec, "updateStrategy");
    let path = SPEC.child("updateStrategy");
    match text(strategy, "type") {
        "OnDelete" => {}
        ROLLING if !has(strategy, "rollingUpdate") => {
            errors.push(Error::required(&path.child("rollingUpdate"), ""));
        }
        ROLLING => daemon_rolling(&path.child("rollingUpdate"), get(strategy, "rollingUpdate"), errors),
        other => errors.push(Error::not_supported(&path, other, &[ROLLING, "OnDelete"])),
    }
}

fn daemon_rolling(path: &Path<'_>, rolling: &Value, errors: &mut Errors) {
    for key in ["maxUnavailable", "maxSurge"] {
        int_or_percent(path, key, rolling, errors);
        not_above_everything(path, key, get(rolling, key), errors);
    }
    let (unavailable, surge) = (number(get(rolling, "maxUnavailable")), number(get(rolling, "maxSurge")));
    if unavailable > 0 && surge > 0 {
        let detail = "may not be set when maxUnavailable is non-zero";
        errors.push(Error::invalid(
            &path.child("maxSurge"),
            get(rolling, "maxSurge").clone(),
            detail,
        ));
    } else if unavailable == 0 && surge == 0 {
        errors.push(Error::required(
            &path.child("maxUnavailable"),
            "cannot be 0 when maxSurge is 0",
        ));
    }
}

pub(super) fn stateful_set(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    if !matches!(text(spec, "podManagementPolicy"), "OrderedReady" | "Parallel") {
        let (path, policy) = (SPEC.child("podManagementPolicy"), text(spec, "podManagementPolicy"));
        errors.push(match policy {
            "" => Error::required(&path, ""),
            _ => Error::invalid(&path, policy, "must be 'OrderedReady' or 'Parallel'"),
        });
    }
    let path = SPEC.child("updateStrategy");
    let strategy = get(spec, "updateStrategy");
    match text(strategy, "type") {
        "" => errors.push(Error::required(&path, "")),
        "OnDelete" if has(strategy, "rollingUpdate") => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(Error::invalid(
                &path.child("rollingUpdate"),
                get(strategy, "rollingUpdate").clone(),
                detail,
            ));
        }
        "OnDelete" => {}
        ROLLING => non_negative(
            &path.child("rollingUpdate"),
            "partition",
            get(strategy, "rollingUpdate"),
            errors,
        ),
        _ => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(Error::invalid(&path, strategy.clone(), detail));
        }
    }
    let path = SPEC.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = get(spec, "persistentVolumeClaimRetentionPolicy");
        one_of(&path, key, policy, &["Retain", "Delete"], false, errors);
    }
    for key in ["replicas", "minReadySeconds"] {
        non_negative(&SPEC, key, spec, errors);
    }
    selected_template(spec, "statefulset", errors);
}

/// Selector and template of a kind that runs its pods for ever.
fn selected_template(spec: &Value, kind: &str, errors: &mut Errors) {
    let wanted = get(spec, "selector");
    let path = SPEC.child("selector");
    if wanted.is_null() {
        errors.push(Error::required(&path, ""));
    } else {
        selector::selector(&path, wanted, errors);
        if selector::is_everything(wanted) {
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(Error::invalid(&path, wanted.clone(), detail));
        }
    }
    template(spec, wanted, errors);
}

fn template(spec: &Value, wanted: &Value, errors: &mut Errors) {
    let path = SPEC.child("template");
    let template = get(spec, "template");
    if !wanted.is_null() && !selector::is_everything(wanted) {
        let labels = at(template, "metadata.labels");
        if !selector::matches(wanted, labels) {
            let shown = if labels.is_null() {
                serde_json::json!({})
            } else {
                labels.clone()
            };
            let detail = "`selector` does not match template `labels`";
            errors.push(Error::invalid(&path.child("metadata.labels"), shown, detail));
        }
    }
    pod::template(&path, template, errors);
    match at(template, "spec.restartPolicy").as_str() {
        Some("Always") | None => {}
        Some(other) => errors.push(Error::not_supported(
            &path.child("spec.restartPolicy"),
            other,
            &["Always"],
        )),
    }
    if !at(template, "spec.activeDeadlineSeconds").is_null() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(Error::forbidden(&path.child("spec.activeDeadlineSeconds"), detail));
    }
}

pub(super) fn selector_update(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(&SPEC, "selector", get(new, "spec"), get(old, "spec"), errors);
}

pub(super) fn stateful_set_update(new: &Value, old: &Value, errors: &mut Errors) {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |object: &Value| {
        let mut spec = get(object, "spec").as_object().cloned().unwrap_or_default();
        spec.retain(|key, value| !MUTABLE.contains(&key.as_str()) && !value.is_null());
        spec
    };
    if fixed(new) != fixed(old) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                      'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(Error::forbidden(&SPEC, detail));
    }
}

pub(super) fn revision_update(new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, "data") != get(old, "data") {
        errors.push(Error::invalid(&Path::root("data"), get(new, "data").clone(), IMMUTABLE));
    }
    if let Some(revision) = int(new, "revision").filter(|revision| *revision < 0) {
        errors.push(Error::invalid(&Path::root("revision"), revision, NON_NEGATIVE));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    fn deployment(change: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
        change(&mut object);
        crate::defaults::apply("apps", "v1", "Deployment", &mut object);
        object
    }

    #[test]
    fn deployments() {
        type Change = fn(&mut Value);
        let cases: [(Change, &[&str]); 9] = [
            (|_| {}, &[]),
            (
                |d| d["spec"]["replicas"] = (-1).into(),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |d| d["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                |d| d["spec"]["selector"] = Value::Null,
                &["spec.selector: Required value"],
            ),
            (
                |d| d["spec"]["selector"] = json!({}),
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                |d| d["spec"]["template"]["spec"]["restartPolicy"] = "Never".into(),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            ),
            (
                |d| d["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
                &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
            ),
            (
                |d| d["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}}),
                &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
            ),
            (
                |d| d["spec"]["template"]["spec"]["containers"] = json!([]),
                &["spec.template.spec.containers: Required value"],
            ),
        ];
        for (change, messages) in cases {
            assert_eq!(created("apps", "Deployment", &deployment(change)), messages);
        }
    }

    #[test]
    fn selectors_are_immutable() {
        let old = deployment(|_| {});
        let new = deployment(|d| {
            d["spec"]["selector"]["matchLabels"]["x"] = "y".into();
            d["spec"]["template"]["metadata"]["labels"]["x"] = "y".into();
        });
        assert_eq!(
            updated("apps", "Deployment", &new, &old),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"x\":\"y\"}}: field is immutable"]
        );
    }

    #[test]
    fn stateful_sets() {
        let set = |service: &str| {
            let mut set = deployment(|_| {});
            set["kind"] = "StatefulSet".into();
            set["spec"].as_object_mut().unwrap().remove("strategy");
            set["spec"]["serviceName"] = service.into();
            crate::defaults::apply("apps", "v1", "StatefulSet", &mut set);
            set
        };
        assert_eq!(created("apps", "StatefulSet", &set("a")), [""; 0]);
        let mut new = set("a");
        new["spec"]["replicas"] = 5.into();
        assert_eq!(updated("apps", "StatefulSet", &new, &set("a")), [""; 0]);
        let messages = updated("apps", "StatefulSet", &set("b"), &set("a"));
        assert!(
            messages[0].starts_with("spec: Forbidden: updates to statefulset spec for fields other than 'replicas'")
        );
    }
}
