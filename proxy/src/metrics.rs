//! What is measured, under upstream's names.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::{Metric, Registry as Group};
use skiff_daemon::Metrics as Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Table {
    pub(crate) table: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Policy {
    pub(crate) traffic_policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Code {
    code: u16,
}

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// What a metric is called, what it means, and itself.
type Named<'a, M> = (&'static str, &'static str, &'a M);

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) sync: Histogram,
    pub(crate) full_sync: Histogram,
    pub(crate) partial_sync: Histogram,
    pub(crate) programming: Histogram,
    pub(crate) last_sync: Seconds,
    pub(crate) last_queued: Seconds,
    pub(crate) failures: Counter,
    pub(crate) partial_failures: Counter,
    pub(crate) service_changes: Counter,
    pub(crate) services_pending: Gauge,
    pub(crate) endpoint_changes: Counter,
    pub(crate) endpoints_pending: Gauge,
    pub(crate) rules: Family<Table, Gauge>,
    pub(crate) rules_written: Family<Table, Gauge>,
    pub(crate) stranded: Family<Policy, Gauge>,
    pub(crate) stale_flows: Counter,
    pub(crate) flows_took: Histogram,
    pub(crate) invalid_dropped: Counter,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let programming = linear_buckets(0.25, 0.25, 2)
            .chain(linear_buckets(1.0, 1.0, 59))
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7));
        Self {
            sync: seconds(),
            full_sync: seconds(),
            partial_sync: seconds(),
            programming: Histogram::new(programming),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            failures: Counter::default(),
            partial_failures: Counter::default(),
            service_changes: Counter::default(),
            services_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoints_pending: Gauge::default(),
            rules: Family::default(),
            rules_written: Family::default(),
            stranded: Family::default(),
            stale_flows: Counter::default(),
            flows_took: seconds(),
            invalid_dropped: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        // Shown from the start, as upstream's are.
        for table in ["nat", "filter"] {
            drop(metrics.rules.get_or_create(&Table { table }));
            drop(metrics.rules_written.get_or_create(&Table { table }));
        }
        for traffic_policy in ["internal", "external"] {
            drop(metrics.stranded.get_or_create(&Policy { traffic_policy }));
        }
        registry.register(|registry| {
            let group = registry.sub_registry_with_prefix("kubeproxy");
            add(group, metrics.durations());
            add(group, metrics.times());
            add(group, metrics.counts());
            add(group, metrics.waiting());
            add(group, metrics.by_table());
            let help = "Number of services with a Local traffic policy and no endpoints";
            let stranded = ("sync_proxy_rules_no_local_endpoints_total", help, &metrics.stranded);
            add(group, [stranded]);
            add(group, metrics.answers());
        });
        metrics
    }

    fn durations(&self) -> [Named<'_, Histogram>; 5] {
        [
            (
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                &self.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &self.full_sync,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &self.partial_sync,
            ),
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &self.programming,
            ),
            (
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &self.flows_took,
            ),
        ]
    }

    fn times(&self) -> [Named<'_, Seconds>; 2] {
        [
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                &self.last_sync,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                &self.last_queued,
            ),
        ]
    }

    fn counts(&self) -> [Named<'_, Counter>; 6] {
        [
            (
                "sync_proxy_rules_iptables_restore_failures",
                "Cumulative proxy iptables restore failures",
                &self.failures,
            ),
            (
                "sync_proxy_rules_iptables_partial_restore_failures",
                "Cumulative proxy iptables partial restore failures",
                &self.partial_failures,
            ),
            (
                "sync_proxy_rules_service_changes",
                "Cumulative proxy rules Service changes",
                &self.service_changes,
            ),
            (
                "sync_proxy_rules_endpoint_changes",
                "Cumulative proxy rules Endpoint changes",
                &self.endpoint_changes,
            ),
            (
                "conntrack_reconciler_deleted_entries",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                &self.stale_flows,
            ),
            (
                "iptables_ct_state_invalid_dropped_packets",
                "packets dropped by iptables to work around conntrack problems",
                &self.invalid_dropped,
            ),
        ]
    }

    fn waiting(&self) -> [Named<'_, Gauge>; 2] {
        [
            (
                "sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
                &self.services_pending,
            ),
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
                &self.endpoints_pending,
            ),
        ]
    }

    fn by_table(&self) -> [Named<'_, Family<Table, Gauge>>; 2] {
        [
            (
                "sync_proxy_rules_iptables_total",
                "Total number of iptables rules owned by kube-proxy",
                &self.rules,
            ),
            (
                "sync_proxy_rules_iptables_last",
                "Number of iptables rules written by kube-proxy in last sync",
                &self.rules_written,
            ),
        ]
    }

    fn answers(&self) -> [Named<'_, Family<Code, Counter>>; 2] {
        [
            ("proxy_healthz", "Cumulative proxy healthz HTTP status", &self.healthz),
            ("proxy_livez", "Cumulative proxy livez HTTP status", &self.livez),
        ]
    }

    pub(crate) fn count_healthz(&self, status: StatusCode) {
        self.healthz.get_or_create(&Code { code: status.as_u16() }).inc();
    }

    pub(crate) fn count_livez(&self, status: StatusCode) {
        self.livez.get_or_create(&Code { code: status.as_u16() }).inc();
    }
}

fn add<M: Metric + Clone, const N: usize>(group: &mut Group, metrics: [Named<'_, M>; N]) {
    for (name, help, metric) in metrics {
        group.register(name, help, metric.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        metrics.count_healthz(StatusCode::OK);
        metrics.rules.get_or_create(&Table { table: "nat" }).set(7);
        let text = registry.encode();
        for wanted in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"} 0",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"59.0\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 0",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total 0",
            "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 0",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 0",
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_iptables_total{table=\"nat\"} 7",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_sync_proxy_rules_iptables_last{table=\"filter\"} 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 0",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
}
