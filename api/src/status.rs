//! `metav1.Status`: every way that the API server says no, with upstream's codes, reasons and texts.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::field::{self, quote};

/// A resource or kind with its group: `deployments.apps`, `Deployment.apps`, or `pods` in the core group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qualified<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// Plural resource name, or kind.
    pub name: &'a str,
}

impl<'a> Qualified<'a> {
    /// Joins a group and a resource or kind.
    pub const fn new(group: &'a str, name: &'a str) -> Self {
        Qualified { group, name }
    }
}

impl fmt::Display for Qualified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

/// What an API request failed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Human-readable message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// About what, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// `Failure`, or `Success` for a delete that leaves no object to answer with.
    #[serde(default)]
    pub status: Outcome,
}

/// Whether the request did what it asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It did not.
    #[default]
    Failure,
    /// It did.
    Success,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its resource (or kind, for `Invalid`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its UID.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One entry for each mistake.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// After how many seconds to try again; 0 for unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One reason of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Machine-readable, such as `FieldValueInvalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Human-readable.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The field at fault.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Status {
    /// A failure with no details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: None,
            status: Outcome::Failure,
        }
    }

    /// A success about one object, as a completed deletion answers.
    pub fn success(target: Qualified<'_>, name: &str, uid: &str) -> Self {
        let mut status = Status {
            status: Outcome::Success,
            ..Status::failure(200, "", "")
        }
        .about(target, name);
        status.details_mut().uid = uid.to_owned();
        status
    }

    /// The object does not exist.
    pub fn not_found(resource: Qualified<'_>, name: &str) -> Self {
        let message = format!("{resource} {} not found", quote(name));
        Status::failure(404, "NotFound", message).about(resource, name)
    }

    /// The path names nothing that is served.
    pub fn unknown_path() -> Self {
        let mut status = Status::failure(404, "NotFound", "the server could not find the requested resource");
        status.details_mut();
        status
    }

    /// The name is taken.
    pub fn already_exists(resource: Qualified<'_>, name: &str) -> Self {
        let message = format!("{resource} {} already exists", quote(name));
        Status::failure(409, "AlreadyExists", message).about(resource, name)
    }

    /// Several generated names were all taken.
    pub fn generate_name_conflict(resource: Qualified<'_>, name: &str) -> Self {
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Status::failure(409, "AlreadyExists", message)
            .about(resource, name)
            .retry_after(1)
    }

    /// The object changed in between, or a precondition failed.
    pub fn conflict(resource: Qualified<'_>, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {}: {why}", quote(name));
        Status::failure(409, "Conflict", message).about(resource, name)
    }

    /// The resourceVersion sent is not the newest.
    pub fn stale(resource: Qualified<'_>, name: &str) -> Self {
        Status::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// The object breaks rules of its kind. `kind` is group and kind, not resource.
    pub fn invalid(kind: Qualified<'_>, name: &str, errors: &[field::Error]) -> Self {
        let mut message = format!("{kind} {} is invalid", quote(name));
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in errors {
            let text = error.to_string();
            // Upstream says each thing once, but lists every cause.
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [] => {}
            [one] => message = format!("{message}: {one}"),
            many => message = format!("{message}: [{}]", many.join(", ")),
        }
        let mut status = Status::failure(422, "Invalid", message).about(kind, name);
        status.details_mut().causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.reason.cause().to_owned(),
                message: e.body(),
                field: e.path.clone(),
            })
            .collect();
        status
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::failure(400, "BadRequest", message)
    }

    /// The caller is known but may not. `name` is empty for collections.
    pub fn forbidden(resource: Qualified<'_>, name: &str, why: &str) -> Self {
        let message = match (resource.name, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Status::failure(403, "Forbidden", message).about(resource, name)
    }

    /// The caller is not known.
    pub fn unauthorized() -> Self {
        Status::failure(401, "Unauthorized", "Unauthorized")
    }

    /// The verb means nothing on this resource.
    pub fn method_not_supported(resource: Qualified<'_>, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind {}",
            quote(&resource.to_string())
        );
        Status::failure(405, "MethodNotAllowed", message).about(resource, "")
    }

    /// The HTTP method means nothing on this path.
    pub fn method_not_allowed() -> Self {
        let mut status = Status::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details_mut();
        status
    }

    /// None of the content types asked for can be made.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::failure(406, "NotAcceptable", message)
    }

    /// The body is of a content type that is not understood here.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::failure(415, "UnsupportedMediaType", message)
    }

    /// What was asked for is gone for good.
    pub fn gone(message: impl Into<String>) -> Self {
        Status::failure(410, "Gone", message)
    }

    /// The resourceVersion or continue token asked for is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::failure(410, "Expired", message)
    }

    /// A watch or list asked for a revision that is compacted.
    pub fn too_old_resource_version(asked: u64, oldest: u64) -> Self {
        Status::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// A list or watch asked for a revision that does not exist yet.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let mut status = Status::failure(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        )
        .retry_after(1);
        status.details_mut().causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    /// The body is larger than allowed.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Status::failure(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: {message}"),
        )
    }

    /// The caller should slow down.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Status::failure(429, "TooManyRequests", message).retry_after(retry_after_seconds)
    }

    /// An eviction would break a disruption budget.
    pub fn disruption_budget(message: impl Into<String>, why: impl Into<String>) -> Self {
        let mut status = Status::failure(429, "TooManyRequests", message);
        status.details_mut().causes.push(Cause {
            reason: "DisruptionBudget".to_owned(),
            message: why.into(),
            field: String::new(),
        });
        status
    }

    /// Something broke on the server's side; `why` is shown to the caller.
    pub fn internal(why: impl Into<String>) -> Self {
        let why = why.into();
        let mut status = Status::failure(500, "InternalError", format!("Internal error occurred: {why}"));
        status.details_mut().causes.push(Cause {
            message: why,
            ..Cause::default()
        });
        status
    }

    /// The server could not finish in time and the caller may try again.
    pub fn server_timeout(resource: Qualified<'_>, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        Status::failure(500, "ServerTimeout", message)
            .about(resource, operation)
            .retry_after(retry_after_seconds)
    }

    /// The request ran out of time.
    pub fn timeout(message: impl fmt::Display) -> Self {
        Status::failure(504, "Timeout", format!("Timeout: {message}"))
    }

    /// The server, or something it needs, is away.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::failure(503, "ServiceUnavailable", message)
    }

    /// Names the object that the status is about.
    #[must_use]
    pub fn about(mut self, target: Qualified<'_>, name: &str) -> Self {
        let details = self.details_mut();
        target.group.clone_into(&mut details.group);
        target.name.clone_into(&mut details.kind);
        name.clone_into(&mut details.name);
        self
    }

    /// Says when to try again; the response then carries `Retry-After` too.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details_mut().retry_after_seconds = seconds;
        self
    }

    /// Seconds after which to try again, if said.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// The object as it goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["apiVersion"] = "v1".into();
        value["kind"] = "Status".into();
        value["metadata"] = Value::Object(serde_json::Map::new());
        if let (Outcome::Success, Some(object)) = (self.status, value.as_object_mut()) {
            // Upstream gives a code to failures only.
            object.remove("code");
        }
        value
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::field::Path;

    const DEPLOYMENTS: Qualified<'_> = Qualified::new("apps", "deployments");
    const PODS: Qualified<'_> = Qualified::new("", "pods");

    #[test]
    fn texts_and_codes() {
        let cases = [
            (Status::not_found(PODS, "a"), 404, "NotFound", r#"pods "a" not found"#),
            (
                Status::already_exists(DEPLOYMENTS, "a"),
                409,
                "AlreadyExists",
                r#"deployments.apps "a" already exists"#,
            ),
            (
                Status::stale(DEPLOYMENTS, "a"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on deployments.apps \"a\": the object has been modified; please apply \
                 your changes to the latest version and try again",
            ),
            (
                Status::forbidden(PODS, "", "no"),
                403,
                "Forbidden",
                "pods is forbidden: no",
            ),
            (
                Status::forbidden(PODS, "a", "no"),
                403,
                "Forbidden",
                r#"pods "a" is forbidden: no"#,
            ),
            (
                Status::method_not_supported(PODS, "create"),
                405,
                "MethodNotAllowed",
                r#"create is not supported on resources of kind "pods""#,
            ),
            (
                Status::internal("x"),
                500,
                "InternalError",
                "Internal error occurred: x",
            ),
            (
                Status::too_old_resource_version(3, 10),
                410,
                "Expired",
                "too old resource version: 3 (10)",
            ),
        ];
        for (status, code, reason, message) in cases {
            assert_eq!(
                (status.code, status.reason.as_str(), status.message.as_str()),
                (code, reason, message)
            );
        }
    }

    #[test]
    fn success_has_no_code() {
        assert_eq!(
            Status::success(DEPLOYMENTS, "a", "u").to_value(),
            json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success",
                "details": {"name": "a", "group": "apps", "kind": "deployments", "uid": "u"}})
        );
    }

    #[test]
    fn invalid_lists_causes() {
        let path = Path::root("spec.replicas");
        let errors = [field::Error::invalid(&path, -1, "must be greater than or equal to 0")];
        let status = Status::invalid(Qualified::new("apps", "Deployment"), "a", &errors);
        assert_eq!(
            status.to_value(),
            json!({
                "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 422,
                "reason": "Invalid",
                "message": "Deployment.apps \"a\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "details": {"name": "a", "group": "apps", "kind": "Deployment", "causes": [{
                    "reason": "FieldValueInvalid", "field": "spec.replicas",
                    "message": "Invalid value: -1: must be greater than or equal to 0",
                }]},
            })
        );
        let two = Status::invalid(
            Qualified::new("", "Pod"),
            "p",
            &[errors[0].clone(), field::Error::required(&path, "")],
        );
        assert!(
            two.message.ends_with("spec.replicas: Required value]"),
            "{}",
            two.message
        );
        assert!(
            two.message.contains("is invalid: [spec.replicas: Invalid"),
            "{}",
            two.message
        );
    }
}
