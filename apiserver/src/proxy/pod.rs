//! Which kubelet path a request for a pod becomes.

use form_urlencoded::Serializer;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

use crate::errors::Result;
use crate::query::Query;

const KUBELET_PORT: u64 = 10250;
/// `PodLogOptions` that the kubelet understands under the same names.
const LOG_OPTIONS: &[&str] = &[
    "follow",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "limitBytes",
    "stream",
];

/// The node that a pod is bound to.
pub(super) fn node(pod: &Value) -> Result<String> {
    match pod.pointer("/spec/nodeName").and_then(Value::as_str) {
        Some(node) if !node.is_empty() => Ok(node.to_owned()),
        _ => Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            meta::name(pod)
        ))),
    }
}

/// Where a node's kubelet listens.
pub(crate) fn address(node: &Value) -> Result<String> {
    let addresses = || {
        node.pointer("/status/addresses")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let host = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| addresses().find(|address| address["type"] == *kind))
        .and_then(|address| address["address"].as_str())
        .ok_or_else(|| {
            Status::internal(format!(
                "no preferred addresses found; known addresses of node {}: []",
                meta::name(node)
            ))
        })?;
    let port = node
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64)
        .filter(|port| *port != 0)
        .unwrap_or(KUBELET_PORT);
    if host.contains(':') {
        Ok(format!("[{host}]:{port}"))
    } else {
        Ok(format!("{host}:{port}"))
    }
}

/// The path of a container's log.
pub(super) fn log(pod: &Value, query: &Query) -> Result<String> {
    let container = container(pod, query)?;
    for (name, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        if let Some(text) = query.non_empty(name)
            && text.parse::<i64>().is_ok_and(|number| number < least)
        {
            let path = skiff_api::field::Path::root(name);
            let why = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be greater than 0"
            };
            let fault = skiff_api::field::Error::invalid(&path, text, why);
            let kind = skiff_api::status::Qualified::new("", "PodLogOptions");
            return Err(Status::invalid(kind, meta::name(pod), &[fault]));
        }
    }
    let mut options = Serializer::new(String::new());
    for name in LOG_OPTIONS {
        if let Some(value) = query.non_empty(name) {
            options.append_pair(name, value);
        }
    }
    Ok(with_query(
        format!(
            "/containerLogs/{}/{}/{container}",
            meta::namespace(pod),
            meta::name(pod)
        ),
        &options.finish(),
    ))
}

/// The path of exec, attach or port-forward.
pub(super) fn stream(kind: &str, pod: &Value, query: &Query) -> Result<String> {
    let place = format!("{}/{}", meta::namespace(pod), meta::name(pod));
    let mut options = Serializer::new(String::new());
    if kind == "portforward" {
        for ports in query.all("ports") {
            options.append_pair("port", ports);
        }
        return Ok(with_query(format!("/portForward/{place}"), &options.finish()));
    }
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let container = container(pod, query)?;
    for (own, kubelet) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(own) {
            options.append_pair(kubelet, "1");
        }
    }
    if kind == "exec" {
        let mut command = query.all("command").peekable();
        if command.peek().is_none() {
            return Err(Status::bad_request(
                "you must specify at least one command for the container",
            ));
        }
        for word in command {
            options.append_pair("command", word);
        }
    }
    Ok(with_query(format!("/{kind}/{place}/{container}"), &options.finish()))
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    }
}

/// The container that is meant: the one named, or the only one.
fn container<'a>(pod: &'a Value, query: &'a Query) -> Result<&'a str> {
    let names = |key: &str| -> Vec<&'a str> {
        pod["spec"][key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    match query.non_empty("container") {
        Some(name) => {
            if [&main, &init, &ephemeral]
                .into_iter()
                .any(|names| names.contains(&name))
            {
                Ok(name)
            } else {
                Err(Status::bad_request(format!(
                    "container {name} is not valid for pod {}",
                    meta::name(pod)
                )))
            }
        }
        None => match main.as_slice() {
            [one] => Ok(one),
            _ => {
                let mut text = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    meta::name(pod),
                    main.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                if !ephemeral.is_empty() {
                    text.push_str(&format!(
                        " or one of the ephemeral containers: [{}]",
                        ephemeral.join(" ")
                    ));
                }
                Err(Status::bad_request(text))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{log, stream};
    use crate::query::Query;

    fn pod(containers: &[&str]) -> Value {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers}})
    }

    #[test]
    fn logs_of_the_only_container_need_no_name() {
        let path = log(&pod(&["c"]), &Query::parse(Some("follow=true&tailLines=5&pretty=true"))).unwrap();
        assert_eq!(path, "/containerLogs/n/p/c?follow=true&tailLines=5");
        let error = log(&pod(&["a", "b"]), &Query::default()).unwrap_err();
        assert_eq!(
            error.message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
    }

    #[test]
    fn exec_options_take_the_kubelets_names() {
        let query = Query::parse(Some(
            "command=sh&command=-c&command=a+b&stdin=true&stdout=true&tty=false",
        ));
        assert_eq!(
            stream("exec", &pod(&["c"]), &query).unwrap(),
            "/exec/n/p/c?input=1&output=1&command=sh&command=-c&command=a+b"
        );
        assert_eq!(
            stream("portforward", &pod(&["c"]), &Query::parse(Some("ports=80"))).unwrap(),
            "/portForward/n/p?port=80"
        );
    }
}
