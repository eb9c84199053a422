//! A client for tests that never speak to an API server.

use http::{Request, Response};
use kube::Client;
use kube::client::Body;

/// Refuses everything.
pub(crate) fn no_client() -> Client {
    let service = tower::service_fn(|request: Request<Body>| async move {
        Err::<Response<Body>, _>(std::io::Error::other(format!(
            "unexpected {} {}",
            request.method(),
            request.uri()
        )))
    });
    Client::new(service, "default")
}
