//! UDP flows that a change of rules leaves behind.
//!
//! The kernel looks at the rules only for the first packet of a flow, and UDP has no last one: a client that keeps
//! sending would be sent to an endpoint that is gone, or to none, for ever. Such flows are forgotten.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use skiff_net::conntrack::{Conntrack, Entry, UDP};
use skiff_net::netlink;

use crate::plan::UdpPort;

/// Which flows are stale, decided from the ports as they are and as they were.
#[derive(Debug, Default)]
pub(crate) struct StaleFlows {
    /// By address, who may answer.
    fronts: HashMap<SocketAddr, HashSet<SocketAddr>>,
    /// By node port, who may answer.
    node_ports: HashMap<u16, HashSet<SocketAddr>>,
}

impl StaleFlows {
    /// Adds a port as it is now.
    pub(crate) fn now(&mut self, port: &UdpPort) {
        for front in &port.fronts {
            self.fronts.entry(*front).or_default().extend(&port.backends);
        }
        if port.node_port != 0 {
            self.node_ports
                .entry(port.node_port)
                .or_default()
                .extend(&port.backends);
        }
    }

    /// Adds a port as it was: where it has no endpoints now, none may answer.
    pub(crate) fn before(&mut self, port: &UdpPort) {
        let gone = UdpPort {
            backends: Vec::new(),
            ..port.clone()
        };
        self.now(&gone);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fronts.is_empty() && self.node_ports.is_empty()
    }

    fn is_stale(&self, protocol: u8, to: SocketAddr, answers: SocketAddr) -> bool {
        if protocol != UDP {
            return false;
        }
        let allowed = match (self.fronts.get(&to), self.node_ports.get(&to.port())) {
            (Some(allowed), _) => allowed,
            // A local program of that port, or a flow that only passes: not ours.
            (None, Some(allowed)) if to != answers => allowed,
            _ => return false,
        };
        !allowed.contains(&answers)
    }

    /// Forgets the stale flows of this namespace. Returns how many there were.
    pub(crate) fn remove(&self) -> Result<usize, netlink::Error> {
        if self.is_empty() {
            return Ok(0);
        }
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        Conntrack::open()?.delete_matching(|entry: &Entry| {
            let to = at(entry.original.destination, entry.original.destination_port);
            self.is_stale(entry.protocol, to, at(entry.reply.source, entry.reply.source_port))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn flows_to_endpoints_that_are_gone_are_stale() {
        let mut flows = StaleFlows::default();
        let port = |backends: &[&str]| UdpPort {
            fronts: vec![at("10.96.0.10:53")],
            node_port: 30053,
            backends: backends.iter().map(|text| at(text)).collect(),
        };
        flows.before(&port(&["10.244.0.2:53", "10.244.0.3:53"]));
        flows.now(&port(&["10.244.0.3:53"]));
        for (protocol, to, answers, stale) in [
            (UDP, "10.96.0.10:53", "10.244.0.2:53", true),
            (UDP, "10.96.0.10:53", "10.244.0.3:53", false),
            (UDP, "10.96.0.10:53", "10.96.0.10:53", true),
            (UDP, "10.96.0.11:53", "10.244.0.2:53", false),
            (UDP, "172.30.0.1:30053", "10.244.0.2:53", true),
            (UDP, "172.30.0.1:30053", "10.244.0.3:53", false),
            (UDP, "8.8.8.8:30053", "8.8.8.8:30053", false),
            (6, "10.96.0.10:53", "10.244.0.2:53", false),
        ] {
            assert_eq!(flows.is_stale(protocol, at(to), at(answers)), stale, "{to} {answers}");
        }
    }
}
