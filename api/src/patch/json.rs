//! JSON merge patch (RFC 7396) and JSON patch (RFC 6902).

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use super::{Error, MAX_OPERATIONS};

/// Most bytes that `copy` operations of one patch may add; upstream's cap is the size of a body.
const MAX_COPIED: usize = 3 << 20;
/// Most bytes that `move` operations may handle; each looks at what it moves.
const MAX_MOVED: usize = 64 << 20;
/// Deepest nesting that a patch may build. Parsers stop at 128, so anything deeper is made, not sent.
const MAX_DEPTH: usize = 128;

/// Applies a JSON merge patch: null removes, objects merge, anything else replaces.
pub fn json_merge(current: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *current = patch.clone();
        return;
    };
    if !current.is_object() {
        *current = Value::Object(Map::new());
    }
    let Value::Object(current) = current else { return };
    for (key, value) in patch {
        if value.is_null() {
            current.remove(key);
        } else {
            json_merge(current.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// Applies a JSON patch, wholly or not at all.
///
/// # Errors
/// When the patch is malformed, has too many operations, or an operation fails.
pub fn json_patch(current: &mut Value, patch: &[u8]) -> Result<(), Error> {
    let operations: Vec<PatchOperation> =
        serde_json::from_slice(patch).map_err(|e| Error::Malformed(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooManyOperations(operations.len()));
    }
    let mut patched = current.clone();
    let mut limits = Limits::default();
    for operation in &operations {
        limits.check(&patched, operation)?;
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|e| Error::Unprocessable(e.kind.to_string_at(operation)))?;
    }
    *current = patched;
    Ok(())
}

/// Says which operation failed.
trait AtOperation {
    fn to_string_at(&self, operation: &PatchOperation) -> String;
}

impl<E: std::fmt::Display> AtOperation for E {
    fn to_string_at(&self, operation: &PatchOperation) -> String {
        let (name, path) = match operation {
            PatchOperation::Add(o) => ("add", &o.path),
            PatchOperation::Remove(o) => ("remove", &o.path),
            PatchOperation::Replace(o) => ("replace", &o.path),
            PatchOperation::Move(o) => ("move", &o.path),
            PatchOperation::Copy(o) => ("copy", &o.path),
            PatchOperation::Test(o) => ("test", &o.path),
        };
        format!(
            "{name} operation does not apply at {path:?}: {self}",
            path = path.as_str()
        )
    }
}

/// What one patch has used up.
#[derive(Default)]
struct Limits {
    copied: usize,
    moved: usize,
}

impl Limits {
    fn check(&mut self, document: &Value, operation: &PatchOperation) -> Result<(), Error> {
        let (path, from, spent, most) = match operation {
            PatchOperation::Add(o) => (&o.path, None, &mut self.copied, MAX_COPIED),
            PatchOperation::Move(o) => (&o.path, Some(&o.from), &mut self.moved, MAX_MOVED),
            PatchOperation::Copy(o) => (&o.path, Some(&o.from), &mut self.copied, MAX_COPIED),
            _ => return Ok(()),
        };
        let mut depth = path.tokens().count();
        if let Some(value) = from.and_then(|from| document.pointer(from.as_str())) {
            let (size, below) = measure(value);
            *spent += size;
            depth += below;
            if *spent > most {
                return Err(Error::Unprocessable(format!(
                    "unable to complete the copy, the accumulated size increase of copy is {spent}, exceeding the limit {most}"
                )));
            }
        }
        if depth > 2 * MAX_DEPTH {
            return Err(Error::Unprocessable(format!(
                "the patch nests deeper than {}",
                2 * MAX_DEPTH
            )));
        }
        Ok(())
    }
}

/// About how many bytes a value has, and how deep it is.
fn measure(value: &Value) -> (usize, usize) {
    let add = |(size, depth): (usize, usize), (s, d): (usize, usize)| (size + s, depth.max(d + 1));
    match value {
        Value::Object(o) => o
            .iter()
            .map(|(k, v)| {
                let (size, depth) = measure(v);
                (size + k.len() + 4, depth)
            })
            .fold((2, 0), add),
        Value::Array(a) => a.iter().map(measure).fold((2, 0), add),
        Value::String(s) => (s.len() + 2, 0),
        _ => (8, 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(mut document: Value, patch: Value) -> Result<Value, Error> {
        json_patch(&mut document, patch.to_string().as_bytes()).map(|()| document)
    }

    #[test]
    fn merge() {
        // The examples of RFC 7396, appendix A.
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (mut document, patch, wanted) in cases {
            json_merge(&mut document, &patch);
            assert_eq!(document, wanted, "{patch}");
        }
    }

    #[test]
    fn operations() {
        let document = json!({"a": {"b": [1, 2]}});
        let patch = json!([
            {"op": "test", "path": "/a/b/0", "value": 1},
            {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "copy", "from": "/a/b", "path": "/c"},
            {"op": "remove", "path": "/a/b/0"},
            {"op": "move", "from": "/a/b", "path": "/d"},
            {"op": "replace", "path": "/c/0", "value": 9},
        ]);
        assert_eq!(
            patched(document.clone(), patch).unwrap(),
            json!({"a": {}, "c": [9, 2, 3], "d": [2, 3]})
        );
        let failing = json!([{"op": "add", "path": "/x", "value": 1}, {"op": "remove", "path": "/nothing"}]);
        let mut untouched = document.clone();
        let error = json_patch(&mut untouched, failing.to_string().as_bytes()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(r#"remove operation does not apply at "/nothing": "#),
            "{error}"
        );
        assert_eq!(untouched, document);
        assert_eq!(error.to_status().code, 422);
    }

    #[test]
    fn bounds() {
        let many = Value::Array(vec![json!({"op": "test", "path": "", "value": {}}); MAX_OPERATIONS + 1]);
        let error = patched(json!({}), many).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        assert_eq!(error.to_status().code, 413);
        // Each copy doubles: 2^30 bytes if nothing stopped it.
        let doubling: Vec<Value> = (0..30)
            .map(|i| json!({"op": "copy", "from": "", "path": format!("/{i}")}))
            .collect();
        assert!(patched(json!({"a": "x"}), doubling.into()).is_err());
        let nesting: Vec<Value> = (0..5_000)
            .map(|_| json!({"op": "move", "from": "/a", "path": "/a/a"}))
            .collect();
        assert!(patched(json!({"a": {}}), nesting.into()).is_err());
        let mut deeper = vec![json!({"op": "add", "path": "/b", "value": {}})];
        for _ in 0..2_000 {
            deeper.push(json!({"op": "move", "from": "/a", "path": "/b/a"}));
            deeper.push(json!({"op": "move", "from": "/b", "path": "/a"}));
            deeper.push(json!({"op": "add", "path": "/b", "value": {}}));
        }
        assert!(
            patched(json!({"a": {}}), deeper.into())
                .unwrap_err()
                .to_string()
                .contains("deeper")
        );
        assert!(matches!(
            patched(json!({}), json!({"op": "add"})),
            Err(Error::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn merging_what_is_there_changes_nothing(a in -3i64..3, b in "[a-z]{0,2}") {
            let document = json!({"x": {"a": a, "l": [b]}, "y": b});
            let mut merged = document.clone();
            json_merge(&mut merged, &document);
            prop_assert_eq!(merged, document);
        }
    }
}
