//! Node and pod affinity, topology spread.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{POSITIVE, complain, get, has, int, list, one_of, text};
use super::super::selector;
use crate::field::{Error, Path};
use crate::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(path: &Path<'_>, affinity: &Value, errors: &mut Errors) {
    node_affinity(&path.child("nodeAffinity"), get(affinity, "nodeAffinity"), errors);
    for key in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&path.child(key), get(affinity, key), errors);
    }
}

fn node_affinity(path: &Path<'_>, affinity: &Value, errors: &mut Errors) {
    if has(affinity, REQUIRED) {
        node_selector(&path.child(REQUIRED), get(affinity, REQUIRED), errors);
    }
    let root = path.child(PREFERRED);
    for (i, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = root.index(i);
        weight(&path, term, errors);
        node_term(&path.child("preference"), get(term, "preference"), errors);
    }
}

/// Alternatives, at least one.
pub(in super::super) fn node_selector(path: &Path<'_>, selector: &Value, errors: &mut Errors) {
    let terms = list(selector, "nodeSelectorTerms");
    let root = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(Error::required(&root, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(&root.index(i), term, errors);
    }
}

fn node_term(path: &Path<'_>, term: &Value, errors: &mut Errors) {
    let root = path.child("matchExpressions");
    for (i, expression) in list(term, "matchExpressions").iter().enumerate() {
        node_requirement(&root.index(i), expression, errors);
    }
    let root = path.child("matchFields");
    for (i, field) in list(term, "matchFields").iter().enumerate() {
        node_field(&root.index(i), field, errors);
    }
}

fn node_requirement(path: &Path<'_>, expression: &Value, errors: &mut Errors) {
    let values = list(expression, "values");
    let path_values = path.child("values");
    match text(expression, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(Error::required(
                &path_values,
                "must be specified when `operator` is 'In' or 'NotIn'",
            ));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(Error::forbidden(&path_values, detail));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(Error::required(&path_values, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(Error::invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    let key = text(expression, "key");
    complain(&path.child("key"), key, names::qualified_name(key), errors);
}

fn node_field(path: &Path<'_>, field: &Value, errors: &mut Errors) {
    if !matches!(text(field, "operator"), "In" | "NotIn") {
        let detail = "not a valid selector operator";
        errors.push(Error::invalid(&path.child("operator"), text(field, "operator"), detail));
    } else if list(field, "values").len() != 1 {
        let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
        errors.push(Error::required(&path.child("values"), detail));
    }
    if text(field, "key") != "metadata.name" {
        errors.push(Error::invalid(
            &path.child("key"),
            text(field, "key"),
            "not a valid field selector key",
        ));
    }
}

fn weight(path: &Path<'_>, term: &Value, errors: &mut Errors) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(Error::invalid(
            &path.child("weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn pod_affinity(path: &Path<'_>, affinity: &Value, errors: &mut Errors) {
    let root = path.child(REQUIRED);
    for (i, term) in list(affinity, REQUIRED).iter().enumerate() {
        pod_term(&root.index(i), term, errors);
    }
    let root = path.child(PREFERRED);
    for (i, term) in list(affinity, PREFERRED).iter().enumerate() {
        let path = root.index(i);
        weight(&path, term, errors);
        pod_term(&path.child("podAffinityTerm"), get(term, "podAffinityTerm"), errors);
    }
}

fn pod_term(path: &Path<'_>, term: &Value, errors: &mut Errors) {
    selector::selector(&path.child("labelSelector"), get(term, "labelSelector"), errors);
    selector::selector(&path.child("namespaceSelector"), get(term, "namespaceSelector"), errors);
    for namespace in list(term, "namespaces").iter().filter_map(Value::as_str) {
        complain(
            &path.child("namespace"),
            namespace,
            names::dns1123_label(namespace),
            errors,
        );
    }
    topology_key(path, term, errors);
}

fn topology_key(path: &Path<'_>, term: &Value, errors: &mut Errors) {
    match text(term, "topologyKey") {
        "" => errors.push(Error::required(&path.child("topologyKey"), "can not be empty")),
        key => complain(&path.child("topologyKey"), key, names::qualified_name(key), errors),
    }
}

pub(super) fn spread(path: &Path<'_>, constraints: &[Value], errors: &mut Errors) {
    for (i, constraint) in constraints.iter().enumerate() {
        let path = path.index(i);
        if let Some(skew) = int(constraint, "maxSkew").filter(|skew| *skew <= 0) {
            errors.push(Error::invalid(&path.child("maxSkew"), skew, POSITIVE));
        }
        topology_key(&path, constraint, errors);
        one_of(
            &path,
            "whenUnsatisfiable",
            constraint,
            &["DoNotSchedule", "ScheduleAnyway"],
            true,
            errors,
        );
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of(&path, key, constraint, &["Honor", "Ignore"], false, errors);
        }
        if let Some(domains) = int(constraint, "minDomains").filter(|domains| *domains <= 0) {
            errors.push(Error::invalid(&path.child("minDomains"), domains, POSITIVE));
        }
        selector::selector(&path.child("labelSelector"), get(constraint, "labelSelector"), errors);
    }
}
