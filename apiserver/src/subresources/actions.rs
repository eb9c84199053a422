//! Binding a pod to its node.

use http::{Response, StatusCode};
use skiff_api::meta;
use skiff_api::resource::Subresource;
use skiff_api::status::{Qualified, Status};

use super::{json_answer, read_body};
use crate::body::Body;
use crate::errors::Result;
use crate::registry::write::Update;
use crate::registry::{Options, Scope};
use crate::resources::Served;
use crate::server::{Call, Server};
use crate::strategy::{self, BindError};

/// `pods/<name>/binding`: gives a pod to a node.
pub(super) async fn bind(
    server: &Server,
    served: &Served,
    subresource: &Subresource,
    call: Call,
) -> Result<Response<Body>> {
    let options = Options::parse(&call.query)?;
    let info = call.info.clone();
    let user = std::sync::Arc::clone(&call.user);
    let (binding, warnings) = read_body(call, subresource).await?;
    // The old form posts to `bindings`, with the pod's name in the object.
    let name = if info.name.is_empty() {
        meta::name(&binding)
    } else {
        &info.name
    };
    let now = meta::now();
    let qualified = Qualified::new("", "pods/binding");
    let update = Update {
        name,
        subresource: Some("binding"),
        change: &mut |current| {
            let mut pod = current.clone();
            strategy::bind(&mut pod, &binding, &now).map_err(|error| match error {
                BindError::Invalid(faults) => Status::invalid(Qualified::new("", "Binding"), name, &faults),
                BindError::Conflict(why) => Status::conflict(qualified, name, &why),
            })?;
            Ok(pod)
        },
        whole: false,
    };
    let scope = Scope {
        served,
        namespace: &info.namespace,
        user: &user,
    };
    server.registry.update(scope, update, options).await?;
    let success = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(json_answer(StatusCode::CREATED, &success, &warnings))
}
