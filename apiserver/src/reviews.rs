//! Questions instead of objects: who am I, may I, whose token is this.

use std::sync::Arc;

use http::Response;
use skiff_api::status::Status;

use crate::body::Body;
use crate::errors::Result;
use crate::resources::Served;
use crate::server::{Call, Server};

/// Answers a review.
pub(crate) async fn handle(_server: &Arc<Server>, served: &Served, _call: Call) -> Result<Response<Body>> {
    Err(Status::method_not_supported(served.resource.qualified(), "create"))
}
