//! Which rules a Service needs: pure functions from what is wanted to chains.
//!
//! Chain names and rules are upstream's. A packet to a Service meets, in the nat table, `KUBE-SERVICES` (a rule for
//! each address and port; node ports by `KUBE-NODEPORTS` at its end), then `KUBE-SVC-…` (picks an endpoint at random),
//! then `KUBE-SEP-…` (rewrites the destination). What came from outside passes `KUBE-EXT-…` first. Where no endpoint
//! is, a rule in the filter table refuses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::{Backend, Hint, Node, Port, Protocol, Service, Slice, backends};
use crate::names::{Kind, chain};

mod base;
mod express;

pub use base::{Base, Jump, base};
pub(crate) use base::{CANARY, CANARY_TABLES, NEVER_EMPTY};
pub use express::{Way, express};

/// How this node treats Services, whatever they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How traffic of this node's pods is known.
    pub local: LocalTraffic,
    /// Every packet to a Service leaves with the node's address.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means "masquerade".
    pub masquerade_bit: u8,
    /// Node ports answer at 127.0.0.1 too.
    pub localhost_node_ports: bool,
    /// Addresses of this node at which node ports answer.
    pub node_ports: NodePorts,
    /// Where Services get their addresses from: an address in it that no Service has is refused at once.
    pub service_ranges: Vec<IpNet>,
    /// The zone that this node is in, for endpoints that are meant for some zones.
    pub zone: Option<Box<str>>,
    /// Packets that connection tracking takes for invalid pass (`conntrack.tcpBeLiberal`).
    pub pass_invalid: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            local: LocalTraffic::Unknown,
            masquerade_all: false,
            masquerade_bit: 14,
            localhost_node_ports: true,
            node_ports: NodePorts::Any,
            service_ranges: Vec::new(),
            zone: None,
            pass_invalid: false,
        }
    }
}

impl Settings {
    /// The settings on a node, and in a cluster with these ranges of Services.
    pub fn on(&self, node: &Node, service_ranges: &[IpNet]) -> Self {
        let local = match &self.local {
            LocalTraffic::NodeRange => node.pod_range.map_or(LocalTraffic::NodeRange, LocalTraffic::Range),
            other => other.clone(),
        };
        let node_ports = match &self.node_ports {
            NodePorts::At { ranges, primary: true } => NodePorts::At {
                ranges: ranges.iter().copied().chain(node.address.map(IpNet::from)).collect(),
                primary: false,
            },
            other => other.clone(),
        };
        Self {
            local,
            node_ports,
            service_ranges: service_ranges.to_vec(),
            zone: node.zone.clone(),
            ..self.clone()
        }
    }
}

/// At which addresses of this node node ports answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePorts {
    /// All.
    Any,
    /// Some.
    At {
        /// Those in these ranges.
        ranges: Vec<IpNet>,
        /// The node's first one, once it is known.
        primary: bool,
    },
}

impl NodePorts {
    /// Whether 127.0.0.1 is among them.
    pub(crate) fn have_loopback(&self) -> bool {
        match self {
            Self::Any => true,
            Self::At { ranges, .. } => ranges.iter().any(|range| range.contains(&IpAddr::from([127, 0, 0, 1]))),
        }
    }

    /// Whether an address is among them.
    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::At { ranges, .. } => ranges.iter().any(|range| range.contains(&ip)),
        }
    }
}

/// How packets of pods are told from those of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalTraffic {
    /// They are not.
    Unknown,
    /// By their source.
    Range(IpNet),
    /// By their source, in the range of this node's pods: not, until that is known.
    NodeRange,
    /// By the bridge that they come from.
    Bridge(String),
    /// By the start of the name of the interface that they come from.
    InterfacePrefix(String),
}

impl LocalTraffic {
    fn pods_match(&self) -> Option<String> {
        match self {
            Self::Unknown | Self::NodeRange => None,
            Self::Range(range) => Some(format!("-s {range} ")),
            Self::Bridge(name) => Some(format!("-i {name} ")),
            Self::InterfacePrefix(prefix) => Some(format!("-i {prefix}+ ")),
        }
    }

    fn others_match(&self) -> Option<String> {
        self.pods_match().map(|rule| format!("! {rule}"))
    }
}

/// A chain that every Service has rules in. Rewriting it costs its size, so single rules come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hub {
    /// nat: addresses of Services.
    Services,
    /// nat: node ports.
    NodePorts,
    /// filter: addresses inside that nobody answers at.
    Refused,
    /// filter: addresses outside that nobody answers at.
    ExternalRefused,
    /// filter: health checks of load balancers.
    HealthChecks,
    /// filter: sources that a load balancer's address is closed to.
    Firewall,
}

impl Hub {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::NodePorts,
        Self::Refused,
        Self::ExternalRefused,
        Self::HealthChecks,
        Self::Firewall,
    ];

    /// Its table.
    pub fn table(self) -> &'static str {
        match self {
            Self::Services | Self::NodePorts => "nat",
            Self::Refused | Self::ExternalRefused | Self::HealthChecks | Self::Firewall => "filter",
        }
    }

    /// Its name in that table.
    pub fn chain(self) -> &'static str {
        match self {
            Self::Services | Self::Refused => "KUBE-SERVICES",
            Self::NodePorts | Self::HealthChecks => "KUBE-NODEPORTS",
            Self::ExternalRefused => "KUBE-EXTERNAL-SERVICES",
            Self::Firewall => "KUBE-PROXY-FIREWALL",
        }
    }
}

/// A chain of the nat table with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its rules, in order.
    pub rules: Vec<String>,
}

/// Everything that one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Chains of its own, in the nat table.
    pub chains: Vec<Chain>,
    /// Rules among those of others.
    pub hubs: Vec<(Hub, String)>,
    /// Flows that have no end of their own, for the removal of stale ones.
    pub udp: Vec<UdpPort>,
    /// What a load balancer is told of this node.
    pub health_check: Option<HealthCheck>,
    /// Ports without an endpoint here that a Local policy allows.
    pub stranded: Stranded,
}

/// Where a load balancer asks for a Service's endpoints on this node, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of this node.
    pub port: u16,
    /// Ready endpoints here.
    pub endpoints: usize,
}

/// Ports whose traffic finds no endpoint on this node, though there are some elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stranded {
    /// By the internal traffic policy.
    pub internal: u16,
    /// By the external traffic policy.
    pub external: u16,
}

/// A UDP port of a Service: where clients send to, and who may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpPort {
    /// Addresses that clients send to.
    pub fronts: Vec<SocketAddr>,
    /// The number at any address of this node; 0 for none.
    pub node_port: u16,
    /// The endpoints.
    pub backends: Vec<SocketAddr>,
}

/// Decides the rules of the Service `namespace/name`.
pub fn plan<'a>(
    settings: &Settings,
    name: &str,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Rules {
    let mut rules = Rules::default();
    for port in &service.ports {
        let id = port_id(name, port);
        let backends = backends(port, slices.clone(), settings.zone.as_deref());
        PortPlan {
            settings,
            service,
            port,
            id,
            backends: &backends,
        }
        .write(&mut rules);
    }
    let outside = service.outside.as_deref();
    let port = outside.map_or(0, |outside| outside.health_check_node_port);
    rules.health_check = (port != 0).then(|| HealthCheck {
        port,
        endpoints: ready_here(slices),
    });
    rules
}

/// `namespace/name:port`; without the port where that has no name.
fn port_id(name: &str, port: &Port) -> String {
    match &*port.name {
        "" => name.to_owned(),
        port => format!("{name}:{port}"),
    }
}

/// How many endpoints on this node are ready.
fn ready_here<'a>(slices: impl Iterator<Item = &'a Slice>) -> usize {
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let here = endpoints.filter(|endpoint| endpoint.ready && endpoint.local);
    here.map(|endpoint| endpoint.ip).collect::<BTreeSet<_>>().len()
}

/// Upstream's choice of endpoints: those that are ready, or, when none is, those that still answer on their way out.
fn usable(backends: impl Iterator<Item = Backend> + Clone) -> Vec<SocketAddr> {
    let ready: Vec<_> = backends
        .clone()
        .filter(|backend| backend.ready)
        .map(|backend| backend.address)
        .collect();
    if ready.is_empty() {
        backends
            .filter(|backend| backend.draining)
            .map(|backend| backend.address)
            .collect()
    } else {
        ready
    }
}

/// Which endpoints clients of this node are to have, by the hints of those that are ready. One without a hint makes
/// all hints void, and hints that leave no endpoint are not followed: a Service that answers comes first.
fn meant_for_here(backends: &[Backend]) -> impl Fn(&Backend) -> bool + Copy {
    let follow = |hint: fn(&Backend) -> Hint| {
        let ready = || backends.iter().filter(|backend| backend.ready).map(hint);
        ready().all(|hint| hint != Hint::Absent) && ready().any(|hint| hint == Hint::Here)
    };
    let by_node = follow(|backend| backend.for_node);
    let by_zone = !by_node && follow(|backend| backend.for_zone);
    move |backend| (!by_node || backend.for_node == Hint::Here) && (!by_zone || backend.for_zone == Hint::Here)
}

/// What is known while the rules of one port are written.
struct PortPlan<'a> {
    settings: &'a Settings,
    service: &'a Service,
    port: &'a Port,
    /// `namespace/name:port`
    id: String,
    backends: &'a [Backend],
}

/// The endpoints by policy, and the chains that lead to them.
struct Ways {
    everywhere: Vec<SocketAddr>,
    here: Vec<SocketAddr>,
    /// Where inside traffic goes; absent when there is no endpoint for it.
    internal: Option<Kind>,
    /// Where outside traffic goes.
    external: Option<Kind>,
}

impl PortPlan<'_> {
    fn write(&self, rules: &mut Rules) {
        let ways = self.ways();
        // An endpoint that the policy keeps from this node counts: what it serves elsewhere is not refused here.
        let elsewhere = self.backends.iter().any(|backend| backend.ready);
        let anywhere = elsewhere || !ways.everywhere.is_empty() || !ways.here.is_empty();
        let strands = |policy: bool, way: Option<Kind>| u16::from(policy && anywhere && way.is_none());
        rules.stranded.internal += strands(self.service.internal_local, ways.internal);
        let outside = self.service.external_local && self.reachable_from_outside();
        rules.stranded.external += strands(outside, ways.external);
        self.write_refusals(rules, &ways, anywhere);
        self.write_entries(rules, &ways, anywhere);
        let mut endpoints: Vec<SocketAddr> = Vec::new();
        for (kind, backends) in [(Kind::Service, &ways.everywhere), (Kind::Local, &ways.here)] {
            if !backends.is_empty() {
                self.write_balancing(rules, kind, backends, ways.internal == Some(kind));
                endpoints.extend(
                    backends
                        .iter()
                        .filter(|address| !endpoints.contains(address))
                        .collect::<Vec<_>>(),
                );
            }
        }
        for address in &endpoints {
            self.write_endpoint(rules, *address);
        }
        if self.port.protocol == Protocol::Udp {
            let fronts = self
                .fronts()
                .map(|(ip, _)| SocketAddr::new(ip, self.port.port))
                .collect();
            rules.udp.push(UdpPort {
                fronts,
                node_port: self.port.node_port,
                backends: endpoints,
            });
        }
    }

    fn ways(&self) -> Ways {
        let outside = self.reachable_from_outside();
        let all = || self.backends.iter().copied();
        // Outside traffic of this node's own is sent anywhere whatever the policy, so that chain exists then too.
        let uses_everywhere = !self.service.internal_local || outside;
        let uses_here = self.service.internal_local || (self.service.external_local && outside);
        let near = meant_for_here(self.backends);
        let everywhere = if uses_everywhere {
            usable(all().filter(|backend| !backend.ready || near(backend)))
        } else {
            Vec::new()
        };
        let here = if uses_here {
            usable(all().filter(|backend| backend.local))
        } else {
            Vec::new()
        };
        let pick = |local: bool| {
            let (kind, backends) = if local {
                (Kind::Local, &here)
            } else {
                (Kind::Service, &everywhere)
            };
            (!backends.is_empty()).then_some(kind)
        };
        let (internal, external) = (pick(self.service.internal_local), pick(self.service.external_local));
        Ways {
            internal,
            external,
            everywhere,
            here,
        }
    }

    fn reachable_from_outside(&self) -> bool {
        let outside = self.service.outside.as_deref();
        self.port.node_port != 0
            || outside.is_some_and(|outside| !outside.external_ips.is_empty() || !outside.load_balancer_ips.is_empty())
    }

    /// All addresses of the Service, and what each is called.
    fn fronts(&self) -> impl Iterator<Item = (IpAddr, &'static str)> {
        let outside = self.service.outside.as_deref();
        let external = outside
            .into_iter()
            .flat_map(|outside| outside.external_ips.iter().map(|ip| (*ip, "external IP")));
        let balanced = outside
            .into_iter()
            .flat_map(|outside| outside.load_balancer_ips.iter().map(|ip| (*ip, "loadbalancer IP")));
        std::iter::once((self.service.cluster_ip, "cluster IP"))
            .chain(external)
            .chain(balanced)
    }

    /// Rules that refuse what no endpoint is there for.
    fn write_refusals(&self, rules: &mut Rules, ways: &Ways, anywhere: bool) {
        let refusal = |there: bool| match (there, anywhere) {
            (true, _) => None,
            (false, false) => Some(("has no endpoints", "REJECT")),
            // Others may serve it elsewhere: not refused, just not from here.
            (false, true) => Some(("has no local endpoints", "DROP")),
        };
        for (ip, what) in self.fronts() {
            let inside = what == "cluster IP";
            let there = if inside { ways.internal } else { ways.external }.is_some();
            let Some((why, target)) = refusal(there) else { continue };
            let comment = self.comment(why);
            let rule = format!(
                "{comment}{}-d {ip} --dport {} -j {target}",
                self.protocol(),
                self.port.port
            );
            rules
                .hubs
                .push((if inside { Hub::Refused } else { Hub::ExternalRefused }, rule));
        }
        if let (true, Some((why, target))) = (self.port.node_port != 0, refusal(ways.external.is_some())) {
            let comment = self.comment(why);
            let (protocol, number) = (self.protocol(), self.port.node_port);
            let rule = format!("{comment}-m addrtype --dst-type LOCAL {protocol}--dport {number} -j {target}");
            rules.hubs.push((Hub::ExternalRefused, rule));
        }
    }

    /// Rules that lead into the Service, and the chains that outside traffic passes first.
    fn write_entries(&self, rules: &mut Rules, ways: &Ways, anywhere: bool) {
        let outside = self.service.outside.as_deref();
        let sources = outside
            .map(|outside| outside.source_ranges.as_slice())
            .unwrap_or_default();
        if let Some(kind) = ways.internal {
            self.write_entry(rules, self.service.cluster_ip, "cluster IP", kind);
        }
        if !anywhere || !self.reachable_from_outside() {
            return;
        }
        self.write_external(rules, ways);
        for (ip, what) in self.fronts() {
            match what {
                "external IP" => self.write_entry(rules, ip, what, Kind::External),
                "loadbalancer IP" if sources.is_empty() => self.write_entry(rules, ip, what, Kind::External),
                "loadbalancer IP" => {
                    self.write_entry(rules, ip, what, Kind::Firewall);
                    let comment = self.comment(&format!("traffic not accepted by {}", self.chain(Kind::Firewall)));
                    let rule = format!("{comment}{}-d {ip} --dport {} -j DROP", self.protocol(), self.port.port);
                    rules.hubs.push((Hub::Firewall, rule));
                }
                _ => {}
            }
        }
        let balanced = outside.is_some_and(|outside| !outside.load_balancer_ips.is_empty());
        if balanced && !sources.is_empty() {
            let comment = self.comment("loadbalancer IP");
            let mut chain: Vec<_> = sources
                .iter()
                .map(|range| format!("{comment}-s {range} -j {}", self.chain(Kind::External)))
                .collect();
            chain.push(format!(
                "-m comment --comment \"other traffic to {} will be dropped by KUBE-PROXY-FIREWALL\"",
                self.id
            ));
            rules.chains.push(Chain {
                name: self.chain(Kind::Firewall),
                rules: chain,
            });
        }
        if self.port.node_port != 0 {
            let (protocol, number) = (self.protocol(), self.port.node_port);
            let rule = format!(
                "{}{protocol}--dport {number} -j {}",
                self.short_comment(),
                self.chain(Kind::External)
            );
            rules.hubs.push((Hub::NodePorts, rule));
        }
        if let Some(number) = outside
            .map(|outside| outside.health_check_node_port)
            .filter(|number| *number != 0)
        {
            let comment = self.comment("health check node port");
            rules.hubs.push((
                Hub::HealthChecks,
                format!("{comment}-m tcp -p tcp --dport {number} -j ACCEPT"),
            ));
        }
    }

    fn write_entry(&self, rules: &mut Rules, ip: IpAddr, what: &str, to: Kind) {
        let comment = self.comment(what);
        let rule = format!(
            "{comment}{}-d {ip} --dport {} -j {}",
            self.protocol(),
            self.port.port,
            self.chain(to)
        );
        rules.hubs.push((Hub::Services, rule));
    }

    fn write_external(&self, rules: &mut Rules, ways: &Ways) {
        let mut chain = Vec::new();
        let id = &self.id;
        if self.service.external_local {
            // Pods and this node itself are not outside: they may reach any endpoint.
            let service = self.chain(Kind::Service);
            if let Some(pods) = self.settings.local.pods_match() {
                chain.push(format!(
                    "-m comment --comment \"pod traffic for {id} external destinations\" {pods}-j {service}"
                ));
            }
            let local = "-m addrtype --src-type LOCAL";
            chain.push(format!(
                "-m comment --comment \"masquerade LOCAL traffic for {id} external destinations\" {local} -j KUBE-MARK-MASQ"
            ));
            chain.push(format!(
                "-m comment --comment \"route LOCAL traffic for {id} external destinations\" {local} -j {service}"
            ));
        } else {
            // The answer must come back by this node, which rewrote the destination.
            chain.push(format!(
                "-m comment --comment \"masquerade traffic for {id} external destinations\" -j KUBE-MARK-MASQ"
            ));
        }
        chain.extend(ways.external.map(|kind| format!("-j {}", self.chain(kind))));
        rules.chains.push(Chain {
            name: self.chain(Kind::External),
            rules: chain,
        });
    }

    /// A chain that picks one of some endpoints.
    fn write_balancing(&self, rules: &mut Rules, kind: Kind, backends: &[SocketAddr], internal: bool) {
        let mut chain = Vec::new();
        if internal {
            let masked = if self.settings.masquerade_all {
                Some(String::new())
            } else {
                self.settings.local.others_match()
            };
            if let Some(others) = masked {
                let (ip, port) = (self.service.cluster_ip, self.port.port);
                let comment = self.comment("cluster IP");
                chain.push(format!(
                    "{comment}{}-d {ip} --dport {port} {others}-j KUBE-MARK-MASQ",
                    self.protocol()
                ));
            }
        }
        if let Some(seconds) = self.service.affinity {
            chain.extend(backends.iter().map(|address| {
                let to = self.endpoint_chain(*address);
                let comment = self.short_comment();
                format!("{comment}-m recent --name {to} --rcheck --seconds {seconds} --reap -j {to}")
            }));
        }
        for (index, address) in backends.iter().enumerate() {
            let to = self.endpoint_chain(*address);
            let comment = self.comment(&format!("-> {address}"));
            // Each rule takes its share of what the ones before it left; the last takes the rest.
            let left = u32::try_from(backends.len() - index).unwrap_or(u32::MAX);
            let share = match left {
                1 => String::new(),
                left => format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / f64::from(left)
                ),
            };
            chain.push(format!("{comment}{share}-j {to}"));
        }
        rules.chains.push(Chain {
            name: self.chain(kind),
            rules: chain,
        });
    }

    fn write_endpoint(&self, rules: &mut Rules, address: SocketAddr) {
        let name = self.endpoint_chain(address);
        let comment = self.short_comment();
        let remember = match self.service.affinity {
            Some(_) => format!("-m recent --name {name} --set "),
            None => String::new(),
        };
        let chain = vec![
            // A pod that reaches itself through its Service would answer itself past us.
            format!("{comment}-s {} -j KUBE-MARK-MASQ", address.ip()),
            format!(
                "{comment}{remember}{}-j DNAT --to-destination {address}",
                self.protocol()
            ),
        ];
        rules.chains.push(Chain { name, rules: chain });
    }

    fn chain(&self, kind: Kind) -> String {
        chain(kind, &self.id, self.port.protocol.name(), "")
    }

    fn endpoint_chain(&self, address: SocketAddr) -> String {
        chain(
            Kind::Endpoint,
            &self.id,
            self.port.protocol.name(),
            &address.to_string(),
        )
    }

    fn protocol(&self) -> String {
        let name = self.port.protocol.name();
        format!("-m {name} -p {name} ")
    }

    fn comment(&self, text: &str) -> String {
        format!("-m comment --comment \"{} {text}\" ", self.id)
    }

    fn short_comment(&self) -> String {
        format!("-m comment --comment {} ", self.id)
    }
}

#[cfg(test)]
mod tests;
