//! An API client that can be replaced under those who hold it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use kube::client::Body;
use parking_lot::RwLock;
use tower::Service;

/// Sends each request with the client of the moment. A watch that is open stays with the one that it began with.
#[derive(Clone)]
pub(super) struct Replaceable {
    current: Arc<RwLock<kube::Client>>,
}

impl Replaceable {
    pub(super) fn new(client: kube::Client) -> Self {
        Self {
            current: Arc::new(RwLock::new(client)),
        }
    }

    /// From now on this one.
    pub(super) fn replace(&self, client: kube::Client) {
        *self.current.write() = client;
    }

    /// The one of the moment.
    pub(super) fn now(&self) -> kube::Client {
        self.current.read().clone()
    }

    /// A client for everybody.
    pub(super) fn client(&self) -> kube::Client {
        let namespace = self.now().default_namespace().to_owned();
        kube::Client::new(self.clone(), namespace)
    }
}

impl Service<Request<Body>> for Replaceable {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.now();
        Box::pin(async move { client.send(request).await })
    }
}
