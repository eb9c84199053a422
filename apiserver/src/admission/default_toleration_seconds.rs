//! Pods stay for five minutes on a node that is not ready or not reachable, unless they say otherwise.

use serde_json::{Value, json};

use super::{Operation, Plugin, Review};
use crate::errors::Result;

const SECONDS: i64 = 300;
const TAINTS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// See the module.
#[derive(Debug)]
pub(super) struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        // On updates too: a client that replaces the list (`kubectl apply`) knows nothing of these.
        let written = matches!(review.operation, Operation::Create | Operation::Update);
        if written && review.is_about("", "pods") && pod["spec"].is_object() {
            tolerate(&mut pod["spec"]);
        }
        Ok(())
    }
}

fn tolerate(spec: &mut Value) {
    for taint in TAINTS {
        let tolerated = spec["tolerations"].as_array().into_iter().flatten().any(|toleration| {
            let text = |key: &str| toleration[key].as_str().unwrap_or_default();
            let key = text("key") == *taint || (text("key").is_empty() && text("operator") == "Exists");
            key && matches!(text("effect"), "" | "NoExecute")
        });
        if tolerated {
            continue;
        }
        let toleration =
            json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
        match spec["tolerations"].as_array_mut() {
            Some(list) => list.push(toleration),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::tolerate;

    #[test]
    fn what_a_pod_says_itself_stands() {
        let mut spec = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]});
        tolerate(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        let mut all = json!({"tolerations": [{"operator": "Exists"}]});
        tolerate(&mut all);
        assert_eq!(all["tolerations"].as_array().unwrap().len(), 1);
    }
}
