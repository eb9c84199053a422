//! What is measured, under CoreDNS's names: its dashboards and alerts go on working.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as Group, Unit};
use skiff_daemon::Metrics as Registry;

use crate::cache::{Cache, Says};
use crate::message::Transport;

const SERVER: &str = "dns://:53";
const ZONE: &str = ".";
const FORWARD: &str = "forward";
const SIZES: [f64; 14] = [
    0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3,
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct RequestLabels {
    server: &'static str,
    zone: &'static str,
    view: &'static str,
    proto: &'static str,
    family: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ResponseLabels {
    server: &'static str,
    zone: &'static str,
    view: &'static str,
    rcode: &'static str,
    plugin: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct SizeLabels {
    server: &'static str,
    zone: &'static str,
    view: &'static str,
    proto: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ZoneLabels {
    server: &'static str,
    zone: &'static str,
    view: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct CacheLabels {
    server: &'static str,
    r#type: &'static str,
    zones: &'static str,
    view: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct CacheZoneLabels {
    server: &'static str,
    zones: &'static str,
    view: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ToLabels {
    to: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ToCodeLabels {
    rcode: &'static str,
    to: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ProxyLabels {
    proxy_name: &'static str,
    to: String,
    rcode: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct ProxyToLabels {
    proxy_name: &'static str,
    to: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct KindLabels {
    service_kind: &'static str,
}

/// Makes the histograms of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buckets {
    /// CoreDNS's for the time that a question takes.
    Seconds,
    /// CoreDNS's for the time until a change can be asked for.
    Programming,
    /// CoreDNS's for sizes.
    Bytes,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        match self {
            Self::Seconds => Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            Self::Programming => Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            Self::Bytes => Histogram::new(SIZES),
        }
    }
}

type Histograms<L> = Family<L, Histogram, Buckets>;

/// Sizes by transport: every question asks for one, so they are not looked up.
#[derive(Clone, Debug)]
struct BySize {
    family: Histograms<SizeLabels>,
    udp: Histogram,
    tcp: Histogram,
}

impl BySize {
    fn new() -> Self {
        let family: Histograms<SizeLabels> = Family::new_with_constructor(Buckets::Bytes);
        Self {
            udp: family.get_or_create_owned(&size_labels(Transport::Udp)),
            tcp: family.get_or_create_owned(&size_labels(Transport::Tcp)),
            family,
        }
    }

    fn of(&self, transport: Transport) -> &Histogram {
        match transport {
            Transport::Udp => &self.udp,
            Transport::Tcp => &self.tcp,
        }
    }
}

/// Everything that is counted; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    duration: Histogram,
    request_size: BySize,
    response_size: BySize,
    pub(crate) panics: Counter,
    pub(crate) cache_requests: Counter,
    pub(crate) cache_misses: Counter,
    cache_hits: Family<CacheLabels, Counter>,
    cache_entries: Family<CacheLabels, Gauge>,
    cache_evictions: Family<CacheLabels, Counter>,
    forward_requests: Family<ToLabels, Counter>,
    forward_responses: Family<ToCodeLabels, Counter>,
    proxy_duration: Histograms<ProxyLabels>,
    health_failures: Family<ProxyToLabels, Counter>,
    /// Questions for which there was no room.
    pub(crate) rejects: Counter,
    /// Questions for which no server was thought to live.
    pub(crate) all_dead: Counter,
    programming: Histograms<KindLabels>,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let durations: Histograms<ZoneLabels> = Family::new_with_constructor(Buckets::Seconds);
        let cache_requests: Family<CacheZoneLabels, Counter> = Family::default();
        let cache_misses: Family<CacheZoneLabels, Counter> = Family::default();
        let metrics = Self {
            requests: Family::default(),
            responses: Family::default(),
            duration: durations.get_or_create_owned(&ZONE_LABELS),
            request_size: BySize::new(),
            response_size: BySize::new(),
            panics: Counter::default(),
            cache_requests: cache_requests.get_or_create_owned(&CACHE_ZONE),
            cache_misses: cache_misses.get_or_create_owned(&CACHE_ZONE),
            cache_hits: Family::default(),
            cache_entries: Family::default(),
            cache_evictions: Family::default(),
            forward_requests: Family::default(),
            forward_responses: Family::default(),
            proxy_duration: Family::new_with_constructor(Buckets::Seconds),
            health_failures: Family::default(),
            rejects: Counter::default(),
            all_dead: Counter::default(),
            programming: Family::new_with_constructor(Buckets::Programming),
        };
        registry.register(|registry| {
            let registry = registry.sub_registry_with_prefix("coredns");
            metrics.register_dns(registry, &durations);
            metrics.register_cache(registry, &cache_requests, &cache_misses);
            metrics.register_forward(registry);
        });
        metrics
    }

    fn register_dns(&self, registry: &mut Group, durations: &Histograms<ZoneLabels>) {
        registry.register("panics", "Panics counted", self.panics.clone());
        let dns = registry.sub_registry_with_prefix("dns");
        dns.register(
            "requests",
            "DNS requests by transport, address family and type",
            self.requests.clone(),
        );
        dns.register("responses", "DNS responses by code", self.responses.clone());
        let seconds = || Unit::Seconds;
        dns.register_with_unit(
            "request_duration",
            "Time to answer a request",
            seconds(),
            durations.clone(),
        );
        let bytes = || Unit::Bytes;
        let (asked, answered) = (self.request_size.family.clone(), self.response_size.family.clone());
        dns.register_with_unit("request_size", "Size of requests", bytes(), asked);
        dns.register_with_unit("response_size", "Size of responses", bytes(), answered);
        let kubernetes = registry.sub_registry_with_prefix("kubernetes");
        let help = "Time from the change of a pod or Service until it can be asked for";
        kubernetes.register_with_unit("dns_programming_duration", help, seconds(), self.programming.clone());
    }

    fn register_cache(
        &self,
        registry: &mut Group,
        requests: &Family<CacheZoneLabels, Counter>,
        misses: &Family<CacheZoneLabels, Counter>,
    ) {
        let cache = registry.sub_registry_with_prefix("cache");
        cache.register("requests", "Lookups in the cache", requests.clone());
        cache.register("misses", "Lookups that found nothing", misses.clone());
        cache.register("hits", "Lookups that found an answer", self.cache_hits.clone());
        cache.register("entries", "Answers in the cache", self.cache_entries.clone());
        cache.register(
            "evictions",
            "Answers pushed out before their time",
            self.cache_evictions.clone(),
        );
    }

    fn register_forward(&self, registry: &mut Group) {
        let forward = registry.sub_registry_with_prefix(FORWARD);
        forward.register("requests", "Requests for each upstream", self.forward_requests.clone());
        forward.register(
            "responses",
            "Responses of each upstream",
            self.forward_responses.clone(),
        );
        let help = "Requests rejected because too many were under way";
        forward.register("max_concurrent_rejects", help, self.rejects.clone());
        let help = "Requests for which no upstream was thought to live";
        forward.register("healthcheck_broken", help, self.all_dead.clone());
        let proxy = registry.sub_registry_with_prefix("proxy");
        let help = "Time that each request to an upstream took";
        proxy.register_with_unit("request_duration", help, Unit::Seconds, self.proxy_duration.clone());
        let help = "Health checks that an upstream failed";
        proxy.register("healthcheck_failures", help, self.health_failures.clone());
    }

    /// A question has come.
    pub(crate) fn asked(&self, transport: Transport, is_ipv4: bool, kind: Option<RecordType>, size: usize) {
        let labels = RequestLabels {
            server: SERVER,
            zone: ZONE,
            view: "",
            proto: proto(transport),
            family: if is_ipv4 { "1" } else { "2" },
            r#type: kind.map_or("other", kind_name),
        };
        self.requests.get_or_create(&labels).inc();
        self.request_size.of(transport).observe(float(size));
    }

    /// It is answered. `plugin` is whose answer it is.
    pub(crate) fn answered(
        &self,
        transport: Transport,
        code: ResponseCode,
        plugin: &'static str,
        size: usize,
        took: Duration,
    ) {
        let labels = ResponseLabels {
            server: SERVER,
            zone: ZONE,
            view: "",
            rcode: code_name(code),
            plugin,
        };
        self.responses.get_or_create(&labels).inc();
        self.response_size.of(transport).observe(float(size));
        self.duration.observe(took.as_secs_f64());
    }

    /// The cache knew the answer.
    pub(crate) fn hit(&self, says: Says) {
        self.cache_hits.get_or_create(&cache_labels(says)).inc();
    }

    /// The cache took an answer in.
    pub(crate) fn cached(&self, says: Says, evicted: u64, cache: &Cache) {
        self.cache_evictions.get_or_create(&cache_labels(says)).inc_by(evicted);
        for says in [Says::Success, Says::Denial] {
            let count = i64::try_from(cache.len(says)).unwrap_or(i64::MAX);
            self.cache_entries.get_or_create(&cache_labels(says)).set(count);
        }
    }

    /// An upstream has answered.
    pub(crate) fn forwarded(&self, to: SocketAddr, code: ResponseCode, took: Duration) {
        let (to, rcode) = (to.to_string(), code_name(code));
        self.forward_requests.get_or_create(&ToLabels { to: to.clone() }).inc();
        self.forward_responses
            .get_or_create(&ToCodeLabels { rcode, to: to.clone() })
            .inc();
        let labels = ProxyLabels {
            proxy_name: FORWARD,
            to,
            rcode,
        };
        self.proxy_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An upstream was asked and has not answered.
    pub(crate) fn unanswered(&self, to: SocketAddr) {
        self.forward_requests
            .get_or_create(&ToLabels { to: to.to_string() })
            .inc();
    }

    /// A dead upstream is still dead.
    pub(crate) fn health_failed(&self, to: SocketAddr) {
        let labels = ProxyToLabels {
            proxy_name: FORWARD,
            to: to.to_string(),
        };
        self.health_failures.get_or_create(&labels).inc();
    }

    /// A change of endpoints can be asked for, this long after it began.
    pub(crate) fn programmed(&self, service_kind: &'static str, took: Duration) {
        self.programming
            .get_or_create(&KindLabels { service_kind })
            .observe(took.as_secs_f64());
    }
}

const ZONE_LABELS: ZoneLabels = ZoneLabels {
    server: SERVER,
    zone: ZONE,
    view: "",
};
const CACHE_ZONE: CacheZoneLabels = CacheZoneLabels {
    server: SERVER,
    zones: ZONE,
    view: "",
};

fn size_labels(transport: Transport) -> SizeLabels {
    SizeLabels {
        server: SERVER,
        zone: ZONE,
        view: "",
        proto: proto(transport),
    }
}

fn cache_labels(says: Says) -> CacheLabels {
    CacheLabels {
        server: SERVER,
        r#type: says.name(),
        zones: ZONE,
        view: "",
    }
}

fn proto(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

fn float(size: usize) -> f64 {
    u32::try_from(size).map_or(f64::MAX, f64::from)
}

/// The types that CoreDNS tells apart: what clients make up must not make new series.
fn kind_name(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A
        | RecordType::AAAA
        | RecordType::CNAME
        | RecordType::HTTPS
        | RecordType::MX
        | RecordType::NAPTR
        | RecordType::NS
        | RecordType::PTR
        | RecordType::SOA
        | RecordType::SRV
        | RecordType::SVCB
        | RecordType::TXT
        | RecordType::ANY
        | RecordType::AXFR
        | RecordType::IXFR => kind.into(),
        _ => "other",
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
