//! Jobs and cron jobs.

use serde_json::Value;

use super::read::{at, get, has, immutable, int, non_negative, one_of, text};
use super::{Errors, pod, selector};
use crate::field::{Error, Path};
use crate::names::{self, Complaints};

const SPEC: Path<'static> = Path::root("spec");
/// A job's name is the cron job's and eleven more characters.
const CRON_JOB_NAME: usize = 52;

pub(super) fn job(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    job_spec(&SPEC, spec, errors);
    let labels = at(spec, "template.metadata.labels");
    let wanted = get(spec, "selector");
    if wanted.is_null() {
        errors.push(Error::required(&SPEC.child("selector"), ""));
    } else {
        selector::selector(&SPEC.child("selector"), wanted, errors);
        if !selector::matches(wanted, labels) {
            let shown = if labels.is_null() {
                serde_json::json!({})
            } else {
                labels.clone()
            };
            let detail = "`selector` does not match template `labels`";
            errors.push(Error::invalid(&SPEC.child("template.metadata.labels"), shown, detail));
        }
    }
}

fn job_spec(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ] {
        non_negative(path, key, spec, errors);
    }
    one_of(path, "completionMode", spec, &["Indexed", "NonIndexed"], false, errors);
    if text(spec, "completionMode") == "Indexed" && !has(spec, "completions") {
        let mode = "when completion mode is Indexed";
        errors.push(Error::required(&path.child("completions"), mode));
    }
    one_of(
        path,
        "podReplacementPolicy",
        spec,
        &["Failed", "TerminatingOrFailed"],
        false,
        errors,
    );
    let template = path.child("template");
    pod::template(&template, get(spec, "template"), errors);
    match at(spec, "template.spec.restartPolicy").as_str() {
        Some("OnFailure" | "Never") => {}
        None | Some("") => errors.push(Error::required(
            &template.child("spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        )),
        Some(other) => {
            errors.push(Error::not_supported(
                &template.child("spec.restartPolicy"),
                other,
                &["OnFailure", "Never"],
            ));
        }
    }
}

pub(super) fn job_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    // An indexed job may grow and shrink, together with its parallelism.
    let elastic = text(spec, "completionMode") == "Indexed" && int(spec, "completions") == int(spec, "parallelism");
    if !elastic {
        immutable(&SPEC, "completions", spec, before, errors);
    }
    for key in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(&SPEC, key, spec, before, errors);
    }
    let suspended = get(before, "suspend") == &Value::Bool(true) && at(old, "status.startTime").is_null();
    if !suspended {
        immutable(&SPEC, "template", spec, before, errors);
    }
}

pub(super) fn cron_job_name(name: &str) -> Complaints {
    let mut complaints = names::dns1123_subdomain(name);
    if name.len() > CRON_JOB_NAME {
        complaints.push(format!("must be no more than {CRON_JOB_NAME} characters"));
    }
    complaints
}

pub(super) fn cron_job(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    let path = SPEC.child("schedule");
    match text(spec, "schedule") {
        "" => errors.push(Error::required(&path, "")),
        schedule => {
            if let Some(complaint) = schedule_complaint(schedule) {
                errors.push(Error::invalid(&path, schedule, complaint));
            }
        }
    }
    if let Some(zone) = get(spec, "timeZone").as_str() {
        time_zone(zone, errors);
    }
    for key in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        non_negative(&SPEC, key, spec, errors);
    }
    one_of(
        &SPEC,
        "concurrencyPolicy",
        spec,
        &["Allow", "Forbid", "Replace"],
        true,
        errors,
    );
    job_spec(&SPEC.child("jobTemplate.spec"), at(spec, "jobTemplate.spec"), errors);
}

fn time_zone(zone: &str, errors: &mut Errors) {
    let path = SPEC.child("timeZone");
    if zone.is_empty() {
        errors.push(Error::invalid(&path, zone, "timeZone must be nil or non-empty string"));
    } else if zone.eq_ignore_ascii_case("local") {
        errors.push(Error::invalid(
            &path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        errors.push(Error::invalid(&path, zone, format!("unknown time zone {zone}")));
    }
}

/// What is wrong with a cron schedule in the standard five fields, or one of the `@` words.
fn schedule_complaint(schedule: &str) -> Option<String> {
    if let Some(word) = schedule.strip_prefix('@') {
        let known = matches!(
            word,
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly"
        );
        let every = word
            .strip_prefix("every ")
            .is_some_and(|duration| duration.parse::<jiff::SignedDuration>().is_ok());
        return (!known && !every).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    const MONTHS: &[&str] = &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    fields
        .iter()
        .zip(bounds)
        .flat_map(|(field, bounds)| field.split(',').map(move |part| (part, bounds)))
        .find_map(|(part, (low, high, words))| field_complaint(part, low, high, words))
}

fn field_complaint(part: &str, low: u32, high: u32, words: &[&str]) -> Option<String> {
    let (range, step) = part
        .split_once('/')
        .map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step {
        match step.parse::<u32>() {
            Err(_) => {
                return Some(format!(
                    "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
                ));
            }
            Ok(0) => return Some(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
        }
    }
    if matches!(range, "*" | "?") {
        return None;
    }
    let offset = |word: &str| {
        let known = words.iter().position(|known| known.eq_ignore_ascii_case(word));
        known
            .and_then(|index| u32::try_from(index).ok())
            .map(|index| index + low)
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let mut numbers = [0; 2];
    for (number, word) in numbers.iter_mut().zip([first, last]) {
        match offset(word).or_else(|| word.parse().ok()) {
            Some(value) => *number = value,
            None => {
                return Some(format!(
                    "failed to parse int from {word}: strconv.Atoi: parsing {word:?}: invalid syntax"
                ));
            }
        }
    }
    let [first, last] = numbers;
    if first < low {
        Some(format!("beginning of range ({first}) below minimum ({low}): {part}"))
    } else if last > high {
        Some(format!("end of range ({last}) above maximum ({high}): {part}"))
    } else if first > last {
        Some(format!(
            "beginning of range ({first}) beyond end of range ({last}): {part}"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};
    use super::*;

    fn job(policy: &str) -> Value {
        let mut job = json!({"metadata": {"name": "pi", "namespace": "default"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "x"}]}}}});
        crate::defaults::apply("batch", "v1", "Job", &mut job);
        job
    }

    #[test]
    fn jobs() {
        assert_eq!(created("batch", "Job", &job("Never")), [""; 0]);
        assert_eq!(
            created("batch", "Job", &job("")),
            [
                "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\""
            ]
        );
        let mut new = job("Never");
        new["spec"]["completions"] = 3.into();
        assert_eq!(
            updated("batch", "Job", &new, &job("Never")),
            ["spec.completions: Invalid value: 3: field is immutable"]
        );
    }

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6,12 1 jan-mar mon", "@hourly", "0 0 ? * 0"] {
            assert_eq!(schedule_complaint(good), None, "{good}");
        }
        for (bad, complaint) in [
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
        ] {
            assert_eq!(schedule_complaint(bad).as_deref(), Some(complaint));
        }
        assert!(!cron_job_name(&"a".repeat(53)).is_empty());
    }
}
