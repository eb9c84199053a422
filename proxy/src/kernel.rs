//! Settings of the kernel that Services need, or that the configuration asks for.

use std::fs;
use std::time::Duration;

use skiff_daemon::error_chain;
use skiff_net::sysctl;
use tracing::{debug, info, warn};

use crate::config::Conntrack;

/// The size of the table of connections, shared by all network namespaces.
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// Whether packets of other machines may be routed to loopback: node ports at 127.0.0.1 need it.
pub(crate) const ROUTE_LOCALNET: &str = "net.ipv4.conf.all.route_localnet";

/// Lets traffic to Services pass. Repeated with every full writing of the rules, when these are in force: without the rule
/// that guards it, loopback would be open to neighbours.
pub(crate) fn open_ways(localhost_node_ports: bool) {
    let settings = [
        (ROUTE_LOCALNET, localhost_node_ports),
        ("net.bridge.bridge-nf-call-iptables", true),
    ];
    for (name, _) in settings.iter().filter(|(_, wanted)| *wanted) {
        if let Err(error) = sysctl::set(name, "1") {
            warn!(error = error_chain(&error), "some traffic to services may not work");
        }
    }
}

/// Sets connection tracking up, as far as this namespace may.
pub(crate) fn set_up_tracking(wanted: &Conntrack, cores: usize) {
    if let Some(most) = most_connections(wanted, cores) {
        match sysctl::set("net.netfilter.nf_conntrack_max", &most.to_string()) {
            Ok(true) => grow_table(most / 4),
            Ok(false) => {}
            // A namespace of its own has no say in it.
            Err(error) => info!(
                error = error_chain(&error),
                "the number of tracked connections stays as it is"
            ),
        }
    }
    for (name, value) in timeouts(wanted) {
        set(name, &value.as_secs().to_string());
    }
    if wanted.tcp_be_liberal {
        set("net.netfilter.nf_conntrack_tcp_be_liberal", "1");
    }
}

/// The kernel's killer takes others first. Lowering it may not be allowed: upstream goes on then, too.
pub(crate) fn set_oom_score(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        debug!(%error, score, "cannot set the score for the kernel's killer");
    }
}

fn set(name: &str, value: &str) {
    if let Err(error) = sysctl::set(name, value) {
        warn!(error = error_chain(&error), "connection tracking keeps its own setting");
    }
}

/// How many connections are to be tracked; nothing to leave it as it is.
fn most_connections(wanted: &Conntrack, cores: usize) -> Option<u32> {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    (wanted.max_per_core > 0).then(|| wanted.max_per_core.saturating_mul(cores).max(wanted.min))
}

fn timeouts(wanted: &Conntrack) -> impl Iterator<Item = (&'static str, Duration)> + use<> {
    let all = [
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            wanted.tcp_established,
        ),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
            wanted.tcp_close_wait,
        ),
        ("net.netfilter.nf_conntrack_udp_timeout", wanted.udp),
        ("net.netfilter.nf_conntrack_udp_timeout_stream", wanted.udp_stream),
    ];
    all.into_iter().filter(|(_, value)| !value.is_zero())
}

/// Many connections in few buckets would be slow to find.
fn grow_table(buckets: u32) {
    let present = fs::read_to_string(HASH_SIZE)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    if present.is_some_and(|present| present < buckets)
        && let Err(error) = fs::write(HASH_SIZE, buckets.to_string())
    {
        info!(%error, "the table of connections keeps its size");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conntrack(text: &str) -> Conntrack {
        let text =
            format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack: {text}\n");
        crate::KubeProxyConfiguration::parse(&text)
            .unwrap()
            .for_node("n")
            .unwrap()
            .conntrack
    }

    #[test]
    fn the_limit_is_by_core_with_a_floor_and_zero_leaves_it() {
        for (text, cores, wanted) in [
            ("{}", 2, Some(131_072)),
            ("{}", 8, Some(262_144)),
            ("{maxPerCore: 1000, min: 1}", 2, Some(2000)),
            ("{maxPerCore: 0, min: 500000}", 8, None),
        ] {
            assert_eq!(most_connections(&conntrack(text), cores), wanted, "{text}");
        }
    }

    #[test]
    fn timeouts_have_upstreams_defaults_and_zero_leaves_them() {
        let seconds = |text| {
            timeouts(&conntrack(text))
                .map(|(_, value)| value.as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(seconds("{}"), [86_400, 3_600]);
        let text = "{tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 1m, udpTimeout: 5s, udpStreamTimeout: 2m}";
        assert_eq!(seconds(text), [60, 5, 120]);
    }
}
