//! What the API's objects come down to here: only what routes are made of is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::sign::CertifiedKey;

use crate::certificate;

/// A namespaced object.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Its namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An Ingress, whoever's it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ingress {
    /// Tells it from a later one of the same name.
    pub uid: String,
    /// When it was created, in seconds since 1970: of two that want the same, the older one has it.
    pub created: i64,
    /// `spec.ingressClassName`
    pub class: Option<String>,
    /// The annotation that was there before classes.
    pub legacy_class: Option<String>,
    /// What its annotations ask for.
    pub options: Options,
    /// Where to send what no rule matches.
    pub default_backend: Option<Backend>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Its certificates.
    pub tls: Vec<Tls>,
    /// The addresses that its status shows.
    pub published: Vec<String>,
    /// Annotations under our prefix that cannot be used, and why.
    pub complaints: Vec<String>,
}

/// What annotations can change for all routes of an Ingress.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// Plain requests to hosts with TLS are redirected.
    pub ssl_redirect: bool,
    /// The largest request body in bytes, 0 for any; the configuration's when absent.
    pub max_body: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ssl_redirect: true,
            max_body: None,
        }
    }
}

/// Paths of one host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// A name, `*.` and a name, or empty for every host.
    pub host: String,
    /// Its paths.
    pub paths: Vec<Path>,
}

/// One path and where it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Path {
    /// Begins with `/`.
    pub path: String,
    /// Whether only this very path is meant, and not what lies below.
    pub exact: bool,
    /// Where it leads.
    pub backend: Backend,
}

/// Where requests are sent.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Backend {
    /// A port of a Service.
    Service {
        /// The Service's name, in the Ingress's namespace.
        name: String,
        /// Which of its ports.
        port: PortRef,
    },
    /// Something else, which nothing here can serve.
    Other(String),
}

/// A Service's port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum PortRef {
    /// By name.
    Name(String),
    /// By number.
    Number(u16),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A certificate and its hosts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tls {
    /// The hosts; none means all of the Ingress's rules.
    pub hosts: Vec<String>,
    /// The Secret's name; without one the default certificate is shown.
    pub secret: Option<String>,
}

/// An IngressClass.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Class {
    /// It names this controller.
    pub ours: bool,
    /// Ingresses without a class have this one.
    pub default: bool,
    /// Where its controllers say that they listen, by annotation.
    pub listens: BTreeMap<String, String>,
}

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1, with WebSocket.
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge; gRPC too.
    H2c,
    /// One that is not spoken here.
    Unknown,
}

/// The ports of a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// It is only another name: it has no endpoints.
    pub external: bool,
    /// Its ports that carry TCP.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServicePort {
    /// Its name; empty for the only one.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// How its endpoints are spoken to.
    pub protocol: Protocol,
    /// What the Service calls this protocol.
    pub app_protocol: String,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slice {
    /// The Service's name.
    pub service: String,
    /// The endpoints' ports by the names of the Service's.
    pub ports: Vec<(String, u16)>,
    /// The endpoints that can be sent to.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where it is.
    pub ip: IpAddr,
    /// Whether it wants requests; one that does not still serves while it ends, and is used when no other is left.
    pub ready: bool,
}

/// A certificate with its key, as PEM; looked at when it is first needed.
#[derive(Clone, Default)]
pub struct Secret {
    certificate: Vec<u8>,
    key: Vec<u8>,
    parsed: OnceLock<Result<Arc<CertifiedKey>, String>>,
}

impl Secret {
    /// What is in a Secret of type `kubernetes.io/tls`.
    pub fn new(certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self {
            certificate,
            key,
            parsed: OnceLock::new(),
        }
    }

    /// The certificate to be shown, or what is wrong with it.
    pub fn certified_key(&self) -> &Result<Arc<CertifiedKey>, String> {
        self.parsed.get_or_init(|| {
            certificate::parse(&self.certificate, &self.key)
                .map(Arc::new)
                .map_err(|error| skiff_daemon::error_chain(&error))
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not reach a log.
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}
