//! Pods: first status, quality of service, graceful deletion, binding.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, Status, at, keep, keep_all_but_status, keep_metadata, text_at};
use super::{Context, Strategy, qos};

/// See the module.
#[derive(Debug)]
pub(super) struct Pod;

const FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

impl Strategy for Pod {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        generic::set_generation(object, 1);
        object["status"] = json!({"phase": "Pending", "qosClass": qos::class(object)});
        if has_gates(object) {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
                "lastTransitionTime": text_at(object, "metadata.creationTimestamp"),
            }]);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        match subresource {
            Some("status") => prepare_status_update(new, old),
            Some("ephemeralcontainers") => keep_spec_but(new, old, take_ephemeral_containers),
            Some("resize") => keep_spec_but(new, old, take_resources),
            // `bind` has changed what it may: the node, and the condition that says so.
            Some("binding") => {}
            _ => {
                keep(new, old, "status");
                generic::carry_generation(new, old, &["spec"]);
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        match path {
            "spec.hostNetwork" => Some(at(object, path).and_then(Value::as_bool).unwrap_or(false).to_string()),
            // The old name of serviceAccountName.
            "spec.serviceAccount" => Some(text_at(object, "spec.serviceAccountName")),
            "spec.host" => Some(text_at(object, "spec.nodeName")),
            _ => generic::field(FIELDS, object, path),
        }
    }

    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let wanted = requested
            .or_else(|| at(object, "spec.terminationGracePeriodSeconds").and_then(Value::as_i64))
            .unwrap_or(30);
        // No kubelet has it, or none runs anything of it any more: nobody to wait for.
        let unassigned = text_at(object, "spec.nodeName").is_empty();
        let finished = matches!(text_at(object, "status.phase").as_str(), "Succeeded" | "Failed");
        Some(match wanted {
            _ if unassigned || finished => 0,
            seconds if seconds < 0 => 1,
            seconds => seconds,
        })
    }
}

fn has_gates(pod: &Value) -> bool {
    at(pod, "spec.schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|gates| !gates.is_empty())
}

fn prepare_status_update(new: &mut Value, old: &Value) {
    keep_all_but_status(new, old, Status::Plain);
    keep_metadata(new, old, "ownerReferences");
    generic::set_generation(new, generic::generation(old));
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    if text_at(new, "status.qosClass").is_empty() {
        let class = old
            .pointer("/status/qosClass")
            .cloned()
            .unwrap_or_else(|| qos::class(old).into());
        new["status"]["qosClass"] = class;
    }
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let single = text_at(new, &format!("status.{one}"));
        let listed = new["status"]
            .get(many)
            .and_then(Value::as_array)
            .is_some_and(|ips| !ips.is_empty());
        if !single.is_empty() && !listed {
            new["status"][many] = json!([{"ip": single}]);
        }
    }
}

/// An update of a part of the specification: everything but that part comes from the stored pod.
fn keep_spec_but(new: &mut Value, old: &Value, take: fn(&mut Value, &Value)) {
    let wanted = new.clone();
    let version = new.pointer("/metadata/resourceVersion").cloned();
    *new = old.clone();
    if let Some(version) = version {
        new["metadata"]["resourceVersion"] = version;
    }
    take(new, &wanted);
    generic::carry_generation(new, old, &["spec"]);
}

fn take_ephemeral_containers(pod: &mut Value, wanted: &Value) {
    if let Some(list) = at(wanted, "spec.ephemeralContainers") {
        pod["spec"]["ephemeralContainers"] = list.clone();
    }
}

fn take_resources(pod: &mut Value, wanted: &Value) {
    for list in ["containers", "initContainers"] {
        let wanted = wanted["spec"]
            .get(list)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for container in pod["spec"]
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let Some(source) = wanted.iter().find(|other| other.get("name") == container.get("name")) else {
                continue;
            };
            for key in ["resources", "resizePolicy"] {
                keep(container, source, key);
            }
        }
    }
}

/// Why a pod was not bound to a node.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The binding itself is wrong.
    #[error("the binding is invalid")]
    Invalid(Vec<field::Error>),
    /// The pod is not in a state to be bound; the text is what the conflict says.
    #[error("{0}")]
    Conflict(String),
}

/// Gives the pod to the node that `binding` names. `now` is an RFC 3339 time.
///
/// # Errors
/// When the binding names no node, or the pod is bound, gated, being deleted or another than the one meant.
pub fn bind(pod: &mut Value, binding: &Value, now: &str) -> Result<(), BindError> {
    let node = text_at(binding, "target.name");
    let errors = validate_binding(binding);
    if !errors.is_empty() {
        return Err(BindError::Invalid(errors));
    }
    let name = text_at(pod, "metadata.name");
    let conflict = |text: String| Err(BindError::Conflict(text));
    let (wanted, uid) = (text_at(binding, "metadata.uid"), text_at(pod, "metadata.uid"));
    if !wanted.is_empty() && wanted != uid {
        return conflict(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        ));
    }
    if at(pod, "metadata.deletionTimestamp").is_some() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let current = text_at(pod, "spec.nodeName");
    if !current.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {current:?}"));
    }
    if has_gates(pod) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = node.into();
    if let Some(annotations) = at(binding, "metadata.annotations").and_then(Value::as_object) {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    set_scheduled(pod, now);
    Ok(())
}

fn validate_binding(binding: &Value) -> Vec<field::Error> {
    let target = field::Path::root("target");
    let mut errors = Vec::new();
    let kind = text_at(binding, "target.kind");
    if !matches!(kind.as_str(), "" | "Node") {
        errors.push(field::Error::not_supported(
            &target.child("kind"),
            kind,
            &["Node", "<empty>"],
        ));
    }
    if text_at(binding, "target.name").is_empty() {
        errors.push(field::Error::required(&target.child("name"), ""));
    }
    errors
}

fn set_scheduled(pod: &mut Value, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    match pod["status"]["conditions"].as_array_mut() {
        None => pod["status"]["conditions"] = json!([condition]),
        Some(conditions) => match conditions
            .iter_mut()
            .find(|condition| condition["type"] == "PodScheduled")
        {
            None => conditions.push(condition),
            Some(existing) if existing["status"] == "True" => {}
            Some(existing) => *existing = condition,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"}})
    }

    #[test]
    fn new_pods_are_pending() {
        let mut new = pod();
        new["status"] = json!({"phase": "Running", "podIP": "1.2.3.4"});
        Pod.prepare_create(&mut new, &Context::default());
        assert_eq!(new["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(new["metadata"]["generation"], 1);
    }

    #[test]
    fn grace_periods() {
        let assigned =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 12}, "status": {"phase": "Running"}});
        let finished = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        for (pod, requested, seconds) in [
            (&assigned, None, 12),
            (&assigned, Some(5), 5),
            (&assigned, Some(0), 0),
            (&assigned, Some(-3), 1),
            (&finished, None, 0),
            (&pod(), Some(60), 0),
        ] {
            assert_eq!(Pod.grace_period(pod, requested), Some(seconds), "{pod} {requested:?}");
        }
    }

    #[test]
    fn binds_once() {
        let mut bound = pod();
        let binding =
            json!({"metadata": {"name": "p", "annotations": {"a": "b"}}, "target": {"kind": "Node", "name": "n1"}});
        bind(&mut bound, &binding, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n1");
        assert_eq!(bound["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            bound["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        );
        let error = bind(&mut bound, &binding, "2026-01-01T00:00:00Z").unwrap_err();
        assert_eq!(error.to_string(), "pod p is already assigned to node \"n1\"");
    }

    #[test]
    fn refuses_other_bindings() {
        let target = json!({"name": "n1"});
        let mut gated = pod();
        gated["spec"]["schedulingGates"] = json!([{"name": "x"}]);
        let mut leaving = pod();
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        for (mut pod, binding, text) in [
            (
                gated,
                json!({"target": target}),
                "pod p has non-empty .spec.schedulingGates",
            ),
            (
                leaving,
                json!({"target": target}),
                "pod p is being deleted, cannot be assigned to a host",
            ),
            (
                pod(),
                json!({"metadata": {"uid": "v"}, "target": target}),
                "Precondition failed: UID in precondition: v, UID in object meta: u",
            ),
            (pod(), json!({"target": {}}), "the binding is invalid"),
        ] {
            assert_eq!(bind(&mut pod, &binding, "").unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn status_update_mirrors_addresses() {
        let old = pod();
        let mut new = pod();
        new["spec"] = json!({"nodeName": "elsewhere"});
        new["status"] = json!({"phase": "Running", "podIP": "10.0.0.1"});
        Pod.prepare_update(&mut new, &old, Some("status"));
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
        assert_eq!(new["status"]["qosClass"], "BestEffort");
    }

    #[test]
    fn subresources_change_their_part_only() {
        let old = pod();
        let mut new = pod();
        new["spec"] = json!({"containers": [{"name": "c", "image": "x", "resources": {"limits": {"cpu": "1"}}}], "ephemeralContainers": [{"name": "e"}]});
        let mut debug = new.clone();
        Pod.prepare_update(&mut debug, &old, Some("ephemeralcontainers"));
        assert_eq!(
            debug["spec"],
            json!({"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]})
        );
        Pod.prepare_update(&mut new, &old, Some("resize"));
        assert_eq!(
            new["spec"],
            json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]})
        );
    }
}
