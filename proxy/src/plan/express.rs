//! The part of a Service that can be in force before its rules are among all others: addresses inside, by TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{PortPlan, Settings};
use crate::model::{Protocol, Service, Slice, backends};
use crate::names::Kind;

/// One port of a Service at its ClusterIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// `namespace/name:port`
    pub id: String,
    /// The ClusterIP.
    pub ip: Ipv4Addr,
    /// The port there.
    pub port: u16,
    /// The name of the chain that picks an endpoint.
    pub chain: String,
    /// The endpoints, each with the name of its chain.
    pub endpoints: Box<[(String, SocketAddrV4)]>,
}

/// Decides the ways of the Service `namespace/name`, where they are all that it has: it is not reachable from outside,
/// none of its clients has to stay with an endpoint, every port has endpoints here.
pub fn express<'a>(
    settings: &Settings,
    name: &str,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Option<Vec<Way>> {
    let IpAddr::V4(ip) = service.cluster_ip else {
        return None;
    };
    if service.affinity.is_some() || service.outside.is_some() {
        return None;
    }
    let way = |port| {
        let port = PortPlan {
            settings,
            service,
            port,
            id: super::port_id(name, port),
            backends: &backends(port, slices.clone(), settings.zone.as_deref()),
        };
        if port.port.protocol != Protocol::Tcp || port.reachable_from_outside() {
            return None;
        }
        let ways = port.ways();
        let (kind, addresses) = match ways.internal? {
            Kind::Local => (Kind::Local, ways.here),
            _ => (Kind::Service, ways.everywhere),
        };
        let endpoints = addresses.into_iter().map(|address| match address {
            SocketAddr::V4(v4) => Some((port.endpoint_chain(address), v4)),
            SocketAddr::V6(_) => None,
        });
        Some(Way {
            ip,
            port: port.port.port,
            chain: port.chain(kind),
            endpoints: endpoints.collect::<Option<_>>()?,
            id: port.id,
        })
    };
    service.ports.iter().map(way).collect()
}
