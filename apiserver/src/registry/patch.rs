//! Patches: how each kind of patch makes a wanted object of the current one.

use serde_json::Value;
use skiff_api::decode::{self, FieldValidation};
use skiff_api::patch::{self, Error};
use skiff_api::schema::Type;
use skiff_api::status::{Qualified, Status};
use skiff_api::{field, meta};

use crate::errors::Result;

/// A patch that is understood.
#[derive(Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Vec<u8>),
    /// RFC 7396.
    Merge(Value),
    /// Upstream's own, which merges lists by their keys.
    Strategic(Value),
}

/// Content types of patches.
const ACCEPTED: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

impl Patch {
    /// Reads a patch of the content type.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Self> {
        let object = || -> Result<Value> {
            let value: Value = serde_json::from_slice(body)
                .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
            if !value.is_object() {
                return Err(Status::bad_request("error decoding patch: it must be a JSON object"));
            }
            Ok(value)
        };
        match media_type {
            "application/json-patch+json" => Ok(Self::Json(body.to_vec())),
            "application/merge-patch+json" => Ok(Self::Merge(object()?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(object()?)),
            _ => Err(Status::unsupported_media_type(ACCEPTED)),
        }
    }

    /// The object that the patch makes of `current`; with what is to be said of it.
    pub fn apply(
        &self,
        current: &Value,
        kind: &Type,
        about: (Qualified<'_>, &str),
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>)> {
        let patched = match self {
            Self::Json(operations) => {
                let mut patched = current.clone();
                patch::json_patch(&mut patched, operations).map_err(|error| refuse(error, about))?;
                patched
            }
            Self::Merge(merge) => {
                let mut patched = current.clone();
                patch::json_merge(&mut patched, merge);
                patched
            }
            Self::Strategic(strategic) => {
                patch::strategic_merge(kind, current, strategic).map_err(|error| refuse(error, about))?
            }
        };
        let decoded = decode::conform(patched, kind, validation).map_err(|error| match &error {
            // A patch that makes a malformed object is not malformed itself.
            decode::DecodeError::Syntax(_) | decode::DecodeError::Value(_) => {
                let path = field::Path::root("patch");
                Status::invalid(
                    about.0,
                    about.1,
                    &[field::Error::invalid(&path, patch_text(self), error.to_string())],
                )
            }
            decode::DecodeError::Strict(_) => Status::bad_request(error.to_string()),
        })?;
        for (key, what) in [
            ("apiVersion", meta::api_version as fn(&Value) -> &str),
            ("kind", meta::kind),
        ] {
            if what(&decoded.value) != what(current) {
                return Err(Status::bad_request(format!(
                    "the {key} in the data ({}) does not match the expected {key} ({})",
                    what(&decoded.value),
                    what(current)
                )));
            }
        }
        Ok((decoded.value, decoded.warnings))
    }
}

fn patch_text(patch: &Patch) -> String {
    match patch {
        Patch::Json(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Patch::Merge(value) | Patch::Strategic(value) => value.to_string(),
    }
}

fn refuse(error: Error, about: (Qualified<'_>, &str)) -> Status {
    let text = error.to_string();
    match error {
        Error::Malformed(_) => Status::bad_request(text),
        Error::Unprocessable(_) => Status::failure(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {text}"),
        )
        .about(about.0, about.1),
        Error::TooManyOperations(_) => Status::request_entity_too_large(text),
    }
}
