//! Jobs: the server makes the selector of a job from its uid, so that no two jobs ever share pods.

use serde_json::{Value, json};
use skiff_api::field;

use super::generic::{self, Status, at, keep, keep_all_but_status};
use super::{Context, Propagation, Strategy};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";

/// See the module.
#[derive(Debug)]
pub(super) struct Job;

impl Strategy for Job {
    fn prepare_create(&self, object: &mut Value, _context: &Context<'_>) {
        generic::reset_status(object, None);
        generic::set_generation(object, 1);
        if at(object, "spec.manualSelector").and_then(Value::as_bool) != Some(true) {
            generate_selector(object);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        match subresource {
            Some("status") => keep_all_but_status(new, old, Status::Plain),
            _ => keep(new, old, "status"),
        }
        generic::carry_generation(new, old, &["spec"]);
    }

    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        generic::validate_create(object)
    }

    fn validate_update(&self, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<field::Error> {
        generic::validate_update(new, old, subresource)
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        match path {
            "status.successful" => Some(
                at(object, "status.succeeded")
                    .and_then(Value::as_i64)
                    .unwrap_or(0)
                    .to_string(),
            ),
            _ => generic::field(&[], object, path),
        }
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }
}

/// The selector names the job's uid; its template carries that label and the job's name, under old and new keys.
fn generate_selector(object: &mut Value) {
    let uid = generic::text_at(object, "metadata.uid");
    let name = generic::text_at(object, "metadata.name");
    if !object["spec"].is_object() {
        return;
    }
    for path in ["selector", "template"] {
        if !object["spec"][path].is_object() {
            object["spec"][path] = json!({});
        }
    }
    if !object["spec"]["template"]["metadata"].is_object() {
        object["spec"]["template"]["metadata"] = json!({});
    }
    let labels = &mut object["spec"]["template"]["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        (UID_LABEL, &uid),
        (NAME_LABEL, &name),
    ] {
        labels[key] = value.as_str().into();
    }
    let selector = &mut object["spec"]["selector"]["matchLabels"];
    if !selector.is_object() {
        *selector = json!({});
    }
    if selector.get(UID_LABEL).is_none() {
        selector[UID_LABEL] = uid.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_comes_from_the_uid() {
        let mut job = json!({"metadata": {"name": "pi", "uid": "u1"}, "spec": {"template": {"spec": {}}}});
        Job.prepare_create(&mut job, &Context::default());
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}})
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({"controller-uid": "u1", "job-name": "pi",
                   "batch.kubernetes.io/controller-uid": "u1", "batch.kubernetes.io/job-name": "pi"})
        );
    }

    #[test]
    fn manual_selectors_stay() {
        let mut job = json!({"metadata": {"name": "pi", "uid": "u1"}, "spec": {"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}}});
        Job.prepare_create(&mut job, &Context::default());
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"a": "b"}}));
    }
}
