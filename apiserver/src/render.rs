//! Answers in the form that the client asked for.
//!
//! Plain JSON, the usual case, sends the cache's bytes as they are. The other forms parse objects and are made for each request.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::resource::Resource;

use crate::cache::{Change, Kind, Listing, Object, frame};
use crate::negotiate::Form;
use crate::resources::{Conversion, Served};
use crate::table;

/// Lists are sent in pieces of about this size.
const PIECE: usize = 64 * 1024;

/// How objects of a resource look in an answer.
#[derive(Debug, Clone)]
pub struct Render {
    resource: &'static Resource,
    conversion: Option<Conversion>,
    form: Form,
    include: Include,
}

/// `includeObject` of a table request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

impl Render {
    /// Renders objects of `served` in `form`; `include` is the query's `includeObject`.
    pub fn new(served: Arc<Served>, form: Form, include: Option<&str>) -> Self {
        Self {
            conversion: served.conversion,
            ..Self::of(served.resource, form, include)
        }
    }

    /// As [`Render::new`], for objects that are not stored.
    pub fn of(resource: &'static Resource, form: Form, include: Option<&str>) -> Self {
        let include = match include {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Self {
            resource,
            conversion: None,
            form,
            include,
        }
    }

    /// Whether the cache's bytes are sent as they are.
    fn is_plain(&self) -> bool {
        self.form == Form::Json && self.conversion.is_none()
    }

    /// The content type of what is rendered.
    pub fn content_type(&self) -> &'static str {
        match self.form {
            Form::Yaml => "application/yaml",
            _ => "application/json",
        }
    }

    fn parse(&self, bytes: &[u8]) -> Value {
        let mut value = serde_json::from_slice(bytes).unwrap_or_default();
        if let Some(conversion) = &self.conversion {
            (conversion.serve)(&mut value);
        }
        value
    }

    /// One object.
    pub fn object(&self, bytes: &Bytes) -> Bytes {
        if self.is_plain() {
            return bytes.clone();
        }
        self.value(&self.parse(bytes))
    }

    /// One object that is parsed already.
    pub fn value(&self, value: &Value) -> Bytes {
        match self.form {
            Form::Json => to_bytes(value),
            Form::Yaml => yaml(value),
            Form::Metadata => to_bytes(&partial(value)),
            Form::Table => {
                let metadata = json!({"resourceVersion": meta::resource_version(value)});
                to_bytes(&self.table(std::slice::from_ref(value), metadata, true))
            }
        }
    }

    /// A watch event of an object.
    pub fn event(&self, kind: Kind, object: &Bytes) -> Bytes {
        if self.is_plain() {
            return frame(kind.name(), object);
        }
        frame(kind.name(), &self.object(object))
    }

    /// The watch event of a change; shared by all watchers when it is plain.
    pub fn frame(&self, change: &Change, kind: Kind) -> Bytes {
        if self.is_plain() {
            return change.frame(kind);
        }
        self.event(kind, &change.object(kind))
    }

    /// A watch event that says how far the watcher has come.
    pub fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Table => self.table(&[], metadata, false),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Json | Form::Yaml => json!({
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
            }),
        };
        frame("BOOKMARK", &to_bytes(&object))
    }

    /// A list, in pieces.
    pub fn list(&self, listing: &Listing, next: Option<&str>, show_remaining: bool) -> VecDeque<Bytes> {
        let mut metadata = json!({"resourceVersion": listing.revision.to_string()});
        if let Some(next) = next {
            metadata["continue"] = next.into();
            if show_remaining {
                metadata["remainingItemCount"] = listing.remaining.into();
            }
        }
        if !self.is_plain() {
            let values: Vec<Value> = listing.objects.iter().map(|object| self.parse(&object.bytes)).collect();
            return VecDeque::from([self.list_value(&values, metadata)]);
        }
        let mut pieces = VecDeque::new();
        let mut piece = BytesMut::with_capacity(PIECE + 4096);
        piece.put_slice(b"{\"kind\":\"");
        piece.put_slice(self.resource.kind.as_bytes());
        piece.put_slice(b"List\",\"apiVersion\":\"");
        piece.put_slice(self.resource.api_version().as_bytes());
        piece.put_slice(b"\",\"metadata\":");
        piece.put_slice(&to_bytes(&metadata));
        piece.put_slice(b",\"items\":[");
        for (index, object) in listing.objects.iter().enumerate() {
            if index > 0 {
                piece.put_u8(b',');
            }
            append(&mut pieces, &mut piece, object);
        }
        piece.put_slice(b"]}\n");
        pieces.push_back(piece.freeze());
        pieces
    }

    /// A list of objects that are parsed already.
    pub fn list_value(&self, values: &[Value], metadata: Value) -> Bytes {
        match self.form {
            Form::Table => to_bytes(&self.table(values, metadata, true)),
            Form::Metadata => to_bytes(&json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": values.iter().map(partial).collect::<Vec<_>>(),
            })),
            Form::Json | Form::Yaml => {
                let list = json!({
                    "kind": format!("{}List", self.resource.kind),
                    "apiVersion": self.resource.api_version(),
                    "metadata": metadata,
                    "items": values,
                });
                if self.form == Form::Yaml {
                    yaml(&list)
                } else {
                    to_bytes(&list)
                }
            }
        }
    }

    fn table(&self, values: &[Value], metadata: Value, columns: bool) -> Value {
        let resource = self.resource;
        let now = Timestamp::now();
        let rows: Vec<Value> = values
            .iter()
            .map(|value| {
                let mut row = json!({"cells": table::row(resource, value, now)});
                match self.include {
                    Include::None => {}
                    Include::Metadata => row["object"] = partial(value),
                    Include::Object => row["object"] = value.clone(),
                }
                row
            })
            .collect();
        let definitions = if columns {
            json!(table::columns(resource))
        } else {
            json!([])
        };
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": definitions,
            "rows": rows,
        })
    }
}

/// Appends an object; large ones are sent from the cache's own bytes.
fn append(pieces: &mut VecDeque<Bytes>, piece: &mut BytesMut, object: &Object) {
    if object.bytes.len() >= PIECE / 4 {
        pieces.push_back(piece.split().freeze());
        pieces.push_back(object.bytes.clone());
        return;
    }
    piece.put_slice(&object.bytes);
    if piece.len() >= PIECE {
        pieces.push_back(std::mem::replace(piece, BytesMut::with_capacity(PIECE + 4096)).freeze());
    }
}

fn partial(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

fn to_bytes(value: &Value) -> Bytes {
    // A value made of JSON can be written as JSON.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn yaml(value: &Value) -> Bytes {
    match serde_saphyr::to_string(value) {
        Ok(text) => text.into(),
        Err(error) => {
            tracing::error!(%error, "cannot write YAML");
            Bytes::new()
        }
    }
}
