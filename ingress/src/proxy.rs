//! One request: where it goes, what is sent on, whose answer comes back.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use skiff_daemon::{Shutdown, error_chain};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::access::{Activity, Record};
use crate::body::{Download, Fate, Upload};
use crate::config::{IngressConfiguration, Limits};
use crate::headers::{self, Client};
use crate::metrics::Metrics;
use crate::model::Protocol;
use crate::pool::{self, Pool, Sender};
use crate::request::{self, Asked, Refusal};
use crate::table::{Table, Target};

/// More endpoints than this are not tried for one request.
const ATTEMPTS: u32 = 4;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) pool: Pool,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    pub(crate) trusted: Vec<IpNet>,
    pub(crate) access_log: bool,
    /// Where plain requests are redirected to.
    pub(crate) https_port: u16,
    /// Upgraded connections.
    pub(crate) tunnels: TaskTracker,
    /// Ends upgraded connections.
    pub(crate) end: Shutdown,
}

/// A request ready to be sent, as often as it takes.
struct Outgoing {
    request: Request<Upload>,
    asked: Asked,
    /// Nothing is lost when it is sent twice.
    repeatable: bool,
    fate: Fate,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

impl Proxy {
    pub(crate) fn new(config: &IngressConfiguration, table: Arc<ArcSwap<Table>>, pool: Pool, metrics: Metrics) -> Self {
        Self {
            table,
            pool,
            metrics,
            limits: config.limits.clone(),
            trusted: config.trusted_proxies.clone(),
            access_log: config.access_log,
            https_port: config.https_port,
            tunnels: TaskTracker::new(),
            end: Shutdown::new(),
        }
    }

    /// Answers a request, whatever becomes of it.
    pub(crate) async fn handle(
        &self,
        request: Request<Incoming>,
        client: Client,
        activity: &Arc<Activity>,
    ) -> Response<Download> {
        let (parts, body) = request.into_parts();
        let mut record = Record::begin(&parts, &client, &self.metrics, self.access_log, activity);
        match self.answer(parts, body, &client, &mut record).await {
            Ok(Answer::Endpoint(response)) => {
                record.answered(response.status());
                let pause = self.limits.response_body();
                response.map(|body| Download::endpoint(body, pause, record))
            }
            Ok(Answer::Redirect(location)) => {
                record.answered(StatusCode::PERMANENT_REDIRECT);
                let mut response = Response::new(Download::text("", record));
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Err(refusal) => {
                record.answered(refusal.status());
                let mut response = Response::new(Download::text(format!("{refusal}\n"), record));
                *response.status_mut() = refusal.status();
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, plain);
                response
            }
        }
    }

    async fn answer(
        &self,
        parts: Parts,
        body: Incoming,
        client: &Client,
        record: &mut Record,
    ) -> Result<Answer, Refusal> {
        // hyper counts those of HTTP/1 only.
        if parts.headers.len() > self.limits.max_headers {
            return Err(Refusal::Headers);
        }
        let asked = request::read(&parts)?;
        record.host.clone_from(&asked.host);
        let target = self.route(&asked, parts.uri.path())?;
        record.target = Some(Arc::clone(&target));
        if target.redirect && self.https_port != 0 && !headers::came_securely(&parts.headers, client, &self.trusted) {
            return self.redirect(&asked, &parts).map(Answer::Redirect);
        }
        let outgoing = self.prepare(parts, body, asked, client, &target)?;
        let result = self.send(outgoing, target, record).await;
        if let Err(refusal) = &result {
            record.failed(refusal);
        }
        result.map(Answer::Endpoint)
    }

    fn route(&self, asked: &Asked, path: &str) -> Result<Arc<Target>, Refusal> {
        let table = self.table.load();
        match table.route(&asked.host, path) {
            Some(target) => Ok(Arc::clone(target)),
            None if table.synced => Err(Refusal::NoRoute),
            None => Err(Refusal::NotSynced),
        }
    }

    fn redirect(&self, asked: &Asked, parts: &Parts) -> Result<HeaderValue, Refusal> {
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let port = match self.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        HeaderValue::try_from(format!("https://{}{port}{path}", asked.host)).map_err(|_| Refusal::Host)
    }

    fn prepare(
        &self,
        mut parts: Parts,
        body: Incoming,
        asked: Asked,
        client: &Client,
        target: &Target,
    ) -> Result<Outgoing, Refusal> {
        let limit = match target.options.max_body.unwrap_or(self.limits.max_body_bytes) {
            0 => u64::MAX,
            limit => limit,
        };
        if body.size_hint().lower() > limit {
            return Err(Refusal::LargeBody);
        }
        let http2 = target.upstream.protocol == Protocol::H2c;
        let protocol = headers::wanted_upgrade(&parts.headers).filter(|_| parts.version == Version::HTTP_11 && !http2);
        let trailers = headers::takes_trailers(&parts.headers);
        headers::forward(&mut parts.headers, client, &asked.authority, &self.trusted);
        if http2 {
            // HTTP/2 carries the host in the target.
            parts.headers.remove(HOST);
            if trailers {
                parts.headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        } else {
            headers::join_cookies(&mut parts.headers);
            if let Ok(host) = HeaderValue::from_str(&asked.authority) {
                parts.headers.insert(HOST, host);
            }
        }
        parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let upgrade = protocol.and_then(|protocol| {
            headers::set_upgrade(&mut parts.headers, protocol.clone());
            parts
                .extensions
                .remove::<OnUpgrade>()
                .map(|pending| (protocol, pending))
        });
        let repeatable = upgrade.is_none() && is_idempotent(&parts.method) && body.is_end_stream();
        let fate = Fate::default();
        let upload = if body.is_end_stream() {
            Upload::empty()
        } else {
            Upload::new(body, limit, self.limits.request_body(), fate.clone())
        };
        // Nothing that was attached to the client's connection goes further.
        parts.extensions.clear();
        Ok(Outgoing {
            request: Request::from_parts(parts, upload),
            asked,
            repeatable,
            fate,
            upgrade,
        })
    }

    /// Sends it until an endpoint answers: to another one whenever nothing can have been done by the one before.
    async fn send(
        &self,
        outgoing: Outgoing,
        mut target: Arc<Target>,
        record: &mut Record,
    ) -> Result<Response<Incoming>, Refusal> {
        let Outgoing {
            request,
            asked,
            repeatable,
            fate,
            mut upgrade,
        } = outgoing;
        let path = request.uri().path().to_owned();
        let mut next = Some(request);
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut failure = Refusal::NoEndpoint;
        while let Some(mut request) = next.take()
            && record.attempts < ATTEMPTS
        {
            let http2 = target.upstream.protocol == Protocol::H2c;
            let avoid = |endpoint| self.pool.is_doubtful((endpoint, http2));
            let Some(endpoint) = target.upstream.choose(&tried, avoid) else {
                break;
            };
            record.attempts += 1;
            record.endpoint = Some(endpoint);
            set_target(&mut request, http2.then_some((&asked, endpoint)), endpoint);
            let connection = self.pool.connection((endpoint, http2), record.attempts > 1).await;
            let (mut sender, used) = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    failure = match error {
                        pool::Error::Timeout(_) => Refusal::Timeout,
                        _ => Refusal::BadGateway,
                    };
                    debug!(error = error_chain(&error), "endpoint cannot be reached");
                    tried.push(endpoint);
                    (next, target) = (Some(request), self.again(&asked, &path, target));
                    continue;
                }
            };
            let spare = repeatable.then(|| copy(&request));
            match fate.within(self.limits.response(), sender.send(request)).await {
                None => return Err(fate.refusal().unwrap_or(Refusal::Timeout)),
                Some(Ok(response)) => return self.take(response, (endpoint, http2), sender, upgrade.take(), record),
                Some(Err(mut error)) => {
                    debug!(%endpoint, error = error_chain(error.error()), "endpoint failed to answer");
                    failure = fate.refusal().unwrap_or(Refusal::BadGateway);
                    next = error.take_message().or(spare);
                    // A connection that was kept may have been closed in the meantime; that says nothing of the endpoint.
                    if !used {
                        tried.push(endpoint);
                    }
                    target = self.again(&asked, &path, target);
                }
            }
        }
        Err(failure)
    }

    /// The route by the table of now, when it still speaks the same.
    fn again(&self, asked: &Asked, path: &str, target: Arc<Target>) -> Arc<Target> {
        self.metrics.retries.inc();
        match self.route(asked, path) {
            Ok(now) if now.upstream.protocol == target.upstream.protocol && now.ingress == target.ingress => now,
            _ => target,
        }
    }

    fn take(
        &self,
        mut response: Response<Incoming>,
        place: pool::Place,
        sender: Sender,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
        record: &Record,
    ) -> Result<Response<Incoming>, Refusal> {
        *response.version_mut() = Version::HTTP_11;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.pool.put_back(place, sender);
            headers::strip(response.headers_mut());
            return Ok(response);
        }
        let accepted = headers::wanted_upgrade(response.headers());
        let (Some((_, client)), Some(protocol)) = (upgrade, accepted) else {
            return Err(Refusal::BadGateway);
        };
        let endpoint = hyper::upgrade::on(&mut response);
        headers::strip(response.headers_mut());
        response.headers_mut().remove(CONTENT_LENGTH);
        headers::set_upgrade(response.headers_mut(), protocol);
        let (tunnels, end) = (self.metrics.tunnels.clone(), self.end.clone());
        // It is still the client's connection, and has its place among all.
        let activity = Arc::clone(&record.activity);
        self.tunnels.spawn(async move {
            tunnels.inc();
            tokio::select! {
                () = tunnel(client, endpoint) => {}
                () = end.cancelled() => {}
            }
            tunnels.dec();
            drop(activity);
        });
        Ok(response)
    }
}

enum Answer {
    Endpoint(Response<Incoming>),
    Redirect(HeaderValue),
}

async fn tunnel(client: OnUpgrade, endpoint: OnUpgrade) {
    let joined = match tokio::try_join!(client, endpoint) {
        Ok(joined) => joined,
        Err(error) => {
            debug!(error = error_chain(&error), "upgrade did not come about");
            return;
        }
    };
    let (mut client, mut endpoint) = (TokioIo::new(joined.0), TokioIo::new(joined.1));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await {
        debug!(%error, "upgraded connection ended");
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// The target in the form that the endpoint's protocol wants: only HTTP/2 carries scheme and host in it.
fn set_target(request: &mut Request<Upload>, http2: Option<(&Asked, SocketAddr)>, endpoint: SocketAddr) {
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    (target.scheme, target.authority) = match http2 {
        None => (None, None),
        Some((asked, _)) => {
            let named = asked.authority.parse().ok();
            let authority = named.or_else(|| endpoint.to_string().parse::<Authority>().ok());
            (Some(Scheme::HTTP), authority)
        }
    };
    if let Ok(uri) = Uri::from_parts(target) {
        *request.uri_mut() = uri;
    }
}

/// The same request once more; it has no body.
fn copy(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
