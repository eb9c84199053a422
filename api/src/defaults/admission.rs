//! Admission webhooks and policies, custom resource definitions.

use serde_json::Value;

use super::{Fields, absent, child, descend, is_text, items, make, text};

pub(super) fn apply(kind: &str, object: &mut Fields) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            for hook in items(object, "webhooks") {
                webhook(hook, kind.starts_with("Mutating"));
            }
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            if let Some(spec) = child(object, "spec") {
                absent(spec, "failurePolicy", "Fail");
                if let Some(matching) = child(spec, "matchConstraints") {
                    match_resources(matching);
                }
            }
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            if let Some(matching) = descend(object, &["spec", "matchResources"]) {
                match_resources(matching);
            }
        }
        "CustomResourceDefinition" => definition(object),
        _ => {}
    }
}

fn webhook(hook: &mut Fields, mutating: bool) {
    absent(hook, "failurePolicy", "Fail");
    absent(hook, "timeoutSeconds", 10);
    if mutating {
        absent(hook, "reinvocationPolicy", "Never");
    }
    selectors(hook);
    rules(hook, "rules");
    if let Some(service) = descend(hook, &["clientConfig", "service"]) {
        absent(service, "port", 443);
    }
}

fn match_resources(fields: &mut Fields) {
    selectors(fields);
    rules(fields, "resourceRules");
    rules(fields, "excludeResourceRules");
}

fn selectors(fields: &mut Fields) {
    absent(fields, "matchPolicy", "Equivalent");
    absent(fields, "namespaceSelector", Fields::new());
    absent(fields, "objectSelector", Fields::new());
}

fn rules(fields: &mut Fields, key: &str) {
    for rule in items(fields, key) {
        absent(rule, "scope", "*");
    }
}

fn definition(object: &mut Fields) {
    let Some(spec) = child(object, "spec") else { return };
    if let Some(names) = child(spec, "names") {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !kind.is_empty() {
            text(names, "singular", &kind.to_lowercase());
            text(names, "listKind", &format!("{kind}List"));
        }
    }
    if let Some(conversion) = make(spec, "conversion") {
        text(conversion, "strategy", "None");
        if is_text(conversion, "strategy", "Webhook")
            && let Some(service) = descend(conversion, &["webhook", "clientConfig", "service"])
        {
            absent(service, "port", 443);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::applied;

    #[test]
    fn webhooks() {
        let hooks = json!({"webhooks": [{"name": "a.b.c", "clientConfig": {"service": {"name": "s"}}, "rules": [{"operations": ["*"]}]}]});
        assert_eq!(
            applied("admissionregistration.k8s.io", "MutatingWebhookConfiguration", hooks)["webhooks"][0],
            json!({"name": "a.b.c", "clientConfig": {"service": {"name": "s", "port": 443}}, "rules": [{"operations": ["*"], "scope": "*"}],
                "failurePolicy": "Fail", "timeoutSeconds": 10, "reinvocationPolicy": "Never", "matchPolicy": "Equivalent",
                "namespaceSelector": {}, "objectSelector": {}})
        );
    }

    #[test]
    fn definitions() {
        let crd = json!({"spec": {"names": {"kind": "Widget", "plural": "widgets"}}});
        assert_eq!(
            applied("apiextensions.k8s.io", "CustomResourceDefinition", crd)["spec"],
            json!({"names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"}, "conversion": {"strategy": "None"}})
        );
    }
}
