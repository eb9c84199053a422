//! The way of a request: who, may they, what, answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header, request::Parts};
use parking_lot::Mutex;
use skiff_api::status::Status;
use skiff_daemon::{Context, Shutdown};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::authentication::{Authenticator, Peer, Tokens, User};
use crate::authorization::{Attributes, Authorizer};
use crate::body::{self, Body, RequestBody};
use crate::discovery::Discovery;
use crate::errors::{self, Result};
use crate::metrics::{Labels, Metrics};
use crate::openid::OpenId;
use crate::proxy::Kubelets;
use crate::query::Query;
use crate::registry::Registry;
use crate::request::RequestInfo;
use crate::resources::Served;
use crate::{handlers, health, impersonation, metrics_server, openapi};

/// How long a request may take that is neither a watch nor a stream; upstream's number.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Requests being worked on at once; further ones wait for a while, then are sent away.
const READING: usize = 400;
const WRITING: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything that a request may need.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authenticator: Authenticator,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) discovery: Discovery,
    pub(crate) openid: OpenId,
    pub(crate) metrics: Metrics,
    pub(crate) daemon: Context,
    pub(crate) limits: Limits,
    /// `None` when the server was given no kubelet client certificate.
    pub(crate) kubelets: Option<Kubelets>,
    /// What kubelets have told of what is used.
    pub(crate) nodes: metrics_server::Nodes,
}

/// Requests being worked on.
#[derive(Debug)]
pub(crate) struct Limits {
    reading: Semaphore,
    writing: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reading: Semaphore::new(READING),
            writing: Semaphore::new(WRITING),
        }
    }
}

/// A request that was let in.
pub(crate) struct Call {
    pub(crate) parts: Parts,
    /// Behind a lock that is never contended: bodies are not `Sync`, a call that is shared between awaits must be.
    pub(crate) body: Mutex<RequestBody>,
    pub(crate) query: Query,
    pub(crate) info: RequestInfo,
    pub(crate) user: Arc<User>,
    pub(crate) labels: Labels,
}

impl Call {
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The whole body; empty when it was read before.
    pub(crate) async fn read_body(&mut self) -> Result<Bytes> {
        Ok(body::read(std::mem::take(self.body.get_mut())).await?)
    }
}

impl Server {
    /// Answers a request.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query());
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let served = self
            .registry
            .resources
            .get(&info.group, &info.version, &info.resource)
            .filter(|_| info.is_resource)
            .map(Arc::clone);
        let labels = labels(&info, served.as_deref());
        let long = info.is_long_running();
        let response = match self.answer(parts, body, query, info, served, labels, &peer).await {
            Ok(response) => response,
            Err(status) => errors::response(&status),
        };
        if !long {
            let seconds = started.elapsed().as_secs_f64();
            self.metrics.answered(labels, response.status().as_u16(), seconds);
        }
        response
    }

    #[allow(clippy::too_many_arguments)] // the parts of one request, taken apart once
    async fn answer(
        self: &Arc<Self>,
        parts: Parts,
        body: RequestBody,
        query: Query,
        info: RequestInfo,
        served: Option<Arc<Served>>,
        labels: Labels,
        peer: &Peer,
    ) -> Result<Response<Body>> {
        let user = self.authenticator.authenticate(&parts.headers, peer)?;
        let user = impersonation::apply(&self.authorizer, user, &parts.headers)?;
        let authorized = self.authorizer.authorize(&user, &Attributes::of(&info));
        self.metrics.authorized(authorized.is_ok());
        authorized.inspect_err(|refusal| tracing::debug!(refusal = refusal.message, "not allowed"))?;
        let long = info.is_long_running();
        let read_only = info.is_read_only();
        let call = Call {
            parts,
            body: Mutex::new(body),
            query,
            info,
            user,
            labels,
        };
        let work = async {
            match served {
                Some(served) => handlers::resource(self, served, call).await,
                None if call.info.is_resource && call.info.group == metrics_server::GROUP => {
                    metrics_server::handle(self, &call).await
                }
                None => self.other(call),
            }
        };
        if long {
            return work.await;
        }
        let _place = self.place(read_only).await?;
        let _open = self.metrics.in_flight(!read_only);
        match tokio::time::timeout(TIMEOUT, work).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::timeout("request did not complete within the allotted timeout")),
        }
    }

    /// A place among the requests being worked on; it is waited for, but not for ever.
    async fn place(&self, read_only: bool) -> Result<SemaphorePermit<'_>> {
        let limit = match read_only {
            true => &self.limits.reading,
            false => &self.limits.writing,
        };
        if let Ok(place) = limit.try_acquire() {
            return Ok(place);
        }
        if let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, limit.acquire()).await {
            return Ok(place);
        }
        self.metrics.rejected.inc();
        let message = "Too many requests, please try again later.";
        Err(Status::too_many_requests(message, 1))
    }

    /// Paths that are no resources.
    fn other(&self, call: Call) -> Result<Response<Body>> {
        let path = call.info.path.as_str();
        if call.info.is_resource || !matches!(call.info.verb, "get" | "head") {
            return Err(Status::unknown_path());
        }
        if let Some(answer) = self.discovery.answer(path, call.headers()) {
            return Ok(answer);
        }
        if let Some(answer) = health::answer(&self.daemon.health, path, &call.query) {
            return Ok(answer);
        }
        if let Some(answer) = openapi::answer(&self.registry.resources, path, call.headers()) {
            return Ok(answer);
        }
        if let Some(answer) = self.openid.answer(path) {
            return Ok(answer);
        }
        match path {
            "/metrics" => {
                let mut response = health::text_response(self.daemon.metrics.encode().into());
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    http::HeaderValue::from_static(skiff_daemon::metrics::CONTENT_TYPE),
                );
                Ok(response)
            }
            _ => Err(Status::unknown_path()),
        }
    }

    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.daemon.shutdown
    }
}

/// The labels under which a request is counted.
fn labels(info: &RequestInfo, served: Option<&Served>) -> Labels {
    let verb = match info.verb {
        "get" | "head" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "OTHER",
    };
    match served {
        Some(served) => Labels {
            verb,
            group: served.resource.group,
            version: served.resource.version,
            resource: served.resource.plural,
            subresource: served
                .resource
                .subresource(&info.subresource)
                .map_or("", |found| found.name),
        },
        None => Labels {
            verb,
            ..Labels::default()
        },
    }
}
