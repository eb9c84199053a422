//! A pod's resolver settings, by its dnsPolicy and dnsConfig.

use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_cri::DnsConfig;

use crate::pod;

/// resolv.conf's limits, as upstream keeps them.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Of one search path: a longer one makes some resolvers abort.
const MAX_SEARCH: usize = 253;
/// Of all search paths as they stand in the line.
const MAX_SEARCH_LINE: usize = 2048;

/// The node's settings that pods' come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// `clusterDNS`.
    pub(crate) servers: Vec<String>,
    /// `clusterDomain`.
    pub(crate) domain: String,
    /// The node's own resolver settings.
    pub(crate) host: DnsConfig,
}

/// Reads a resolv.conf; an absent one is empty.
pub(crate) fn read(path: &Path) -> DnsConfig {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = words.map(|word| word.trim_end_matches('.').to_owned()).collect(),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config.searches.retain(|search| !search.is_empty());
    config
}

/// The pod's settings, within what resolvers can take.
pub(crate) fn config(pod: &Pod, node: &Node) -> DnsConfig {
    formed(pod, node).0
}

/// What of the pod's settings is left out, in upstream's words.
pub(crate) fn omissions(pod: &Pod, node: &Node) -> Vec<String> {
    formed(pod, node).1
}

/// That the pod's policy cannot be followed since no `clusterDNS` is configured, in upstream's words.
pub(crate) fn fallback(pod: &Pod, node: &Node) -> Option<&'static str> {
    (wants_cluster(pod) && node.servers.is_empty()).then_some(
        "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" \
         policy.",
    )
}

fn wants_cluster(pod: &Pod) -> bool {
    match pod::spec(pod).dns_policy.as_deref() {
        None | Some("ClusterFirst") => !pod::host_network(pod),
        Some("ClusterFirstWithHostNet") => true,
        Some(_) => false,
    }
}

fn formed(pod: &Pod, node: &Node) -> (DnsConfig, Vec<String>) {
    let mut config = wanted(pod, node);
    let mut omissions = Vec::new();
    if config.servers.len() > MAX_SERVERS {
        config.servers.truncate(MAX_SERVERS);
        let line = config.servers.join(" ");
        omissions.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        ));
    }
    let wanted = config.searches.len();
    fit(&mut config.searches);
    if config.searches.len() < wanted {
        let line = config.searches.join(" ");
        omissions.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        ));
    }
    (config, omissions)
}

/// Leaves out what exceeds the limits of a search line: from its end, but for paths that are too long themselves.
fn fit(searches: &mut Vec<String>) {
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_SEARCH);
    let mut length = 0;
    let whole = |search: &String| {
        length += search.len() + 1;
        length - 1 <= MAX_SEARCH_LINE
    };
    let fitting = searches.iter().map(whole).take_while(|fits| *fits).count();
    searches.truncate(fitting);
}

/// What the pod asks for.
fn wanted(pod: &Pod, node: &Node) -> DnsConfig {
    let spec = pod::spec(pod);
    let mut config = match spec.dns_policy.as_deref() {
        Some("None") => DnsConfig::default(),
        _ if wants_cluster(pod) && !node.servers.is_empty() => cluster_first(pod, node),
        _ => node.host.clone(),
    };
    if let Some(extra) = &spec.dns_config {
        config.servers.extend(extra.nameservers.iter().flatten().cloned());
        config.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config
                .options
                .retain(|known| known.split(':').next() != Some(name.as_str()));
            config.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    dedupe(&mut config.servers);
    dedupe(&mut config.searches);
    config
}

fn cluster_first(pod: &Pod, node: &Node) -> DnsConfig {
    let mut searches = Vec::new();
    if !node.domain.is_empty() {
        searches = vec![
            format!("{}.svc.{}", pod::namespace(pod), node.domain),
            format!("svc.{}", node.domain),
            node.domain.clone(),
        ];
    }
    searches.extend(node.host.searches.iter().cloned());
    DnsConfig {
        servers: node.servers.clone(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn dedupe(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    fn node() -> Node {
        Node {
            servers: vec!["10.96.0.10".into()],
            domain: "cluster.local".into(),
            host: parse("nameserver 1.1.1.1\nsearch corp.test.\noptions rotate\n# x\n"),
        }
    }

    #[test]
    fn what_exceeds_the_limits_is_left_out_and_told() {
        let names = |count: usize, length: usize| -> Vec<String> {
            (0..count).map(|index| format!("{index:0>length$}")).collect()
        };
        let of = |servers: &[&str], searches: &[String]| {
            let config = json!({"nameservers": servers, "searches": searches});
            formed(&pod(&json!({"dnsPolicy": "None", "dnsConfig": config})), &node())
        };
        let (config, told) = of(&["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.1"], &names(32, 10));
        assert_eq!((config.servers.len(), config.searches.len(), told.len()), (3, 32, 0));
        let (config, told) = of(&["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"], &[]);
        assert_eq!(config.servers, ["1.0.0.1", "1.0.0.2", "1.0.0.3"]);
        assert_eq!(
            told,
            [
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
              1.0.0.1 1.0.0.2 1.0.0.3"
            ]
        );
        let begins =
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: 00";
        // Eight of 253 and the blanks between them are 2031 characters; 21 of 97 are 2057, one of 11 fewer just fits.
        let mut just = names(20, 97);
        just.push("x".repeat(88));
        for (searches, kept) in [
            (names(33, 10), 32),
            (names(8, 253), 8),
            (names(9, 253), 8),
            (names(3, 254), 0),
            ([names(1, 254), names(2, 10)].concat(), 2),
            (names(21, 97), 20),
            (just, 21),
        ] {
            let (config, told) = of(&["1.0.0.1"], &searches);
            assert_eq!(config.searches.len(), kept, "{searches:?}");
            assert_eq!(told.len(), usize::from(kept < searches.len()), "{searches:?}");
            assert!(
                kept == 0 || told.iter().all(|text| text.starts_with(begins)),
                "{told:?}"
            );
            assert!(config.searches.join(" ").len() <= MAX_SEARCH_LINE);
        }
    }

    #[test]
    fn a_node_without_cluster_dns_is_told_of() {
        let bare = Node {
            servers: Vec::new(),
            ..node()
        };
        for (spec, told) in [
            (json!({}), true),
            (
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                true,
            ),
            (json!({"hostNetwork": true}), false),
            (json!({"dnsPolicy": "Default"}), false),
            (json!({"dnsPolicy": "None"}), false),
        ] {
            let pod = pod(&spec);
            assert_eq!(fallback(&pod, &bare).is_some(), told, "{spec}");
            assert_eq!(fallback(&pod, &node()), None, "{spec}");
            if told {
                assert_eq!(config(&pod, &bare), bare.host, "{spec}");
            }
        }
    }

    #[test]
    fn policies() {
        let cluster = [
            "ns.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "corp.test",
        ];
        let cases = [
            (json!({}), "10.96.0.10", cluster.to_vec(), vec!["ndots:5"]),
            (
                json!({"hostNetwork": true}),
                "1.1.1.1",
                vec!["corp.test"],
                vec!["rotate"],
            ),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.96.0.10",
                cluster.to_vec(),
                vec!["ndots:5"],
            ),
            (
                json!({"dnsPolicy": "Default"}),
                "1.1.1.1",
                vec!["corp.test"],
                vec!["rotate"],
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["x"],
                       "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}, {"name": "trust-ad", "value": ""}]}}),
                "9.9.9.9",
                vec!["x"],
                vec!["ndots:2", "edns0", "trust-ad"],
            ),
            (
                json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.96.0.10",
                cluster.to_vec(),
                vec!["ndots:1"],
            ),
        ];
        for (spec, server, searches, options) in cases {
            let config = config(&pod(&spec), &node());
            assert_eq!(config.servers, [server], "{spec}");
            assert_eq!(config.searches, searches, "{spec}");
            assert_eq!(config.options, options, "{spec}");
        }
    }
}
