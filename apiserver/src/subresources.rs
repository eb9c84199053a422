//! Subresources: parts of an object, and actions on it.

mod actions;
mod eviction;
mod token;

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::Value;
use skiff_api::meta;
use skiff_api::resource::Subresource;
use skiff_api::schema::{Type, schema};
use skiff_api::status::Status;

use crate::body::Body;
use crate::errors::Result;
use crate::handlers;
use crate::negotiate;
use crate::registry::patch::Patch;
use crate::registry::read::Freshness;
use crate::registry::write::Update;
use crate::registry::{self, Options, Scope};
use crate::resources::Served;
use crate::server::{Call, Server};
use crate::strategy::Scale;

/// Answers a request for a subresource.
pub(crate) async fn handle(server: &Arc<Server>, served: Arc<Served>, call: Call) -> Result<Response<Body>> {
    let resource = served.resource;
    let subresource = resource
        .subresource(&call.info.subresource)
        .ok_or_else(Status::unknown_path)?;
    if !subresource.verbs.contains(&call.info.verb) {
        return Err(Status::method_not_supported(resource.qualified(), call.info.verb));
    }
    match (subresource.name, subresource.kind) {
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => crate::proxy::handle(server, &served, call).await,
        ("binding", _) => actions::bind(server, &served, subresource, call).await,
        ("eviction", _) => eviction::evict(server, &served, subresource, call).await,
        ("token", _) => token::request(server, &served, subresource, call).await,
        ("scale", _) => match served.strategy.scale() {
            Some(scale) => self::scale(server, &served, subresource, scale, call).await,
            None => Err(Status::unknown_path()),
        },
        // Parts that are the whole object on the wire: only what may change through them differs.
        (_, kind) if kind == resource.kind => match call.info.verb {
            "get" => handlers::get(server, &served, &call).await,
            "update" => handlers::update(server, served, call, Some(subresource.name)).await,
            "patch" => handlers::patch(server, served, call, Some(subresource.name)).await,
            _ => Err(Status::method_not_allowed()),
        },
        _ => Err(Status::unknown_path()),
    }
}

/// `bindings`: the old form of `pods/<name>/binding`, with the pod's name in the object.
pub(crate) async fn bind_by_object(server: &Server, call: Call) -> Result<Response<Body>> {
    let pods = server
        .registry
        .resources
        .any_version("", "pods")
        .ok_or_else(Status::unknown_path)?;
    let subresource = pods.resource.subresource("binding").ok_or_else(Status::unknown_path)?;
    actions::bind(server, pods, subresource, call).await
}

/// The object that a subresource takes, out of a request body.
async fn read_body(mut call: Call, subresource: &Subresource) -> Result<(Value, Vec<String>)> {
    let encoding = negotiate::encoding(call.headers())?;
    let options = Options::parse(&call.query)?;
    let body = call.read_body().await?;
    let kind = kind_of(subresource)?;
    let api_version = api_version(subresource);
    let decoded = registry::decode(
        &body,
        encoding,
        kind,
        (&api_version, subresource.kind),
        options.validation,
    )?;
    Ok((decoded.value, decoded.warnings))
}

fn kind_of(subresource: &Subresource) -> Result<&'static Arc<Type>> {
    schema()
        .kind(subresource.group, subresource.version, subresource.kind)
        .ok_or_else(|| Status::internal(format!("{} has no schema", subresource.kind)))
}

fn api_version(subresource: &Subresource) -> String {
    if subresource.group.is_empty() {
        subresource.version.to_owned()
    } else {
        format!("{}/{}", subresource.group, subresource.version)
    }
}

fn json_answer(code: StatusCode, value: &Value, warnings: &[String]) -> Response<Body> {
    let bytes = bytes::Bytes::from(serde_json::to_vec(value).unwrap_or_default());
    handlers::answer(code, "application/json", bytes, warnings)
}

/// Makes the wanted scale of the current one.
type Change<'a> = Box<dyn FnMut(&Value) -> Result<Value> + Send + 'a>;

/// `scale`: the number of replicas alone.
async fn scale(
    server: &Server,
    served: &Served,
    subresource: &Subresource,
    scale: &'static Scale,
    mut call: Call,
) -> Result<Response<Body>> {
    let verb = call.info.verb;
    let name = call.info.name.clone();
    let user = Arc::clone(&call.user);
    let namespace = call.info.namespace.clone();
    let scope = Scope {
        served,
        namespace: &namespace,
        user: &user,
    };
    if verb == "get" {
        let object = server.registry.get(scope, &name, Freshness::Consistent).await?;
        return Ok(json_answer(StatusCode::OK, &scale.read(&object.value()), &[]));
    }
    let options = Options::parse(&call.query)?;
    let kind = kind_of(subresource)?;
    let about = (served.resource.qualified_kind(), name.as_str());
    let mut change: Change<'_> = if verb == "patch" {
        let body = call.read_body().await?;
        let patch = Patch::parse(negotiate::media_type(call.headers()), &body)?;
        Box::new(move |current| {
            patch
                .apply(current, kind, about, options.validation)
                .map(|(value, _)| value)
        })
    } else {
        let (wanted, _) = read_body(call, subresource).await?;
        if meta::name(&wanted) != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&wanted)
            )));
        }
        Box::new(move |_| Ok(wanted.clone()))
    };
    let update = Update {
        name: &name,
        subresource: Some("scale"),
        change: &mut |current| {
            let wanted = change(&scale.read(current))?;
            let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
            if replicas < 0 {
                let path = skiff_api::field::Path::root("spec.replicas");
                let fault = skiff_api::field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
                return Err(Status::invalid(
                    skiff_api::status::Qualified::new("autoscaling", "Scale"),
                    &name,
                    &[fault],
                ));
            }
            let mut object = current.clone();
            scale.write(&mut object, &wanted);
            Ok(object)
        },
        whole: false,
    };
    let written = server.registry.update(scope, update, options).await?;
    let object: Value = serde_json::from_slice(&written.bytes).unwrap_or_default();
    Ok(json_answer(StatusCode::OK, &scale.read(&object), &written.warnings))
}
