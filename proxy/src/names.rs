//! Chain names: upstream's, so that people find the rules that they know.

use sha2::{Digest, Sha256};

/// What a chain of a Service port is for, by its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Traffic to any endpoint.
    Service,
    /// Traffic to the endpoints of this node.
    Local,
    /// Traffic that came by a node port, an external or a load balancer's address.
    External,
    /// Traffic by a load balancer's address whose sources are restricted.
    Firewall,
    /// Traffic to one endpoint.
    Endpoint,
}

impl Kind {
    /// The start of the chain's name.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Service => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
            Self::Endpoint => "KUBE-SEP-",
        }
    }
}

/// All prefixes of chains that come and go with Services, those of older proxies included; those first that lead to others.
pub(crate) const PREFIXES: [&str; 6] = [
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-XLB-",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
];

/// The chain of a port (`namespace/name:port`); an endpoint's chain is told apart by its `ip:port`.
pub fn chain(kind: Kind, port: &str, protocol: &str, endpoint: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::new()
        .chain_update(port)
        .chain_update(protocol)
        .chain_update(endpoint)
        .finalize();
    let mut name = String::with_capacity(25);
    name.push_str(kind.prefix());
    // Sixteen characters of base 32 are the first ten bytes of the digest.
    for block in digest.as_slice()[..10].chunks(5) {
        let bits = block.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        name.extend(
            (0..8)
                .rev()
                .map(|place| char::from(ALPHABET[(bits >> (5 * place) & 31) as usize])),
        );
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_upstream_makes() {
        for (kind, port, protocol, endpoint, wanted) in [
            (
                Kind::Service,
                "default/kubernetes:https",
                "tcp",
                "",
                "KUBE-SVC-NPX46M4PTMTKRN6Y",
            ),
            (
                Kind::Service,
                "kube-system/kube-dns:dns",
                "udp",
                "",
                "KUBE-SVC-TCOU7JCQXEZGVUNU",
            ),
            (
                Kind::Service,
                "kube-system/kube-dns:dns-tcp",
                "tcp",
                "",
                "KUBE-SVC-ERIFXISQEP7F7OF4",
            ),
            (
                Kind::Service,
                "default/test-svc",
                "tcp",
                "",
                "KUBE-SVC-QKNQQNIN727HO3XU",
            ),
            (
                Kind::Endpoint,
                "default/test-svc",
                "tcp",
                "10.244.1.3:80",
                "KUBE-SEP-SQEBHSRBMT4ZUBXZ",
            ),
            (
                Kind::Endpoint,
                "default/test-svc",
                "tcp",
                "10.244.2.3:80",
                "KUBE-SEP-SUSDB4Q4CAFDFR7F",
            ),
        ] {
            assert_eq!(chain(kind, port, protocol, endpoint), wanted);
        }
    }
}
