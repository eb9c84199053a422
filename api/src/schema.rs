//! The one model of what an object may look like.
//!
//! Decoding, unknown-field detection, defaulting, pruning, strategic merge, server-side apply, protobuf, OpenAPI and shape
//! validation all walk these types. Built-in kinds come from data (`api/schema/*.json`, written by `cargo xtask schema`
//! from Kubernetes' published facts); a CustomResourceDefinition's schema becomes the same [`Type`]s at run time.
//!
//! Types refer to each other by `Arc`; a type's fields are filled once all types of its file exist, so they may recurse.

mod data;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use serde_json::Value;

/// A name shared by everything that mentions it.
pub type Name = Arc<str>;

/// All built-in types, parsed once.
pub fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(data::load);
    &SCHEMA
}

/// A set of types and the kinds among them.
#[derive(Debug, Default)]
pub struct Schema {
    types: HashMap<Name, Arc<Type>>,
    /// By kind: what groups and versions have one of that name.
    kinds: HashMap<Name, Vec<Kind>>,
}

#[derive(Debug)]
struct Kind {
    group: Name,
    version: Name,
    ty: Arc<Type>,
}

impl Schema {
    /// The type of a kind. `DeleteOptions` and `Status` are known in every group.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Type>> {
        let named = self.kinds.get(kind)?;
        let exact = named.iter().find(|k| &*k.group == group && &*k.version == version);
        let everywhere = || {
            named
                .iter()
                .find(|k| &*k.group == META_GROUP && matches!(kind, "DeleteOptions" | "Status"))
        };
        exact.or_else(everywhere).map(|k| &k.ty)
    }

    /// The type of an OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
    pub fn named(&self, name: &str) -> Option<&Arc<Type>> {
        self.types.get(name)
    }

    /// Every kind: group, version, kind, type; in no order.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &str, &str, &Arc<Type>)> {
        self.kinds
            .iter()
            .flat_map(|(kind, all)| all.iter().map(move |k| (&*k.group, &*k.version, &**kind, &k.ty)))
    }

    /// Every type, in no order.
    pub fn types(&self) -> impl Iterator<Item = &Arc<Type>> {
        self.types.values()
    }
}

/// The group that `metav1` kinds are registered in.
const META_GROUP: &str = "meta.k8s.io";
/// Where the types of `metav1` live.
pub const META_PACKAGE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// An object with known fields.
pub struct Type {
    /// OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
    pub name: Name,
    /// Owned as a whole by server-side apply.
    pub atomic: bool,
    /// Written in JSON as one of its members alone (`JSONSchemaPropsOrBool` and its like).
    pub union: bool,
    fields: OnceLock<Fields>,
}

/// Fields in order of their names, and the first bytes of each name: a search then touches one short array.
struct Fields {
    list: Box<[Field]>,
    prefixes: Box<[u64]>,
}

/// The first eight bytes as a number that orders as the text does.
fn prefix(name: &str) -> u64 {
    let mut bytes = [0; 8];
    let length = name.len().min(8);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    u64::from_be_bytes(bytes)
}

impl Type {
    /// A type whose fields are still to come.
    pub fn new(name: impl Into<Name>, atomic: bool, union: bool) -> Self {
        Type {
            name: name.into(),
            atomic,
            union,
            fields: OnceLock::new(),
        }
    }

    /// Gives the type its fields; only the first call has an effect.
    pub fn define(&self, mut fields: Vec<Field>) {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        self.fields.get_or_init(|| Fields {
            prefixes: fields.iter().map(|f| prefix(&f.name)).collect(),
            list: fields.into(),
        });
    }

    /// Fields in order of their names.
    pub fn fields(&self) -> &[Field] {
        self.fields.get().map_or(&[], |f| &f.list)
    }

    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.index_of(name).map(|i| &self.fields()[i])
    }

    /// The position in [`Self::fields`] of the field of that JSON name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        let fields = self.fields.get()?;
        let wanted = prefix(name);
        let first = fields.prefixes.partition_point(|p| *p < wanted);
        let same = fields.prefixes[first..].iter().take_while(|p| **p == wanted).count();
        (first..first + same).find(|i| &*fields.list[*i].name == name)
    }

    /// The last segment of the name: `PodSpec`.
    pub fn short(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// As Go prints the type: `v1.PodSpec`.
    pub fn go(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let short = parts.next().unwrap_or_default();
        parts
            .next()
            .map_or_else(|| short.to_owned(), |package| format!("{package}.{short}"))
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only the name: types may recurse.
        write!(f, "Type({})", self.name)
    }
}

/// A field of a [`Type`].
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: Name,
    /// What its value looks like.
    pub shape: Shape,
    /// Field number in protobuf; 0 where it is not part of it.
    pub number: u32,
    /// Numbers of the protobuf messages embedded around it, outermost first; JSON shows no such nesting.
    pub within: Box<[u32]>,
    /// Upstream's OpenAPI lists it as required.
    pub required: bool,
    /// An empty value is not written.
    pub omit_empty: bool,
    /// Absent and zero differ.
    pub pointer: bool,
    /// Owned field by field though its type is atomic.
    pub granular: bool,
    /// The value taken when absent.
    pub default: Option<Value>,
    /// How a strategic merge patch treats it; `None` replaces lists and merges objects.
    pub patch: Option<Patch>,
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// List items are merged rather than the list replaced.
    pub merge: bool,
    /// Only the keys named by `$retainKeys` stay.
    pub retain_keys: bool,
    /// `patchStrategy:"replace"`.
    pub replace: bool,
    /// The field that identifies an item of the list; `None` for lists of scalars.
    pub key: Option<Name>,
}

/// What a value looks like.
#[derive(Clone, Debug)]
pub enum Shape {
    /// No structure inside.
    Scalar(Scalar),
    /// A string (or number) type with a name of its own, perhaps with known values.
    Named(Arc<Named>),
    /// A list.
    List(Arc<List>),
    /// A map from strings.
    Map(Arc<Map>),
    /// An object with known fields.
    Struct(Arc<Type>),
}

/// A scalar type with a name of its own.
#[derive(Debug)]
pub struct Named {
    /// As Go prints it: `v1.PullPolicy`.
    pub go: Name,
    /// What it is written as.
    pub scalar: Scalar,
    /// The values that upstream's OpenAPI lists; empty when any is fine.
    pub values: Box<[Name]>,
}

/// A list.
#[derive(Debug)]
pub struct List {
    /// Shape of an item.
    pub item: Shape,
    /// How items are told apart by server-side apply.
    pub kind: ListKind,
    /// Go's name where the list type has one.
    pub go: Option<Name>,
    /// In protobuf the list is a message of its own, with one repeated field.
    pub message: bool,
}

/// How server-side apply tells the items of a list apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Not at all: the list has one owner.
    Atomic,
    /// Each value is its own key.
    Set,
    /// By these fields, with the values that absent ones count as being in the item's type.
    Map(Box<[Name]>),
}

/// A map from strings.
#[derive(Debug)]
pub struct Map {
    /// Shape of a value.
    pub value: Shape,
    /// Owned as a whole by server-side apply.
    pub atomic: bool,
    /// As Go prints the type: `map[string]string`, `v1.ResourceList`.
    pub go: Option<Name>,
}

/// A value without structure, named by what it means rather than by how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// true or false
    Bool,
    /// 32-bit signed integer
    Int32,
    /// 64-bit signed integer
    Int64,
    /// 32-bit unsigned integer
    Uint32,
    /// 64-bit float
    Float64,
    /// text
    String,
    /// base64 in JSON
    Bytes,
    /// a quantity such as `500m`
    Quantity,
    /// an integer or text
    IntOrString,
    /// RFC 3339, seconds
    Time,
    /// RFC 3339, microseconds
    MicroTime,
    /// Go's duration text
    Duration,
    /// any object
    RawExtension,
    /// the set of fields that a manager owns
    FieldsV1,
    /// any JSON at all
    Json,
}

impl Scalar {
    /// The name in schema data.
    pub const fn name(self) -> &'static str {
        match self {
            Scalar::Bool => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Uint32 => "uint32",
            Scalar::Float64 => "float64",
            Scalar::String => "string",
            Scalar::Bytes => "bytes",
            Scalar::Quantity => "Quantity",
            Scalar::IntOrString => "IntOrString",
            Scalar::Time => "Time",
            Scalar::MicroTime => "MicroTime",
            Scalar::Duration => "Duration",
            Scalar::RawExtension => "RawExtension",
            Scalar::FieldsV1 => "FieldsV1",
            Scalar::Json => "JSON",
        }
    }

    /// As Go prints the type.
    pub const fn go(self) -> &'static str {
        match self {
            Scalar::Bytes => "[]uint8",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Duration => "v1.Duration",
            Scalar::RawExtension => "runtime.RawExtension",
            Scalar::FieldsV1 => "v1.FieldsV1",
            Scalar::Json => "v1.JSON",
            other => other.name(),
        }
    }
}

impl Shape {
    /// As Go prints the type; wrong-type messages end with it.
    pub fn go(&self) -> String {
        match self {
            Shape::Scalar(scalar) => scalar.go().to_owned(),
            Shape::Named(named) => named.go.to_string(),
            Shape::List(list) => list
                .go
                .as_ref()
                .map_or_else(|| format!("[]{}", list.item.go()), ToString::to_string),
            Shape::Map(map) => map
                .go
                .as_ref()
                .map_or_else(|| format!("map[string]{}", map.value.go()), ToString::to_string),
            Shape::Struct(ty) => ty.go(),
        }
    }

    /// The type, where this is an object with known fields.
    pub fn as_struct(&self) -> Option<&Arc<Type>> {
        match self {
            Shape::Struct(ty) => Some(ty),
            _ => None,
        }
    }

    /// The scalar that this is written as, if it is one.
    pub fn as_scalar(&self) -> Option<Scalar> {
        match self {
            Shape::Scalar(scalar) => Some(*scalar),
            Shape::Named(named) => Some(named.scalar),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
