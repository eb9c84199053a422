//! `metrics.k8s.io`: what nodes and pods use now, as `kubectl top` and autoscalers ask; upstream leaves it to metrics-server.
//!
//! Nothing is stored and nothing runs while nobody asks: a request has the kubelets of its nodes asked (`/metrics/resource`), unless
//! that was done a moment ago. Figures are the difference of two looks; the first request takes both.

mod nodes;
mod scrape;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::resource::Resource;
use skiff_api::status::Status;

use crate::body::Body;
use crate::cache::{Cache, Object};
use crate::errors::Result;
use crate::filter::Filter;
use crate::handlers;
use crate::negotiate;
use crate::proxy::Kubelets;
use crate::render::Render;
use crate::server::{Call, Server};
use usage::Usage;

pub(crate) use nodes::Nodes;

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";

/// What discovery shows.
pub(crate) static RESOURCES: [Resource; 2] = [
    resource("nodes", "node", "NodeMetrics", false),
    resource("pods", "pod", "PodMetrics", true),
];

const fn resource(plural: &'static str, singular: &'static str, kind: &'static str, namespaced: bool) -> Resource {
    Resource {
        group: GROUP,
        version: VERSION,
        plural,
        singular,
        kind,
        short_names: &[],
        categories: &[],
        namespaced,
        subresources: &[],
        verbs: &["get", "list"],
    }
}

/// Answers a request for the group.
pub(crate) async fn handle(server: &Server, call: &Call) -> Result<Response<Body>> {
    let info = &call.info;
    let found = RESOURCES
        .iter()
        .find(|resource| info.version == VERSION && info.resource == resource.plural && info.subresource.is_empty());
    let (Some(resource), Some(kubelets)) = (found, &server.kubelets) else {
        return Err(Status::unknown_path());
    };
    if !resource.allows(info.verb) {
        return Err(Status::method_not_supported(resource.qualified(), info.verb));
    }
    if !resource.namespaced && !info.namespace.is_empty() {
        // What was authorized in a namespace is not to be done to the whole cluster.
        return Err(Status::unknown_path());
    }
    let core = server
        .registry
        .resources
        .any_version("", resource.plural)
        .ok_or_else(Status::unknown_path)?;
    let namespace = if resource.namespaced {
        info.namespace.as_str()
    } else {
        ""
    };
    let filter = if info.is_collection {
        Filter::parse(&call.query, namespace, core.strategy)?
    } else {
        Filter::one(namespace, &info.name, core.strategy)
    };
    server.registry.caches.fresh().await?;
    let objects: Vec<_> = core
        .cache
        .all(namespace)
        .into_iter()
        .filter(|object| filter.sees(object))
        .collect();
    let values: Vec<Value> = match resource.namespaced {
        true => pods(server, kubelets, &objects).await?,
        false => nodes(server, kubelets, &objects).await,
    };
    let render = Render::of(
        resource,
        negotiate::form(call.headers())?,
        call.query.get("includeObject"),
    );
    let bytes = if info.is_collection {
        render.list_value(&values, json!({}))
    } else {
        let value = values.first();
        let name = match namespace {
            "" => info.name.clone(),
            namespace => format!("{namespace}/{}", info.name),
        };
        let missing = || Status::not_found(metrics_of(resource), &name);
        render.value(value.ok_or_else(missing)?)
    };
    Ok(handlers::answer(StatusCode::OK, render.content_type(), bytes, &[]))
}

/// As metrics-server names what it has no figures of.
fn metrics_of(resource: &Resource) -> skiff_api::status::Qualified<'static> {
    let plural = if resource.namespaced {
        "podmetrics"
    } else {
        "nodemetrics"
    };
    skiff_api::status::Qualified::new(GROUP, plural)
}

async fn nodes(server: &Server, kubelets: &Kubelets, objects: &[Arc<Object>]) -> Vec<Value> {
    let wanted: Vec<(String, Value)> = objects
        .iter()
        .map(|object| (object.name().to_owned(), object.value()))
        .collect();
    let looks = server.nodes.look(kubelets, &wanted).await;
    let mut values = Vec::new();
    for (name, node) in &wanted {
        let Some(pair) = looks.get(name) else { continue };
        if let Some(usage) = usage::of_node(pair) {
            let mut value = describe("NodeMetrics", node, pair.at(), pair.window());
            value["usage"] = quantities(&usage);
            values.push(value);
        }
    }
    values
}

async fn pods(server: &Server, kubelets: &Kubelets, objects: &[Arc<Object>]) -> Result<Vec<Value>> {
    let node_cache: &Cache = &server
        .registry
        .resources
        .any_version("", "nodes")
        .ok_or_else(Status::unknown_path)?
        .cache;
    let pods: Vec<(Value, String)> = objects
        .iter()
        .filter_map(|object| {
            let pod = object.value();
            let running = pod.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
            let node = pod.pointer("/spec/nodeName")?.as_str()?.to_owned();
            running.then_some((pod, node))
        })
        .collect();
    let names: std::collections::BTreeSet<&String> = pods.iter().map(|(_, node)| node).collect();
    let wanted: Vec<(String, Value)> = names
        .into_iter()
        .filter_map(|name| Some((name.clone(), node_cache.get("", name)?.value())))
        .collect();
    let looks = server.nodes.look(kubelets, &wanted).await;
    let mut values = Vec::new();
    for (pod, node) in &pods {
        let Some(pair) = looks.get(node) else { continue };
        let containers = usage::of_pod(pair, meta::namespace(pod), meta::name(pod));
        // A pod of which a part is missing would look smaller than it is.
        let expected = pod
            .pointer("/spec/containers")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        if containers.is_empty() || containers.len() < expected {
            continue;
        }
        let mut value = describe("PodMetrics", pod, pair.at(), pair.window());
        value["containers"] = containers
            .iter()
            .map(|(name, usage)| json!({"name": name, "usage": quantities(usage)}))
            .collect();
        values.push(value);
    }
    Ok(values)
}

fn describe(kind: &str, object: &Value, at: Timestamp, window: f64) -> Value {
    let mut metadata = json!({"name": meta::name(object), "creationTimestamp": meta::now()});
    if !meta::namespace(object).is_empty() {
        metadata["namespace"] = meta::namespace(object).into();
    }
    if let Some(labels) = meta::labels(object).filter(|labels| !labels.is_empty()) {
        metadata["labels"] = labels.clone().into();
    }
    json!({
        "kind": kind,
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata,
        "timestamp": meta::time(at),
        "window": format!("{window:.3}s"),
    })
}

/// CPU in billionths, memory in Ki: the units in which metrics-server writes.
fn quantities(usage: &Usage) -> Value {
    let map: BTreeMap<&str, String> = [
        ("cpu", format!("{}n", usage.nano_cores)),
        ("memory", format!("{}Ki", usage.working_set / 1024)),
    ]
    .into();
    json!(map)
}
