//! The rules of one port of a Service.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Chain, Hub, Rules, Settings, UdpPort};
use crate::model::{Backend, Hint, Port, Protocol, Service};
use crate::names::{Kind, chain};

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
pub(super) struct PortPlan<'a> {
    pub(super) settings: &'a Settings,
    pub(super) service: &'a Service,
    pub(super) port: &'a Port,
    /// `namespace/name:port`
    pub(super) id: String,
    pub(super) backends: &'a [Backend],
}

/// The endpoints by policy, and the chains that lead to them.
pub(super) struct Ways {
    pub(super) everywhere: Vec<SocketAddr>,
    pub(super) here: Vec<SocketAddr>,
    /// Where inside traffic goes; absent when there is no endpoint for it.
    pub(super) internal: Option<Kind>,
    /// Where outside traffic goes.
    external: Option<Kind>,
}

impl PortPlan<'_> {
    pub(super) fn write(&self, rules: &mut Rules) {
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
            // As upstream: a flow stays with whoever still answers, as a TCP connection does, whatever policies say of new ones.
            let serving = self.backends.iter().filter(|backend| backend.serving);
            rules.udp.push(UdpPort {
                fronts,
                node_port: self.port.node_port,
                backends: serving.map(|backend| backend.address).collect(),
            });
        }
    }

    pub(super) fn ways(&self) -> Ways {
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

    pub(super) fn reachable_from_outside(&self) -> bool {
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
        self.write_firewall(rules);
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

    /// The chain that lets a load balancer's sources through.
    fn write_firewall(&self, rules: &mut Rules) {
        let Some(outside) = self.service.outside.as_deref() else {
            return;
        };
        if outside.load_balancer_ips.is_empty() || outside.source_ranges.is_empty() {
            return;
        }
        let comment = self.comment("loadbalancer IP");
        let from = |source: String| format!("{comment}-s {source} -j {}", self.chain(Kind::External));
        let mut chain: Vec<_> = outside
            .source_ranges
            .iter()
            .map(|range| from(range.to_string()))
            .collect();
        // Where the address is one of the node's own, its programs send from that address itself.
        let is_node = |range: &IpNet| self.settings.node_address.is_some_and(|node| range.contains(&node));
        if outside.source_ranges.iter().any(is_node) {
            chain.extend(outside.load_balancer_ips.iter().map(|ip| from(ip.to_string())));
        }
        chain.push(format!(
            "-m comment --comment \"other traffic to {} will be dropped by KUBE-PROXY-FIREWALL\"",
            self.id
        ));
        rules.chains.push(Chain {
            name: self.chain(Kind::Firewall),
            rules: chain,
        });
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

    pub(super) fn chain(&self, kind: Kind) -> String {
        chain(kind, &self.id, self.port.protocol.name(), "")
    }

    pub(super) fn endpoint_chain(&self, address: SocketAddr) -> String {
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
