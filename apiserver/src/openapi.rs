//! `/openapi/v3`: the schema as clients read it (`kubectl explain`, strategic merges and `--validate` of `kubectl apply`).
//!
//! Made from the same model that decodes and merges; a document is made when it is asked for and not kept. No descriptions: the model has none.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use skiff_api::resource::Resource;
use skiff_api::schema::{Field, ListKind, Patch, Scalar, Shape, Type};

use crate::body::Body;
use crate::discovery::group_version_path;
use crate::resources::{Resources, Served};

/// Answers a path under `/openapi/v3`; `None` when there is no such document.
pub(crate) fn answer(resources: &Resources, path: &str) -> Option<Response<Body>> {
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

fn document(resources: &Resources, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut types: BTreeMap<String, Arc<Type>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for served in of_version(resources, group, version) {
        let resource = served.resource;
        collect(&served.kind, &mut types);
        kinds
            .entry(served.kind.name.to_string())
            .or_default()
            .push(kind(resource));
        let base = match resource.namespaced {
            true => format!(
                "{}/namespaces/{{namespace}}/{}",
                group_version_path(group, version),
                resource.plural
            ),
            false => format!("{}/{}", group_version_path(group, version), resource.plural),
        };
        let collection = operations(
            served,
            &[("list", "get"), ("create", "post"), ("deletecollection", "delete")],
        );
        let single = operations(
            served,
            &[
                ("get", "get"),
                ("update", "put"),
                ("patch", "patch"),
                ("delete", "delete"),
            ],
        );
        if single.as_object().is_some_and(|operations| !operations.is_empty()) {
            paths.insert(format!("{base}/{{name}}"), single);
        }
        paths.insert(base, collection);
    }
    let schemas: Map<String, Value> = types
        .values()
        .map(|ty| {
            let mut schema = object(ty);
            if let Some(kinds) = kinds.get(&*ty.name) {
                schema["x-kubernetes-group-version-kind"] = kinds.clone().into();
            }
            (ty.name.to_string(), schema)
        })
        .collect();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn kind(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

fn operations(served: &Served, wanted: &[(&str, &str)]) -> Value {
    let resource = served.resource;
    let mut operations = Map::new();
    for (verb, method) in wanted.iter().filter(|(verb, _)| resource.allows(verb)) {
        let mut operation = json!({
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": kind(resource),
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference(&served.kind.name)}}}},
        });
        let writes = matches!(*method, "post" | "put" | "patch");
        if writes || *method == "delete" {
            let mut parameters = vec![query("dryRun")];
            if writes {
                parameters.push(query("fieldManager"));
                parameters.push(query("fieldValidation"));
            }
            operation["parameters"] = parameters.into();
        }
        if *method == "patch" {
            let patch = json!({"schema": {"type": "object"}});
            operation["requestBody"] = json!({"content": {
                "application/json-patch+json": patch,
                "application/merge-patch+json": patch,
                "application/strategic-merge-patch+json": patch,
            }});
        } else if writes {
            operation["requestBody"] =
                json!({"content": {"application/json": {"schema": reference(&served.kind.name)}}});
        }
        operations.insert((*method).to_owned(), operation);
    }
    operations.into()
}

fn query(name: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
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

fn object(ty: &Type) -> Value {
    // A union is written as any one of its members.
    if ty.union {
        return json!({});
    }
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in ty.fields() {
        properties.insert(field.name.to_string(), property(field));
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

fn property(field: &Field) -> Value {
    let mut schema = shape(&field.shape);
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

fn shape(shape_: &Shape) -> Value {
    match shape_ {
        Shape::Scalar(kind) => scalar(*kind),
        Shape::Named(named) => {
            let mut schema = scalar(named.scalar);
            if !named.values.is_empty() {
                schema["enum"] = named.values.iter().map(|value| Value::from(&**value)).collect();
            }
            schema
        }
        // Siblings of a $ref are ignored, so it stands alone inside allOf.
        Shape::Struct(ty) => json!({"allOf": [reference(&ty.name)]}),
        Shape::List(list) => {
            let mut schema = json!({"type": "array", "items": shape(&list.item)});
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
            let mut schema = json!({"type": "object", "additionalProperties": shape(&map.value)});
            if map.atomic {
                schema["x-kubernetes-map-type"] = "atomic".into();
            }
            schema
        }
    }
}

fn scalar(kind: Scalar) -> Value {
    match kind {
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
