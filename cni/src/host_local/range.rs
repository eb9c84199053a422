//! Ranges of addresses, and in which order they are given out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// A range as it is configured. containerd writes its keys with capitals, which upstream's decoder takes too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RangeConfig {
    #[serde(alias = "Subnet")]
    pub(super) subnet: Option<IpNet>,
    #[serde(alias = "RangeStart")]
    pub(super) range_start: Option<IpAddr>,
    #[serde(alias = "RangeEnd")]
    pub(super) range_end: Option<IpAddr>,
    #[serde(alias = "Gateway")]
    pub(super) gateway: Option<IpAddr>,
}

/// A range with all its ends known, as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: u128,
}

/// Ranges of one family, out of which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet {
    ranges: Vec<Range>,
}

/// An address with what its range says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) ip: IpAddr,
    pub(super) subnet: IpNet,
    pub(super) gateway: IpAddr,
}

impl RangeSet {
    /// Checks the ranges and fills in what is left out, as upstream does: the second address of the subnet is the
    /// gateway, all but the first and (IPv4's broadcast) the last may be given out.
    pub(super) fn new(configs: &[RangeConfig]) -> Result<Self, String> {
        if configs.is_empty() {
            return Err("empty range set".to_owned());
        }
        let mut ranges: Vec<Range> = Vec::new();
        for config in configs {
            let range = Range::new(config)?;
            if ranges
                .iter()
                .any(|other| other.subnet.addr().is_ipv4() != range.subnet.addr().is_ipv4())
            {
                return Err("mixed address families".to_owned());
            }
            if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
                return Err(format!("subnets {other} and {range} overlap"));
            }
            ranges.push(range);
        }
        Ok(Self { ranges })
    }

    /// Whether an address could come out of this set.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }

    /// Whether two sets share an address.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.ranges
            .iter()
            .any(|one| other.ranges.iter().any(|two| one.overlaps(two)))
    }

    /// The address as a candidate, when it may be asked for; the gateway may not.
    pub(super) fn candidate(&self, ip: IpAddr) -> Result<Candidate, String> {
        let range = self.ranges.iter().find(|range| range.contains(ip));
        let range = range.ok_or_else(|| format!("requested IP {ip} is not in range set {self}"))?;
        if number(ip) == range.gateway {
            return Err(format!("requested ip {ip} is subnet's gateway"));
        }
        Ok(range.candidate(number(ip)))
    }

    /// All addresses but gateways, each once, beginning after the one that was given last. Round and round, so that an
    /// address rests as long as possible before it is given again.
    pub(super) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = Candidate> {
        let at = last.and_then(|ip| Some((self.ranges.iter().position(|range| range.contains(ip))?, number(ip))));
        let (start, given) = at.map_or((0, None), |(index, given)| (index, Some(given)));
        let count = self.ranges.len();
        // The range of the last address comes first without what is at or before it, and again at the end with only that.
        (0..=count).flat_map(move |step| {
            let range = &self.ranges[(start + step) % count];
            let (from, to) = match (step, given) {
                (0, Some(given)) => (given.saturating_add(1), range.last),
                (step, Some(given)) if step == count => (range.first, given),
                (step, None) if step == count => (1, 0),
                _ => (range.first, range.last),
            };
            (from..=to)
                .filter(|number| *number != range.gateway)
                .map(|number| range.candidate(number))
        })
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            range.fmt(formatter)?;
        }
        Ok(())
    }
}

impl Range {
    fn new(config: &RangeConfig) -> Result<Self, String> {
        let subnet = config.subnet.ok_or("missing subnet")?;
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.trunc() != subnet {
            let (length, network) = (subnet.prefix_len(), subnet.network());
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {length} the network address is {network}"
            ));
        }
        let inside = |what: &str, ip: Option<IpAddr>, otherwise: u128| match ip {
            None => Ok(otherwise),
            Some(ip) if subnet.contains(&ip) => Ok(number(ip)),
            Some(ip) => Err(format!("{what} {ip} not in network {subnet}")),
        };
        let network = number(subnet.network());
        // Every IPv6 address may be given out; IPv4's last is for broadcasts.
        let end = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
        let first = inside("RangeStart", config.range_start, network + 1)?;
        let last = inside("RangeEnd", config.range_end, end)?;
        if first > last {
            // Upstream looks for the start among what the end leaves.
            return Err(format!("RangeStart {} not in network {subnet}", address(first, subnet)));
        }
        let gateway = config.gateway.map_or(network + 1, number);
        Ok(Self {
            subnet,
            first,
            last,
            gateway,
        })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.subnet.contains(&ip) && (self.first..=self.last).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }

    fn candidate(&self, at: u128) -> Candidate {
        Candidate {
            ip: address(at, self.subnet),
            subnet: self.subnet,
            gateway: address(self.gateway, self.subnet),
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}-{}",
            address(self.first, self.subnet),
            address(self.last, self.subnet)
        )
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The number as an address of the subnet's family.
fn address(number: u128, subnet: IpNet) -> IpAddr {
    match subnet {
        // A number within an IPv4 subnet fits; a gateway outside of it came from an address too.
        IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or_default()).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: &str, end: &str) -> RangeConfig {
        RangeConfig {
            subnet: subnet.parse().ok(),
            range_start: start.parse().ok(),
            range_end: end.parse().ok(),
            gateway: None,
        }
    }

    fn set(ranges: &[RangeConfig]) -> RangeSet {
        RangeSet::new(ranges).unwrap()
    }

    fn order(set: &RangeSet, last: &str) -> Vec<String> {
        set.after(last.parse().ok())
            .map(|candidate| candidate.ip.to_string())
            .collect()
    }

    #[test]
    fn addresses_go_round_without_the_gateway() {
        let set = set(&[range("10.1.0.0/29", "", "")]);
        assert_eq!(
            order(&set, ""),
            ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
        );
        assert_eq!(
            order(&set, "10.1.0.4"),
            ["10.1.0.5", "10.1.0.6", "10.1.0.2", "10.1.0.3", "10.1.0.4"]
        );
        // One of another network says nothing.
        assert_eq!(order(&set, "10.9.0.4"), order(&set, ""));
    }

    #[test]
    fn ranges_follow_each_other() {
        let set = set(&[
            range("10.1.0.0/24", "10.1.0.10", "10.1.0.11"),
            range("10.2.0.0/24", "10.2.0.5", "10.2.0.6"),
        ]);
        assert_eq!(
            order(&set, "10.1.0.10"),
            ["10.1.0.11", "10.2.0.5", "10.2.0.6", "10.1.0.10"]
        );
        assert_eq!(
            order(&set, "10.2.0.6"),
            ["10.1.0.10", "10.1.0.11", "10.2.0.5", "10.2.0.6"]
        );
    }

    #[test]
    fn six_has_no_broadcast_address() {
        let set = set(&[range("fd00::/126", "", "")]);
        assert_eq!(order(&set, ""), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (ranges, wanted) in [
            (vec![], "empty range set"),
            (vec![range("", "", "")], "missing subnet"),
            (
                vec![range("10.1.0.0/31", "", "")],
                "Network 10.1.0.0/31 too small to allocate from",
            ),
            (
                vec![range("10.1.0.5/24", "", "")],
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.0.0",
            ),
            (
                vec![range("10.1.0.0/24", "10.2.0.1", "")],
                "RangeStart 10.2.0.1 not in network 10.1.0.0/24",
            ),
            (
                vec![range("10.1.0.0/24", "", "10.2.0.1")],
                "RangeEnd 10.2.0.1 not in network 10.1.0.0/24",
            ),
            (
                vec![range("10.1.0.0/24", "10.1.0.9", "10.1.0.8")],
                "RangeStart 10.1.0.9 not in network 10.1.0.0/24",
            ),
            (
                vec![range("10.1.0.0/24", "", ""), range("fd00::/64", "", "")],
                "mixed address families",
            ),
            (
                vec![range("10.1.0.0/24", "", ""), range("10.1.0.0/16", "", "")],
                "subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.255.254 overlap",
            ),
        ] {
            assert_eq!(RangeSet::new(&ranges).unwrap_err(), wanted);
        }
    }

    #[test]
    fn a_wanted_address_must_be_one_of_the_set() {
        let set = set(&[range("10.1.0.0/24", "10.1.0.1", "10.1.0.20")]);
        assert_eq!(
            set.candidate("10.1.0.20".parse().unwrap()).unwrap().gateway.to_string(),
            "10.1.0.1"
        );
        assert_eq!(
            set.candidate("10.1.0.1".parse().unwrap()).unwrap_err(),
            "requested ip 10.1.0.1 is subnet's gateway"
        );
        assert!(set.candidate("10.1.0.21".parse().unwrap()).is_err());
    }
}
