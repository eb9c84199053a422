//! `/openapi/v3` and `/openapi/v2`: the schema as clients read it (`kubectl explain`, strategic merges and `--validate` of `kubectl apply`).
//!
//! Made from the same model that decodes and merges; a document is made when it is asked for and not kept. No descriptions: the model has none.

mod protobuf;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use skiff_api::resource::Resource;
use skiff_api::schema::{Field, ListKind, Patch, Scalar, Shape, Type};

use crate::body::Body;
use crate::discovery::group_version_path;
use crate::resources::{Resources, Served};

/// What clients ask for; `@` must not stand in a media type, so the answer names itself with a dot.
const ASKED: [&str; 2] = ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF];
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Which edition of OpenAPI is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edition {
    V2,
    V3,
}

/// Answers a path under `/openapi`; `None` when there is no such document.
pub(crate) fn answer(resources: &Resources, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    if path == "/openapi/v2" {
        let document = whole(resources);
        let binary = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.split([',', ';']).any(|entry| ASKED.contains(&entry.trim())));
        let (bytes, content_type) = if binary {
            (protobuf::document(&document), PROTOBUF)
        } else {
            (serde_json::to_vec(&document).unwrap_or_default(), "application/json")
        };
        let mut response = Response::new(Body::from(Bytes::from(bytes)));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        return Some(response);
    }
    let path = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    let document = if path.is_empty() {
        index(resources)
    } else {
        let (group, version) = resources
            .group_versions()
            .into_iter()
            .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)))
            .find(|(group, version)| group_version_path(group, version).trim_matches('/') == path)?;
        document(resources, group, version)
    };
    let bytes: Bytes = serde_json::to_vec(&document).unwrap_or_default().into();
    let mut response = Response::new(Body::from(bytes));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(response)
}

fn index(resources: &Resources) -> Value {
    let mut paths = Map::new();
    for (group, versions) in resources.group_versions() {
        for version in versions {
            let path = group_version_path(group, version);
            let served: Vec<&str> = of_version(resources, group, version)
                .map(|served| served.resource.plural)
                .collect();
            // The documents change with the build only.
            let hash = Sha256::digest(format!("{}{path}{served:?}", env!("CARGO_PKG_VERSION")));
            let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02X}")).collect();
            paths.insert(
                path.trim_matches('/').to_owned(),
                json!({"serverRelativeURL": format!("/openapi/v3{path}?hash={hash}")}),
            );
        }
    }
    json!({"paths": paths})
}

fn of_version<'a>(resources: &'a Resources, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Served> {
    resources
        .all()
        .iter()
        .map(|served| &**served)
        .filter(move |served| served.resource.group == group && served.resource.version == version)
}

/// One version of one group, as OpenAPI v3.
fn document(resources: &Resources, group: &str, version: &str) -> Value {
    let (paths, schemas) = parts(of_version(resources, group, version), Edition::V3);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// Everything, as OpenAPI v2.
fn whole(resources: &Resources) -> Value {
    let (paths, definitions) = parts(resources.all().iter().map(|served| &**served), Edition::V2);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "definitions": definitions,
    })
}

/// The paths and the types of some resources.
fn parts<'a>(served: impl Iterator<Item = &'a Served>, edition: Edition) -> (Map<String, Value>, Map<String, Value>) {
    let mut paths = Map::new();
    let mut types: BTreeMap<String, Arc<Type>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for served in served {
        let resource = served.resource;
        collect(&served.kind, &mut types);
        kinds
            .entry(served.kind.name.to_string())
            .or_default()
            .push(kind(resource));
        let root = group_version_path(resource.group, resource.version);
        let base = match resource.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", resource.plural),
            false => format!("{root}/{}", resource.plural),
        };
        let collection = [("list", "get"), ("create", "post"), ("deletecollection", "delete")];
        let single = [
            ("get", "get"),
            ("update", "put"),
            ("patch", "patch"),
            ("delete", "delete"),
        ];
        for (path, verbs) in [
            (base.clone(), &collection[..]),
            (format!("{base}/{{name}}"), &single[..]),
        ] {
            let operations = operations(served, verbs, edition);
            if !operations.is_empty() {
                paths.insert(path, operations.into());
            }
        }
    }
    let schemas = types
        .values()
        .map(|ty| {
            let mut schema = object(ty, edition);
            if let Some(kinds) = kinds.get(&*ty.name) {
                schema["x-kubernetes-group-version-kind"] = kinds.clone().into();
            }
            (ty.name.to_string(), schema)
        })
        .collect();
    (paths, schemas)
}

fn kind(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

const PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

fn operations(served: &Served, wanted: &[(&str, &str)], edition: Edition) -> Map<String, Value> {
    let resource = served.resource;
    let mut operations = Map::new();
    for (verb, method) in wanted.iter().filter(|(verb, _)| resource.allows(verb)) {
        let mut operation = json!({
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": kind(resource),
        });
        let schema = reference(&served.kind.name, edition);
        operation["responses"] = match edition {
            Edition::V2 => json!({"200": {"description": "OK"}}),
            Edition::V3 => json!({"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}),
        };
        let writes = matches!(*method, "post" | "put" | "patch");
        if writes || *method == "delete" {
            let names: &[&str] = if writes {
                &["dryRun", "fieldManager", "fieldValidation"]
            } else {
                &["dryRun"]
            };
            operation["parameters"] = names.iter().map(|name| query(name, edition)).collect();
        }
        let consumes: &[&str] = match *method {
            "patch" => &PATCHES,
            "post" | "put" => &["application/json"],
            _ => &[],
        };
        match edition {
            _ if consumes.is_empty() => {}
            Edition::V2 => operation["consumes"] = json!(consumes),
            Edition::V3 => {
                let body = if *method == "patch" {
                    json!({"type": "object"})
                } else {
                    schema
                };
                let content: Map<String, Value> = consumes
                    .iter()
                    .map(|media| ((*media).to_owned(), json!({"schema": body})))
                    .collect();
                operation["requestBody"] = json!({"content": content});
            }
        }
        operations.insert((*method).to_owned(), operation);
    }
    operations
}

fn query(name: &str, edition: Edition) -> Value {
    match edition {
        Edition::V2 => json!({"name": name, "in": "query", "type": "string"}),
        Edition::V3 => json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}),
    }
}

fn reference(name: &str, edition: Edition) -> Value {
    match edition {
        Edition::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Edition::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

/// Adds a type, and every type that it mentions.
fn collect(ty: &Arc<Type>, types: &mut BTreeMap<String, Arc<Type>>) {
    if types.insert(ty.name.to_string(), Arc::clone(ty)).is_some() {
        return;
    }
    for field in ty.fields() {
        collect_shape(&field.shape, types);
    }
}

fn collect_shape(shape: &Shape, types: &mut BTreeMap<String, Arc<Type>>) {
    match shape {
        Shape::Struct(ty) => collect(ty, types),
        Shape::List(list) => collect_shape(&list.item, types),
        Shape::Map(map) => collect_shape(&map.value, types),
        Shape::Scalar(_) | Shape::Named(_) => {}
    }
}

fn object(ty: &Type, edition: Edition) -> Value {
    // A union is written as any one of its members.
    if ty.union {
        return json!({});
    }
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in ty.fields() {
        properties.insert(field.name.to_string(), property(field, edition));
        if field.required {
            required.push(field.name.to_string());
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if ty.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    schema
}

fn property(field: &Field, edition: Edition) -> Value {
    let mut schema = shape(&field.shape, edition);
    if let Some(default) = &field.default {
        schema["default"] = default.clone();
    }
    if let Some(Patch {
        merge,
        retain_keys,
        replace,
        key,
    }) = &field.patch
    {
        let strategies: Vec<&str> = [(*merge, "merge"), (*retain_keys, "retainKeys"), (*replace, "replace")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        if !strategies.is_empty() {
            schema["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if let Some(key) = key {
            schema["x-kubernetes-patch-merge-key"] = (**key).into();
        }
    }
    schema
}

fn shape(shape_: &Shape, edition: Edition) -> Value {
    match shape_ {
        Shape::Scalar(kind) => scalar(*kind, edition),
        Shape::Named(named) => {
            let mut schema = scalar(named.scalar, edition);
            if !named.values.is_empty() {
                schema["enum"] = named.values.iter().map(|value| Value::from(&**value)).collect();
            }
            schema
        }
        // In v3, siblings of a $ref are ignored, so it stands alone inside allOf.
        Shape::Struct(ty) if edition == Edition::V3 => json!({"allOf": [reference(&ty.name, edition)]}),
        Shape::Struct(ty) => reference(&ty.name, edition),
        Shape::List(list) => {
            let mut schema = json!({"type": "array", "items": shape(&list.item, edition)});
            match &list.kind {
                ListKind::Atomic => schema["x-kubernetes-list-type"] = "atomic".into(),
                ListKind::Set => schema["x-kubernetes-list-type"] = "set".into(),
                ListKind::Map(keys) => {
                    schema["x-kubernetes-list-type"] = "map".into();
                    schema["x-kubernetes-list-map-keys"] = keys.iter().map(|key| Value::from(&**key)).collect();
                }
            }
            schema
        }
        Shape::Map(map) => {
            let mut schema = json!({"type": "object", "additionalProperties": shape(&map.value, edition)});
            if map.atomic {
                schema["x-kubernetes-map-type"] = "atomic".into();
            }
            schema
        }
    }
}

fn scalar(kind: Scalar, edition: Edition) -> Value {
    match kind {
        // v2 has no oneOf.
        Scalar::Quantity if edition == Edition::V2 => json!({"type": "string"}),
        Scalar::IntOrString if edition == Edition::V2 => json!({"type": "string", "format": "int-or-string"}),
        Scalar::Bool => json!({"type": "boolean"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 | Scalar::Uint32 => json!({"type": "integer", "format": "int64"}),
        Scalar::Float64 => json!({"type": "number", "format": "double"}),
        Scalar::String | Scalar::Duration => json!({"type": "string"}),
        Scalar::Bytes => json!({"type": "string", "format": "byte"}),
        Scalar::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Scalar::IntOrString => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
        Scalar::RawExtension | Scalar::FieldsV1 => json!({"type": "object"}),
        Scalar::Json => json!({}),
    }
}
