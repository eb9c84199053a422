//! Subresources: parts of an object, and actions on it.

use std::sync::Arc;

use http::Response;
use skiff_api::status::Status;

use crate::body::Body;
use crate::errors::Result;
use crate::handlers;
use crate::resources::Served;
use crate::server::{Call, Server};

/// Answers a request for a subresource.
pub(crate) async fn handle(server: &Arc<Server>, served: Arc<Served>, call: Call) -> Result<Response<Body>> {
    let resource = served.resource;
    let subresource = resource
        .subresource(&call.info.subresource)
        .ok_or_else(Status::unknown_path)?;
    if !subresource.verbs.contains(&call.info.verb) {
        return Err(Status::method_not_supported(resource.qualified(), call.info.verb));
    }
    // Parts that are the whole object on the wire: only what may change through them differs.
    if subresource.kind == resource.kind {
        return match call.info.verb {
            "get" => handlers::get(server, &served, &call).await,
            "update" => handlers::update(server, served, call, Some(subresource.name)).await,
            "patch" => handlers::patch(server, served, call, Some(subresource.name)).await,
            _ => Err(Status::method_not_allowed()),
        };
    }
    Err(Status::unknown_path())
}
