//! Requests for resources: from HTTP to the registry and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use skiff_api::decode::Decoded;
use skiff_api::status::{Qualified, Status};
use skiff_api::{field, meta};
use tokio::time::Instant;

use crate::body::Body;
use crate::cache::Caches;
use crate::errors::Result;
use crate::filter::Filter;
use crate::negotiate;
use crate::query::Query;
use crate::registry::delete::DeleteOptions;
use crate::registry::patch::Patch;
use crate::registry::read::{self, Freshness, ListOptions};
use crate::registry::write::Update;
use crate::registry::{self, Options, Scope, Written};
use crate::render::Render;
use crate::resources::Served;
use crate::server::{Call, Server};
use crate::watch::{Start, Watch};

/// A watch without `timeoutSeconds` lasts between this long and twice as long.
const WATCH: Duration = Duration::from_secs(1800);

/// Kinds whose deletion is answered with the object even when it is gone.
const SHOWN_WHEN_DELETED: &[&str] = &[
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
];

/// Answers a request for a resource.
pub(crate) async fn resource(server: &Arc<Server>, served: Arc<Served>, call: Call) -> Result<Response<Body>> {
    let resource = served.resource;
    if resource.namespaced
        && call.info.namespace.is_empty()
        && !matches!(call.info.verb, "list" | "watch" | "deletecollection")
    {
        // Reviews are the exception: they have a namespace of their own in them.
        if served.is_stored() {
            return Err(Status::method_not_allowed());
        }
    }
    // What was authorized in a namespace is not to be done to the whole cluster.
    if !resource.namespaced && !call.info.namespace.is_empty() && resource.plural != "namespaces" {
        return Err(Status::unknown_path());
    }
    if !call.info.subresource.is_empty() {
        return crate::subresources::handle(server, served, call).await;
    }
    if !resource.allows(call.info.verb) {
        return Err(Status::method_not_supported(resource.qualified(), call.info.verb));
    }
    match call.info.verb {
        "get" => get(server, &served, &call).await,
        "list" => list(server, &served, &call).await,
        "watch" => watch(server, served, &call).await,
        "create" => create(server, served, call).await,
        "update" => update(server, served, call, None).await,
        "patch" => patch(server, served, call, None).await,
        "delete" => delete(server, served, call).await,
        "deletecollection" => delete_collection(server, served, call).await,
        _ => Err(Status::method_not_allowed()),
    }
}

pub(crate) fn scope<'a>(served: &'a Served, call: &'a Call) -> Scope<'a> {
    Scope {
        served,
        namespace: served.namespace(&call.info.namespace),
        user: &call.user,
    }
}

pub(crate) fn render(served: &Arc<Served>, call: &Call) -> Result<Render> {
    let form = negotiate::form(call.headers())?;
    Ok(Render::new(Arc::clone(served), form, call.query.get("includeObject")))
}

/// An answer with an object in it.
pub(crate) fn answer(
    code: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Body>,
    warnings: &[String],
) -> Response<Body> {
    let mut response = Response::new(bytes.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    for warning in warnings {
        let text: String = warning
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            headers.append(header::WARNING, value);
        }
    }
    response
}

pub(crate) fn written(render: &Render, written: &Written) -> Response<Body> {
    let code = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    answer(
        code,
        render.content_type(),
        render.object(&written.bytes),
        &written.warnings,
    )
}

pub(crate) async fn get(server: &Server, served: &Arc<Served>, call: &Call) -> Result<Response<Body>> {
    let render = render(served, call)?;
    let freshness = match read::revision(&call.query)? {
        None => Freshness::Consistent,
        Some(0) => Freshness::Any,
        Some(revision) => Freshness::AtLeast(revision),
    };
    let object = server
        .registry
        .get(scope(served, call), &call.info.name, freshness)
        .await?;
    Ok(answer(
        StatusCode::OK,
        render.content_type(),
        render.object(&object.bytes),
        &[],
    ))
}

async fn list(server: &Server, served: &Arc<Served>, call: &Call) -> Result<Response<Body>> {
    let render = render(served, call)?;
    let scope = scope(served, call);
    let filter = Filter::parse(&call.query, scope.namespace, served.strategy)?;
    let prefix = served.cache.prefix(scope.namespace);
    let options = ListOptions::parse(&call.query, &prefix)?;
    let listing = server.registry.list(scope, &filter, &options).await?;
    let next = read::continue_token(&listing, &prefix);
    let pieces = render.list(&listing, next.as_deref(), !filter.selects());
    Ok(answer(StatusCode::OK, render.content_type(), Body::chunks(pieces), &[]))
}

async fn watch(server: &Server, served: Arc<Served>, call: &Call) -> Result<Response<Body>> {
    let render = render(&served, call)?;
    let namespace = served.namespace(&call.info.namespace);
    let filter = if call.info.is_collection {
        Filter::parse(&call.query, namespace, served.strategy)?
    } else {
        Filter::one(namespace, &call.info.name, served.strategy)
    };
    let query = &call.query;
    let bookmarks = query.flag("allowWatchBookmarks");
    let caches = &server.registry.caches;
    let start = start(query, caches).await?;
    let lasts = match query
        .number("timeoutSeconds")
        .and_then(|seconds| u64::try_from(seconds).ok())
    {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
        // Spread, so that clients do not all come back at once.
        _ => WATCH + WATCH.mul_f64(rand::random()),
    };
    let content_type = render.content_type();
    let watch = Watch {
        caches: Arc::clone(caches),
        cache: Arc::clone(&served.cache),
        filter,
        render,
        bookmarks,
        deadline: Instant::now() + lasts,
        shutdown: server.shutdown().clone(),
        open: server.metrics.long_running(call.labels),
    };
    Ok(answer(StatusCode::OK, content_type, watch.start(start), &[]))
}

/// Where a watch begins, once the cache is as new as that asks.
async fn start(query: &Query, caches: &Caches) -> Result<Start> {
    let initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let matching = query.non_empty("resourceVersionMatch");
    match (initial_events, read::revision(query)?) {
        (Some(_), _) if matching != Some("NotOlderThan") => Err(match_refused(
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, _) if matching.is_some() => Err(match_refused(
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(true), Some(version)) => {
            caches.reach(version).await?;
            Ok(Start::NowMarked)
        }
        (Some(true), None) => {
            caches.fresh().await?;
            Ok(Start::NowMarked)
        }
        (None, None) => {
            caches.fresh().await?;
            Ok(Start::Now)
        }
        (None, Some(0)) => Ok(Start::Now),
        (Some(false), None | Some(0)) => {
            caches.fresh().await?;
            Ok(Start::Behind(caches.applied()))
        }
        (_, Some(version)) => Ok(Start::Behind(version)),
    }
}

fn match_refused(why: &str) -> Status {
    let fault = field::Error::forbidden(&field::Path::root("resourceVersionMatch"), why);
    Status::invalid(Qualified::new("meta.k8s.io", "ListOptions"), "", &[fault])
}

/// The object that the body holds.
pub(crate) async fn decode(served: &Served, call: &mut Call, options: Options) -> Result<Decoded> {
    let encoding = negotiate::encoding(call.headers())?;
    let body = call.read_body().await?;
    let expected = (served.api_version.as_str(), served.resource.kind);
    registry::decode(&body, encoding, &served.kind, expected, options.validation)
}

async fn delete_options(call: &mut Call) -> Result<DeleteOptions> {
    let encoding = negotiate::encoding(call.headers())?;
    let body = call.read_body().await?;
    DeleteOptions::parse(&body, encoding, &call.query)
}

async fn create(server: &Arc<Server>, served: Arc<Served>, mut call: Call) -> Result<Response<Body>> {
    if !served.is_stored() {
        return crate::reviews::handle(server, &served, call).await;
    }
    let render = render(&served, &call)?;
    let options = Options::parse(&call.query)?;
    let decoded = decode(&served, &mut call, options).await?;
    let scope = scope(&served, &call);
    let mut done = server.registry.create(scope, decoded.value, options).await?;
    done.warnings.splice(0..0, decoded.warnings);
    Ok(written(&render, &done))
}

pub(crate) async fn update(
    server: &Server,
    served: Arc<Served>,
    mut call: Call,
    subresource: Option<&str>,
) -> Result<Response<Body>> {
    let render = render(&served, &call)?;
    let options = Options::parse(&call.query)?;
    let decoded = decode(&served, &mut call, options).await?;
    let scope = scope(&served, &call);
    let wanted = decoded.value;
    let update = Update {
        name: &call.info.name,
        subresource,
        change: &mut |_| Ok(wanted.clone()),
        whole: true,
    };
    let mut done = match server.registry.update(scope, update, options).await {
        Err(status) if status.code == 404 && subresource.is_none() && served.strategy.allow_create_on_update() => {
            create_by_update(server, scope, &call.info.name, wanted, options).await?
        }
        done => done?,
    };
    done.warnings.splice(0..0, decoded.warnings);
    Ok(written(&render, &done))
}

/// A PUT of what does not exist yet, for the kinds that allow it and users that may create.
async fn create_by_update(
    server: &Server,
    scope: Scope<'_>,
    name: &str,
    mut wanted: serde_json::Value,
    options: Options,
) -> Result<Written> {
    let resource = scope.served.resource;
    server.authorizer.authorize(
        scope.user,
        &crate::authorization::Attributes {
            verb: "create",
            is_resource: true,
            group: resource.group,
            resource: resource.plural,
            namespace: scope.namespace,
            name,
            ..crate::authorization::Attributes::default()
        },
    )?;
    if meta::name(&wanted) != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::name(&wanted)
        )));
    }
    meta::remove(&mut wanted, "resourceVersion");
    meta::remove(&mut wanted, "uid");
    server.registry.create(scope, wanted, options).await
}

pub(crate) async fn patch(
    server: &Server,
    served: Arc<Served>,
    mut call: Call,
    subresource: Option<&str>,
) -> Result<Response<Body>> {
    let render = render(&served, &call)?;
    let options = Options::parse(&call.query)?;
    let body = call.read_body().await?;
    let patch = Patch::parse(negotiate::media_type(call.headers()), &body)?;
    let scope = scope(&served, &call);
    let mut warnings = Vec::new();
    let update = Update {
        name: &call.info.name,
        subresource,
        change: &mut |current| {
            let about = (served.resource.qualified_kind(), call.info.name.as_str());
            let (patched, said) = patch.apply(current, &served.kind, about, options.validation)?;
            warnings = said;
            Ok(patched)
        },
        whole: false,
    };
    let mut done = server.registry.update(scope, update, options).await?;
    done.warnings.splice(0..0, warnings);
    Ok(written(&render, &done))
}

async fn delete(server: &Server, served: Arc<Served>, mut call: Call) -> Result<Response<Body>> {
    let render = render(&served, &call)?;
    let options = delete_options(&mut call).await?;
    let scope = scope(&served, &call);
    let deleted = server.registry.delete(scope, &call.info.name, &options).await?;
    let resource = served.resource;
    let shown = resource.group.is_empty() && SHOWN_WHEN_DELETED.contains(&resource.plural);
    if deleted.gone && !shown {
        let status = Status::success(resource.qualified(), &call.info.name, &deleted.uid).to_value();
        let bytes = Bytes::from(serde_json::to_vec(&status).unwrap_or_default());
        return Ok(answer(StatusCode::OK, "application/json", bytes, &[]));
    }
    Ok(answer(
        StatusCode::OK,
        render.content_type(),
        render.object(&deleted.bytes),
        &[],
    ))
}

async fn delete_collection(server: &Server, served: Arc<Served>, mut call: Call) -> Result<Response<Body>> {
    let render = render(&served, &call)?;
    let options = delete_options(&mut call).await?;
    let scope = scope(&served, &call);
    let filter = Filter::parse(&call.query, scope.namespace, served.strategy)?;
    let deleted = server.registry.delete_collection(scope, &filter, &options).await?;
    let values: Vec<serde_json::Value> = deleted
        .iter()
        .filter_map(|bytes| serde_json::from_slice(bytes).ok())
        .collect();
    let metadata = json!({"resourceVersion": server.registry.caches.applied().to_string()});
    Ok(answer(
        StatusCode::OK,
        render.content_type(),
        render.list_value(&values, metadata),
        &[],
    ))
}
