//! The parser's visitor: a JSON (or YAML) document against a shape.

use std::fmt;

use serde::Deserialize as _;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::FieldValidation;
use super::scalar;
use crate::field::quote;
use crate::schema::{Field, Scalar, Shape, Type};

/// Most complaints about unknown and duplicate fields; upstream's cap.
const MAX_COMPLAINTS: usize = 100;

/// What was found wrong on the way.
pub(super) struct Walk {
    /// The first value that is of the wrong type; upstream reports only that.
    pub(super) wrong: Option<String>,
    /// Unknown and duplicate fields, in order.
    pub(super) strict: Vec<String>,
    /// Complaints are not wanted, or not here.
    muted: bool,
}

impl Walk {
    pub(super) fn new(validation: FieldValidation) -> Self {
        Walk {
            wrong: None,
            strict: Vec::new(),
            muted: validation == FieldValidation::Ignore,
        }
    }

    fn complain(&mut self, what: &str, place: &Place<'_>, name: &str) {
        if self.muted || self.strict.len() >= MAX_COMPLAINTS {
            return;
        }
        let mut path = String::new();
        place.write(&mut path);
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        let text = format!("{what} field {}", quote(&path));
        if !self.strict.contains(&text) {
            self.strict.push(text);
        }
    }

    /// Keeps the first wrong value.
    fn fail(&mut self, text: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(text());
        }
    }
}

/// Where the walk is. Each step borrows the one before it: a path costs nothing until it is printed.
pub(super) enum Place<'p> {
    Root,
    Field {
        parent: &'p Place<'p>,
        owner: &'p Type,
        name: &'p str,
    },
    Index {
        parent: &'p Place<'p>,
        index: usize,
    },
    Key {
        parent: &'p Place<'p>,
        key: &'p str,
    },
}

impl Place<'_> {
    /// `spec.containers[0].name`
    fn write(&self, out: &mut String) {
        match self {
            Place::Root => {}
            Place::Field { parent, name, .. } | Place::Key { parent, key: name } => {
                parent.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Place::Index { parent, index } => {
                parent.write(out);
                out.push_str(&format!("[{index}]"));
            }
        }
    }

    /// `spec.containers.name`, and the type that has the last field: what Go's messages show.
    fn write_go(&self, out: &mut String) -> Option<&Type> {
        match self {
            Place::Root => None,
            Place::Field { parent, owner, name } => {
                parent.write_go(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
                Some(owner)
            }
            Place::Index { parent, .. } | Place::Key { parent, .. } => parent.write_go(out),
        }
    }

    /// Go's words for a value of the wrong type.
    fn mismatch(&self, found: &str, go_type: &str) -> String {
        let mut path = String::new();
        match self.write_go(&mut path) {
            Some(owner) => {
                format!(
                    "json: cannot unmarshal {found} into Go struct field {}.{path} of type {go_type}",
                    owner.short()
                )
            }
            None => format!("json: cannot unmarshal {found} into Go value of type {go_type}"),
        }
    }
}

/// Reads a whole object.
pub(super) struct Root<'w> {
    pub(super) kind: &'w Type,
    pub(super) walk: &'w mut Walk,
}

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let visit = Visit {
            expected: Expected::Struct(self.kind),
            place: &Place::Root,
            walk: self.walk,
        };
        Ok(deserializer
            .deserialize_any(visit)?
            .unwrap_or_else(|| Value::Object(Map::new())))
    }
}

/// Reads a value of a shape; `None` is null.
pub(super) struct Seed<'w> {
    pub(super) shape: &'w Shape,
    pub(super) place: &'w Place<'w>,
    pub(super) walk: &'w mut Walk,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        let expected = match self.shape {
            Shape::Struct(ty) => Expected::Struct(ty),
            other => Expected::Shape(other),
        };
        deserializer.deserialize_any(Visit {
            expected,
            place: self.place,
            walk: self.walk,
        })
    }
}

#[derive(Clone, Copy)]
enum Expected<'w> {
    Struct(&'w Type),
    Shape(&'w Shape),
}

struct Visit<'w> {
    expected: Expected<'w>,
    place: &'w Place<'w>,
    walk: &'w mut Walk,
}

impl<'w> Visit<'w> {
    fn mismatch(self, found: &str) -> Option<Value> {
        let place = self.place;
        let go = || match self.expected {
            Expected::Struct(ty) => ty.go(),
            Expected::Shape(shape) => shape.go(),
        };
        self.walk.fail(|| place.mismatch(found, &go()));
        None
    }

    /// A scalar where the shape may want one.
    fn scalar(self, found: scalar::Found<'_>) -> Option<Value> {
        let scalar = match self.expected {
            Expected::Shape(shape) => shape.as_scalar(),
            // JSONSchemaPropsOrBool is the one object that may be written as a scalar.
            Expected::Struct(ty) if ty.union && matches!(found, scalar::Found::Bool(_)) => Some(Scalar::Bool),
            Expected::Struct(_) => None,
        };
        let Some(scalar) = scalar else {
            return self.mismatch(found.go_kind());
        };
        match scalar::read(scalar, found) {
            Ok(value) => Some(value),
            Err(scalar::Wrong::Kind(found)) => self.mismatch(&found),
            Err(scalar::Wrong::Text(text)) => {
                self.walk.fail(|| text);
                None
            }
        }
    }

    fn fields<'de, A: MapAccess<'de>>(self, ty: &'w Type, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let mut seen = 0u128;
        let fields = ty.fields();
        while let Some(known) = map.next_key_seed(FieldName(ty))? {
            match known {
                Err(name) => {
                    self.walk.complain("unknown", self.place, &name);
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(index) => {
                    let field = &fields[index];
                    let bit = 1u128.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0);
                    if seen & bit != 0 {
                        self.walk.complain("duplicate", self.place, &field.name);
                    }
                    seen |= bit;
                    let place = Place::Field {
                        parent: self.place,
                        owner: ty,
                        name: &field.name,
                    };
                    let seed = Seed {
                        shape: &field.shape,
                        place: &place,
                        walk: &mut *self.walk,
                    };
                    match map.next_value_seed(seed)? {
                        Some(value) if !omitted(field, &value) => drop(out.insert(String::from(&*field.name), value)),
                        _ => drop(out.remove(&*field.name)),
                    }
                }
            }
        }
        Ok(Value::Object(out))
    }

    fn entries<'de, A: MapAccess<'de>>(self, shape: &'w Shape, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let place = Place::Key {
                parent: self.place,
                key: &key,
            };
            let value = map.next_value_seed(Seed {
                shape,
                place: &place,
                walk: &mut *self.walk,
            })?;
            if out.contains_key(&key) {
                self.walk.complain("duplicate", self.place, &key);
            }
            out.insert(key, value.unwrap_or_else(|| scalar::zero(shape)));
        }
        Ok(Value::Object(out))
    }

    fn items<'de, A: SeqAccess<'de>>(self, shape: &'w Shape, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(1024));
        loop {
            let place = Place::Index {
                parent: self.place,
                index: out.len(),
            };
            match seq.next_element_seed(Seed {
                shape,
                place: &place,
                walk: &mut *self.walk,
            })? {
                Some(value) => out.push(value.unwrap_or_else(|| scalar::zero(shape))),
                None => return Ok(Value::Array(out)),
            }
        }
    }
}

impl<'de> Visitor<'de> for Visit<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.scalar(scalar::Found::Bool(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.scalar(scalar::Found::Number(value.into())))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.scalar(scalar::Found::Number(value.into())))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number is not finite"))?;
        Ok(self.scalar(scalar::Found::Number(number)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.scalar(scalar::Found::Text(value.into())))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Self::Value, E> {
        Ok(self.scalar(scalar::Found::Text(value.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        match self.expected {
            Expected::Shape(Shape::List(list)) => self.items(&list.item, seq).map(Some),
            Expected::Shape(shape) if shape.as_scalar().is_some_and(scalar::is_open) => {
                Value::deserialize(SeqAccessDeserializer::new(seq)).map(Some)
            }
            // JSONSchemaPropsOrArray and JSONSchemaPropsOrStringArray: the member that is a list.
            Expected::Struct(ty) if ty.union => match list_member(ty) {
                Some(shape) => self.items(shape, seq).map(Some),
                None => {
                    while seq.next_element::<IgnoredAny>()?.is_some() {}
                    Ok(self.mismatch("array"))
                }
            },
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(self.mismatch("array"))
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        match self.expected {
            Expected::Struct(ty) if ty.union => {
                // Upstream decodes these on their own, without complaints about unknown fields.
                let muted = std::mem::replace(&mut self.walk.muted, true);
                let member = ty.field("schema").and_then(|f| f.shape.as_struct());
                let Some(member) = member else {
                    return Ok(self.mismatch("object"));
                };
                let visit = Visit {
                    expected: self.expected,
                    place: self.place,
                    walk: &mut *self.walk,
                };
                let value = visit.fields(member, map);
                self.walk.muted = muted;
                value.map(Some)
            }
            Expected::Struct(ty) => self.fields(ty, map).map(Some),
            Expected::Shape(Shape::Map(shape)) => self.entries(&shape.value, map).map(Some),
            Expected::Shape(shape) if shape.as_scalar().is_some_and(scalar::is_open) => {
                Value::deserialize(MapAccessDeserializer::new(map)).map(Some)
            }
            Expected::Shape(_) => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.mismatch("object"))
            }
        }
    }
}

fn list_member(union: &Type) -> Option<&Shape> {
    union.fields().iter().find_map(|f| match &f.shape {
        Shape::List(list) => Some(&list.item),
        _ => None,
    })
}

/// Whether Go would not write the value again: absent and empty are the same.
fn omitted(field: &Field, value: &Value) -> bool {
    if !field.omit_empty || field.pointer {
        return false;
    }
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        // Quantities and times are structs to Go, and never empty.
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty() && matches!(field.shape, Shape::Map(_)),
    }
}

/// Reads a key: the field's index, or the key itself when there is no such field.
struct FieldName<'w>(&'w Type);

impl<'de> DeserializeSeed<'de> for FieldName<'_> {
    type Value = Result<usize, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName<'_> {
    type Value = Result<usize, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.index_of(name).ok_or_else(|| name.to_owned()))
    }
}
