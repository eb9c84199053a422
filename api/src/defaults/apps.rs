//! Workloads of the apps group.

use super::{Fields, absent, child, is_text, items, make, pod, text, volume};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    match kind {
        "Deployment" => deployment(spec),
        "ReplicaSet" => absent(spec, "replicas", 1),
        "StatefulSet" => stateful_set(spec),
        "DaemonSet" => daemon_set(spec),
        _ => return,
    }
    pod::apply_template(spec, "template");
}

fn deployment(spec: &mut Fields) {
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    absent(spec, "progressDeadlineSeconds", 600);
    let Some(strategy) = make(spec, "strategy") else { return };
    text(strategy, "type", "RollingUpdate");
    if is_text(strategy, "type", "RollingUpdate")
        && let Some(rolling) = make(strategy, "rollingUpdate")
    {
        absent(rolling, "maxUnavailable", "25%");
        absent(rolling, "maxSurge", "25%");
    }
}

fn stateful_set(spec: &mut Fields) {
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = make(spec, "updateStrategy") {
        text(strategy, "type", "RollingUpdate");
        if is_text(strategy, "type", "RollingUpdate")
            && let Some(rolling) = make(strategy, "rollingUpdate")
        {
            absent(rolling, "partition", 0);
        }
    }
    if let Some(policy) = make(spec, "persistentVolumeClaimRetentionPolicy") {
        text(policy, "whenDeleted", "Retain");
        text(policy, "whenScaled", "Retain");
    }
    for claim in items(spec, "volumeClaimTemplates") {
        text(claim, "apiVersion", "v1");
        text(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = child(claim, "spec") {
            volume::claim_spec(spec);
        }
        if let Some(status) = make(claim, "status") {
            text(status, "phase", "Pending");
        }
    }
}

fn daemon_set(spec: &mut Fields) {
    absent(spec, "revisionHistoryLimit", 10);
    let Some(strategy) = make(spec, "updateStrategy") else {
        return;
    };
    text(strategy, "type", "RollingUpdate");
    if is_text(strategy, "type", "RollingUpdate")
        && let Some(rolling) = make(strategy, "rollingUpdate")
    {
        absent(rolling, "maxUnavailable", 1);
        absent(rolling, "maxSurge", 0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn deployments() {
        assert_eq!(
            applied("apps", "Deployment", json!({"spec": {}}))["spec"],
            json!({"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}})
        );
        let recreate = applied(
            "apps",
            "Deployment",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}),
        );
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
        assert_eq!(recreate["spec"]["replicas"], 0);
    }

    #[test]
    fn stateful_sets() {
        assert_eq!(
            applied(
                "apps",
                "StatefulSet",
                json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}})
            )["spec"],
            json!({"replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
                "volumeClaimTemplates": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "d"},
                    "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}]})
        );
    }

    #[test]
    fn daemon_sets() {
        assert_eq!(
            applied("apps", "DaemonSet", json!({"spec": {}}))["spec"],
            json!({"revisionHistoryLimit": 10, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}})
        );
    }
}
