//! Reading objects that Go clients send as `application/vnd.kubernetes.protobuf` (kubectl's `create` and `run` among them).
//!
//! The bytes become the JSON value that the same object has; [`crate::decode::conform`] then treats it like any other body. Field
//! numbers and nesting come from the schema.

use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use crate::meta;
use crate::schema::{Field, Scalar, Shape, Type};

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; schemas of definitions are the deepest that people write.
const DEEPEST: usize = 100;

/// Why bytes are not an object of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The envelope is missing: probably another format under this media type.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    /// A length, number or tag runs over the end of its message.
    #[error("unexpected EOF")]
    Truncated,
    /// A wire type that no field of an object has.
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    /// A field came as another wire type than the schema's.
    #[error("proto: wrong wireType for a field")]
    Mismatch,
    /// A text is not UTF-8.
    #[error("proto: invalid UTF-8 in a string")]
    Text,
    /// JSON inside of the message cannot be read.
    #[error("embedded JSON cannot be read")]
    Json,
    /// More messages within messages than any object needs.
    #[error("the message is nested too deeply")]
    TooDeep,
    /// The inner bytes are in an encoding of their own.
    #[error("the object is encoded in a way that is not supported")]
    Encoding,
}

/// Decodes an enveloped object of `kind`, with `apiVersion` and `kind` as the envelope names them.
///
/// # Errors
/// When the bytes are no such message.
pub fn decode(body: &[u8], kind: &Type) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::NoPrefix)?;
    let mut object = Map::new();
    let mut raw: &[u8] = &[];
    for entry in Entries(envelope) {
        match entry? {
            (1, Wire::Bytes(names)) => type_meta(names, &mut object)?,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => return Err(Error::Encoding),
            _ => {}
        }
    }
    message(raw, kind, &mut Vec::new(), DEEPEST, &mut object)?;
    Ok(Value::Object(object))
}

fn type_meta(bytes: &[u8], object: &mut Map<String, Value>) -> Result<(), Error> {
    for entry in Entries(bytes) {
        let key = match entry? {
            (1, Wire::Bytes(version)) => ("apiVersion", version),
            (2, Wire::Bytes(kind)) => ("kind", kind),
            _ => continue,
        };
        object.insert(key.0.to_owned(), text(key.1)?);
    }
    Ok(())
}

/// One value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed64(u64),
    Fixed32(u32),
}

/// The fields of a message, in their order.
struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take(1)? else {
                return Err(Error::Truncated);
            };
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Truncated)
    }

    fn entry(&mut self) -> Result<(u32, Wire<'a>), Error> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Truncated)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(
                self.take(8)?.try_into().map_err(|_| Error::Truncated)?,
            )),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(
                self.take(4)?.try_into().map_err(|_| Error::Truncated)?,
            )),
            other => return Err(Error::WireType(u8::try_from(other).unwrap_or(u8::MAX))),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(u32, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.0 = &[];
        }
        Some(entry)
    }
}

/// Reads a message of a type; `within` are the numbers of the embedded messages around, which JSON does not show.
fn message(
    bytes: &[u8],
    kind: &Type,
    within: &mut Vec<u32>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::TooDeep)?;
    for entry in Entries(bytes) {
        let (number, wire) = entry?;
        let fields = kind.fields();
        if let Some(field) = fields
            .iter()
            .find(|field| field.number == number && *field.within == **within)
        {
            read_field(field, wire, depth, object)?;
            continue;
        }
        within.push(number);
        let embedded = fields.iter().any(|field| field.within.starts_with(within));
        let result = match wire {
            Wire::Bytes(inner) if embedded => message(inner, kind, within, depth, object),
            _ => Ok(()),
        };
        within.pop();
        result?;
    }
    Ok(())
}

fn read_field(field: &Field, wire: Wire<'_>, depth: usize, object: &mut Map<String, Value>) -> Result<(), Error> {
    let key = field.name.to_string();
    match &field.shape {
        Shape::List(list) if !list.message => {
            let items = object.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = items {
                push(&list.item, wire, depth, items)?;
            }
        }
        Shape::Map(map) => {
            let Wire::Bytes(entry) = wire else {
                return Err(Error::Mismatch);
            };
            let (name, value) = map_entry(entry, &map.value, depth)?;
            let entries = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(name, value);
            }
        }
        shape => {
            object.insert(key, read(shape, wire, depth)?);
        }
    }
    Ok(())
}

/// One item of a repeated field; numbers may come packed, many in one.
fn push(item: &Shape, wire: Wire<'_>, depth: usize, items: &mut Vec<Value>) -> Result<(), Error> {
    let numbers = matches!(
        item.as_scalar(),
        Some(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Uint32)
    );
    match wire {
        Wire::Bytes(packed) if numbers => {
            let mut rest = Entries(packed);
            while !rest.0.is_empty() {
                items.push(read(item, Wire::Varint(rest.varint()?), depth)?);
            }
        }
        _ => items.push(read(item, wire, depth)?),
    }
    Ok(())
}

fn map_entry(bytes: &[u8], shape: &Shape, depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    for entry in Entries(bytes) {
        match entry? {
            (1, Wire::Bytes(name)) => std::str::from_utf8(name).map_err(|_| Error::Text)?.clone_into(&mut key),
            (2, wire) => value = Some(read(shape, wire, depth)?),
            _ => {}
        }
    }
    // What is at its zero value may be left out.
    let value = match value {
        Some(value) => value,
        None => read(shape, Wire::Bytes(&[]), depth).or_else(|_| read(shape, Wire::Varint(0), depth))?,
    };
    Ok((key, value))
}

fn read(shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Value, Error> {
    match (shape, wire) {
        (Shape::Struct(kind), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            message(bytes, kind, &mut Vec::new(), depth, &mut object)?;
            Ok(if kind.union {
                union_member(object)
            } else {
                Value::Object(object)
            })
        }
        (Shape::List(list), Wire::Bytes(bytes)) => {
            let mut items = Vec::new();
            for entry in Entries(bytes) {
                if let (1, wire) = entry? {
                    push(&list.item, wire, depth, &mut items)?;
                }
            }
            Ok(Value::Array(items))
        }
        (Shape::Scalar(scalar), wire) => read_scalar(*scalar, wire),
        (Shape::Named(named), wire) => read_scalar(named.scalar, wire),
        _ => Err(Error::Mismatch),
    }
}

/// Such a type shows in JSON as whichever member is set; a schema says more than a flag.
fn union_member(mut object: Map<String, Value>) -> Value {
    object
        .remove("schema")
        .or_else(|| object.into_iter().next().map(|(_, value)| value))
        .unwrap_or(Value::Bool(false))
}

fn read_scalar(scalar: Scalar, wire: Wire<'_>) -> Result<Value, Error> {
    match (scalar, wire) {
        (Scalar::Bool, Wire::Varint(number)) => Ok((number != 0).into()),
        (Scalar::Int32 | Scalar::Int64, Wire::Varint(number)) => Ok(number.cast_signed().into()),
        (Scalar::Uint32, Wire::Varint(number)) => Ok(number.into()),
        (Scalar::Float64, Wire::Fixed64(bits)) => {
            Ok(Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number))
        }
        (Scalar::Float64, Wire::Fixed32(bits)) => {
            Ok(Number::from_f64(f64::from(f32::from_bits(bits))).map_or(Value::Null, Value::Number))
        }
        (Scalar::String, Wire::Bytes(bytes)) => text(bytes),
        (Scalar::Bytes, Wire::Bytes(bytes)) => Ok(crate::defaults::base64(bytes).into()),
        (_, Wire::Bytes(bytes)) => read_wrapped(scalar, bytes),
        _ => Err(Error::Mismatch),
    }
}

/// Scalars that are messages of their own on the wire.
fn read_wrapped(scalar: Scalar, bytes: &[u8]) -> Result<Value, Error> {
    let (mut numbers, mut texts) = ([0_i64; 4], [&[] as &[u8]; 4]);
    for entry in Entries(bytes) {
        match entry? {
            (at @ 1..=3, Wire::Varint(number)) => numbers[at as usize] = number.cast_signed(),
            (at @ 1..=3, Wire::Bytes(bytes)) => texts[at as usize] = bytes,
            _ => {}
        }
    }
    match scalar {
        Scalar::Quantity => text(texts[1]),
        Scalar::IntOrString if numbers[1] == 0 => Ok(numbers[2].into()),
        Scalar::IntOrString => text(texts[3]),
        // Go's zero time is an empty message: no time at all.
        Scalar::Time | Scalar::MicroTime if bytes.is_empty() => Ok(Value::Null),
        Scalar::Time | Scalar::MicroTime => {
            let nanoseconds = i32::try_from(numbers[2]).map_err(|_| Error::Mismatch)?;
            let at = Timestamp::new(numbers[1], nanoseconds).map_err(|_| Error::Mismatch)?;
            Ok(if scalar == Scalar::Time {
                meta::time(at)
            } else {
                meta::micro_time(at)
            }
            .into())
        }
        Scalar::Duration => Ok(format!("{}ns", numbers[1]).into()),
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json if texts[1].is_empty() => Ok(Value::Null),
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => {
            serde_json::from_slice(texts[1]).map_err(|_| Error::Json)
        }
        _ => Err(Error::Mismatch),
    }
}

fn text(bytes: &[u8]) -> Result<Value, Error> {
    std::str::from_utf8(bytes).map(Value::from).map_err(|_| Error::Text)
}

#[cfg(test)]
mod tests;
