//! Events of both groups.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{at, int, or, text};
use super::{Column, NAME, Printer, age};

pub(super) static EVENTS: Printer = Printer {
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::wide("Subobject"),
        Column::wide("Source"),
        Column::text("Message"),
        Column::wide("First Seen"),
        Column {
            kind: "integer",
            ..Column::wide("Count")
        },
        Column { priority: 1, ..NAME },
    ],
    row,
};

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let either = |old: &str, new: &str| or(text(event, old), text(event, new)).to_owned();
    let first_time = or(
        &either("firstTimestamp", "deprecatedFirstTimestamp"),
        text(event, "eventTime"),
    )
    .to_owned();
    let last_time = or(&either("lastTimestamp", "deprecatedLastTimestamp"), &first_time).to_owned();
    let series = at(event, "series");
    let (last_time, count) = if series.is_null() {
        (last_time, int(event, "count").max(int(event, "deprecatedCount")).max(1))
    } else {
        (text(series, "lastObservedTime").to_owned(), int(series, "count"))
    };
    let about = |key: &str| either(&format!("involvedObject.{key}"), &format!("regarding.{key}"));
    let (kind, name) = (about("kind").to_lowercase(), about("name"));
    let object = if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    };
    vec![
        age::since(&last_time, now).into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        object.into(),
        about("fieldPath").into(),
        source(event).into(),
        either("message", "note").trim().into(),
        age::since(&first_time, now).into(),
        count.into(),
        meta::name(event).into(),
    ]
}

fn source(event: &Value) -> String {
    let (component, host) = match or(
        text(event, "source.component"),
        text(event, "deprecatedSource.component"),
    ) {
        "" => {
            let controller = or(text(event, "reportingComponent"), text(event, "reportingController"));
            (controller, text(event, "reportingInstance"))
        }
        component => (
            component,
            or(text(event, "source.host"), text(event, "deprecatedSource.host")),
        ),
    };
    if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    const HEADINGS: &str =
        "LAST SEEN | TYPE | REASON | OBJECT | SUBOBJECT | SOURCE | MESSAGE | FIRST SEEN | COUNT | NAME";

    #[test]
    fn both_shapes() {
        let core = json!({"metadata": {"name": "p.1"}, "type": "Warning", "reason": "BackOff", "message": "Back-off\n", "count": 4,
            "firstTimestamp": "2025-12-31T23:50:00Z", "lastTimestamp": "2025-12-31T23:59:55Z",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"}, "source": {"component": "kubelet", "host": "n1"}});
        check(
            "",
            "events",
            &core,
            HEADINGS,
            "5s | Warning | BackOff | pod/p | spec.containers{c} | kubelet, n1 | Back-off | 10m | 4 | p.1",
        );
        let new = json!({"metadata": {"name": "p.2"}, "type": "Normal", "reason": "Scheduled", "note": "Assigned",
            "eventTime": "2025-12-31T23:59:00.000000Z", "regarding": {"kind": "Pod", "name": "p"},
            "reportingController": "default-scheduler", "reportingInstance": "s-1"});
        check(
            "events.k8s.io",
            "events",
            &new,
            HEADINGS,
            "60s | Normal | Scheduled | pod/p |  | default-scheduler, s-1 | Assigned | 60s | 1 | p.2",
        );
    }

    #[test]
    fn series() {
        let event = json!({"metadata": {"name": "p.1"}, "eventTime": "2025-12-31T23:50:00.000000Z", "involvedObject": {"kind": "Node"},
            "series": {"count": 7, "lastObservedTime": "2025-12-31T23:59:58.000000Z"}});
        check(
            "",
            "events",
            &event,
            HEADINGS,
            "2s |  |  | node |  |  |  | 10m | 7 | p.1",
        );
    }
}
