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
            metrics.register_syncs(group);
            metrics.register_changes(group);
            metrics.register_rules(group);
        });
        metrics
    }

    fn register_syncs(&self, group: &mut Group) {
        add(
            group,
            "sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            &self.sync,
        );
        let help = "SyncProxyRules latency in seconds for full resyncs";
        add(group, "sync_full_proxy_rules_duration_seconds", help, &self.full_sync);
        let help = "SyncProxyRules latency in seconds for partial resyncs";
        add(
            group,
            "sync_partial_proxy_rules_duration_seconds",
            help,
            &self.partial_sync,
        );
        let help = "In Cluster Network Programming Latency in seconds";
        add(group, "network_programming_duration_seconds", help, &self.programming);
        let help = "ReconcileConntrackFlowsLatency latency in seconds";
        add(
            group,
            "conntrack_reconciler_sync_duration_seconds",
            help,
            &self.flows_took,
        );
        let help = "The last time proxy rules were successfully synced";
        add(group, "sync_proxy_rules_last_timestamp_seconds", help, &self.last_sync);
        let help = "The last time a sync of proxy rules was queued";
        add(
            group,
            "sync_proxy_rules_last_queued_timestamp_seconds",
            help,
            &self.last_queued,
        );
    }

    fn register_changes(&self, group: &mut Group) {
        let help = "Cumulative proxy iptables restore failures";
        add(
            group,
            "sync_proxy_rules_iptables_restore_failures",
            help,
            &self.failures,
        );
        let help = "Cumulative proxy iptables partial restore failures";
        add(
            group,
            "sync_proxy_rules_iptables_partial_restore_failures",
            help,
            &self.partial_failures,
        );
        let help = "Cumulative proxy rules Service changes";
        add(group, "sync_proxy_rules_service_changes", help, &self.service_changes);
        let help = "Cumulative proxy rules Endpoint changes";
        add(group, "sync_proxy_rules_endpoint_changes", help, &self.endpoint_changes);
        let help = "Cumulative conntrack flows deleted by conntrack reconciler";
        add(group, "conntrack_reconciler_deleted_entries", help, &self.stale_flows);
        let help = "packets dropped by iptables to work around conntrack problems";
        add(
            group,
            "iptables_ct_state_invalid_dropped_packets",
            help,
            &self.invalid_dropped,
        );
        add(
            group,
            "sync_proxy_rules_service_changes_pending",
            "Pending proxy rules Service changes",
            &self.services_pending,
        );
        add(
            group,
            "sync_proxy_rules_endpoint_changes_pending",
            "Pending proxy rules Endpoint changes",
            &self.endpoints_pending,
        );
    }

    fn register_rules(&self, group: &mut Group) {
        let help = "Total number of iptables rules owned by kube-proxy";
        add(group, "sync_proxy_rules_iptables_total", help, &self.rules);
        let help = "Number of iptables rules written by kube-proxy in last sync";
        add(group, "sync_proxy_rules_iptables_last", help, &self.rules_written);
        let help = "Number of services with a Local traffic policy and no endpoints";
        add(group, "sync_proxy_rules_no_local_endpoints_total", help, &self.stranded);
        add(
            group,
            "proxy_healthz",
            "Cumulative proxy healthz HTTP status",
            &self.healthz,
        );
        add(group, "proxy_livez", "Cumulative proxy livez HTTP status", &self.livez);
    }

    pub(crate) fn count_healthz(&self, status: StatusCode) {
        self.healthz.get_or_create(&Code { code: status.as_u16() }).inc();
    }

    pub(crate) fn count_livez(&self, status: StatusCode) {
        self.livez.get_or_create(&Code { code: status.as_u16() }).inc();
    }
}

fn add<M: Metric + Clone>(group: &mut Group, name: &str, help: &str, metric: &M) {
    group.register(name, help, metric.clone());
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
