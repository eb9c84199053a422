//! OpenAPI v2 in protobuf, the only form of it that kubectl asks for. Message and field numbers are gnostic's `openapi.v2`.

use serde_json::{Map, Value};

/// Encodes an OpenAPI v2 document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        for (name, item) in entries(&document["paths"]) {
            paths.message(2, |named| {
                named.string(1, name);
                named.message(2, |out| path_item(item, out));
            });
        }
    });
    out.message(9, |definitions| named_schemas(&document["definitions"], definitions));
    out.0
}

fn path_item(item: &Value, out: &mut Message) {
    for (method, number) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(operation) = item.get(method) {
            out.message(number, |out| self::operation(operation, out));
        }
    }
}

fn operation(operation: &Value, out: &mut Message) {
    for media in list(&operation["consumes"]) {
        out.text(7, media);
    }
    for parameter in list(&operation["parameters"]) {
        // ParametersItem.parameter, Parameter.non_body_parameter, NonBodyParameter.query_parameter_sub_schema
        out.message(8, |item| {
            item.message(1, |parameter_| {
                parameter_.message(2, |non_body| {
                    non_body.message(3, |query| {
                        query.text(2, &parameter["in"]);
                        query.text(4, &parameter["name"]);
                        query.text(6, &parameter["type"]);
                    });
                });
            });
        });
    }
    out.message(9, |responses| {
        for (code, response) in entries(&operation["responses"]) {
            responses.message(1, |named| {
                named.string(1, code);
                named.message(2, |value| value.message(1, |out| out.text(1, &response["description"])));
            });
        }
    });
    extensions(operation, 13, out);
}

fn schema(schema_: &Value, out: &mut Message) {
    out.text(1, &schema_["$ref"]);
    out.text(2, &schema_["format"]);
    if let Some(default) = schema_.get("default") {
        out.message(5, |any| any.string(2, &default.to_string()));
    }
    for name in list(&schema_["required"]) {
        out.text(19, name);
    }
    for value in list(&schema_["enum"]) {
        out.message(20, |any| any.string(2, &value.to_string()));
    }
    if let Some(values) = schema_.get("additionalProperties") {
        out.message(21, |item| item.message(1, |out| schema(values, out)));
    }
    if schema_["type"].is_string() {
        out.message(22, |item| item.text(1, &schema_["type"]));
    }
    if let Some(items) = schema_.get("items") {
        out.message(23, |item| item.message(1, |out| schema(items, out)));
    }
    if schema_["properties"].is_object() {
        out.message(25, |properties| named_schemas(&schema_["properties"], properties));
    }
    extensions(schema_, 31, out);
}

fn named_schemas(schemas: &Value, out: &mut Message) {
    for (name, value) in entries(schemas) {
        out.message(1, |named| {
            named.string(1, name);
            named.message(2, |out| schema(value, out));
        });
    }
}

/// The `x-` fields; their values travel as YAML, which JSON is.
fn extensions(value: &Value, number: u32, out: &mut Message) {
    for (name, value) in entries(value).filter(|(name, _)| name.starts_with("x-")) {
        out.message(number, |named| {
            named.string(1, name);
            named.message(2, |any| any.string(2, &value.to_string()));
        });
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// A message under construction. Everything here is length-delimited.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn string(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    /// A text; nothing when the value is none.
    fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.string(number, text);
        }
    }

    fn message(&mut self, number: u32, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(number, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::document;

    #[test]
    fn a_document_is_tagged_lengths() {
        let bytes = document(&json!({"swagger": "2.0", "info": {"title": "T", "version": "v"}}));
        assert_eq!(bytes, b"\x0a\x032.0\x12\x06\x0a\x01T\x12\x01v\x42\x00\x4a\x00",);
    }
}
