//! One request's account: begun with its headers, written with the end of its answer, however that comes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::request::Parts;
use http::{Method, StatusCode, Version};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::info;

use crate::headers::Client;
use crate::metrics::Metrics;
use crate::table::Target;

/// The client went away before it got an answer; nginx's code for it.
const CLIENT_GONE: u16 = 499;

/// How busy a connection is.
#[derive(Debug)]
pub(crate) struct Activity {
    requests: AtomicUsize,
    /// Since when there is no request, and whether there ever was one.
    idle: Mutex<(Instant, bool)>,
    _place: Place,
}

/// A connection's place among those that there may be; it is counted as long as that is held.
#[derive(Debug)]
pub(crate) struct Place {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(crate) fn new(gauge: Gauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Activity {
    pub(crate) fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            idle: Mutex::new((Instant::now(), false)),
            _place: place,
        })
    }

    /// Since when there is no request, and whether there ever was one; nothing while there is one.
    pub(crate) fn idle(&self) -> Option<(Instant, bool)> {
        (self.requests.load(Ordering::Acquire) == 0).then(|| *self.idle.lock())
    }

    fn begin(&self) {
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.idle.lock().1 = true;
    }

    fn end(&self) {
        self.idle.lock().0 = Instant::now();
        self.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is told of a request when it is over.
#[derive(Debug)]
pub(crate) struct Record {
    began: Instant,
    client: SocketAddr,
    scheme: &'static str,
    method: Method,
    version: Version,
    path: String,
    pub(crate) host: String,
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    status: u16,
    bytes: u64,
    error: Option<String>,
    metrics: Metrics,
    log: bool,
    pub(crate) activity: Arc<Activity>,
}

impl Record {
    pub(crate) fn begin(
        parts: &Parts,
        client: &Client,
        metrics: &Metrics,
        log: bool,
        activity: &Arc<Activity>,
    ) -> Self {
        activity.begin();
        Self {
            began: Instant::now(),
            client: client.address,
            scheme: client.scheme(),
            method: parts.method.clone(),
            version: parts.version,
            // Queries hold tokens now and then: they stay out of logs.
            path: parts.uri.path().to_owned(),
            host: String::new(),
            target: None,
            endpoint: None,
            attempts: 0,
            status: CLIENT_GONE,
            bytes: 0,
            error: None,
            metrics: metrics.clone(),
            log,
            activity: Arc::clone(activity),
        }
    }

    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(crate) fn failed(&mut self, error: &dyn std::error::Error) {
        self.error = Some(skiff_daemon::error_chain(error));
    }

    fn write(&self) {
        let target = self.target.as_deref();
        info!(
            target: "skiff_ingress::access",
            client = %self.client,
            scheme = self.scheme,
            method = %self.method,
            host = self.host,
            path = self.path,
            protocol = ?self.version,
            status = self.status,
            bytes = self.bytes,
            duration_ms = self.began.elapsed().as_secs_f64() * 1000.0,
            ingress = target.map(|target| target.ingress.to_string()),
            service = target.map(|target| target.upstream.service.as_str()),
            endpoint = self.endpoint.map(|endpoint| endpoint.to_string()),
            attempts = self.attempts,
            error = self.error.as_deref(),
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.activity.end();
        let route = self.target.as_deref().map(|target| (&target.ingress, &*target.host));
        self.metrics.answered(route, self.status, self.began.elapsed());
        if self.log {
            self.write();
        }
    }
}
