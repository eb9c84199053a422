//! What is measured, under upstream's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use skiff_daemon::Metrics as Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Table {
    pub(crate) table: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) sync: Histogram,
    pub(crate) full_sync: Histogram,
    pub(crate) partial_sync: Histogram,
    pub(crate) programming: Histogram,
    pub(crate) last_sync: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) last_queued: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) failures: Counter,
    pub(crate) service_changes: Counter,
    pub(crate) endpoint_changes: Counter,
    pub(crate) rules: Family<Table, Gauge>,
    pub(crate) stale_flows: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Self {
            sync: seconds(),
            full_sync: seconds(),
            partial_sync: seconds(),
            programming: Histogram::new([
                0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
            ]),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            failures: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            rules: Family::default(),
            stale_flows: Counter::default(),
        };
        registry.register(|registry| {
            let registry = registry.sub_registry_with_prefix("kubeproxy");
            registry.register(
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                metrics.sync.clone(),
            );
            registry.register(
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                metrics.full_sync.clone(),
            );
            registry.register(
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                metrics.partial_sync.clone(),
            );
            registry.register(
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                metrics.programming.clone(),
            );
            registry.register(
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                metrics.last_sync.clone(),
            );
            registry.register(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                metrics.last_queued.clone(),
            );
            registry.register(
                "sync_proxy_rules_iptables_restore_failures",
                "Cumulative proxy iptables restore failures",
                metrics.failures.clone(),
            );
            registry.register(
                "sync_proxy_rules_service_changes",
                "Cumulative proxy rules Service changes",
                metrics.service_changes.clone(),
            );
            registry.register(
                "sync_proxy_rules_endpoint_changes",
                "Cumulative proxy rules Endpoint changes",
                metrics.endpoint_changes.clone(),
            );
            registry.register(
                "sync_proxy_rules_iptables_total",
                "Total number of iptables rules owned by kube-proxy in chains that all Services share",
                metrics.rules.clone(),
            );
            registry.register(
                "conntrack_reconciler_deleted_entries",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                metrics.stale_flows.clone(),
            );
        });
        metrics
    }
}
