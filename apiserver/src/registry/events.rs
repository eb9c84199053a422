//! `events.k8s.io/v1` and `core/v1` events are the same objects: stored as core/v1, served as either.

use serde_json::Value;

use crate::resources::Conversion;

/// Of `events.k8s.io/v1`.
pub const CONVERSION: Conversion = Conversion { store, serve };

/// Names in `events.k8s.io/v1`, and in `core/v1`.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn store(event: &mut Value) {
    rename(event, "v1", |(new, old)| (new, old));
}

fn serve(event: &mut Value) {
    rename(event, "events.k8s.io/v1", |(new, old)| (old, new));
}

fn rename(
    event: &mut Value,
    version: &str,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(fields) = event.as_object_mut() else { return };
    for (from, to) in NAMES.iter().copied().map(direction) {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), version.into());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{serve, store};

    #[test]
    fn events_survive_the_way_there_and_back() {
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "regarding": {"kind": "Pod", "name": "a"},
            "note": "hello",
            "reason": "Started",
            "reportingController": "kubelet",
        });
        let mut stored = event.clone();
        store(&mut stored);
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["involvedObject"]["name"], "a");
        assert_eq!(stored["message"], "hello");
        serve(&mut stored);
        assert_eq!(stored, event);
    }
}
