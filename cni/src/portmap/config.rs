//! The `portmap` plugin's part of the configuration, checked.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use skiff_net::iptables::Family;

use crate::config::nullable;
use crate::error::{Code, Error};
use crate::outcome::Network;
use crate::request::Request;

/// The bit of the packet mark that means "masquerade", unless configured: upstream's choice, beside Kubernetes' 14.
const MARK_BIT: i64 = 13;

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    snat: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    conditions_v4: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    conditions_v6: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(deserialize_with = "nullable")]
    runtime_config: RuntimeConfig,
}

/// What the runtime adds for the capability `portMappings`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(deserialize_with = "nullable")]
    port_mappings: Vec<WrittenMapping>,
}

/// Keys as the specification has them, or as containerd writes them: with capitals, which upstream's decoder takes too.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WrittenMapping {
    #[serde(rename = "hostPort", alias = "HostPort")]
    host_port: i64,
    #[serde(rename = "containerPort", alias = "ContainerPort")]
    container_port: i64,
    #[serde(rename = "protocol", alias = "Protocol", deserialize_with = "nullable")]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP", alias = "hostIp", deserialize_with = "nullable")]
    host_ip: String,
}

/// As it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Whether connections that would not come back by themselves are masqueraded.
    pub(super) masquerade: Option<Masquerade>,
    /// Further matches, as arguments, that a packet must meet to be forwarded.
    pub(super) conditions_v4: Vec<String>,
    pub(super) conditions_v6: Vec<String>,
    pub(super) mappings: Vec<Mapping>,
}

/// How connections are masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Masquerade {
    /// All connections, not only the pod's subnet's and this machine's.
    pub(super) all: bool,
    pub(super) mark: Mark,
}

/// Who marks the packets that are to be masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// This plugin, with this bit.
    Bit(u8),
    /// A chain of somebody else's, who also masquerades.
    Chain(String),
}

/// One port of this machine that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) protocol: Protocol,
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    /// Only on this address; an unspecified one means all of its family.
    pub(super) host_ip: Option<IpAddr>,
}

/// In the order in which upstream writes its rules: by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Sctp,
    Tcp,
    Udp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Sctp, Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Mapping {
    /// Whether the mapping is for addresses of a family.
    pub(super) fn is_for(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == (family == Family::V4))
    }

    /// The address that packets must be sent to, where that is not every address of this machine.
    pub(super) fn destination(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let written: Written = request.config()?;
        Self::check(written).map_err(|why| Error::new(Code::Internal, format!("failed to parse config: {why}")))
    }

    /// The conditions of a family.
    pub(super) fn conditions(&self, family: Family) -> &[String] {
        match family {
            Family::V4 => &self.conditions_v4,
            Family::V6 => &self.conditions_v6,
        }
    }

    fn check(written: Written) -> Result<Self, String> {
        let mark = match (written.external_set_mark_chain, written.mark_masq_bit) {
            (Some(_), Some(_)) => return Err("Cannot specify externalSetMarkChain and markMasqBit".to_owned()),
            (Some(chain), None) if is_chain(&chain) => Mark::Chain(chain),
            (Some(chain), None) => return Err(format!("Invalid externalSetMarkChain: {chain:?}")),
            (None, bit) => match u8::try_from(bit.unwrap_or(MARK_BIT)) {
                Ok(bit @ 0..=31) => Mark::Bit(bit),
                _ => return Err("MasqMarkBit must be between 0 and 31".to_owned()),
            },
        };
        let (conditions_v4, conditions_v6) = (written.conditions_v4, written.conditions_v6);
        // A line break would end the rule and begin another.
        if let Some(bad) = conditions_v4
            .iter()
            .chain(&conditions_v6)
            .find(|word| word.contains(char::is_control))
        {
            return Err(format!("Invalid condition: {bad:?}"));
        }
        let mappings = written
            .runtime_config
            .port_mappings
            .iter()
            .map(mapping)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            masquerade: written.snat.unwrap_or(true).then_some(Masquerade {
                all: written.masq_all,
                mark,
            }),
            conditions_v4,
            conditions_v6,
            mappings,
        })
    }
}

fn mapping(written: &WrittenMapping) -> Result<Mapping, String> {
    let port = |what: &str, number: i64| match u16::try_from(number) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("Invalid {what} port number: {number}")),
    };
    let container_port = port("container", written.container_port)?;
    let host_port = port("host", written.host_port)?;
    let protocol = written.protocol.to_ascii_lowercase();
    let protocol = Protocol::ALL
        .into_iter()
        .find(|known| known.to_string() == protocol)
        .ok_or_else(|| format!("Invalid protocol of host port {host_port}: {:?}", written.protocol))?;
    let host_ip = match written.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| format!("Invalid host IP of host port {host_port}: {text:?}"))?,
        ),
    };
    Ok(Mapping {
        protocol,
        host_port,
        container_port,
        host_ip,
    })
}

fn is_chain(name: &str) -> bool {
    !name.is_empty() && name.len() < 30 && !name.starts_with('-') && name.chars().all(|c| c.is_ascii_graphic())
}

/// The container's addresses, at most one of each family, IPv4 first; what earlier plugins gave this machine is none.
pub(super) fn addresses(previous: &Network) -> Vec<(Family, IpNet)> {
    let inside = |index: Option<usize>| {
        let interface = index.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let addresses = || {
        previous
            .ips
            .iter()
            .filter(|ip| inside(ip.interface))
            .map(|ip| ip.address)
    };
    let first = |four: bool| addresses().find(|address| address.addr().is_ipv4() == four);
    let four = first(true).map(|address| (Family::V4, address));
    four.into_iter()
        .chain(first(false).map(|address| (Family::V6, address)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(config: Value) -> Result<Config, String> {
        Config::check(serde_json::from_value(config).unwrap())
    }

    fn one(mapping: Value) -> Value {
        json!({"runtimeConfig": {"portMappings": [mapping]}})
    }

    #[test]
    fn the_runtimes_spellings_are_all_read() {
        let wanted = Mapping {
            protocol: Protocol::Udp,
            host_port: 8053,
            container_port: 53,
            host_ip: "10.0.0.1".parse().ok(),
        };
        for mapping in [
            json!({"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"}),
            json!({"HostPort": 8053, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "10.0.0.1"}),
        ] {
            assert_eq!(read(one(mapping)).unwrap().mappings, [wanted]);
        }
    }

    #[test]
    fn what_is_left_out_has_upstreams_defaults() {
        let config = read(json!({"runtimeConfig": {"portMappings": null}})).unwrap();
        assert_eq!(
            config.masquerade,
            Some(Masquerade {
                all: false,
                mark: Mark::Bit(13)
            })
        );
        assert_eq!(read(json!({"snat": false})).unwrap().masquerade, None);
        let chain = read(json!({"externalSetMarkChain": "KUBE-MARK-MASQ"})).unwrap();
        assert_eq!(chain.masquerade.unwrap().mark, Mark::Chain("KUBE-MARK-MASQ".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_changes() {
        let ports =
            |host: i64, container: i64| one(json!({"hostPort": host, "containerPort": container, "protocol": "tcp"}));
        for (config, wanted) in [
            (json!({"markMasqBit": 32}), "MasqMarkBit must be between 0 and 31"),
            (json!({"markMasqBit": -1}), "MasqMarkBit must be between 0 and 31"),
            (
                json!({"markMasqBit": 4, "externalSetMarkChain": "X"}),
                "Cannot specify externalSetMarkChain and markMasqBit",
            ),
            (
                json!({"externalSetMarkChain": "X\nY"}),
                "Invalid externalSetMarkChain: \"X\\nY\"",
            ),
            (
                json!({"conditionsV4": ["-s", "10.0.0.1\n-F"]}),
                "Invalid condition: \"10.0.0.1\\n-F\"",
            ),
            (ports(0, 80), "Invalid host port number: 0"),
            (ports(65536, 80), "Invalid host port number: 65536"),
            (ports(80, -1), "Invalid container port number: -1"),
            (
                one(json!({"hostPort": 1, "containerPort": 1})),
                "Invalid protocol of host port 1: \"\"",
            ),
            (
                one(json!({"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "here"})),
                "Invalid host IP of host port 1: \"here\"",
            ),
        ] {
            assert_eq!(read(config).unwrap_err(), wanted);
        }
    }

    #[test]
    fn the_containers_first_address_of_each_family_counts() {
        let previous: Network = serde_json::from_value(json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [
                {"interface": 0, "address": "10.0.0.1/24"}, {"interface": 1, "address": "fd00::2/64"},
                {"interface": 1, "address": "10.0.0.2/24"}, {"address": "10.0.0.3/24"},
            ],
        }))
        .unwrap();
        let texts: Vec<_> = addresses(&previous)
            .iter()
            .map(|(_, address)| address.to_string())
            .collect();
        assert_eq!(texts, ["10.0.0.2/24", "fd00::2/64"]);
    }
}
