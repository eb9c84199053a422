//! The generic registry: what can be done to objects of any kind, over plain JSON values.
//!
//! Reads come from the watch cache. A change is read - changed - written on condition that nobody else wrote in between, and tried
//! again on what is there when somebody did. A kind's own rules come from its [`crate::strategy::Strategy`], rules that look at other objects
//! from [`crate::admission`], addresses of Services from [`crate::allocate`].

pub mod delete;
pub mod events;
pub mod patch;
pub mod read;
pub mod write;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use skiff_api::decode::{self, Decoded, FieldValidation};
use skiff_api::meta;
use skiff_api::protobuf;
use skiff_api::schema::Type;
use skiff_api::status::Status;
use skiff_store::Store;

use crate::admission::Admission;
use crate::allocate::Allocator;
use crate::authentication::User;
use crate::cache::Caches;
use crate::errors::Result;
use crate::negotiate::Encoding;
use crate::query::Query;
use crate::resources::{Resources, Served};

/// The generic registry.
pub struct Registry {
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// Where they are read.
    pub caches: Arc<Caches>,
    /// What is served.
    pub resources: Arc<Resources>,
    /// Rules that look at other objects.
    pub admission: Admission,
    /// Addresses and ports of Services.
    pub allocator: Allocator,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// Who does something to which resource, and where.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The resource.
    pub served: &'a Served,
    /// The namespace; empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// Who.
    pub user: &'a User,
}

/// What the query of a change says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Go all the way but do not store.
    pub dry_run: bool,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
}

impl Options {
    /// Reads the query.
    pub fn parse(query: &Query) -> Result<Self> {
        let dry_run = match query.get("dryRun") {
            None | Some("") => false,
            Some("All") => true,
            Some(other) => {
                return Err(Status::bad_request(format!(
                    "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
                )));
            }
        };
        let text = query.get("fieldValidation").unwrap_or_default();
        let validation = FieldValidation::parse(text).ok_or_else(|| {
            Status::bad_request(format!(
                "fieldValidation: Unsupported value: \"{text}\": supported values: \"Ignore\", \"Warn\", \"Strict\""
            ))
        })?;
        Ok(Self { dry_run, validation })
    }
}

/// An object that was written (or would have been).
#[derive(Debug)]
pub struct Written {
    /// The object as clients receive it.
    pub bytes: Bytes,
    /// Whether it did not exist before.
    pub created: bool,
    /// For the `Warning` headers.
    pub warnings: Vec<String>,
}

/// Bytes as the store keeps them: `apiVersion`, `kind` and `metadata` first, no resourceVersion.
pub fn encode(object: &Value) -> Bytes {
    let mut bytes = Vec::with_capacity(1024);
    let Some(fields) = object.as_object() else {
        return Bytes::new();
    };
    bytes.push(b'{');
    let mut put = |key: &str, value: &Value| {
        if bytes.len() > 1 {
            bytes.push(b',');
        }
        // Writing into memory does not fail.
        serde_json::to_writer(&mut bytes, key).ok();
        bytes.push(b':');
        serde_json::to_writer(&mut bytes, value).ok();
    };
    for key in ["apiVersion", "kind"] {
        if let Some(value) = fields.get(key) {
            put(key, value);
        }
    }
    match fields.get("metadata") {
        Some(metadata) if metadata.get("resourceVersion").is_some() => {
            let mut metadata = metadata.clone();
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.remove("resourceVersion");
            }
            put("metadata", &metadata);
        }
        Some(metadata) => put("metadata", metadata),
        None => put("metadata", &Value::Object(serde_json::Map::new())),
    }
    for (key, value) in fields {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            put(key, value);
        }
    }
    bytes.push(b'}');
    bytes.into()
}

/// Decodes the object of a request body, and checks that it is of the kind that the path means.
pub fn decode(
    body: &[u8],
    encoding: Encoding,
    kind: &Type,
    expected: (&str, &str),
    validation: FieldValidation,
) -> Result<Decoded> {
    let decoded = match encoding {
        Encoding::Json => decode::decode(body, kind, validation),
        Encoding::Yaml => decode::decode_yaml(body, kind, validation),
        Encoding::Protobuf => decode_protobuf(body, kind, validation),
    };
    let mut decoded = decoded.map_err(|error| error.to_status(expected.1, version_of(kind), body))?;
    check_kind(&mut decoded.value, kind, expected)?;
    Ok(decoded)
}

fn decode_protobuf(
    body: &[u8],
    kind: &Type,
    validation: FieldValidation,
) -> std::result::Result<Decoded, decode::DecodeError> {
    let value = protobuf::decode(body, kind).map_err(|error| decode::DecodeError::Syntax(error.to_string()))?;
    decode::conform(value, kind, validation)
}

fn version_of(kind: &Type) -> &str {
    kind.name.rsplit('.').nth(1).unwrap_or_default()
}

/// Sets kind and version where the body has none, and refuses others than the path means.
pub fn check_kind(object: &mut Value, kind: &Type, (api_version, name): (&str, &str)) -> Result<()> {
    match meta::kind(object) {
        "" => object["kind"] = name.into(),
        own if own == name => {}
        own => {
            return Err(Status::bad_request(format!(
                "{own} in version \"{}\" cannot be handled as a {}: no kind \"{own}\" is registered for this path",
                version_of(kind),
                name
            )));
        }
    }
    match meta::api_version(object) {
        "" => object["apiVersion"] = api_version.into(),
        own if own == api_version => {}
        own => {
            return Err(Status::bad_request(format!(
                "the API version in the data ({own}) does not match the expected API version ({api_version})"
            )));
        }
    }
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(serde_json::Map::new());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::encode;

    #[test]
    fn stored_bytes_begin_with_kind_and_metadata() {
        let object = json!({
            "data": {"a": "b"},
            "kind": "ConfigMap",
            "metadata": {"name": "n", "resourceVersion": "5"},
            "apiVersion": "v1",
        });
        assert_eq!(
            encode(&object).as_ref(),
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"n"},"data":{"a":"b"}}"#
        );
    }
}
