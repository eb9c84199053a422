//! Jobs and cron jobs.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, UNSET, at, containers, int, list, or, selector, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static JOBS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Status"),
        Column::text("Completions"),
        Column::text("Duration"),
        AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: job,
};

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template"));
    let start = text(object, "status.startTime");
    let end = meta::parse_time(text(object, "status.completionTime")).unwrap_or(now);
    vec![
        meta::name(object).into(),
        state(object).into(),
        completions(object).into(),
        age::between(start, end).unwrap_or_default().into(),
        age::of(object, now),
        names,
        images,
        selector(at(object, "spec.selector")).into(),
    ]
}

fn completions(object: &Value) -> String {
    let done = int(object, "status.succeeded");
    match at(object, "spec.completions").as_i64() {
        Some(wanted) => format!("{done}/{wanted}"),
        None => match int(object, "spec.parallelism") {
            ..=1 => format!("{done}/1"),
            parallel => format!("{done}/1 of {parallel}"),
        },
    }
}

fn state(object: &Value) -> &'static str {
    if meta::has_condition(object, "Complete") {
        return "Complete";
    }
    if meta::has_condition(object, "Failed") {
        return "Failed";
    }
    if meta::deletion_timestamp(object).is_some() {
        return "Terminating";
    }
    ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|kind| meta::has_condition(object, kind))
        .unwrap_or("Running")
}

pub(super) static CRON_JOBS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Schedule"),
        Column::text("Timezone"),
        Column::text("Suspend"),
        Column::integer("Active"),
        Column::text("Last Schedule"),
        AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: cron_job,
};

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.jobTemplate.spec.template"));
    let suspend = match at(object, "spec.suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    vec![
        meta::name(object).into(),
        text(object, "spec.schedule").into(),
        or(text(object, "spec.timeZone"), NONE).into(),
        suspend.into(),
        list(object, "status.active").len().into(),
        age::between(text(object, "status.lastScheduleTime"), now)
            .unwrap_or_else(|| NONE.to_owned())
            .into(),
        age::of(object, now),
        names,
        images,
        selector(at(object, "spec.jobTemplate.spec.selector")).into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    const HEADINGS: &str = "NAME | STATUS | COMPLETIONS | DURATION | AGE | CONTAINERS | IMAGES | SELECTOR";

    #[test]
    fn jobs() {
        let mut job = json!({"metadata": {"name": "pi", "creationTimestamp": "2025-12-31T23:00:00Z"}, "spec": {"completions": 3},
            "status": {"succeeded": 1, "startTime": "2025-12-31T23:59:00Z"}});
        check(
            "batch",
            "jobs",
            &job,
            HEADINGS,
            "pi | Running | 1/3 | 60s | 60m |  |  | <none>",
        );
        job["status"] = json!({"succeeded": 3, "startTime": "2025-12-31T23:50:00Z", "completionTime": "2025-12-31T23:50:09Z",
            "conditions": [{"type": "Complete", "status": "True"}]});
        check(
            "batch",
            "jobs",
            &job,
            HEADINGS,
            "pi | Complete | 3/3 | 9s | 60m |  |  | <none>",
        );
        let queue = json!({"metadata": {"name": "q"}, "spec": {"parallelism": 2}});
        check(
            "batch",
            "jobs",
            &queue,
            HEADINGS,
            "q | Running | 0/1 of 2 |  | <unknown> |  |  | <none>",
        );
    }

    #[test]
    fn cron_jobs() {
        let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "suspend": false},
            "status": {"active": [{}], "lastScheduleTime": "2025-12-31T23:59:50Z"}});
        check(
            "batch",
            "cronjobs",
            &cron,
            "NAME | SCHEDULE | TIMEZONE | SUSPEND | ACTIVE | LAST SCHEDULE | AGE | CONTAINERS | IMAGES | SELECTOR",
            "c | * * * * * | <none> | False | 1 | 10s | <unknown> |  |  | <none>",
        );
    }
}
