//! Requesting a service-account token.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::resource::Subresource;
use skiff_api::status::{Qualified, Status};
use skiff_api::{defaults, field, meta};

use super::{json_answer, read_body};
use crate::admission::{Operation, Review};
use crate::authentication::{Bound, Issued};
use crate::body::Body;
use crate::errors::{self, Result};
use crate::registry::Scope;
use crate::registry::read::Freshness;
use crate::resources::Served;
use crate::server::{Call, Server};

/// Upstream's bounds and default of a token's life, in seconds.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const DEFAULT: i64 = 3600;

/// `serviceaccounts/<name>/token`.
pub(super) async fn request(
    server: &Server,
    served: &Served,
    subresource: &Subresource,
    call: Call,
) -> Result<Response<Body>> {
    let info = call.info.clone();
    let user = Arc::clone(&call.user);
    let (mut wanted, warnings) = read_body(call, subresource).await?;
    meta::set(&mut wanted, "name", info.name.as_str());
    defaults::apply(subresource.group, subresource.version, subresource.kind, &mut wanted);
    let scope = Scope {
        served,
        namespace: &info.namespace,
        user: &user,
    };
    let account = server
        .registry
        .get(scope, &info.name, Freshness::Consistent)
        .await?
        .value();
    let seconds = lifetime(&wanted).map_err(|fault| {
        let kind = Qualified::new(subresource.group, subresource.kind);
        Status::invalid(kind, &info.name, &[fault])
    })?;
    let review = Review {
        operation: Operation::Create,
        scope,
        subresource: Some(subresource.name),
        old: None,
        dry_run: false,
    };
    server.registry.admission.validate(&review, &wanted)?;
    let mut issued = Issued {
        namespace: info.namespace.clone(),
        service_account: Bound {
            name: info.name.clone(),
            uid: meta::uid(&account).to_owned(),
        },
        audiences: audiences(&wanted),
        seconds,
        ..Issued::default()
    };
    if let Some(reference) = wanted
        .pointer("/spec/boundObjectRef")
        .filter(|reference| !reference.is_null())
    {
        bind(server, scope, reference, &mut issued)?;
    }
    let audiences = if issued.audiences.is_empty() {
        vec![server.tokens.issuer().to_owned()]
    } else {
        issued.audiences.clone()
    };
    let (token, expires) = server
        .tokens
        .issue(issued)
        .map_err(|error| errors::internal("sign a token", &error))?;
    wanted["metadata"] = json!({"name": info.name, "namespace": info.namespace, "creationTimestamp": meta::now()});
    wanted["spec"]["audiences"] = json!(audiences);
    wanted["spec"]["expirationSeconds"] = seconds.into();
    wanted["status"] = json!({"token": token, "expirationTimestamp": meta::time(expires)});
    Ok(json_answer(StatusCode::CREATED, &wanted, &warnings))
}

/// How many seconds the token is to live.
fn lifetime(wanted: &Value) -> std::result::Result<i64, field::Error> {
    let seconds = wanted.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    let seconds = seconds.unwrap_or(DEFAULT);
    let why = match seconds {
        ..SHORTEST => "may not specify a duration less than 10 minutes",
        SHORTEST..=LONGEST => return Ok(seconds),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let path = field::Path::root("spec.expirationSeconds");
    Err(field::Error::invalid(&path, seconds, why))
}

fn audiences(wanted: &Value) -> Vec<String> {
    let audiences = wanted.pointer("/spec/audiences").and_then(Value::as_array);
    let named = audiences.into_iter().flatten().filter_map(Value::as_str);
    named.map(str::to_owned).collect()
}

/// Binds the token to an object, which must exist and be the one that is meant.
fn bind(server: &Server, scope: Scope<'_>, reference: &Value, issued: &mut Issued) -> Result<()> {
    let text = |key: &str| reference[key].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (kind.as_str(), text("apiVersion").as_str()) {
        ("Pod", "" | "v1") => "pods",
        ("Secret", "" | "v1") => "secrets",
        ("Node", "" | "v1") => "nodes",
        (_, version) => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount to object of type {version}, Kind={kind}"
            )));
        }
    };
    let target = server
        .registry
        .resources
        .any_version("", plural)
        .ok_or_else(|| Status::internal("a built-in resource is missing"))?;
    let namespace = target.namespace(scope.namespace);
    let object = target
        .cache
        .get(namespace, &name)
        .ok_or_else(|| Status::not_found(target.resource.qualified(), &name))?
        .value();
    if !uid.is_empty() && uid != meta::uid(&object) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(target.resource.qualified(), &name, &why));
    }
    let bound = Bound {
        name: name.clone(),
        uid: meta::uid(&object).to_owned(),
    };
    match plural {
        "pods" => {
            let own = object
                .pointer("/spec/serviceAccountName")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if own != issued.service_account.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    issued.service_account.name
                )));
            }
            issued.node = node_of(server, &object);
            issued.pod = Some(bound);
        }
        "secrets" => issued.secret = Some(bound),
        _ => issued.node = Some(bound),
    }
    Ok(())
}

fn node_of(server: &Server, pod: &Value) -> Option<Bound> {
    let name = pod.pointer("/spec/nodeName")?.as_str()?.to_owned();
    let nodes = server.registry.resources.any_version("", "nodes")?;
    let uid = nodes
        .cache
        .get("", &name)
        .map(|node| meta::uid(&node.value()).to_owned())
        .unwrap_or_default();
    Some(Bound { name, uid })
}
