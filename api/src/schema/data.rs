//! Reads the checked-in schema data. The format is described in `api/schema/README.md`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Field, Kind, List, ListKind, Map, Name, Named, Patch, Scalar, Schema, Shape, Type};

macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../../schema/", $name, ".json")))),+] };
}

/// Every file, by the name under which the others refer to its types.
const FILES: &[(&str, &str)] = &files![
    "admissionregistration.v1",
    "apiextensions.v1",
    "apps.v1",
    "authentication.v1",
    "authorization.v1",
    "autoscaling.v1",
    "autoscaling.v2",
    "batch.v1",
    "certificates.v1",
    "coordination.v1",
    "core.v1",
    "discovery.v1",
    "events.v1",
    "meta.v1",
    "networking.v1",
    "node.v1",
    "policy.v1",
    "rbac.v1",
    "scheduling.v1",
    "storage.v1",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    group: &'a str,
    version: &'a str,
    package: &'a str,
    #[serde(borrow)]
    kinds: Vec<&'a str>,
    #[serde(borrow)]
    names: BTreeMap<&'a str, NamedData<'a>>,
    #[serde(borrow)]
    types: BTreeMap<&'a str, TypeData<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedData<'a> {
    #[serde(rename = "is")]
    shape: &'a str,
    #[serde(default, borrow)]
    values: Vec<&'a str>,
    /// Go's name, where it is not the file's version and the name.
    #[serde(default)]
    go: &'a str,
    #[serde(default)]
    message: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeData<'a> {
    #[serde(default)]
    atomic: bool,
    #[serde(default)]
    union: bool,
    #[serde(borrow)]
    fields: BTreeMap<&'a str, FieldData<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldData<'a> {
    #[serde(rename = "is")]
    shape: &'a str,
    #[serde(default)]
    n: u32,
    #[serde(default, rename = "in")]
    within: Vec<u32>,
    /// `r` required, `o` omitted when empty, `p` pointer, `g` granular though its type is atomic.
    #[serde(default)]
    flags: &'a str,
    #[serde(default)]
    default: Option<Value>,
    /// Keys of a list of maps; `[""]` for a set.
    #[serde(default, borrow)]
    keys: Vec<&'a str>,
    #[serde(default)]
    atomic: bool,
    /// patchStrategy, then patchMergeKey after a space.
    #[serde(default)]
    patch: &'a str,
}

/// Builds the schema of the checked-in files.
///
/// # Panics
/// When a checked-in file is garbled; a unit test loads them all.
pub(super) fn load() -> Schema {
    let files: Vec<(&str, File<'static>)> = FILES
        .iter()
        .map(|(name, text)| match serde_json::from_str(text) {
            Ok(file) => (*name, file),
            Err(error) => panic!("api/schema/{name}.json is garbled, run `cargo xtask schema`: {error}"),
        })
        .collect();
    let mut loader = Loader {
        files: &files,
        ..Loader::default()
    };
    loader.declare();
    loader.define();
    loader.schema()
}

#[derive(Default)]
struct Loader<'a> {
    files: &'a [(&'static str, File<'static>)],
    names: HashSet<Name>,
    types: HashMap<(&'a str, &'a str), Arc<Type>>,
    named: HashMap<(&'a str, &'a str), Shape>,
}

impl<'a> Loader<'a> {
    fn intern(&mut self, name: &str) -> Name {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name = Name::from(name);
        self.names.insert(name.clone());
        name
    }

    fn declare(&mut self) {
        for (file_name, file) in self.files {
            for (name, data) in &file.types {
                let ty = Type::new(format!("{}.{name}", file.package), data.atomic, data.union);
                self.types.insert((file_name, name), Arc::new(ty));
            }
        }
    }

    fn define(&mut self) {
        for (file_name, file) in self.files {
            for (name, data) in &file.types {
                let fields = data
                    .fields
                    .iter()
                    .map(|(name, field)| self.field(file_name, name, field))
                    .collect();
                self.types[&(*file_name, *name)].define(fields);
            }
        }
    }

    fn field(&mut self, file: &'a str, name: &str, data: &FieldData<'static>) -> Field {
        let patch = (!data.patch.is_empty()).then(|| {
            let (strategy, key) = data.patch.split_once(' ').unwrap_or((data.patch, ""));
            Patch {
                merge: strategy.split(',').any(|s| s == "merge"),
                retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
                replace: strategy.split(',').any(|s| s == "replace"),
                key: (!key.is_empty()).then(|| self.intern(key)),
            }
        });
        let kind = match data.keys.as_slice() {
            [] => ListKind::Atomic,
            [""] => ListKind::Set,
            keys => ListKind::Map(keys.iter().map(|k| self.intern(k)).collect()),
        };
        Field {
            name: self.intern(name),
            shape: self.shape(file, data.shape, kind, data.atomic),
            number: data.n,
            within: data.within.as_slice().into(),
            required: data.flags.contains('r'),
            omit_empty: data.flags.contains('o'),
            pointer: data.flags.contains('p'),
            granular: data.flags.contains('g'),
            // A zero default of a field that cannot tell absent from zero changes nothing.
            default: data.default.clone().filter(|d| data.flags.contains('p') || !is_zero(d)),
            patch,
        }
    }

    /// Reads `[]T`, `map[]T`, a scalar, a name of this file or `file/Name`.
    fn shape(&mut self, file: &'a str, text: &'a str, kind: ListKind, atomic: bool) -> Shape {
        if let Some(item) = text.strip_prefix("[]") {
            let item = self.shape(file, item, ListKind::Atomic, false);
            return Shape::List(Arc::new(List {
                item,
                kind,
                go: None,
                message: false,
            }));
        }
        if let Some(value) = text.strip_prefix("map[]") {
            let value = self.shape(file, value, ListKind::Atomic, false);
            return Shape::Map(Arc::new(Map {
                value,
                atomic,
                go: None,
            }));
        }
        if let Some(scalar) = scalar(text) {
            return Shape::Scalar(scalar);
        }
        let (file, name) = text.split_once('/').unwrap_or((file, text));
        if let Some(ty) = self.types.get(&(file, name)) {
            return Shape::Struct(ty.clone());
        }
        if let (Some(shape), ListKind::Atomic, false) = (self.named.get(&(file, name)), &kind, atomic) {
            return shape.clone();
        }
        self.named_shape(file, name, kind, atomic)
    }

    fn named_shape(&mut self, file: &'a str, name: &'a str, kind: ListKind, atomic: bool) -> Shape {
        let plain = kind == ListKind::Atomic && !atomic;
        let found = self
            .files
            .iter()
            .find(|(n, _)| *n == file)
            .and_then(|(_, f)| Some((f, f.names.get(name)?)));
        let Some((in_file, data)) = found else {
            panic!("api/schema: {file}/{name} is mentioned but not there, run `cargo xtask schema`");
        };
        let version = in_file.package.rsplit('.').next().unwrap_or_default();
        let go = if data.go.is_empty() {
            format!("{version}.{name}")
        } else {
            data.go.to_owned()
        };
        let go = self.intern(&go);
        let shape = match self.shape(file, data.shape, kind, atomic) {
            Shape::Scalar(scalar) => {
                let values = data.values.iter().map(|v| self.intern(v)).collect();
                Shape::Named(Arc::new(Named { go, scalar, values }))
            }
            Shape::List(list) => Shape::List(Arc::new(List {
                item: list.item.clone(),
                kind: list.kind.clone(),
                go: Some(go),
                message: data.message,
            })),
            Shape::Map(map) => Shape::Map(Arc::new(Map {
                value: map.value.clone(),
                atomic: map.atomic,
                go: Some(go),
            })),
            other => other,
        };
        if plain {
            self.named.insert((file, name), shape.clone());
        }
        shape
    }

    fn schema(mut self) -> Schema {
        let mut schema = Schema::default();
        for (file_name, file) in self.files {
            for name in file.types.keys() {
                let ty = self.types[&(*file_name, *name)].clone();
                schema.types.insert(ty.name.clone(), ty);
            }
            for kind in &file.kinds {
                let entry = Kind {
                    group: self.intern(file.group),
                    version: self.intern(file.version),
                    ty: self.types[&(*file_name, *kind)].clone(),
                };
                schema.kinds.entry(self.intern(kind)).or_default().push(entry);
            }
        }
        schema
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn scalar(text: &str) -> Option<Scalar> {
    const ALL: [Scalar; 15] = [
        Scalar::Bool,
        Scalar::Int32,
        Scalar::Int64,
        Scalar::Uint32,
        Scalar::Float64,
        Scalar::String,
        Scalar::Bytes,
        Scalar::Quantity,
        Scalar::IntOrString,
        Scalar::Time,
        Scalar::MicroTime,
        Scalar::Duration,
        Scalar::RawExtension,
        Scalar::FieldsV1,
        Scalar::Json,
    ];
    ALL.into_iter().find(|s| s.name() == text)
}

#[cfg(test)]
mod tests {
    use super::super::{ListKind, Scalar, Shape, schema};

    #[test]
    fn built_in_kinds_are_there() {
        for resource in crate::resource::builtin() {
            let ty = schema().kind(resource.group, resource.version, resource.kind);
            assert!(ty.is_some(), "{resource:?}");
            for sub in resource.subresources {
                assert!(schema().kind(sub.group, sub.version, sub.kind).is_some(), "{sub:?}");
            }
        }
        assert!(schema().kind("apps", "v1", "DeleteOptions").is_some());
        assert!(schema().kind("apps", "v1", "Nothing").is_none());
    }

    #[test]
    fn fields_of_a_pod() {
        let pod = schema().kind("", "v1", "Pod").unwrap();
        assert_eq!(pod.go(), "v1.Pod");
        let spec = pod.field("spec").unwrap().shape.as_struct().unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.required && !containers.omit_empty && containers.number == 2);
        assert_eq!(containers.patch.as_ref().unwrap().key.as_deref(), Some("name"));
        let Shape::List(list) = &containers.shape else {
            panic!("{containers:?}")
        };
        assert_eq!(list.kind, ListKind::Map(["name".into()].into()));
        let container = list.item.as_struct().unwrap();
        let policy = &container.field("imagePullPolicy").unwrap().shape;
        let Shape::Named(policy) = policy else {
            panic!("{policy:?}")
        };
        assert_eq!((&*policy.go, policy.scalar), ("v1.PullPolicy", Scalar::String));
        assert_eq!(policy.values.len(), 3);
        let limits = &container
            .field("resources")
            .unwrap()
            .shape
            .as_struct()
            .unwrap()
            .field("limits")
            .unwrap()
            .shape;
        assert_eq!(limits.go(), "v1.ResourceList");
        let volume = schema().named("io.k8s.api.core.v1.Volume").unwrap();
        let empty_dir = volume.field("emptyDir").unwrap();
        assert_eq!((empty_dir.number, &*empty_dir.within), (2, &[2][..]));
        let port = schema().named("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some("TCP".into()));
    }

    #[test]
    fn recursion_is_kept() {
        let props = schema()
            .named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .unwrap();
        let Shape::Map(map) = &props.field("properties").unwrap().shape else {
            panic!()
        };
        assert_eq!(map.value.as_struct().unwrap().name, props.name);
        assert!(props.field("items").unwrap().shape.as_struct().unwrap().union);
    }
}
