//! Which of its addresses a machine is known by. Decisions are pure; [`observe`] alone asks the kernel.
//!
//! One address rules every component: the API server's certificate and endpoint, the kubelet, the proxy, the routes. It is the one
//! that leads to the other machines, which need not be that of the default route: virtual machines often have a first interface
//! behind a NAT of their own, where each of them has the same address.

use std::net::{IpAddr, Ipv4Addr};

use skiff_net::netlink::{self, Netlink};

/// An address of this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The interface that has it.
    pub link: String,
}

/// What decides about the address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Network {
    /// All addresses that others could know.
    pub addresses: Vec<Address>,
    /// Where packets to the rest of the world go.
    pub default_gateway: Option<IpAddr>,
    /// From which address.
    pub default_source: Option<IpAddr>,
}

/// The address, and what a person should know about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Choice {
    /// The address.
    pub ip: IpAddr,
    /// A doubt that does not keep it from being used.
    pub warning: Option<String>,
}

/// Why no address can be chosen; each says what to give.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not tell.
    #[error("cannot read this machine's addresses")]
    Observe(#[source] netlink::Error),
    /// There is none.
    #[error("this machine has no address that others could reach; bring up its network (ip address)")]
    NoAddress,
    /// An address was given that this machine does not have.
    #[error("{given} is not an address of this machine; it has: {have}")]
    NotOurs {
        /// What was given.
        given: IpAddr,
        /// What there is.
        have: String,
    },
    /// An address was given that nobody else can use.
    #[error("{given} cannot be reached from other machines; give one of: {have}")]
    Unreachable {
        /// What was given.
        given: IpAddr,
        /// What there is.
        have: String,
    },
    /// There is a choice that only a person can make.
    #[error("this machine could be known by several addresses: {have}; say which with {flag}")]
    Several {
        /// What there is.
        have: String,
        /// The flag to give.
        flag: &'static str,
    },
    /// The API server's address is this machine's own.
    #[error(
        "{endpoint} is an address of this machine itself, so that no other machine is reached there; where every machine has this address (Vagrant's first interface), init the other one again with --apiserver-advertise-address set to an address that this machine reaches"
    )]
    EndpointIsOurs {
        /// What was to be joined.
        endpoint: IpAddr,
    },
    /// The way to the API server leads through a NAT.
    #[error(
        "the way to {endpoint} leads through a NAT from {source_ip}, an address that other machines have too; give --node-ip one of: {have}"
    )]
    BehindNat {
        /// What was to be joined.
        endpoint: IpAddr,
        /// From where.
        source_ip: IpAddr,
        /// What else there is.
        have: String,
    },
    /// There is no way to the API server.
    #[error("there is no route from this machine to {endpoint}; check its network (ip route get {endpoint})")]
    NoRoute {
        /// What was to be joined.
        endpoint: IpAddr,
    },
}

/// The address of a machine that begins a cluster: the one given, else that of the default route, but never one behind the NAT of a
/// virtual machine while there is another.
///
/// # Errors
/// When none can be chosen.
pub fn of_first(network: &Network, given: Option<IpAddr>) -> Result<Choice, Error> {
    if let Some(ip) = given {
        return accept(network, ip);
    }
    let usable: Vec<IpAddr> = network.reachable().collect();
    match (network.default_source, usable.as_slice()) {
        (Some(source), _) if usable.contains(&source) => Ok(Choice::plain(source)),
        (_, [only]) => Ok(Choice::plain(*only)),
        (_, []) => match network.addresses.first() {
            Some(address) => accept(network, address.ip),
            None => Err(Error::NoAddress),
        },
        _ => Err(Error::Several {
            have: network.list(),
            flag: "--apiserver-advertise-address",
        }),
    }
}

/// The address of a machine that joins a cluster at `endpoint`, from which packets there would go out from `source`.
///
/// # Errors
/// When none can be chosen.
pub fn of_joining(
    network: &Network,
    given: Option<IpAddr>,
    endpoint: IpAddr,
    source: Option<IpAddr>,
) -> Result<Choice, Error> {
    if endpoint.is_loopback() || network.has(endpoint) {
        return Err(Error::EndpointIsOurs { endpoint });
    }
    if let Some(ip) = given {
        return accept(network, ip);
    }
    let source_ip = source.ok_or(Error::NoRoute { endpoint })?;
    if network.is_behind_nat(source_ip) {
        return Err(Error::BehindNat {
            endpoint,
            source_ip,
            have: network.list(),
        });
    }
    accept(network, source_ip)
}

fn accept(network: &Network, ip: IpAddr) -> Result<Choice, Error> {
    if !network.has(ip) {
        let have = network.list();
        return Err(if ip.is_loopback() || ip.is_unspecified() {
            Error::Unreachable { given: ip, have }
        } else {
            Error::NotOurs { given: ip, have }
        });
    }
    let warning = network.is_behind_nat(ip).then(|| {
        format!(
            "{ip} is an address behind a virtual machine's own NAT: no other machine can reach it, so none can join"
        )
    });
    Ok(Choice { ip, warning })
}

// === impl Choice ===

impl Choice {
    fn plain(ip: IpAddr) -> Self {
        Self { ip, warning: None }
    }
}

// === impl Network ===

impl Network {
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.ip == ip)
    }

    fn reachable(&self) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.iter().map(|address| address.ip);
        addresses.filter(|ip| !self.is_behind_nat(*ip))
    }

    /// VirtualBox and QEMU give every virtual machine the address 10.0.2.15 behind a gateway 10.0.2.2 of its own.
    fn is_behind_nat(&self, ip: IpAddr) -> bool {
        let gateway = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
        matches!(ip, IpAddr::V4(ip) if ip.octets()[..3] == [10, 0, 2]) && self.default_gateway == Some(gateway)
    }

    fn list(&self) -> String {
        let all: Vec<_> = (self.addresses.iter().filter(|address| !self.is_behind_nat(address.ip)))
            .map(|address| format!("{} ({})", address.ip, address.link))
            .collect();
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join(", ")
        }
    }
}

/// Reads this machine's addresses, and the way out.
///
/// # Errors
/// When the kernel does not tell.
pub fn observe() -> Result<Network, Error> {
    // Of the addresses for documentation: nobody has it, so the default route leads there.
    const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    let mut netlink = Netlink::open().map_err(Error::Observe)?;
    let links = netlink.links().map_err(Error::Observe)?;
    let name = |index| {
        links
            .iter()
            .find(|link| link.index == index)
            .map(|link| link.name.clone())
    };
    let addresses = netlink.addresses(None).map_err(Error::Observe)?;
    let addresses = addresses.iter().filter_map(|address| {
        let (ip, link) = (address.net.addr(), name(address.index)?);
        (can_be_known(ip) && !is_for_containers(&link)).then_some(Address { ip, link })
    });
    let way_out = netlink.route_to(ANYWHERE).map_err(Error::Observe)?;
    Ok(Network {
        addresses: addresses.collect(),
        default_gateway: way_out.as_ref().and_then(|route| route.gateway),
        default_source: way_out.and_then(|route| route.source),
    })
}

/// From which address packets to `endpoint` would go.
///
/// # Errors
/// When the kernel does not tell.
pub fn source_toward(endpoint: IpAddr) -> Result<Option<IpAddr>, Error> {
    let mut netlink = Netlink::open().map_err(Error::Observe)?;
    let route = netlink.route_to(endpoint).map_err(Error::Observe)?;
    Ok(route.and_then(|route| route.source))
}

fn can_be_known(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

/// Bridges and tunnels that containers and virtual machines of this machine hang on.
fn is_for_containers(link: &str) -> bool {
    let prefixes = [
        "cni", "docker", "br-", "virbr", "veth", "skiff.", "flannel.", "cali", "lxc", "podman",
    ];
    prefixes.iter().any(|prefix| link.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(addresses: &[&str], default: Option<(&str, &str)>) -> Network {
        let addresses = addresses.iter().enumerate().map(|(index, address)| Address {
            ip: ip(address),
            link: format!("eth{index}"),
        });
        Network {
            addresses: addresses.collect(),
            default_gateway: default.map(|(gateway, _)| ip(gateway)),
            default_source: default.map(|(_, source)| ip(source)),
        }
    }

    const VAGRANT: Option<(&str, &str)> = Some(("10.0.2.2", "10.0.2.15"));

    #[test]
    fn the_first_machine() {
        let lan = Some(("192.168.1.1", "192.168.1.10"));
        type Case<'a> = (
            &'a [&'a str],
            Option<(&'a str, &'a str)>,
            Option<&'a str>,
            Result<&'a str, &'a str>,
        );
        let cases: [Case<'_>; 11] = [
            (&["192.168.1.10"], lan, None, Ok("192.168.1.10")),
            (&["172.16.0.5", "192.168.1.10"], lan, None, Ok("192.168.1.10")),
            // Vagrant: eth0 is the NAT that every machine has, eth1 the network that joins them.
            (&["10.0.2.15", "192.168.56.10"], VAGRANT, None, Ok("192.168.56.10")),
            (&["10.0.2.15"], VAGRANT, None, Ok("10.0.2.15")),
            (
                &["10.0.2.15", "192.168.56.10", "10.1.1.1"],
                VAGRANT,
                None,
                Err("say which with --apiserver"),
            ),
            // An ordinary network that only looks alike.
            (&["10.0.2.15"], Some(("10.0.2.1", "10.0.2.15")), None, Ok("10.0.2.15")),
            (&["192.168.56.10"], None, None, Ok("192.168.56.10")),
            (
                &["192.168.56.10", "10.1.1.1"],
                None,
                None,
                Err("several addresses: 192.168.56.10 (eth0), 10.1.1.1 (eth1)"),
            ),
            (
                &["172.16.0.5", "192.168.1.10"],
                lan,
                Some("172.16.0.5"),
                Ok("172.16.0.5"),
            ),
            (
                &["192.168.1.10"],
                lan,
                Some("192.168.1.11"),
                Err("192.168.1.11 is not an address of this machine; it has: 192.168.1.10"),
            ),
            (
                &["192.168.1.10"],
                lan,
                Some("127.0.0.1"),
                Err("cannot be reached from other machines; give one of: 192.168.1.10"),
            ),
        ];
        for (addresses, default, given, wanted) in cases {
            let chosen = of_first(&network(addresses, default), given.map(ip));
            match (chosen, wanted) {
                (Ok(choice), Ok(wanted)) => assert_eq!(choice.ip, ip(wanted), "{addresses:?}"),
                (Err(error), Err(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
                (chosen, _) => panic!("{addresses:?}: {chosen:?}"),
            }
        }
        let alone = of_first(&network(&["10.0.2.15"], VAGRANT), None).unwrap();
        assert!(alone.warning.unwrap().contains("none can join"));
        assert!(matches!(of_first(&Network::default(), None), Err(Error::NoAddress)));
    }

    #[test]
    fn a_joining_machine() {
        let vagrant = network(&["10.0.2.15", "192.168.56.11"], VAGRANT);
        let join = |given: Option<&str>, endpoint, source: Option<&str>| {
            of_joining(&vagrant, given.map(ip), ip(endpoint), source.map(ip))
                .map(|choice| choice.ip.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            join(None, "192.168.56.10", Some("192.168.56.11")).unwrap(),
            "192.168.56.11"
        );
        assert_eq!(
            join(Some("192.168.56.11"), "1.2.3.4", Some("10.0.2.15")).unwrap(),
            "192.168.56.11"
        );
        // The server was told to be known by the NAT's address: that is this machine's own, too.
        assert!(
            join(None, "10.0.2.15", Some("10.0.2.15"))
                .unwrap_err()
                .contains("--apiserver-advertise-address")
        );
        assert!(
            join(None, "127.0.0.1", Some("127.0.0.1"))
                .unwrap_err()
                .contains("this machine itself")
        );
        let behind = join(None, "1.2.3.4", Some("10.0.2.15")).unwrap_err();
        assert!(behind.contains("--node-ip one of: 192.168.56.11 (eth1)"), "{behind}");
        assert!(join(None, "1.2.3.4", None).unwrap_err().contains("no route"));
        assert!(
            join(Some("9.9.9.9"), "192.168.56.10", None)
                .unwrap_err()
                .contains("not an address")
        );
    }

    #[test]
    fn links_of_containers_do_not_count() {
        assert!(is_for_containers("cni0") && is_for_containers("docker0"));
        assert!(!is_for_containers("eth0") && !is_for_containers("enp3s0"));
        assert!(!can_be_known(ip("169.254.1.1")) && can_be_known(ip("10.0.0.1")));
    }
}
