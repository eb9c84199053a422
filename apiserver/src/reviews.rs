//! Questions instead of objects: who am I, may I, whose token is this.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::{Qualified, Status};
use skiff_api::validation::validate_access_review;

use crate::authentication::User;
use crate::authorization::Attributes;
use crate::body::Body;
use crate::errors::Result;
use crate::handlers;
use crate::registry::Options;
use crate::resources::Served;
use crate::server::{Call, Server};
use crate::subresources;

/// Answers a review.
pub(crate) async fn handle(server: &Arc<Server>, served: &Arc<Served>, mut call: Call) -> Result<Response<Body>> {
    let resource = served.resource;
    if resource.plural == "bindings" {
        return subresources::bind_by_object(server, call).await;
    }
    let options = Options::parse(&call.query)?;
    let decoded = handlers::decode(served, &mut call, options).await?;
    let Call { info, user, .. } = call;
    let mut review = decoded.value;
    if resource.plural.ends_with("accessreviews") {
        let faults = validate_access_review(resource.kind, &review);
        if !faults.is_empty() {
            let kind = Qualified::new(resource.group, resource.kind);
            return Err(Status::invalid(kind, "", &faults));
        }
    }
    let status = match resource.plural {
        "subjectaccessreviews" => access(server, &subject(&review), &review),
        "localsubjectaccessreviews" => {
            let namespace = review
                .pointer("/spec/resourceAttributes/namespace")
                .and_then(Value::as_str);
            if namespace.unwrap_or_default() != info.namespace {
                return Err(Status::bad_request(
                    "spec.resourceAttributes.namespace must match the namespace of the review",
                ));
            }
            access(server, &subject(&review), &review)
        }
        "selfsubjectaccessreviews" => access(server, &user, &review),
        "selfsubjectrulesreviews" => {
            let namespace = review
                .pointer("/spec/namespace")
                .and_then(Value::as_str)
                .unwrap_or_default();
            rules(server, &user, namespace)
        }
        "tokenreviews" => token(server, &review),
        "selfsubjectreviews" => json!({"userInfo": user_info(&user)}),
        _ => return Err(Status::method_not_supported(resource.qualified(), "create")),
    };
    review["status"] = status;
    meta::set(&mut review, "creationTimestamp", meta::now());
    let bytes = bytes::Bytes::from(serde_json::to_vec(&review).unwrap_or_default());
    Ok(handlers::answer(
        StatusCode::CREATED,
        "application/json",
        bytes,
        &decoded.warnings,
    ))
}

/// The user that a SubjectAccessReview asks about, exactly as given.
fn subject(review: &Value) -> User {
    let strings = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    User {
        name: review["spec"]["user"].as_str().unwrap_or_default().to_owned(),
        uid: review["spec"]["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&review["spec"]["groups"]),
        extra: review["spec"]["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), strings(value)))
            .collect(),
    }
}

fn access(server: &Server, user: &User, review: &Value) -> Value {
    let spec = &review["spec"];
    let text = |value: &'_ Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let reason = if spec["nonResourceAttributes"].is_object() {
        let wanted = &spec["nonResourceAttributes"];
        server.authorizer.allows(
            user,
            &Attributes {
                verb: &text(wanted, "verb"),
                path: &text(wanted, "path"),
                ..Attributes::default()
            },
        )
    } else {
        let wanted = &spec["resourceAttributes"];
        server.authorizer.allows(
            user,
            &Attributes {
                verb: &text(wanted, "verb"),
                is_resource: true,
                group: &text(wanted, "group"),
                resource: &text(wanted, "resource"),
                subresource: &text(wanted, "subresource"),
                namespace: &text(wanted, "namespace"),
                name: &text(wanted, "name"),
                field_selector: &field_selector(&wanted["fieldSelector"]),
                path: "",
            },
        )
    };
    match reason {
        Some(reason) if reason.is_empty() => json!({"allowed": true}),
        Some(reason) => json!({"allowed": true, "reason": reason}),
        None => json!({"allowed": false}),
    }
}

/// The text of a selector that may be given in pieces. As upstream, pieces that no text can say are left out: then more is asked for.
fn field_selector(selector: &Value) -> String {
    if let Some(raw) = selector["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return raw.to_owned();
    }
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    let terms = requirements.filter_map(|requirement| {
        let operator = match requirement["operator"].as_str()? {
            "In" => "=",
            "NotIn" => "!=",
            _ => return None,
        };
        let [value] = requirement["values"].as_array()?.as_slice() else {
            return None;
        };
        let escaped = value
            .as_str()?
            .replace('\\', "\\\\")
            .replace(',', "\\,")
            .replace('=', "\\=");
        Some(format!("{}{operator}{escaped}", requirement["key"].as_str()?))
    });
    terms.collect::<Vec<_>>().join(",")
}

fn rules(server: &Server, user: &User, namespace: &str) -> Value {
    let mut resource_rules = Vec::new();
    let mut other_rules = Vec::new();
    for rules in server.authorizer.rules(user, namespace) {
        for rule in rules.0.iter() {
            if rule.non_resource_urls.is_empty() {
                let mut entry = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
                if !rule.resource_names.is_empty() {
                    entry["resourceNames"] = json!(rule.resource_names);
                }
                resource_rules.push(entry);
            } else {
                other_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
            }
        }
    }
    json!({"incomplete": false, "resourceRules": resource_rules, "nonResourceRules": other_rules})
}

fn token(server: &Server, review: &Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let audiences: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    match server.authenticator.review(token, &audiences) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
        Err(error) => json!({"user": {}, "error": skiff_daemon::error_chain(&*error)}),
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::selector::FieldSelector;

    use super::field_selector;

    #[test]
    fn selectors_in_pieces_say_what_their_text_says() {
        let one =
            |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        let node = one("spec.nodeName", "In", &["n1"]);
        for (selector, text) in [
            (json!({"rawSelector": "spec.nodeName=n1"}), "spec.nodeName=n1"),
            (json!({"requirements": [node]}), "spec.nodeName=n1"),
            (
                json!({"requirements": [one("a", "NotIn", &["b"]), node]}),
                "a!=b,spec.nodeName=n1",
            ),
            (
                json!({"requirements": [one("a", "In", &["b", "c"]), one("a", "Exists", &[])]}),
                "",
            ),
            (json!(null), ""),
        ] {
            assert_eq!(field_selector(&selector), text, "{selector}");
        }
        let odd = field_selector(&json!({"requirements": [one("a", "In", &["b,spec.nodeName=\\n1"])]}));
        let odd = FieldSelector::parse(&odd).unwrap();
        assert_eq!(odd.requirements().len(), 1);
        assert_eq!(odd.requirements()[0].value, "b,spec.nodeName=\\n1");
    }
}
