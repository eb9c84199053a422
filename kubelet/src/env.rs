//! A container's environment: variables, references, expansion.

mod file;
mod quote;

use std::collections::BTreeMap;
use std::net::IpAddr;

use skiff_api::k8s_openapi::api::core::v1::{Container, EnvVar, Pod, ResourceFieldSelector};
use skiff_api::quantity::Quantity;

use crate::objects::{Kind, Objects, Unavailable};
use crate::pod;
use crate::services::Services;
use crate::volumes::Volumes;

/// Why the environment cannot be made; shown as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// No answer from the API server.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// No list of Services yet.
    #[error("services have not yet been read at least once, cannot construct envvars")]
    NoServices,
    /// A field that cannot be referred to.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A file of another container.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A source that this kubelet does not know: the container does not start without its variable.
    #[error("cannot set environment variable {0}: its valueFrom names a source that this kubelet does not support")]
    Source(String),
    /// A resource that cannot be referred to.
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// What downward references read beside the pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The pod's addresses.
    pub(crate) pod_ips: Vec<String>,
    /// The node's addresses.
    pub(crate) node_ips: Vec<IpAddr>,
    /// The node's name.
    pub(crate) node_name: String,
    /// Stands for a limit that the container does not set.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

/// The environment of one container, in order, with every `$(NAME)` replaced.
pub(crate) async fn environment(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    volumes: &Volumes,
    (objects, services): (&Objects, &Services),
) -> Result<Vec<(String, String)>, Error> {
    let links = pod::spec(pod).enable_service_links.unwrap_or(true);
    let mut service_variables = BTreeMap::new();
    // A static pod may be what makes the API server answer.
    if !pod::is_static(pod) && !services.listed().await {
        return Err(Error::NoServices);
    }
    service_variables.extend(services.environment(pod::namespace(pod), links));
    let mut result: Vec<(String, String)> = Vec::new();
    let set = |result: &mut Vec<(String, String)>, name: String, value: String| match result
        .iter_mut()
        .find(|(known, _)| *known == name)
    {
        Some(entry) => entry.1 = value,
        None => result.push((name, value)),
    };
    for (name, value) in from_sources(pod, container, objects).await? {
        set(&mut result, name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(_), _) => match resolve(pod, container, variable, facts, volumes, objects).await? {
                Some(value) => value,
                None => continue,
            },
            (None, Some(text)) => expand(text, |name| {
                let own = result
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone());
                own.or_else(|| service_variables.get(name).cloned())
            }),
            (None, None) => String::new(),
        };
        set(&mut result, variable.name.clone(), value);
    }
    for (name, value) in service_variables {
        if !result.iter().any(|(known, _)| *known == name) {
            result.push((name, value));
        }
    }
    Ok(result)
}

async fn from_sources(pod: &Pod, container: &Container, objects: &Objects) -> Result<Vec<(String, String)>, Error> {
    let mut result = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), _) => (Kind::ConfigMap, &reference.name, reference.optional.unwrap_or(false)),
            (None, Some(reference)) => (Kind::Secret, &reference.name, reference.optional.unwrap_or(false)),
            (None, None) => continue,
        };
        let Some(object) = objects.get(pod, kind, name).await? else {
            if optional {
                continue;
            }
            return Err(Error::NotFound {
                kind: kind.word(),
                name: name.clone(),
            });
        };
        for (key, value) in &object.data {
            if object.text(key).is_none() {
                continue;
            }
            let name = format!("{prefix}{key}");
            // Upstream leaves out what no shell could name.
            if !name.is_empty() && !name.contains('=') && name.chars().all(|c| c.is_ascii_graphic()) {
                result.push((name, String::from_utf8_lossy(value).into_owned()));
            }
        }
    }
    Ok(result)
}

async fn resolve(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    facts: &Facts,
    volumes: &Volumes,
    objects: &Objects,
) -> Result<Option<String>, Error> {
    let Some(source) = &variable.value_from else {
        return Ok(None);
    };
    if let Some(selector) = &source.file_key_ref {
        return Ok(file::value(pod, selector, volumes)?);
    }
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, Some(container), resource, facts).map(Some);
    }
    let (kind, word, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (
            Kind::ConfigMap,
            "ConfigMap",
            &r.name,
            &r.key,
            r.optional.unwrap_or(false),
        ),
        (None, Some(r)) => (Kind::Secret, "Secret", &r.name, &r.key, r.optional.unwrap_or(false)),
        (None, None) => return Err(Error::Source(variable.name.clone())),
    };
    match objects.get(pod, kind, name).await? {
        None if optional => Ok(None),
        None => Err(Error::NotFound {
            kind: kind.word(),
            name: name.clone(),
        }),
        Some(object) => match object.text(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(Error::NoKey {
                key: key.clone(),
                kind: word,
                namespace: pod::namespace(pod).into(),
                name: name.clone(),
            }),
        },
    }
}

/// The value of a `fieldRef`, in the environment and in downwardAPI volumes alike.
pub(crate) fn field_value(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Error> {
    let spec = pod::spec(pod);
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(Error::FieldPath(path.into())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).into(),
        "metadata.namespace" => pod::namespace(pod).into(),
        "metadata.uid" => pod::uid(pod).into(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_else(|| facts.node_name.clone()),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
        "status.hostIP" => facts.node_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => facts
            .node_ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(Error::FieldPath(path.into())),
    })
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote::quoted(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The value of a `resourceFieldRef`: rounded up to the divisor; an absent limit is what the node can give.
pub(crate) fn resource_value(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, Error> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let found = match named {
        Some(name) => pod::container(pod, name).map(|(_, container)| container.into_owned()),
        None => own.cloned(),
    };
    let unsupported = || Error::Resource(selector.resource.clone());
    let container = found.ok_or_else(unsupported)?;
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let value = match list {
        "limits" => pod::limit(&container, resource)
            .filter(|limit| limit.as_milli() > 0)
            .or_else(|| facts.allocatable.get(resource).cloned()),
        "requests" => pod::request(&container, resource),
        _ => return Err(unsupported()),
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|divisor| divisor.0.parse::<Quantity>().ok());
    let divisor = divisor.map_or(0, |divisor| divisor.as_milli());
    let divisor = if divisor > 0 { divisor } else { 1000 };
    let milli = value.map_or(0, |value| value.as_milli());
    Ok((milli + divisor - 1).div_euclid(divisor).to_string())
}

/// Replaces `$(NAME)`; what has no value stays, `$$` is one dollar sign.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// The command of an exec probe: upstream replaces references there by what the container's `env` says literally, so that a variable
/// with another source is empty.
pub(crate) fn expand_literals(command: &[String], container: &Container) -> Vec<String> {
    let variables = container.env.as_deref().unwrap_or_default();
    let literal = |name: &str| {
        let last = variables.iter().rev().find(|variable| variable.name == name)?;
        Some(last.value.clone().unwrap_or_default())
    };
    command.iter().map(|part| expand(part, literal)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        let cases = [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("$(A)$(A)", "11"),
        ];
        for (text, expanded) in cases {
            assert_eq!(expand(text, lookup), expanded, "{text}");
        }
    }

    #[test]
    fn a_probe_knows_literal_values_alone() {
        let container: Container = serde_json::from_value(json!({"name": "c", "env": [
            {"name": "A", "value": "0"},
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)"},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]}))
        .unwrap();
        let command: Vec<String> = ["echo", "a=$(A)", "$(B)", "[$(C)]", "$(D)", "$$(A)"]
            .map(Into::into)
            .into();
        assert_eq!(
            expand_literals(&command, &container),
            ["echo", "a=1", "$(A)", "[]", "$(D)", "$(A)"]
        );
    }

    #[test]
    fn fields() {
        let mut p = pod(&json!({"nodeName": "node-1"}));
        p.metadata.labels = Some(BTreeMap::from([("a".into(), "x\"y".into()), ("b".into(), "2".into())]));
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".into()],
            ..Facts::default()
        };
        let cases = [
            ("metadata.name", Some("p")),
            ("metadata.labels['b']", Some("2")),
            ("metadata.labels", Some("a=\"x\\\"y\"\nb=\"2\"")),
            ("metadata.annotations['c']", Some("")),
            ("spec.nodeName", Some("node-1")),
            ("spec.serviceAccountName", Some("default")),
            ("status.podIP", Some("10.0.0.1")),
            ("spec.containers", None),
        ];
        for (path, value) in cases {
            assert_eq!(field_value(&p, path, &facts).ok().as_deref(), value, "{path}");
        }
    }

    #[test]
    fn resources() {
        let p = pod(&json!({"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}},
        ]}));
        let facts = Facts {
            allocatable: BTreeMap::from([("memory".into(), "1Gi".parse().unwrap())]),
            ..Facts::default()
        };
        let value = |resource: &str, divisor: Option<&str>| {
            let mut selector = json!({"containerName": "c", "resource": resource});
            if let Some(divisor) = divisor {
                selector["divisor"] = divisor.into();
            }
            resource_value(&p, None, &serde_json::from_value(selector).unwrap(), &facts).ok()
        };
        assert_eq!(value("limits.cpu", None).as_deref(), Some("2"));
        assert_eq!(value("limits.cpu", Some("1m")).as_deref(), Some("1500"));
        assert_eq!(value("requests.memory", Some("1Mi")).as_deref(), Some("64"));
        assert_eq!(value("limits.memory", None).as_deref(), Some("1073741824"));
        assert_eq!(value("x", None), None);
    }
}
