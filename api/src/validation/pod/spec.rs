//! The specification of a pod as a whole.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{between, complain, flag, get, has, int, ip, list, one_of, required_name, text};
use super::super::{node, selector};
use super::{affinity, container, resources, security, volume};
use crate::field::{Error, Path};
use crate::names;

const MAX_INT32: i64 = i32::MAX as i64;

pub(super) fn spec(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    let volumes = volume::volumes(&path.child("volumes"), list(spec, "volumes"), errors);
    container::containers(path, spec, &volumes, errors);
    one_of(
        path,
        "restartPolicy",
        spec,
        &["Always", "OnFailure", "Never"],
        true,
        errors,
    );
    dns(path, spec, errors);
    selector::labels(&path.child("nodeSelector"), get(spec, "nodeSelector"), errors);
    security::pod(path, spec, errors);
    pull_secrets(path, spec, errors);
    affinity::affinity(&path.child("affinity"), get(spec, "affinity"), errors);
    affinity::spread(
        &path.child("topologySpreadConstraints"),
        list(spec, "topologySpreadConstraints"),
        errors,
    );
    gates(path, spec, errors);
    plain_names(path, spec, errors);
    deadlines(path, spec, errors);
    tolerations(&path.child("tolerations"), list(spec, "tolerations"), errors);
    host_aliases(&path.child("hostAliases"), list(spec, "hostAliases"), errors);
    if has(spec, "overhead") {
        resources::list(&path.child("overhead"), get(spec, "overhead"), errors);
    }
    one_of(
        path,
        "preemptionPolicy",
        spec,
        &["Never", "PreemptLowerPriority"],
        false,
        errors,
    );
}

fn dns(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(path, "dnsPolicy", spec, &policies, true, errors);
    let config = get(spec, "dnsConfig");
    let path = path.child("dnsConfig");
    let servers = list(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.push(Error::required(
                &path,
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(Error::required(&path.child("nameservers"), detail));
            return;
        }
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(Error::invalid(&path.child("nameservers"), servers.to_vec(), detail));
    }
    let root = path.child("nameservers");
    for (i, server) in servers.iter().enumerate() {
        ip(&root.index(i), server.as_str().unwrap_or_default(), errors);
    }
    searches(&path.child("searches"), list(config, "searches"), errors);
    let root = path.child("options");
    for (i, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(Error::required(&root.index(i), "must not be empty"));
        }
    }
}

fn searches(path: &Path<'_>, searches: &[Value], errors: &mut Errors) {
    if searches.len() > 32 {
        errors.push(Error::invalid(
            path,
            searches.to_vec(),
            "must not have more than 32 search paths",
        ));
    }
    let length =
        searches.iter().filter_map(Value::as_str).map(str::len).sum::<usize>() + searches.len().saturating_sub(1);
    if length > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(Error::invalid(path, searches.to_vec(), detail));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let domain = search.strip_suffix('.').unwrap_or(search);
        // A lone dot is the root: search nowhere else. Underscores occur in real search lists.
        if search != "." {
            complain(
                &path.index(i),
                search,
                names::dns1123_subdomain(&domain.replace('_', "0")),
                errors,
            );
        }
    }
}

fn pull_secrets(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    let root = path.child("imagePullSecrets");
    for (i, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if secret
            .as_object()
            .is_none_or(|secret| secret.keys().any(|key| key != "name"))
        {
            errors.push(Error::invalid(&root.index(i), secret.clone(), "only name may be set"));
        }
    }
}

fn gates(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    let root = path.child("readinessGates");
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        complain(
            &root.index(i).child("conditionType"),
            kind,
            names::qualified_name(kind),
            errors,
        );
    }
    let root = path.child("schedulingGates");
    let gates = list(spec, "schedulingGates");
    for (i, gate) in gates.iter().enumerate() {
        let name = text(gate, "name");
        complain(&root.index(i).child("name"), name, names::qualified_name(name), errors);
        if gates[..i].iter().any(|other| text(other, "name") == name) {
            errors.push(Error::duplicate(&root.index(i), name));
        }
    }
    if !gates.is_empty() && !text(spec, "nodeName").is_empty() {
        errors.push(Error::forbidden(
            &path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

fn plain_names(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    let rules: [(&str, super::super::metadata::NameRule); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (key, rule) in rules {
        if !text(spec, key).is_empty() {
            required_name(path, key, spec, rule, errors);
        }
    }
}

fn deadlines(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    if let Some(deadline) = int(spec, "activeDeadlineSeconds")
        && !(1..=MAX_INT32).contains(&deadline)
    {
        errors.push(Error::invalid(
            &path.child("activeDeadlineSeconds"),
            deadline,
            between(1, MAX_INT32),
        ));
    }
}

pub(super) fn tolerations(path: &Path<'_>, tolerations: &[Value], errors: &mut Errors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let (key, value, operator) = (
            text(toleration, "key"),
            text(toleration, "value"),
            text(toleration, "operator"),
        );
        if !key.is_empty() {
            complain(&path.child("key"), key, names::qualified_name(key), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&path.child("operator"), operator, detail));
        }
        if has(toleration, "tolerationSeconds") && text(toleration, "effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(
                &path.child("effect"),
                text(toleration, "effect"),
                detail,
            ));
        }
        match operator {
            "Equal" | "" => complain(&path.child("operator"), value, names::label_value(value), errors),
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&path.child("operator"), toleration.clone(), detail));
            }
            "Exists" | "Lt" | "Gt" => {}
            other => errors.push(Error::not_supported(
                &path.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        one_of(&path, "effect", toleration, &node::EFFECTS, false, errors);
    }
}

fn host_aliases(path: &Path<'_>, aliases: &[Value], errors: &mut Errors) {
    for (i, alias) in aliases.iter().enumerate() {
        let path = path.index(i);
        ip(&path.child("ip"), text(alias, "ip"), errors);
        for name in list(alias, "hostnames").iter().filter_map(Value::as_str) {
            complain(&path.child("hostnames"), name, names::dns1123_subdomain(name), errors);
        }
    }
}

/// Whether the pod uses its node's network.
pub(super) fn on_host_network(spec: &Value) -> bool {
    flag(spec, "hostNetwork")
}
