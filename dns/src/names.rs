//! What a name below the cluster's domain stands for. Pure: it looks at the name alone.

use std::net::IpAddr;

/// The meaning of a name, by the Kubernetes DNS specification 1.1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wanted<'a> {
    /// The domain itself.
    Apex,
    /// `dns-version`: which version of the specification is spoken.
    Version,
    /// `ns.dns`: the name server, as SOA and NS records call it.
    NameServer,
    /// `svc`, `pod`, `dns`: names that exist because others lie below them.
    Parent,
    /// `<namespace>.svc` and `<namespace>.pod`: exist when the namespace does.
    Namespace(&'a str),
    /// A Service, or a part of it.
    Service {
        namespace: &'a str,
        service: &'a str,
        part: Part<'a>,
    },
    /// `<address with dashes>.<namespace>.pod`.
    Pod { namespace: &'a str, ip: IpAddr },
    /// Nothing that can exist.
    Nothing,
}

/// What is asked of a Service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part<'a> {
    /// All of it.
    Whole,
    /// One of its endpoints, by hostname or by address.
    Endpoint(&'a str),
    /// One of its ports, without underscores.
    Port { port: &'a str, protocol: &'a str },
}

/// Reads the labels before the domain, leftmost first, in lower case.
pub(crate) fn parse<'a>(labels: &[&'a str]) -> Wanted<'a> {
    match labels {
        [] => Wanted::Apex,
        ["dns-version"] => Wanted::Version,
        ["ns", "dns"] => Wanted::NameServer,
        ["svc" | "pod" | "dns"] => Wanted::Parent,
        [namespace, "svc" | "pod"] => Wanted::Namespace(namespace),
        [pod, namespace, "pod"] => match dashed_ip(pod) {
            Some(ip) => Wanted::Pod { namespace, ip },
            None => Wanted::Nothing,
        },
        [part @ .., service, namespace, "svc"] => match service_part(part) {
            Some(part) => Wanted::Service {
                namespace,
                service,
                part,
            },
            None => Wanted::Nothing,
        },
        _ => Wanted::Nothing,
    }
}

fn service_part<'a>(labels: &[&'a str]) -> Option<Part<'a>> {
    match labels {
        [] => Some(Part::Whole),
        [endpoint] => Some(Part::Endpoint(endpoint)),
        [port, protocol] => Some(Part::Port {
            port: port.strip_prefix('_').unwrap_or(port),
            protocol: protocol.strip_prefix('_').unwrap_or(protocol),
        }),
        _ => None,
    }
}

/// `10-0-0-1` or `2001-db8--1` as an address.
pub(crate) fn dashed_ip(label: &str) -> Option<IpAddr> {
    let is_v4 = label.bytes().filter(|byte| *byte == b'-').count() == 3 && !label.contains("--");
    label.replace('-', if is_v4 { "." } else { ":" }).parse().ok()
}

/// The label of an endpoint without a hostname.
pub(crate) fn dashed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{a}-{b}-{c}-{d}")
        }
        IpAddr::V6(ip) => ip.to_string().replace(['.', ':'], "-"),
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is the reverse of; labels leftmost first, in lower case.
pub(crate) fn reverse_ip(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}").parse().ok().map(IpAddr::V4),
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let bits = nibbles.iter().rev().try_fold(0_u128, |bits, nibble| {
                let digit = u128::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
                Some(bits << 4 | digit)
            })?;
            Some(IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(name: &str) -> Wanted<'_> {
        let labels: Vec<&str> = name.split('.').filter(|label| !label.is_empty()).collect();
        parse(&labels)
    }

    #[test]
    fn names_of_the_specification() {
        let service = |part| Wanted::Service {
            namespace: "ns",
            service: "s",
            part,
        };
        let cases = [
            ("", Wanted::Apex),
            ("dns-version", Wanted::Version),
            ("ns.dns", Wanted::NameServer),
            ("svc", Wanted::Parent),
            ("pod", Wanted::Parent),
            ("other", Wanted::Nothing),
            ("ns.svc", Wanted::Namespace("ns")),
            ("ns.pod", Wanted::Namespace("ns")),
            ("ns.other", Wanted::Nothing),
            ("s.ns.svc", service(Part::Whole)),
            ("web-0.s.ns.svc", service(Part::Endpoint("web-0"))),
            (
                "_http._tcp.s.ns.svc",
                service(Part::Port {
                    port: "http",
                    protocol: "tcp",
                }),
            ),
            ("a._http._tcp.s.ns.svc", Wanted::Nothing),
            (
                "10-1-2-3.ns.pod",
                Wanted::Pod {
                    namespace: "ns",
                    ip: [10, 1, 2, 3].into(),
                },
            ),
            (
                "fd00--7.ns.pod",
                Wanted::Pod {
                    namespace: "ns",
                    ip: "fd00::7".parse().unwrap(),
                },
            ),
            ("10-1-2.ns.pod", Wanted::Nothing),
            ("10-1-2-333.ns.pod", Wanted::Nothing),
            ("web.ns.pod", Wanted::Nothing),
            ("a.10-1-2-3.ns.pod", Wanted::Nothing),
        ];
        for (name, wanted) in cases {
            assert_eq!(read(name), wanted, "{name}");
        }
    }

    #[test]
    fn reverse_names() {
        let ip = |name: &str| reverse_ip(&name.split('.').collect::<Vec<_>>());
        assert_eq!(ip("10.0.96.10.in-addr.arpa"), Some([10, 96, 0, 10].into()));
        assert_eq!(
            ip("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"),
            Some("fd00::1".parse().unwrap())
        );
        for wrong in [
            "0.96.10.in-addr.arpa",
            "x.0.96.10.in-addr.arpa",
            "1.10.0.96.10.in-addr.arpa",
            "1.0.ip6.arpa",
        ] {
            assert_eq!(ip(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_its_label(bits: u128, v4: u32) {
            for ip in [IpAddr::V6(bits.into()), IpAddr::V4(v4.into())] {
                // An IPv6 address with an IPv4 tail is written with dots: no label can carry it unambiguously.
                if !ip.to_string().contains(':') || !ip.to_string().contains('.') {
                    prop_assert_eq!(dashed_ip(&dashed(ip)), Some(ip));
                }
            }
        }

        #[test]
        fn no_name_panics(labels in prop::collection::vec("[a-z0-9_-]{0,12}|svc|pod|dns|arpa|in-addr|ip6", 0..40)) {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            parse(&labels);
            reverse_ip(&labels);
        }
    }
}
