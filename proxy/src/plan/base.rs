//! The rules that do not depend on any Service.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Hub, NodePorts, Settings};

/// A rule in a chain of the kernel's that leads to ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// The table.
    pub table: &'static str,
    /// The kernel's chain.
    pub from: &'static str,
    /// Ours.
    pub to: &'static str,
    /// The rule.
    pub rule: String,
}

impl Jump {
    /// Whether a listing of the kernel's chain has it.
    pub(crate) fn is_among(&self, rules: &[String]) -> bool {
        let target = format!("-j {}", self.to);
        rules.iter().any(|rule| rule.ends_with(&target))
    }
}

/// The jumps by the kernel's chains that they are in, each with its table.
pub(crate) fn by_chain(jumps: &[Jump]) -> BTreeMap<(&'static str, &'static str), Vec<&Jump>> {
    let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for jump in jumps {
        chains.entry((jump.table, jump.from)).or_default().push(jump);
    }
    chains
}

/// What is there without any Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Chains by table, with their rules. Those of [`Hub`]s are not among them.
    pub chains: Vec<(&'static str, &'static str, Vec<String>)>,
    /// Rules at the end of hubs, after those of Services.
    pub tails: Vec<(Hub, String)>,
    /// The ways from the kernel's chains into ours.
    pub jumps: Vec<Jump>,
}

/// A chain in each table that nothing uses: when it is gone, somebody has removed everybody's rules.
pub(crate) const CANARY: &str = "KUBE-PROXY-CANARY";
/// The tables that the canary sits in.
pub(crate) const CANARY_TABLES: [&str; 3] = ["mangle", "nat", "filter"];
/// Chains that are never empty: a flush that leaves the chains, or that comes while all is being written, shows in them.
pub(crate) const NEVER_EMPTY: [(&str, &str); 2] = [("nat", "KUBE-POSTROUTING"), ("filter", "KUBE-FORWARD")];

/// Decides the rules that do not depend on any Service.
pub fn base(settings: &Settings) -> Base {
    let mark = format!("{:#x}", 1_u32 << settings.masquerade_bit.min(31));
    let masked = format!("{mark}/{mark}");
    let mut chains = vec![
        ("nat", "KUBE-MARK-MASQ", vec![format!("-j MARK --or-mark {mark}")]),
        (
            "nat",
            "KUBE-POSTROUTING",
            vec![
                format!("-m mark ! --mark {masked} -j RETURN"),
                // Taken off, so that a packet that is sent on over a tunnel is not masqueraded a second time.
                format!("-j MARK --xor-mark {mark}"),
                "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully".to_owned(),
            ],
        ),
        (
            "filter",
            "KUBE-FORWARD",
            vec![
                format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {masked} -j ACCEPT"),
                "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                    .to_owned(),
            ],
        ),
    ];
    if !settings.pass_invalid
        && let Some((.., forward)) = chains.last_mut()
    {
        // Such packets would pass unchanged and make the client reset its connection.
        forward.insert(0, INVALID.to_owned());
    }
    let mut jumps = vec![
        jump("nat", "PREROUTING", "KUBE-SERVICES", PORTALS),
        jump("nat", "OUTPUT", "KUBE-SERVICES", PORTALS),
        jump(
            "nat",
            "POSTROUTING",
            "KUBE-POSTROUTING",
            "-m comment --comment \"kubernetes postrouting rules\"",
        ),
        jump(
            "filter",
            "INPUT",
            "KUBE-NODEPORTS",
            "-m comment --comment \"kubernetes health check service ports\"",
        ),
        jump(
            "filter",
            "FORWARD",
            "KUBE-FORWARD",
            "-m comment --comment \"kubernetes forwarding rules\"",
        ),
    ];
    for (from, to, what) in [
        (
            "INPUT",
            "KUBE-EXTERNAL-SERVICES",
            "kubernetes externally-visible service portals",
        ),
        (
            "FORWARD",
            "KUBE-EXTERNAL-SERVICES",
            "kubernetes externally-visible service portals",
        ),
        ("FORWARD", "KUBE-SERVICES", "kubernetes service portals"),
        ("OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
        ("INPUT", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
        ("FORWARD", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
        ("OUTPUT", "KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
    ] {
        jumps.push(jump(
            "filter",
            from,
            to,
            &format!("-m conntrack --ctstate NEW -m comment --comment \"{what}\""),
        ));
    }
    if settings.localhost_node_ports {
        // 127.0.0.1 is routed for node ports' sake; neighbours must not reach it by that.
        let rule = "-m comment --comment \"block incoming localnet connections\" ! -s 127.0.0.0/8 -d 127.0.0.0/8 \
                    -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
        chains.push(("filter", "KUBE-FIREWALL", vec![rule.to_owned()]));
        jumps.extend(["INPUT", "OUTPUT"].map(|from| jump("filter", from, "KUBE-FIREWALL", "")));
    }
    chains.extend(CANARY_TABLES.map(|table| (table, CANARY, Vec::new())));
    Base {
        chains,
        tails: tails(settings),
        jumps,
    }
}

const INVALID: &str = "-m conntrack --ctstate INVALID -j DROP";
const PORTALS: &str = "-m comment --comment \"kubernetes service portals\"";

fn jump(table: &'static str, from: &'static str, to: &'static str, matches: &str) -> Jump {
    let rule = format!("{matches} -j {to}").trim_start().to_owned();
    Jump { table, from, to, rule }
}

fn tails(settings: &Settings) -> Vec<(Hub, String)> {
    let note = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"";
    let tail = |to: String| (Hub::Services, format!("{note} {to}-j KUBE-NODEPORTS"));
    let mut tails: Vec<_> = match &settings.node_ports {
        NodePorts::Any if settings.localhost_node_ports => vec![tail("-m addrtype --dst-type LOCAL ".to_owned())],
        NodePorts::Any => vec![tail("! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL ".to_owned())],
        // A range stands for this node's addresses in it.
        NodePorts::At { ranges, .. } => ranges
            .iter()
            .filter(|range| settings.localhost_node_ports || !is_loopback(range))
            .map(|range| tail(format!("-d {range} -m addrtype --dst-type LOCAL ")))
            .collect(),
    };
    // What no Service has would leave the node and be waited for in vain. (What one has was rewritten before.)
    let refused = "-m comment --comment \"no service has this address and port\"";
    tails.extend(
        settings
            .service_ranges
            .iter()
            .map(|range| (Hub::Refused, format!("{refused} -d {range} -j REJECT"))),
    );
    tails
}

fn is_loopback(range: &IpNet) -> bool {
    range.addr().is_loopback() && range.prefix_len() >= 8
}
