//! Which rules forward a container's ports, and what must change for them to be there.
//!
//! Rules are written the way that `iptables -S` prints them, so that looking for one is a comparison of texts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use skiff_net::iptables::{Family, Restore, quote};

use super::config::{Config, Mapping, Mark, Protocol};
use crate::rules::{chain_name, comment, target};

pub(super) const TABLE: &str = "nat";
/// All forwarding starts here.
pub(super) const TOP: &str = "CNI-HOSTPORT-DNAT";
/// Marks packets that are to be masqueraded.
pub(super) const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
/// Masquerades what is marked.
pub(super) const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// How many ports one `multiport` match takes.
const PORTS_IN_ONE: usize = 15;
/// Packets for addresses of this machine, wherever they come from.
const TOP_JUMP: &str = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";

/// One container's ports, of one family.
#[derive(Debug)]
pub(super) struct Forwarding<'a> {
    pub(super) network: &'a str,
    pub(super) container: &'a str,
    pub(super) config: &'a Config,
    pub(super) family: Family,
    pub(super) address: IpNet,
}

/// The rules that there are, in the chains that matter; `None`: there is no such chain.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) prerouting: Vec<String>,
    pub(super) output: Vec<String>,
    pub(super) postrouting: Vec<String>,
    pub(super) top: Option<Vec<String>>,
    pub(super) set_mark: Option<Vec<String>>,
    pub(super) masquerade: Option<Vec<String>>,
}

/// The chain of a container.
pub(super) fn own_chain(network: &str, container: &str) -> String {
    chain_name("DN-", network, container)
}

/// The words in the comments of a network's rules that stand before the container.
pub(super) fn network_words(network: &str) -> String {
    format!("dnat name: \"{network}\" id: ")
}

impl Forwarding<'_> {
    /// What leads to the container's chain: for each protocol, as many rules as its ports need.
    pub(super) fn entries(&self) -> Vec<String> {
        let chain = own_chain(self.network, self.container);
        let words = comment(&format!("{}\"{}\"", network_words(self.network), self.container));
        let mut ports: BTreeMap<Protocol, Vec<String>> = BTreeMap::new();
        for mapping in &self.config.mappings {
            ports
                .entry(mapping.protocol)
                .or_default()
                .push(mapping.host_port.to_string());
        }
        let conditions: String = self
            .config
            .conditions(self.family)
            .iter()
            .map(|word| format!("{} ", quote_word(word)))
            .collect();
        let rule = |(protocol, ports): (&Protocol, &[String])| {
            let ports = ports.join(",");
            format!("-p {protocol} {words} -m multiport --dports {ports} {conditions}-j {chain}")
        };
        ports
            .iter()
            .flat_map(|(protocol, ports)| ports.chunks(PORTS_IN_ONE).map(move |ports| (protocol, ports)))
            .map(rule)
            .collect()
    }

    /// The container's chain: for each port, marks where answers would not come back, then the forwarding.
    pub(super) fn rules(&self) -> Vec<String> {
        let mappings = self
            .config
            .mappings
            .iter()
            .filter(|mapping| mapping.is_for(self.family));
        mappings.flat_map(|mapping| self.rules_of(mapping)).collect()
    }

    fn rules_of(&self, mapping: &Mapping) -> Vec<String> {
        let Mapping {
            protocol,
            host_port,
            container_port,
            ..
        } = mapping;
        let destination = mapping
            .destination()
            .map_or_else(String::new, |ip| format!("-d {} ", IpNet::from(ip)));
        let port = format!("{destination}-p {protocol} -m {protocol} --dport {host_port}");
        let mut rules = Vec::new();
        if let Some(masquerade) = &self.config.masquerade {
            let mark = match &masquerade.mark {
                Mark::Bit(_) => SET_MARK,
                Mark::Chain(chain) => chain,
            };
            // The container itself and its neighbours would get answers from an address that they did not ask.
            if masquerade.all {
                rules.push(format!("{port} -j {mark}"));
            } else {
                rules.push(format!("-s {} {port} -j {mark}", self.address.trunc()));
            }
            // Nobody may answer to 127.0.0.1; IPv6 has no forwarding of its loopback address at all.
            if self.family == Family::V4 {
                rules.push(format!("-s 127.0.0.1/32 {port} -j {mark}"));
            }
        }
        let target = match self.address.addr() {
            IpAddr::V4(ip) => format!("{ip}:{container_port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{container_port}"),
        };
        rules.push(format!("{port} -j DNAT --to-destination {target}"));
        rules
    }

    /// The changes that make the forwarding whole; what is there already from a former try is replaced.
    pub(super) fn additions(&self, found: &Found) -> Restore {
        let own = own_chain(self.network, self.container);
        let mut changes = Restore::new();
        let nat = changes.table(TABLE);
        if let Some(Mark::Bit(bit)) = self.config.masquerade.as_ref().map(|masquerade| &masquerade.mark) {
            let mark = 1_u32 << bit;
            let mut shared = |chain: &str, rules: &Option<Vec<String>>, wanted: String| {
                if rules.is_none() {
                    nat.chain(chain);
                }
                // Another network may use another bit: its rule stays beside ours.
                if !rules.iter().flatten().any(|rule| *rule == wanted) {
                    nat.append(chain, &wanted);
                }
            };
            let words = comment("CNI portfwd masquerade mark");
            shared(
                SET_MARK,
                &found.set_mark,
                format!("{words} -j MARK --set-xmark {mark:#x}/{mark:#x}"),
            );
            shared(
                MASQUERADE,
                &found.masquerade,
                format!("-m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE"),
            );
            if !jumps(&found.postrouting, MASQUERADE) {
                // First, before rules of other plugins that accept the packet.
                nat.insert(
                    "POSTROUTING",
                    &format!("{} -j {MASQUERADE}", comment("CNI portfwd requiring masquerade")),
                );
            }
        }
        if found.top.is_none() {
            nat.chain(TOP);
        }
        for (chain, rules) in [("PREROUTING", &found.prerouting), ("OUTPUT", &found.output)] {
            if !jumps(rules, TOP) {
                nat.append(chain, TOP_JUMP);
            }
        }
        for rule in entries_to(found.top.as_deref().unwrap_or_default(), |name| name == own) {
            nat.delete(TOP, rule);
        }
        nat.chain(&own);
        for rule in self.rules() {
            nat.append(&own, &rule);
        }
        for rule in self.entries() {
            nat.append(TOP, &rule);
        }
        changes
    }

    /// The first thing that is missing, in upstream's words.
    pub(super) fn missing(&self, found: &Found, own: Option<&[String]>) -> Option<String> {
        let chain = own_chain(self.network, self.container);
        let no_rule = |rule: &str, chain: &str| Some(format!("rule {rule} in chain {chain} not found in table nat"));
        let no_chain = |chain: &str| Some(format!("chain {chain} not found in iptables table nat"));
        let Some(top) = &found.top else { return no_chain(TOP) };
        let Some(own) = own else { return no_chain(&chain) };
        for (chain, rules) in [("PREROUTING", &found.prerouting), ("OUTPUT", &found.output)] {
            if !jumps(rules, TOP) {
                return no_rule(TOP_JUMP, chain);
            }
        }
        if let Some(rule) = self.rules().iter().find(|rule| !own.contains(rule)) {
            return no_rule(rule, &chain);
        }
        // Conditions are printed in an order of the program's: only their number tells.
        let wanted = self.entries();
        if entries_to(top, |name| name == chain).count() < wanted.len() {
            return no_rule(wanted.first().map(String::as_str).unwrap_or_default(), TOP);
        }
        None
    }
}

/// What takes the chains away whose names are wanted, with all that leads to them.
pub(super) fn removal(top: &[String], wanted: impl Fn(&str) -> bool + Copy, chains: &[String]) -> Restore {
    let mut changes = Restore::new();
    let nat = changes.table(TABLE);
    for rule in entries_to(top, wanted) {
        nat.delete(TOP, rule);
    }
    for chain in chains {
        nat.delete_chain(chain);
    }
    changes
}

fn entries_to(top: &[String], wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &String> {
    top.iter().filter(move |rule| target(rule).is_some_and(&wanted))
}

fn jumps(rules: &[String], to: &str) -> bool {
    rules.iter().any(|rule| target(rule) == Some(to))
}

/// A word of the configuration as the program reads it back.
fn quote_word(word: &str) -> String {
    if !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\'))
    {
        word.to_owned()
    } else {
        quote(word)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Masquerade;
    use super::*;

    fn config() -> Config {
        let mapping = |protocol, host_port, host_ip: &str| Mapping {
            protocol,
            host_port,
            container_port: 80,
            host_ip: host_ip.parse().ok(),
        };
        Config {
            masquerade: Some(Masquerade {
                all: false,
                mark: Mark::Bit(13),
            }),
            conditions_v4: vec!["!".into(), "-s".into(), "10.9.0.0/16".into()],
            conditions_v6: Vec::new(),
            mappings: vec![
                mapping(Protocol::Tcp, 8080, ""),
                mapping(Protocol::Udp, 8053, "192.0.2.7"),
                mapping(Protocol::Tcp, 8081, "::"),
            ],
        }
    }

    fn forwarding<'a>(config: &'a Config, address: &str) -> Forwarding<'a> {
        let address: IpNet = address.parse().unwrap();
        let family = if address.addr().is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        Forwarding {
            network: "net",
            container: "abc",
            config,
            family,
            address,
        }
    }

    #[test]
    fn rules_are_upstreams() {
        let config = config();
        assert_eq!(
            forwarding(&config, "10.244.1.5/24").rules(),
            [
                "-s 10.244.1.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.5:80",
                "-s 10.244.1.0/24 -d 192.0.2.7/32 -p udp -m udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1/32 -d 192.0.2.7/32 -p udp -m udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
                "-d 192.0.2.7/32 -p udp -m udp --dport 8053 -j DNAT --to-destination 10.244.1.5:80",
            ]
        );
        assert_eq!(
            forwarding(&config, "fd00::5/64").rules(),
            [
                "-s fd00::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::5]:80",
                "-s fd00::/64 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK",
                "-p tcp -m tcp --dport 8081 -j DNAT --to-destination [fd00::5]:80",
            ]
        );
        assert_eq!(
            forwarding(&config, "10.244.1.5/24").entries()[0],
            "-p tcp -m comment --comment \"dnat name: \\\"net\\\" id: \\\"abc\\\"\" -m multiport --dports 8080,8081 \
             ! -s 10.9.0.0/16 -j CNI-DN-3ce8a0924fdef86d56ad1"
        );
    }

    #[test]
    fn without_masquerading_there_are_no_marks_and_all_means_all() {
        let mut config = config();
        config.masquerade = Some(Masquerade {
            all: true,
            mark: Mark::Chain("KUBE-MARK-MASQ".into()),
        });
        let rules = forwarding(&config, "10.244.1.5/24").rules();
        assert_eq!(rules[0], "-p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ");
        let text = forwarding(&config, "10.244.1.5/24").additions(&Found::default()).text();
        assert!(!text.contains(SET_MARK) && !text.contains("POSTROUTING"), "{text}");
        config.masquerade = None;
        assert!(
            forwarding(&config, "10.244.1.5/24")
                .rules()
                .iter()
                .all(|rule| rule.contains("-j DNAT"))
        );
    }

    #[test]
    fn sixteen_ports_need_two_rules() {
        let mut config = config();
        let first = config.mappings[0];
        config.mappings = (1..=16).map(|host_port| Mapping { host_port, ..first }).collect();
        let entries = forwarding(&config, "10.244.1.5/24").entries();
        assert_eq!(entries.len(), 2);
        assert!(entries[1].contains("--dports 16 "), "{entries:?}");
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let config = config();
        let forwarding = forwarding(&config, "10.244.1.5/24");
        let first = forwarding.additions(&Found::default()).text();
        for wanted in [
            ":CNI-HOSTPORT-DNAT - [0:0]",
            ":CNI-HOSTPORT-SETMARK - [0:0]",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-I POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        ] {
            assert!(first.contains(wanted), "{wanted} in {first}");
        }
        let found = Found {
            prerouting: vec!["-j KUBE-SERVICES".into(), TOP_JUMP.into()],
            output: vec![TOP_JUMP.into()],
            postrouting: vec![format!("-j {MASQUERADE}")],
            top: Some(vec![
                "-p tcp -j CNI-DN-other".into(),
                "-p tcp -j CNI-DN-3ce8a0924fdef86d56ad1".into(),
            ]),
            set_mark: Some(vec![
                "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000".into(),
            ]),
            masquerade: Some(vec!["-m mark --mark 0x10/0x10 -j MASQUERADE".into()]),
        };
        let second = forwarding.additions(&found).text();
        assert!(
            !second.contains("PREROUTING") && !second.contains(":CNI-HOSTPORT"),
            "{second}"
        );
        assert!(
            second.contains("-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000"),
            "{second}"
        );
        // Left by a former try: replaced, not doubled; the other container's stays.
        assert!(
            second.contains("-D CNI-HOSTPORT-DNAT -p tcp -j CNI-DN-3ce8a0924fdef86d56ad1"),
            "{second}"
        );
        assert!(!second.contains("other"), "{second}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let config = config();
        let forwarding = forwarding(&config, "10.244.1.5/24");
        let own = forwarding.rules();
        let whole = || Found {
            prerouting: vec![TOP_JUMP.into()],
            output: vec![TOP_JUMP.into()],
            top: Some(forwarding.entries()),
            ..Found::default()
        };
        assert_eq!(forwarding.missing(&whole(), Some(&own)), None);
        for (found, own, wanted) in [
            (Found::default(), Some(&own[..]), "chain CNI-HOSTPORT-DNAT not found"),
            (whole(), None, "chain CNI-DN-3ce8a0924fdef86d56ad1 not found"),
            (
                Found {
                    prerouting: Vec::new(),
                    ..whole()
                },
                Some(&own[..]),
                "in chain PREROUTING not found",
            ),
            (whole(), Some(&own[1..]), "-s 10.244.1.0/24 -p tcp"),
            (
                Found {
                    top: Some(Vec::new()),
                    ..whole()
                },
                Some(&own[..]),
                "in chain CNI-HOSTPORT-DNAT not found",
            ),
        ] {
            let missing = forwarding.missing(&found, own).unwrap();
            assert!(missing.contains(wanted), "{missing}");
        }
    }
}
