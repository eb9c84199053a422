//! The structured-merge schema that client-go embeds, to check list types and keys derived from markers.

use std::collections::BTreeMap;

use super::emit::File;

/// How a list or object is owned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Relation {
    list: bool,
    map: bool,
    relationship: String,
    keys: Vec<String>,
}

/// Type to field to relation; the type's own is under the empty field.
pub(crate) type Relations = BTreeMap<String, BTreeMap<String, Relation>>;

/// Reads the YAML by its indentation: it is generated and always the same shape.
pub(crate) fn parse(text: &str) -> Relations {
    let mut out = Relations::new();
    let (mut type_name, mut field) = (String::new(), String::new());
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim();
        if let Some(name) = line.strip_prefix("- name: ") {
            type_name = name.to_owned();
            field = String::new();
            continue;
        }
        if let Some(name) = line.strip_prefix("    - name: ") {
            field = name.to_owned();
            continue;
        }
        // Four spaces close the field list: what follows is the type's own.
        if indent == 4 && !trimmed.starts_with('-') {
            field = String::new();
        }
        let relation = out
            .entry(type_name.clone())
            .or_default()
            .entry(field.clone())
            .or_default();
        match (indent, trimmed) {
            (8, "list:") => relation.list = true,
            (8, "map:") => relation.map = true,
            (_, t) if (indent == 4 && field.is_empty() || indent == 8 || indent == 10) => {
                if let Some(kind) = t.strip_prefix("elementRelationship: ") {
                    relation.relationship = kind.to_owned();
                } else if let Some(key) = t.strip_prefix("- ") {
                    relation.keys.push(key.to_owned());
                }
            }
            _ => {}
        }
    }
    out
}

/// Where markers and the merge schema disagree.
pub(crate) fn complaints(file: &File, relations: &Relations) -> Vec<String> {
    let mut out = Vec::new();
    for (type_name, ty) in &file.types {
        let full = format!("{}.{type_name}", file.package);
        let Some(fields) = relations.get(&full) else { continue };
        let atomic = fields.get("").is_some_and(|r| r.relationship == "atomic");
        if atomic != ty.atomic {
            out.push(format!(
                "{full}: atomic is {} by markers, {atomic} by the merge schema",
                ty.atomic
            ));
        }
        for (name, field) in &ty.fields {
            let Some(relation) = fields.get(name).filter(|r| r.list || r.map) else {
                continue;
            };
            let mut wanted = relation.keys.clone();
            if wanted.is_empty() && relation.list && relation.relationship == "associative" {
                wanted.push(String::new());
            }
            let mut keys = field.keys.clone();
            keys.sort();
            wanted.sort();
            if relation.list && keys != wanted {
                out.push(format!(
                    "{full}.{name}: keys {keys:?} by markers, {wanted:?} by the merge schema"
                ));
            }
            let atomic = relation.relationship == "atomic";
            if relation.map && atomic != field.atomic {
                out.push(format!(
                    "{full}.{name}: atomic is {} by markers, {atomic} by the merge schema",
                    field.atomic
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
    fn reads_relations() {
        let text = "\
- name: a.B
  map:
    fields:
    - name: ports
      type:
        list:
          elementType:
            namedType: a.C
          elementRelationship: associative
          keys:
          - port
          - protocol
    - name: s
      type:
        scalar: string
    elementRelationship: atomic
";
        let relations = parse(text);
        let ports = &relations["a.B"]["ports"];
        assert!(ports.list);
        assert_eq!(ports.keys, ["port", "protocol"]);
        assert_eq!(relations["a.B"][""].relationship, "atomic");
    }
}
