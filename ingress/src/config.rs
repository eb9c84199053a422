//! What can be set: the file's kind, its defaults, its checks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skiff_api::config::API_VERSION;

/// hyper reads no header into less.
const SMALLEST_HEADER: usize = 8192;

/// The file that `skiff ingress --config` names.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressConfiguration {
    /// `config.skiff/v1alpha1`
    pub api_version: String,
    /// Always `IngressConfiguration`.
    pub kind: String,
    /// The class that is made and served.
    pub ingress_class: String,
    /// Where plain and TLS connections are accepted.
    pub bind_address: IpAddr,
    /// The port for plain connections, 0 for none.
    pub http_port: u16,
    /// The port for TLS connections, 0 for none.
    pub https_port: u16,
    /// Where `/healthz`, `/livez`, `/readyz` and `/metrics` are; empty for nowhere.
    pub healthz_bind_address: String,
    /// The addresses that Ingresses' status shows.
    pub publish_addresses: Vec<IpAddr>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Proxies whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What clients may use.
    pub limits: Limits,
}

/// What a client may use, in bytes, counts and seconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Connections at a time, upgraded ones among them; more wait.
    pub max_connections: usize,
    /// The request line and all headers, in bytes.
    pub max_header_bytes: usize,
    /// Headers of a request.
    pub max_headers: usize,
    /// A request's body in bytes, 0 for any; an Ingress's annotation goes before it.
    pub max_body_bytes: u64,
    /// HTTP/2 requests of a connection at a time.
    pub max_concurrent_streams: u32,
    /// HTTP/2 requests that a client has reset while they still wait here; past that its connection is closed.
    pub max_pending_resets: usize,
    /// How long a request's headers may take; HTTP/1.1 connections without a request are closed after this time too.
    pub request_header_timeout_seconds: u64,
    /// How long a connection may have no request.
    pub idle_timeout_seconds: u64,
    /// How long a request's body may pause.
    pub request_body_timeout_seconds: u64,
    /// How long connecting to an endpoint may take.
    pub connect_timeout_seconds: u64,
    /// How long an endpoint may take to begin its answer, or to take the next piece of a request's body.
    pub response_timeout_seconds: u64,
    /// How long an endpoint's answer may pause, 0 for ever.
    pub response_body_timeout_seconds: u64,
    /// How long a connection to an endpoint is kept for the next request.
    pub keep_alive_seconds: u64,
    /// Connections that are kept for one endpoint.
    pub max_idle_per_endpoint: usize,
    /// How long requests may go on after the process was asked to end.
    pub drain_seconds: u64,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no YAML of this kind.
    #[error("parse the IngressConfiguration")]
    Parse(#[source] serde_saphyr::Error),
    /// It is of another kind.
    #[error("the file holds a {kind} of {api_version}, not an IngressConfiguration of {API_VERSION}")]
    Kind {
        /// What it says.
        api_version: String,
        /// What it says.
        kind: String,
    },
    /// A value cannot be.
    #[error("{field}: {reason}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Why.
        reason: String,
    },
}

impl Default for IngressConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "IngressConfiguration".to_owned(),
            ingress_class: "skiff".to_owned(),
            bind_address: Ipv4Addr::UNSPECIFIED.into(),
            http_port: 80,
            https_port: 443,
            healthz_bind_address: "0.0.0.0:10254".to_owned(),
            publish_addresses: Vec::new(),
            access_log: true,
            trusted_proxies: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 8192,
            max_header_bytes: 32 * 1024,
            max_headers: 100,
            max_body_bytes: 1 << 30,
            max_concurrent_streams: 128,
            max_pending_resets: 20,
            request_header_timeout_seconds: 60,
            idle_timeout_seconds: 75,
            request_body_timeout_seconds: 60,
            connect_timeout_seconds: 5,
            response_timeout_seconds: 60,
            response_body_timeout_seconds: 600,
            keep_alive_seconds: 60,
            max_idle_per_endpoint: 32,
            drain_seconds: 30,
        }
    }
}

impl IngressConfiguration {
    /// Reads a file's text.
    ///
    /// # Errors
    /// When it is not of this kind, or names a field that there is not.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let file: Self = serde_saphyr::from_str(text).map_err(Error::Parse)?;
        if file.api_version != API_VERSION || file.kind != "IngressConfiguration" {
            return Err(Error::Kind {
                api_version: file.api_version,
                kind: file.kind,
            });
        }
        Ok(file)
    }

    /// Checks what flags and file say together.
    ///
    /// # Errors
    /// When a value cannot be.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |field, reason: &str| {
            Err(Error::Value {
                field,
                reason: reason.to_owned(),
            })
        };
        if self.http_port == 0 && self.https_port == 0 {
            return wrong("httpPort, httpsPort", "both are off: nothing would be served");
        }
        if self.ingress_class.is_empty() {
            return wrong("ingressClass", "must be a name");
        }
        if self.limits.max_header_bytes < SMALLEST_HEADER {
            return wrong("limits.maxHeaderBytes", "must be at least 8192");
        }
        for (field, value) in [
            ("limits.maxConnections", self.limits.max_connections as u64),
            ("limits.maxHeaders", self.limits.max_headers as u64),
            (
                "limits.maxConcurrentStreams",
                u64::from(self.limits.max_concurrent_streams),
            ),
            (
                "limits.requestHeaderTimeoutSeconds",
                self.limits.request_header_timeout_seconds,
            ),
            ("limits.idleTimeoutSeconds", self.limits.idle_timeout_seconds),
            (
                "limits.requestBodyTimeoutSeconds",
                self.limits.request_body_timeout_seconds,
            ),
            ("limits.connectTimeoutSeconds", self.limits.connect_timeout_seconds),
            ("limits.responseTimeoutSeconds", self.limits.response_timeout_seconds),
        ] {
            if value == 0 {
                return wrong(field, "must be greater than 0");
            }
        }
        self.health_address().map(|_| ())
    }

    /// Where health and metrics are served.
    ///
    /// # Errors
    /// When it is no address with a port.
    pub fn health_address(&self) -> Result<Option<SocketAddr>, Error> {
        if self.healthz_bind_address.is_empty() {
            return Ok(None);
        }
        let parsed = self.healthz_bind_address.parse();
        parsed.map(Some).map_err(|_| Error::Value {
            field: "healthzBindAddress",
            reason: format!("{:?} is no address with a port", self.healthz_bind_address),
        })
    }
}

impl Limits {
    pub(crate) fn request_header(&self) -> Duration {
        Duration::from_secs(self.request_header_timeout_seconds)
    }

    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }

    pub(crate) fn request_body(&self) -> Duration {
        Duration::from_secs(self.request_body_timeout_seconds)
    }

    pub(crate) fn connect(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }

    pub(crate) fn response(&self) -> Duration {
        Duration::from_secs(self.response_timeout_seconds)
    }

    pub(crate) fn response_body(&self) -> Option<Duration> {
        let seconds = self.response_body_timeout_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    pub(crate) fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.keep_alive_seconds)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "apiVersion: config.skiff/v1alpha1\nkind: IngressConfiguration\nhttpPort: 8080\n\
                    trustedProxies: [10.0.0.0/8]\nlimits:\n  maxHeaders: 50\n";
        let file = IngressConfiguration::parse(text).unwrap();
        assert_eq!(
            (file.http_port, file.https_port, file.limits.max_headers),
            (8080, 443, 50)
        );
        assert_eq!(file.limits.max_connections, Limits::default().max_connections);
        file.check().unwrap();
    }

    #[test]
    fn what_cannot_be_is_told() {
        assert!(matches!(
            IngressConfiguration::parse("kind: Other"),
            Err(Error::Kind { .. })
        ));
        assert!(matches!(
            IngressConfiguration::parse("colour: red"),
            Err(Error::Parse(_))
        ));
        let with = |change: fn(&mut IngressConfiguration)| {
            let mut file = IngressConfiguration::default();
            change(&mut file);
            file.check().map_err(|error| error.to_string())
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert!(with(|file| (file.http_port, file.https_port) = (0, 0)).is_err());
        assert!(with(|file| file.limits.max_header_bytes = 10).is_err());
        assert!(with(|file| file.limits.connect_timeout_seconds = 0).is_err());
        assert!(with(|file| file.healthz_bind_address = "here".to_owned()).is_err());
    }
}
