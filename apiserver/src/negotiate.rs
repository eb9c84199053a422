//! In which form a client wants its answer: JSON as it is, a table, or metadata alone.

use http::{HeaderMap, header};
use skiff_api::status::Status;

use crate::errors::Result;

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The object.
    #[default]
    Json,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata(List).
    Metadata,
    /// The object, as YAML.
    Yaml,
}

/// What can be made here; for the client that wants something else.
const ACCEPTED: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
];

/// One entry of an Accept header.
#[derive(Debug)]
struct Media<'a> {
    kind: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Media<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        Self {
            kind: parts.next().unwrap_or_default(),
            parameters: parts.filter_map(|part| part.split_once('=')).collect(),
        }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }

    fn form(&self) -> Option<Form> {
        let json = match self.kind {
            "application/json" | "*/*" | "application/*" | "" => true,
            "application/yaml" => false,
            _ => return None,
        };
        match self.get("as") {
            None if json => Some(Form::Json),
            None => Some(Form::Yaml),
            Some(_) if !json || self.get("g") != Some("meta.k8s.io") => None,
            Some("Table") if self.get("v") == Some("v1") => Some(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if self.get("v") == Some("v1") => {
                Some(Form::Metadata)
            }
            Some(_) => None,
        }
    }
}

/// The first form in the Accept header that can be made.
pub fn form(headers: &HeaderMap) -> Result<Form> {
    let Some(accept) = headers.get(header::ACCEPT) else {
        return Ok(Form::Json);
    };
    let accept = accept.to_str().unwrap_or_default();
    if matches!(accept, "application/json" | "*/*" | "") {
        return Ok(Form::Json);
    }
    accept
        .split(',')
        .find_map(|entry| Media::parse(entry.trim()).form())
        .ok_or_else(|| Status::not_acceptable(ACCEPTED))
}

/// Whether the Accept header asks for `kind` with these parameters before plain JSON.
pub fn wants(headers: &HeaderMap, kind: &str, parameters: &[(&str, &str)]) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .into_iter()
        .flat_map(|accept| accept.split(','))
        .map(|entry| Media::parse(entry.trim()))
        .take_while(|media| !(media.kind == "application/json" && media.get("as").is_none()))
        .any(|media| media.kind == kind && parameters.iter().all(|(name, value)| media.get(name) == Some(value)))
}

/// How a request body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Protobuf, as Go clients send it.
    Protobuf,
}

/// The media type of a request body, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map_or("", |value| value.split(';').next().unwrap_or_default().trim())
}

/// How the object in a request body is written.
pub fn encoding(headers: &HeaderMap) -> Result<Encoding> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => Ok(Encoding::Json),
        "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(Status::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{Form, form};

    #[test]
    fn the_first_form_that_can_be_made_is_taken() {
        let cases = [
            ("application/json", Some(Form::Json)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            ("application/vnd.kubernetes.protobuf, */*", Some(Form::Json)),
            ("application/vnd.kubernetes.protobuf", None),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Form::Metadata),
            ),
            ("application/yaml", Some(Form::Yaml)),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(form(&headers).ok(), expected, "{accept}");
        }
    }
}
