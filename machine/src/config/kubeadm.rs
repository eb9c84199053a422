//! kubeadm's kinds, as far as skiff acts on them; any other field is refused, so that nobody believes in one without effect.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use skiff_api::config::EtcdConfiguration;

use super::{Error, Timeouts};
use crate::certificate_key::CertificateKey;
use crate::token::Token;

/// The `apiVersion` of kubeadm's kinds.
pub(crate) const API_VERSION: &str = "kubeadm.k8s.io/v1beta4";

/// The documents of one file.
#[derive(Debug, Default)]
pub struct Files {
    pub(crate) init: Option<InitConfiguration>,
    pub(crate) cluster: Option<ClusterConfiguration>,
    pub(crate) join: Option<JoinConfiguration>,
    pub(crate) kubelet: Map<String, Value>,
    pub(crate) proxy: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct InitConfiguration {
    pub(crate) bootstrap_tokens: Vec<BootstrapToken>,
    #[serde(rename = "localAPIEndpoint")]
    pub(crate) local_api_endpoint: LocalApiEndpoint,
    pub(crate) node_registration: NodeRegistration,
    pub(crate) certificate_key: Option<CertificateKey>,
    pub(crate) timeouts: FileTimeouts,
    pub(crate) skip_phases: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ClusterConfiguration {
    pub(crate) control_plane_endpoint: Option<String>,
    pub(crate) networking: Networking,
    pub(crate) api_server: ApiServer,
    pub(crate) etcd: Etcd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct JoinConfiguration {
    pub(crate) node_registration: NodeRegistration,
    pub(crate) discovery: Discovery,
    pub(crate) control_plane: Option<JoinControlPlane>,
    pub(crate) timeouts: FileTimeouts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct JoinControlPlane {
    #[serde(rename = "localAPIEndpoint")]
    pub(crate) local_api_endpoint: LocalApiEndpoint,
    pub(crate) certificate_key: Option<CertificateKey>,
}

/// How long things may take, as far as a file says.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FileTimeouts {
    #[serde(deserialize_with = "duration")]
    control_plane_component_health_check: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    kubelet_health_check: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    discovery: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    tls_bootstrap: Option<Duration>,
}

impl From<FileTimeouts> for Timeouts {
    fn from(file: FileTimeouts) -> Self {
        let usual = Self::default();
        Self {
            control_plane: file.control_plane_component_health_check.unwrap_or(usual.control_plane),
            kubelet: file.kubelet_health_check.unwrap_or(usual.kubelet),
            discovery: file.discovery.unwrap_or(usual.discovery),
            tls_bootstrap: file.tls_bootstrap.unwrap_or(usual.tls_bootstrap),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Discovery {
    pub(crate) bootstrap_token: TokenDiscovery,
    /// The token for TLS bootstrap, where it is another than that of discovery.
    pub(crate) tls_bootstrap_token: Option<Token>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TokenDiscovery {
    pub(crate) token: Option<Token>,
    pub(crate) api_server_endpoint: Option<String>,
    pub(crate) ca_cert_hashes: Vec<String>,
    #[serde(rename = "unsafeSkipCAVerification")]
    pub(crate) unsafe_skip_ca_verification: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BootstrapToken {
    pub(crate) token: Option<Token>,
    #[serde(deserialize_with = "duration")]
    pub(crate) ttl: Option<Duration>,
    pub(crate) description: Option<String>,
    pub(crate) usages: Vec<String>,
    pub(crate) groups: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LocalApiEndpoint {
    pub(crate) advertise_address: Option<IpAddr>,
    pub(crate) bind_port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NodeRegistration {
    pub(crate) name: Option<String>,
    pub(crate) cri_socket: Option<String>,
    pub(crate) taints: Option<Vec<Value>>,
    pub(crate) kubelet_extra_args: Vec<Argument>,
    pub(crate) ignore_preflight_errors: Vec<String>,
}

/// An argument of a command line, `--name=value`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argument {
    /// Without dashes.
    pub name: String,
    /// Its value.
    pub value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Networking {
    pub(crate) pod_subnet: Option<IpNet>,
    pub(crate) service_subnet: Option<IpNet>,
    pub(crate) dns_domain: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ApiServer {
    #[serde(rename = "certSANs")]
    pub(crate) cert_sans: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Etcd {
    pub(crate) external: Option<EtcdConfiguration>,
}

// === impl Files ===

impl Files {
    /// Reads the documents; `wanted` names kubeadm's kinds that have a place here.
    pub(crate) fn read(text: &str, wanted: &'static str) -> Result<Self, Error> {
        let mut files = Self::default();
        if text.trim().is_empty() {
            return Ok(files);
        }
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| Error::Syntax {
            reason: error.to_string(),
        })?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            files.take(document, wanted)?;
        }
        Ok(files)
    }

    fn take(&mut self, mut document: Value, wanted: &'static str) -> Result<(), Error> {
        let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        match (version.as_str(), kind.as_str()) {
            ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration") => self.kubelet = object(document),
            ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration") => self.proxy = object(document),
            (API_VERSION, _) if wanted.split(", ").any(|wanted| wanted == kind) => {
                if let Some(fields) = document.as_object_mut() {
                    fields.remove("apiVersion");
                    fields.remove("kind");
                }
                match kind.as_str() {
                    "InitConfiguration" => self.init = Some(decode(&kind, document)?),
                    "ClusterConfiguration" => self.cluster = Some(decode(&kind, document)?),
                    _ => self.join = Some(decode(&kind, document)?),
                }
            }
            _ => {
                return Err(Error::Kind {
                    found: format!("{version} {kind}"),
                    wanted,
                });
            }
        }
        Ok(())
    }
}

fn object(document: Value) -> Map<String, Value> {
    match document {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn decode<T: serde::de::DeserializeOwned>(kind: &str, document: Value) -> Result<T, Error> {
    serde_json::from_value(document).map_err(|error| Error::Field {
        kind: kind.to_owned(),
        reason: error.to_string(),
    })
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    crate::duration::parse(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}
