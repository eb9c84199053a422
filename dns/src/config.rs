//! What the server is told, read and checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;
use skiff_api::config::ServerConfiguration;

use crate::forward::{Limits, Upstreams, server};

/// The port of DNS.
const PORT: u16 = 53;
/// The Service of cluster DNS has this address of the Services' range, by convention.
const SERVICE_ADDRESS: u32 = 10;
/// As node leases.
const LEASE: Duration = Duration::from_secs(40);
/// The longest domain that leaves room for names below it.
const LONGEST_DOMAIN: usize = 100;

/// What cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A domain that is none.
    #[error("dns.{field}: {text:?} is not a domain name")]
    Domain {
        /// The field.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// A server that is none.
    #[error("dns.{field}: {text:?} is neither an address nor address:port")]
    Server {
        /// The field.
        field: &'static str,
        /// What it says.
        text: String,
    },
}

/// How cluster DNS runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer.
    pub address: SocketAddr,
    /// The cluster's domain.
    pub domain: Name,
    /// How long clients may keep a cluster's name, in seconds.
    pub ttl: u32,
    /// Where others' names are asked.
    pub upstreams: Upstreams,
    /// Bounds of asking there.
    pub limits: Limits,
    /// How long others' answers are kept at most.
    pub cache: Duration,
    /// The address that pods know.
    pub service_ip: IpAddr,
    /// Who may ask.
    pub clients: Vec<IpNet>,
    /// How long this server's address stays published when nothing is heard of it any more.
    pub lease: Duration,
    /// Where `/health` is.
    pub health: Option<SocketAddr>,
    /// Where `/ready` is.
    pub ready: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// Reads the server's configuration.
    ///
    /// # Errors
    /// When a domain or an address is none.
    pub fn new(server: &ServerConfiguration) -> Result<Self, Error> {
        let (file, address) = (&server.dns, server.advertise_address);
        let own = [server.cluster_cidr, server.service_cluster_ip_range, address.into()];
        let port = |port| (port != 0).then_some(SocketAddr::new(address, port));
        let stubs = file.stub_domains.iter().map(|(name, addresses)| {
            let servers = servers("stubDomains", addresses)?;
            Ok((domain("stubDomains", name)?, servers))
        });
        Ok(Self {
            address: SocketAddr::new(address, PORT),
            domain: domain("clusterDomain", &file.cluster_domain)?,
            ttl: file.ttl_seconds,
            upstreams: Upstreams {
                servers: servers("upstreamNameservers", &file.upstream_nameservers)?,
                resolv_conf: file.resolv_conf.clone(),
                stubs: stubs.collect::<Result<_, _>>()?,
                policy: file.policy,
            },
            limits: Limits::default(),
            cache: Duration::from_secs(file.cache_seconds.into()),
            service_ip: service_ip(server.service_cluster_ip_range),
            clients: file.allowed_clients.iter().copied().chain(own).collect(),
            lease: LEASE,
            health: port(file.health_port),
            ready: port(file.ready_port),
            metrics: port(file.metrics_port),
        })
    }
}

fn domain(field: &'static str, text: &str) -> Result<Name, Error> {
    let mut name = Name::from_ascii(text).unwrap_or_default();
    name.set_fqdn(true);
    if name.is_root() || name.len() > LONGEST_DOMAIN {
        let text = text.to_owned();
        return Err(Error::Domain { field, text });
    }
    Ok(name.to_lowercase())
}

fn servers(field: &'static str, texts: &[String]) -> Result<Vec<SocketAddr>, Error> {
    let read = |text: &String| {
        let text = text.clone();
        server(&text).ok_or(Error::Server { field, text })
    };
    texts.iter().map(read).collect()
}

fn service_ip(services: IpNet) -> IpAddr {
    match services.network() {
        IpAddr::V4(network) => IpAddr::V4((u32::from(network) + SERVICE_ADDRESS).into()),
        IpAddr::V6(network) => IpAddr::V6((u128::from(network) + u128::from(SERVICE_ADDRESS)).into()),
    }
}

#[cfg(test)]
mod tests {
    use skiff_api::config::{DnsConfiguration, UpstreamPolicy};

    use super::*;

    fn read(file: &DnsConfiguration) -> Result<Config, Error> {
        let mut server = ServerConfiguration::new("/data".into(), "/pki".into(), [172, 30, 0, 11].into());
        server.dns = file.clone();
        Config::new(&server)
    }

    #[test]
    fn defaults_are_kubeadms() {
        let config = read(&DnsConfiguration::default()).unwrap();
        assert_eq!(config.address.to_string(), "172.30.0.11:53");
        assert_eq!(config.service_ip.to_string(), "10.96.0.10");
        assert_eq!(config.domain.to_string(), "cluster.local.");
        assert_eq!((config.ttl, config.cache.as_secs()), (30, 30));
        assert_eq!(config.metrics.unwrap().to_string(), "172.30.0.11:9153");
        let allowed = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            config.clients.iter().any(|net| net.contains(&ip))
        };
        for ip in [
            "10.244.1.2",
            "172.30.0.12",
            "192.168.1.1",
            "127.0.0.1",
            "fd00::1",
            "fe80::1",
            "::1",
        ] {
            assert!(allowed(ip), "{ip}");
        }
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(!allowed(ip), "{ip}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_field() {
        let mut file = DnsConfiguration {
            upstream_nameservers: vec!["10.0.0.2".into(), "[fd00::1]:5353".into()],
            health_port: 0,
            policy: UpstreamPolicy::Sequential,
            ..DnsConfiguration::default()
        };
        file.stub_domains.insert("Corp.test".into(), vec!["10.0.0.3:54".into()]);
        let config = read(&file).unwrap();
        assert_eq!(config.upstreams.servers.len(), 2);
        assert_eq!(config.upstreams.stubs[0].0.to_string(), "corp.test.");
        assert_eq!(config.health, None);
        file.upstream_nameservers.push("dns.example".into());
        assert_eq!(
            read(&file).unwrap_err().to_string(),
            r#"dns.upstreamNameservers: "dns.example" is neither an address nor address:port"#
        );
        let file = DnsConfiguration {
            cluster_domain: "a..b".into(),
            ..DnsConfiguration::default()
        };
        assert_eq!(
            read(&file).unwrap_err().to_string(),
            r#"dns.clusterDomain: "a..b" is not a domain name"#
        );
    }
}
