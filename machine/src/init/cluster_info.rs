//! What a cluster tells those who want to join, and the lines that they type.

use super::Token;
use crate::Error;
use crate::api::Client;
use crate::certificate_key::CertificateKey;

/// Where a cluster is and what its authority is known by.
#[derive(Clone, Debug)]
pub struct ClusterInfo {
    /// `https://host:port`.
    pub server: String,
    /// The authority's certificate; two of them while one authority takes over from another.
    pub ca_pem: String,
    /// `sha256:` and the hash of the authority's public key, of each; there is at least one.
    pub pins: Vec<String>,
}

/// What the cluster tells those who want to join.
///
/// # Errors
/// When there is no such ConfigMap, or it is garbled.
pub async fn cluster_info(api: &Client) -> Result<ClusterInfo, Error> {
    let path = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let map = api.get(path).await?.unwrap_or_default();
    ClusterInfo::read(map["data"]["kubeconfig"].as_str().unwrap_or_default())
}

impl ClusterInfo {
    /// Reads the kubeconfig in ConfigMap `cluster-info`.
    pub(crate) fn read(text: &str) -> Result<Self, Error> {
        let kubeconfig = skiff_pki::Kubeconfig::parse(text)?;
        let Some((server, ca_pem)) = kubeconfig.first_cluster()? else {
            return Err(Error::NoClusterInfo);
        };
        let pins = skiff_pki::public_key_pins(&ca_pem)?;
        Ok(Self { server, ca_pem, pins })
    }

    /// The hash of the authority that signs.
    pub fn pin(&self) -> &str {
        self.pins.first().map_or("", String::as_str)
    }
}

/// The line that another machine joins with; with a key, as a further control plane.
pub fn join_command(server: &str, token: Option<&Token>, pin: &str, key: Option<&CertificateKey>) -> String {
    let host = server.trim_start_matches("https://");
    let token = token.map_or_else(|| "TOKEN".to_owned(), ToString::to_string);
    let line = format!("skiff join {host} --token {token} \\\n\t--discovery-token-ca-cert-hash {pin}");
    match key {
        None => line,
        Some(key) => format!("{line} \\\n\t--control-plane --certificate-key {key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_line_can_be_copied() {
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let line = join_command("https://192.168.56.10:6443", Some(&token), "sha256:00", None);
        assert_eq!(
            line,
            "skiff join 192.168.56.10:6443 --token abcdef.0123456789abcdef \\\n\t--discovery-token-ca-cert-hash sha256:00"
        );
        let key: CertificateKey = "ab".repeat(32).parse().unwrap();
        let further = join_command("https://192.168.56.10:6443", Some(&token), "sha256:00", Some(&key));
        assert_eq!(
            further.strip_prefix(&line),
            Some(format!(" \\\n\t--control-plane --certificate-key {key}").as_str())
        );
    }
}
