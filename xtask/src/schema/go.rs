//! Reads the subset of Go that API types are written in: imports, structs with tags and markers, named types, constants.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// What one Go package declares.
#[derive(Debug, Default)]
pub(crate) struct Package {
    pub(crate) group: String,
    /// Local name to import path.
    pub(crate) imports: BTreeMap<String, String>,
    pub(crate) structs: BTreeMap<String, Struct>,
    pub(crate) named: BTreeMap<String, Named>,
    /// Constant to type (perhaps empty) and value.
    pub(crate) constants: BTreeMap<String, (String, String)>,
}

#[derive(Debug, Default)]
pub(crate) struct Struct {
    pub(crate) markers: Markers,
    pub(crate) fields: Vec<Field>,
}

#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) markers: Markers,
    pub(crate) go_type: String,
}

#[derive(Debug)]
pub(crate) struct Field {
    /// Go name; empty for an embedded field.
    pub(crate) name: String,
    pub(crate) go_type: String,
    pub(crate) markers: Markers,
    pub(crate) tags: BTreeMap<String, String>,
}

/// `+name=value` lines of a comment; a name may come several times.
#[derive(Debug, Default, Clone)]
pub(crate) struct Markers(Vec<(String, String)>);

impl Markers {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    }

    fn add(&mut self, comment: &str) {
        let text = comment.trim_start_matches('/').trim();
        if let Some(marker) = text.strip_prefix('+') {
            let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
            self.0.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
}

impl Package {
    /// Adds what one file declares.
    pub(crate) fn parse(&mut self, text: &str) -> Result<()> {
        let mut lines = text.lines();
        let mut markers = Markers::default();
        while let Some(line) = lines.next() {
            let line = line.trim_end();
            if line.starts_with("//") {
                markers.add(line);
            } else if line.starts_with("/*") {
                skip_block_comment(line, &mut lines);
            } else if line == "import (" {
                self.imports(&mut lines);
            } else if line == "const (" || line == "var (" {
                self.constants(&mut lines);
                markers = Markers::default();
            } else if let Some(constant) = line.strip_prefix("const ") {
                self.constant(constant);
                markers = Markers::default();
            } else if let Some(declaration) = line.strip_prefix("type ") {
                self.declaration(declaration, std::mem::take(&mut markers), &mut lines)
                    .with_context(|| format!("type {declaration}"))?;
            } else if line.starts_with("func ") {
                if line.ends_with('{') {
                    lines.find(|l| *l == "}");
                }
                markers = Markers::default();
            }
        }
        Ok(())
    }

    fn imports<'a>(&mut self, lines: &mut impl Iterator<Item = &'a str>) {
        for line in lines.map(str::trim).take_while(|l| *l != ")") {
            let Some((alias, path)) = line.split_once('"') else {
                continue;
            };
            let path = path.trim_end_matches('"');
            let last = path.rsplit('/').next().unwrap_or(path);
            let alias = if alias.trim().is_empty() { last } else { alias.trim() };
            self.imports.insert(alias.to_owned(), path.to_owned());
        }
    }

    fn constants<'a>(&mut self, lines: &mut impl Iterator<Item = &'a str>) {
        for line in lines.map(str::trim).take_while(|l| *l != ")") {
            self.constant(line);
        }
    }

    /// `Name Type = "value"` or `Name = "value"`.
    fn constant(&mut self, line: &str) {
        let Some((left, right)) = line.split_once('=') else {
            return;
        };
        let mut words = left.split_whitespace();
        let (Some(name), ty) = (words.next(), words.next().unwrap_or("")) else {
            return;
        };
        let right = right.trim();
        // Some are conversions: Type("value").
        let (ty, right) = match right.split_once("(\"") {
            Some((conversion, rest)) => (conversion, format!("\"{rest}")),
            None => (ty, right.to_owned()),
        };
        if let Some(value) = right.strip_prefix('"').and_then(|r| r.split('"').next()) {
            self.constants
                .insert(name.to_owned(), (ty.to_owned(), value.to_owned()));
        }
    }

    fn declaration<'a>(
        &mut self,
        text: &str,
        markers: Markers,
        lines: &mut impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let (name, rest) = text.split_once(' ').context("no type")?;
        let rest = rest.split("//").next().unwrap_or(rest).trim();
        if rest == "struct {" {
            let fields = struct_fields(lines)?;
            self.structs.insert(name.to_owned(), Struct { markers, fields });
        } else if rest.starts_with("interface {") && !rest.ends_with('}') {
            lines.find(|l| *l == "}");
        } else if !rest.starts_with("interface") && !rest.starts_with("func") && !rest.starts_with("struct") {
            self.named.insert(
                name.to_owned(),
                Named {
                    markers,
                    go_type: rest.trim_start_matches("= ").to_owned(),
                },
            );
        } else if rest.starts_with("struct") {
            self.structs.insert(
                name.to_owned(),
                Struct {
                    markers,
                    fields: Vec::new(),
                },
            );
        }
        Ok(())
    }
}

fn skip_block_comment<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) {
    if !first.contains("*/") {
        lines.find(|l| l.contains("*/"));
    }
}

fn struct_fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<Field>> {
    let (mut fields, mut markers) = (Vec::new(), Markers::default());
    while let Some(line) = lines.next() {
        if line == "}" {
            return Ok(fields);
        }
        let line = line.trim();
        if line.starts_with("/*") {
            skip_block_comment(line, lines);
        } else if line.starts_with("//") {
            markers.add(line);
        } else if !line.is_empty() {
            fields.push(field(line, std::mem::take(&mut markers))?);
        }
    }
    bail!("the struct has no end")
}

/// `Name Type tags` or `Embedded tags`, where tags stand in backquotes.
fn field(line: &str, markers: Markers) -> Result<Field> {
    let (declaration, tags) = match line.split_once('`') {
        Some((declaration, rest)) => (declaration.trim(), parse_tags(rest.split('`').next().unwrap_or(""))),
        None => (line.split("//").next().unwrap_or(line).trim(), BTreeMap::new()),
    };
    let (name, go_type) = match declaration.split_once(char::is_whitespace) {
        Some((name, go_type)) => (name, go_type.trim()),
        None => ("", declaration),
    };
    if go_type.is_empty() {
        bail!("a field without a type: {line}");
    }
    Ok(Field {
        name: name.to_owned(),
        go_type: go_type.to_owned(),
        markers,
        tags,
    })
}

fn parse_tags(text: &str) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((name, after)) = rest.split_once(":\"") {
        let (value, after) = after.split_once('"').unwrap_or((after, ""));
        tags.insert(name.trim().to_owned(), value.to_owned());
        rest = after.trim();
    }
    tags
}

/// The group that `register.go` names.
pub(crate) fn group_name(register: &str) -> Option<String> {
    let line = register
        .lines()
        .map(str::trim)
        .find(|l| l.starts_with("const GroupName") || l.starts_with("GroupName "))?;
    Some(line.split('"').nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_types() {
        let mut package = Package::default();
        package
            .parse(
                r#"
package v1
import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)
// words
// +enum
type Policy string
const (
	// words
	Always Policy = "Always"
	Never  Policy = "Never"
)
const One Policy = "One"
// +structType=atomic
type Thing struct {
	metav1.TypeMeta `json:",inline"`
	// words
	// +optional
	// +listType=map
	// +listMapKey=a
	// +listMapKey=b
	Items []*Item `json:"items,omitempty" patchStrategy:"merge" patchMergeKey:"a" protobuf:"bytes,3,rep,name=items"`
}
type Empty struct{}
func (t Thing) String() string {
	return ""
}
"#,
            )
            .unwrap();
        assert_eq!(package.imports["metav1"], "k8s.io/apimachinery/pkg/apis/meta/v1");
        assert_eq!(package.imports["resource"], "k8s.io/apimachinery/pkg/api/resource");
        assert!(package.named["Policy"].markers.has("enum"));
        assert_eq!(package.constants["One"], ("Policy".into(), "One".into()));
        let thing = &package.structs["Thing"];
        assert_eq!(thing.markers.get("structType"), Some("atomic"));
        assert_eq!(thing.fields[0].name, "");
        let items = &thing.fields[1];
        assert_eq!(items.go_type, "[]*Item");
        assert_eq!(items.markers.all("listMapKey"), ["a", "b"]);
        assert_eq!(items.tags["protobuf"], "bytes,3,rep,name=items");
        assert!(package.structs["Empty"].fields.is_empty());
    }
}
