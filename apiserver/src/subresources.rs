//! Subresources: parts of an object, and actions on it.

mod actions;
mod eviction;
mod token;

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::Value;
use skiff_api::resource::Subresource;
use skiff_api::schema::{Type, schema};
use skiff_api::status::{Qualified, Status};
use skiff_api::{field, meta};

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
type Change = Box<dyn FnMut(&Value) -> Result<Value> + Send>;

/// `scale`: the number of replicas alone.
async fn scale(
    server: &Server,
    served: &Served,
    subresource: &Subresource,
    scale: &'static Scale,
    call: Call,
) -> Result<Response<Body>> {
    let name = call.info.name.clone();
    let user = Arc::clone(&call.user);
    let namespace = call.info.namespace.clone();
    let scope = Scope {
        served,
        namespace: &namespace,
        user: &user,
    };
    if call.info.verb == "get" {
        let object = server.registry.get(scope, &name, Freshness::Consistent).await?;
        return Ok(json_answer(StatusCode::OK, &scale.read(&object.value()), &[]));
    }
    let options = Options::parse(&call.query)?;
    let mut change = scale_change(served, subresource, options, call).await?;
    let update = Update {
        name: &name,
        subresource: Some("scale"),
        change: &mut |current| {
            let wanted = change(&scale.read(current))?;
            check_replicas(&name, &wanted)?;
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

/// What a PATCH or a PUT makes of a scale.
async fn scale_change(served: &Served, subresource: &Subresource, options: Options, mut call: Call) -> Result<Change> {
    let name = call.info.name.clone();
    if call.info.verb == "patch" {
        let kind = kind_of(subresource)?;
        let qualified = served.resource.qualified_kind();
        let body = call.read_body().await?;
        let patch = Patch::parse(negotiate::media_type(call.headers()), &body)?;
        return Ok(Box::new(move |current| {
            let patched = patch.apply(current, kind, (qualified, &name), options.validation);
            patched.map(|(value, _)| value)
        }));
    }
    let (wanted, _) = read_body(call, subresource).await?;
    if meta::name(&wanted) != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::name(&wanted)
        )));
    }
    Ok(Box::new(move |_| Ok(wanted.clone())))
}

fn check_replicas(name: &str, scale: &Value) -> Result<()> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas >= 0 {
        return Ok(());
    }
    let path = field::Path::root("spec.replicas");
    let fault = field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
    Err(Status::invalid(Qualified::new("autoscaling", "Scale"), name, &[fault]))
}
