//! Field numbers of `generated.proto`, to check those of the Go tags.

use std::collections::BTreeMap;

use super::emit::File;

/// Message to field to number and type.
pub(crate) type Messages = BTreeMap<String, BTreeMap<String, (u32, String)>>;

/// Reads messages; nothing else matters.
pub(crate) fn parse(text: &str) -> Messages {
    let (mut out, mut current) = (Messages::new(), None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ").and_then(|l| l.strip_suffix(" {")) {
            current = Some(name.to_owned());
            out.insert(name.to_owned(), BTreeMap::new());
        } else if line == "}" {
            current = None;
        } else if let (Some(message), Some((left, number))) = (&current, line.split_once(" = ")) {
            let number: String = number.chars().take_while(char::is_ascii_digit).collect();
            let (ty, name) = left.rsplit_once(' ').unwrap_or(("", left));
            let ty = ty.trim_start_matches("optional ").trim_start_matches("repeated ");
            if let (Ok(number), Some(fields)) = (number.parse(), out.get_mut(message)) {
                fields.insert(name.to_owned(), (number, ty.to_owned()));
            }
        }
    }
    out
}

/// Where tags and protobuf disagree about numbers or widths.
pub(crate) fn complaints(file: &File, messages: &Messages) -> Vec<String> {
    let mut out = Vec::new();
    for (type_name, ty) in &file.types {
        let Some(message) = messages.get(type_name) else {
            continue;
        };
        for (name, field) in ty.fields.iter().filter(|(_, f)| f.within.is_empty() && f.number > 0) {
            let found = message.values().find(|(number, _)| *number == field.number);
            let Some((_, proto_type)) = found else {
                out.push(format!(
                    "{}.{type_name}.{name}: protobuf has no field {}",
                    file.package, field.number
                ));
                continue;
            };
            let width_differs =
                matches!(field.shape.as_str(), "int32" | "int64" | "bool" | "bytes") && *proto_type != field.shape;
            if width_differs {
                out.push(format!(
                    "{}.{type_name}.{name}: {} but {proto_type} in protobuf",
                    file.package, field.shape
                ));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_messages() {
        let messages =
            parse("message A {\n  // words = 3\n  optional int32 b = 7;\n\n  map<string, string> c = 8;\n}\n");
        assert_eq!(messages["A"]["b"], (7, "int32".to_owned()));
        assert_eq!(messages["A"]["c"].0, 8);
    }
}
