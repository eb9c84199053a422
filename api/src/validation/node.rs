//! Nodes and their taints.

use serde_json::Value;

use super::Errors;
use super::read::{cidr, complain, get, list, text};
use crate::field::{Error, Path};
use crate::names;

const SPEC: Path<'static> = Path::root("spec");
pub(super) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn node(object: &Value, errors: &mut Errors) {
    let spec = get(object, "spec");
    taints(list(spec, "taints"), errors);
    let blocks = SPEC.child("podCIDRs");
    for (i, block) in list(spec, "podCIDRs").iter().enumerate() {
        cidr(&blocks.index(i), block.as_str().unwrap_or_default(), errors);
    }
}

fn taints(taints: &[Value], errors: &mut Errors) {
    let path = SPEC.child("taints");
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        complain(&path.child("key"), key, names::qualified_name(key), errors);
        complain(&path.child("value"), value, names::label_value(value), errors);
        self::effect(&path, taint, errors);
        if seen.contains(&(key, effect)) {
            errors.push(Error::duplicate(&path, taint.clone()));
        }
        seen.push((key, effect));
    }
}

/// The effect of a taint, which must be there.
fn effect(path: &Path<'_>, taint: &Value, errors: &mut Errors) {
    super::read::one_of(path, "effect", taint, &EFFECTS, true, errors);
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (get(new, "spec"), get(old, "spec"));
    for (key, name) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let set =
            |value: &Value| !value.is_null() && value != "" && value.as_array().is_none_or(|list| !list.is_empty());
        if set(get(before, key)) && get(before, key) != get(spec, key) {
            let detail = format!("node updates may not change {name} except from \"\" to valid");
            errors.push(Error::forbidden(&SPEC.child(key), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{created, updated};

    #[test]
    fn taints() {
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "Maybe"}]}});
        assert_eq!(
            created("", "Node", &node),
            [
                "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}",
                "spec.taints[2].effect: Unsupported value: \"Maybe\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\""
            ]
        );
    }

    #[test]
    fn addresses_are_given_once() {
        let node = |block: &str| json!({"metadata": {"name": "n"}, "spec": {"podCIDR": block, "podCIDRs": [block]}});
        assert_eq!(
            updated("", "Node", &node("10.0.1.0/24"), &node("10.0.0.0/24")),
            ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
        );
        assert_eq!(
            updated(
                "",
                "Node",
                &node("10.0.1.0/24"),
                &json!({"metadata": {"name": "n"}, "spec": {}})
            ),
            [""; 0]
        );
    }
}
