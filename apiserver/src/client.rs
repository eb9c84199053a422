//! Clients in this process: the same way of a request, without socket and TLS.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower::Service;

use crate::authentication::{Peer, User};
use crate::body::{self, Body};
use crate::server::Server;

/// The API server as a `tower` service for one user.
#[derive(Debug, Clone)]
pub(crate) struct InProcess {
    pub(crate) server: Arc<Server>,
    pub(crate) user: Arc<User>,
}

impl Service<Request<kube::client::Body>> for InProcess {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let server = Arc::clone(&self.server);
        let peer = Peer::InProcess(Arc::clone(&self.user));
        Box::pin(async move { Ok(server.handle(request.map(body::request), peer).await) })
    }
}
