//! Go declarations to one file of schema data.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Source;
use super::go::{self, Package};

/// One file of `api/schema/`.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) package: String,
    kinds: Vec<String>,
    names: BTreeMap<String, Value>,
    pub(crate) types: BTreeMap<String, Type>,
}

#[derive(Debug, Default)]
pub(crate) struct Type {
    pub(crate) atomic: bool,
    union: bool,
    pub(crate) fields: BTreeMap<String, Field>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Field {
    pub(crate) shape: String,
    pub(crate) number: u32,
    /// Numbers of the embedded messages around it, outermost first.
    pub(crate) within: Vec<u32>,
    flags: String,
    default: Option<Value>,
    pub(crate) keys: Vec<String>,
    pub(crate) atomic: bool,
    patch: String,
}

/// Types that are written in JSON in their own way.
const SCALARS: &[(&str, &str)] = &[
    ("k8s.io/apimachinery/pkg/api/resource.Quantity", "Quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr.IntOrString", "IntOrString"),
    ("k8s.io/apimachinery/pkg/runtime.RawExtension", "RawExtension"),
    ("k8s.io/apimachinery/pkg/types.UID", "meta.v1/UID"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Time", "Time"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime", "MicroTime"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.Duration", "Duration"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1", "FieldsV1"),
    ("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON", "JSON"),
];

const UNIONS: &[&str] = &[
    "JSONSchemaPropsOrArray",
    "JSONSchemaPropsOrBool",
    "JSONSchemaPropsOrStringArray",
];

/// Not part of the API: a Go-only view of a watch event.
const INTERNAL: &[&str] = &["InternalEvent"];

/// Builds the file of one package.
pub(crate) fn file(name: &str, package: &str, go: &Package, all: &[(&Source, Package)]) -> Result<File> {
    let own_path = all
        .iter()
        .find(|(s, _)| s.name == name)
        .map(|(s, _)| format!("k8s.io/{}", s.path));
    let emitter = Emitter {
        name,
        own_path: own_path.context("not among the sources")?,
        go,
        all,
    };
    let mut file = File {
        group: go.group.clone(),
        version: package.rsplit('.').next().unwrap_or_default().to_owned(),
        package: package.to_owned(),
        ..File::default()
    };
    for (struct_name, declaration) in &go.structs {
        let written_otherwise = SCALARS
            .iter()
            .any(|(path, _)| *path == format!("{}.{struct_name}", emitter.own_path));
        if written_otherwise || !struct_name.starts_with(char::is_uppercase) {
            continue;
        }
        let ty = emitter
            .ty(struct_name, declaration)
            .with_context(|| format!("{name}: {struct_name}"))?;
        if declaration
            .fields
            .iter()
            .any(|f| f.name.is_empty() && f.go_type.ends_with("TypeMeta"))
        {
            file.kinds.push(struct_name.clone());
        }
        file.types.insert(struct_name.clone(), ty);
    }
    for (alias, declaration) in &go.named {
        if alias.starts_with(char::is_uppercase) && !INTERNAL.contains(&alias.as_str()) {
            file.names.insert(alias.clone(), emitter.named(alias, declaration)?);
        }
    }
    if name == "meta.v1" {
        file.names
            .insert("UID".to_owned(), json!({"is": "string", "go": "types.UID"}));
    }
    Ok(file)
}

struct Emitter<'a> {
    name: &'a str,
    own_path: String,
    go: &'a Package,
    all: &'a [(&'a Source, Package)],
}

impl Emitter<'_> {
    fn named(&self, alias: &str, declaration: &go::Named) -> Result<Value> {
        let mut value = json!({"is": self.shape(&declaration.go_type).with_context(|| alias.to_owned())?});
        if declaration.markers.has("enum") {
            let mut values: Vec<&str> = self
                .go
                .constants
                .values()
                .filter(|(ty, _)| ty == alias)
                .map(|(_, v)| v.as_str())
                .collect();
            values.sort_unstable();
            values.dedup();
            value["values"] = json!(values);
        }
        // In protobuf such a list is a message of its own.
        if declaration.markers.has("protobuf.nullable") {
            value["message"] = json!(true);
        }
        Ok(value)
    }

    fn ty(&self, name: &str, declaration: &go::Struct) -> Result<Type> {
        let mut ty = Type {
            atomic: declaration.markers.get("structType") == Some("atomic"),
            union: UNIONS.contains(&name),
            fields: BTreeMap::new(),
        };
        for field in &declaration.fields {
            let json = field.tags.get("json").map_or("", String::as_str);
            let (json_name, options) = json.split_once(',').unwrap_or((json, ""));
            if json_name == "-" {
                continue;
            }
            if options.split(',').any(|o| o == "inline") || field.name.is_empty() && json_name.is_empty() {
                self.inline(field, &mut ty)
                    .with_context(|| format!("inline {}", field.go_type))?;
            } else {
                let json_name = if ty.union {
                    proto_name(field)
                } else {
                    json_name.to_owned()
                };
                let emitted = self
                    .field(field, options)
                    .with_context(|| format!("field {}", field.name))?;
                ty.fields.insert(json_name, emitted);
            }
        }
        Ok(ty)
    }

    /// Fields of an embedded struct count as the outer one's, except in protobuf.
    fn inline(&self, field: &go::Field, ty: &mut Type) -> Result<()> {
        let (file, name) = self.locate(field.go_type.trim_start_matches('*'))?;
        let (source, package) = self
            .all
            .iter()
            .find(|(s, _)| s.name == file)
            .with_context(|| format!("unknown package {file}"))?;
        let emitter = Emitter {
            name: source.name,
            own_path: format!("k8s.io/{}", source.path),
            go: package,
            all: self.all,
        };
        let declaration = package
            .structs
            .get(&name)
            .with_context(|| format!("unknown struct {file}/{name}"))?;
        let (outer, _) = proto_number(field);
        for (field_name, mut inner) in emitter.ty(&name, declaration)?.fields {
            if file != self.name {
                inner.shape = qualify(&inner.shape, &file);
            }
            if outer == 0 {
                // TypeMeta: protobuf carries it in the envelope.
                inner.number = 0;
            } else {
                inner.within.insert(0, outer);
            }
            ty.fields.insert(field_name, inner);
        }
        Ok(())
    }

    fn field(&self, field: &go::Field, options: &str) -> Result<Field> {
        let markers = &field.markers;
        let omit_empty = options.split(',').any(|o| o == "omitempty" || o == "omitzero");
        let mut flags = String::new();
        if markers.has("required") || (!omit_empty && !markers.has("optional")) {
            flags.push('r');
        }
        if omit_empty {
            flags.push('o');
        }
        if field.go_type.starts_with('*') {
            flags.push('p');
        }
        if markers.get("structType") == Some("granular") {
            flags.push('g');
        }
        let tag = |name: &str| field.tags.get(name).map_or("", String::as_str);
        let (strategy, merge_key) = (tag("patchStrategy"), tag("patchMergeKey"));
        let keys: Vec<String> = match (markers.get("listType"), strategy.split(',').any(|s| s == "merge")) {
            (Some("map"), _) => markers.all("listMapKey").into_iter().map(str::to_owned).collect(),
            (Some("set"), _) => vec![String::new()],
            (None, true) if field.go_type.starts_with("[]") => vec![merge_key.to_owned()],
            _ => Vec::new(),
        };
        let (number, _) = proto_number(field);
        Ok(Field {
            shape: self.shape(&field.go_type)?,
            number,
            within: Vec::new(),
            flags,
            default: markers.get("default").map(|d| self.default(d)).transpose()?,
            keys,
            atomic: markers.get("mapType") == Some("atomic") || markers.get("structType") == Some("atomic"),
            patch: format!("{strategy} {merge_key}").trim().to_owned(),
        })
    }

    fn default(&self, text: &str) -> Result<Value> {
        if let Some(constant) = text.strip_prefix("ref(").and_then(|t| t.strip_suffix(')')) {
            let (_, value) = self
                .go
                .constants
                .get(constant)
                .with_context(|| format!("no constant {constant}"))?;
            return Ok(json!(value));
        }
        serde_json::from_str(text).with_context(|| format!("default {text}"))
    }

    /// `[]T`, `map[]T`, a scalar, `Name` or `file/Name`.
    fn shape(&self, go_type: &str) -> Result<String> {
        let go_type = go_type.trim_start_matches('*');
        if go_type == "[]byte" {
            return Ok("bytes".to_owned());
        }
        if let Some(item) = go_type.strip_prefix("[]") {
            return Ok(format!("[]{}", self.shape(item)?));
        }
        if let Some((_, value)) = go_type.strip_prefix("map[").and_then(|m| m.split_once(']')) {
            return Ok(format!("map[]{}", self.shape(value)?));
        }
        match go_type {
            "string" | "bool" | "int32" | "int64" | "uint32" | "float64" => return Ok(go_type.to_owned()),
            "interface{}" | "any" => return Ok("JSON".to_owned()),
            _ => {}
        }
        let full = self.full_name(go_type)?;
        if let Some((_, scalar)) = SCALARS.iter().find(|(path, _)| *path == full) {
            let own = format!("{}/", self.name);
            return Ok(scalar.strip_prefix(own.as_str()).unwrap_or(scalar).to_owned());
        }
        let (file, name) = self.locate(go_type)?;
        Ok(if file == self.name {
            name
        } else {
            format!("{file}/{name}")
        })
    }

    fn full_name(&self, go_type: &str) -> Result<String> {
        Ok(match go_type.split_once('.') {
            None => format!("{}.{go_type}", self.own_path),
            Some((alias, name)) => {
                let path = self
                    .go
                    .imports
                    .get(alias)
                    .with_context(|| format!("unknown import {alias}"))?;
                format!("{path}.{name}")
            }
        })
    }

    /// The file and name of a declared type.
    fn locate(&self, go_type: &str) -> Result<(String, String)> {
        let full = self.full_name(go_type)?;
        let (path, name) = full.rsplit_once('.').context("no dot")?;
        let source = self
            .all
            .iter()
            .map(|(s, _)| s)
            .find(|s| format!("k8s.io/{}", s.path) == path);
        let source = source.with_context(|| format!("{full} is in none of the packages"))?;
        Ok((source.name.to_owned(), name.to_owned()))
    }
}

/// Makes a name of another file's understood here.
fn qualify(shape: &str, file: &str) -> String {
    let at = shape.rfind(']').map_or(0, |i| i + 1);
    let (prefix, name) = shape.split_at(at);
    let declared = name.starts_with(char::is_uppercase) && !SCALARS.iter().any(|(_, s)| *s == name);
    if declared && !name.contains('/') {
        format!("{prefix}{file}/{name}")
    } else {
        shape.to_owned()
    }
}

/// Number and wire type of a `protobuf` tag.
fn proto_number(field: &go::Field) -> (u32, &str) {
    let tag = field.tags.get("protobuf").map_or("", String::as_str);
    let mut parts = tag.split(',');
    let wire = parts.next().unwrap_or("");
    (parts.next().and_then(|n| n.parse().ok()).unwrap_or(0), wire)
}

fn proto_name(field: &go::Field) -> String {
    let tag = field.tags.get("protobuf").map_or("", String::as_str);
    tag.split(',')
        .find_map(|p| p.strip_prefix("name="))
        .unwrap_or(&field.name)
        .to_owned()
}

impl File {
    /// One line a field, so that a new release shows as a diff that can be read.
    pub(crate) fn render(&self) -> String {
        let mut out = String::from("{\n");
        let kinds = self.kinds.iter().map(|k| json!(k).to_string()).collect::<Vec<_>>();
        writeln!(
            out,
            "\"group\": {},\n\"version\": {},",
            json!(self.group),
            json!(self.version)
        )
        .ok();
        writeln!(out, "\"package\": {},", json!(self.package)).ok();
        writeln!(out, "\"kinds\": [{}],", kinds.join(", ")).ok();
        let names = self
            .names
            .iter()
            .map(|(name, value)| format!("{}: {value}", json!(name)));
        writeln!(out, "\"names\": {{\n{}\n}},", names.collect::<Vec<_>>().join(",\n")).ok();
        let types = self
            .types
            .iter()
            .map(|(name, ty)| format!("{}: {}", json!(name), ty.render()));
        writeln!(out, "\"types\": {{\n{}\n}}\n}}", types.collect::<Vec<_>>().join(",\n")).ok();
        out
    }
}

impl Type {
    fn render(&self) -> String {
        let flags = format!(
            "{}{}",
            if self.atomic { "\"atomic\": true, " } else { "" },
            if self.union { "\"union\": true, " } else { "" }
        );
        let fields = self
            .fields
            .iter()
            .map(|(name, field)| format!("  {}: {}", json!(name), field.render()));
        let fields = fields.collect::<Vec<_>>().join(",\n");
        let fields = if fields.is_empty() {
            fields
        } else {
            format!("\n{fields}\n")
        };
        format!("{{{flags}\"fields\": {{{fields}}}}}")
    }
}

impl Field {
    fn render(&self) -> String {
        let mut out = format!("{{\"is\": {}", json!(self.shape));
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                write!(out, ", \"{name}\": {value}").ok();
            }
        };
        put("n", (self.number > 0).then(|| json!(self.number)));
        put("in", (!self.within.is_empty()).then(|| json!(self.within)));
        put("flags", (!self.flags.is_empty()).then(|| json!(self.flags)));
        put("default", self.default.clone());
        put("keys", (!self.keys.is_empty()).then(|| json!(self.keys)));
        put("atomic", self.atomic.then_some(Value::Bool(true)));
        put("patch", (!self.patch.is_empty()).then(|| json!(self.patch)));
        out.push('}');
        out
    }
}
