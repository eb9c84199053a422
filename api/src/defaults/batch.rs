//! Jobs and cron jobs.

use super::{Fields, absent, child, descend, has, items, pod, text};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    match kind {
        "Job" => job(spec),
        "CronJob" => cron_job(spec),
        _ => {}
    }
}

fn job(spec: &mut Fields) {
    // Only a parallelism: a work queue, which has no number of completions.
    if !has(spec, "completions") && !has(spec, "parallelism") {
        absent(spec, "completions", 1);
    }
    absent(spec, "parallelism", 1);
    let per_index = has(spec, "backoffLimitPerIndex");
    absent(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    absent(spec, "completionMode", "NonIndexed");
    absent(spec, "suspend", false);
    absent(spec, "manualSelector", false);
    let policy = if has(spec, "podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    absent(spec, "podReplacementPolicy", policy);
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for rule in items(policy, "rules") {
            for condition in items(rule, "onPodConditions") {
                text(condition, "status", "True");
            }
        }
    }
    pod::apply_template(spec, "template");
}

fn cron_job(spec: &mut Fields) {
    text(spec, "concurrencyPolicy", "Allow");
    absent(spec, "suspend", false);
    absent(spec, "successfulJobsHistoryLimit", 3);
    absent(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = descend(spec, &["jobTemplate", "spec"]) {
        pod::apply_template(job, "template");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn jobs() {
        assert_eq!(
            applied("batch", "Job", json!({"spec": {}}))["spec"],
            json!({"completions": 1, "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": false,
                "manualSelector": false, "podReplacementPolicy": "TerminatingOrFailed"})
        );
        let queue = applied("batch", "Job", json!({"spec": {"parallelism": 3}}));
        assert!(queue["spec"].get("completions").is_none());
    }

    #[test]
    fn cron_jobs() {
        let cron = applied(
            "batch",
            "CronJob",
            json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {}}}}}}),
        );
        assert_eq!(cron["spec"]["successfulJobsHistoryLimit"], 3);
        assert!(cron["spec"]["jobTemplate"]["spec"].get("backoffLimit").is_none());
        assert_eq!(
            cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["dnsPolicy"],
            "ClusterFirst"
        );
    }
}
