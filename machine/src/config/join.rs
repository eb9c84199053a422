//! What `join` is asked for.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::kubeadm::Files;
use super::{API_PORT, Endpoint, Error, NodeFlags, NodeWish, Timeouts, invalid, kubeadm};
use crate::certificate_key::CertificateKey;
use crate::token::Token;

/// `skiff join`, all told.
#[derive(Clone, Debug)]
pub struct Join {
    /// Where the API server is.
    pub endpoint: Endpoint,
    /// What `cluster-info` is signed with.
    pub discovery_token: Token,
    /// What the kubelet gets its certificate with.
    pub bootstrap_token: Token,
    /// Hashes of authorities to trust; with none, the token alone is trusted.
    pub pins: Vec<String>,
    /// How it becomes a control plane; `None` for a worker.
    pub control_plane: Option<ControlPlane>,
    /// Fields of this machine's kubelet's configuration that a person gave.
    pub kubelet: Map<String, Value>,
    /// The same of its proxy.
    pub proxy: Map<String, Value>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// This machine.
    pub node: NodeWish,
}

/// What a further control plane is to be.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// The port of its API server.
    pub port: u16,
    /// What the cluster's keys are decrypted with; without one they must lie in `/etc/kubernetes/pki` already.
    pub certificate_key: Option<CertificateKey>,
}

/// The flags of `skiff join`.
#[derive(Clone, Debug, Default)]
pub struct JoinFlags {
    /// `HOST:PORT`.
    pub endpoint: Option<String>,
    /// `--token`: for both.
    pub token: Option<Token>,
    /// `--discovery-token`.
    pub discovery_token: Option<Token>,
    /// `--tls-bootstrap-token`.
    pub bootstrap_token: Option<Token>,
    /// `--discovery-token-ca-cert-hash`.
    pub pins: Vec<String>,
    /// `--discovery-token-unsafe-skip-ca-verification`.
    pub unsafe_skip_ca_verification: bool,
    /// `--discovery-timeout`.
    pub discovery_timeout: Option<Duration>,
    /// `--control-plane`.
    pub control_plane: bool,
    /// `--certificate-key`.
    pub certificate_key: Option<CertificateKey>,
    /// `--apiserver-advertise-address`.
    pub advertise_address: Option<IpAddr>,
    /// `--apiserver-bind-port`.
    pub bind_port: Option<u16>,
    /// What `init` and `join` share.
    pub node: NodeFlags,
}

// === impl Join ===

impl Join {
    /// Lays the flags over the file.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn new(flags: JoinFlags, file: Option<&str>) -> Result<Self, Error> {
        const LINE: &str =
            "take the whole line that `skiff token create --print-join-command` prints on the control plane";
        let missing = |what| Error::Invalid {
            what,
            reason: format!("is missing; {LINE}"),
        };
        let Files {
            join, kubelet, proxy, ..
        } = Files::read(file.unwrap_or_default(), "JoinConfiguration")?;
        let join = join.unwrap_or_default();
        let discovery = join.discovery.bootstrap_token;
        let endpoint = flags
            .endpoint
            .or(discovery.api_server_endpoint)
            .ok_or_else(|| missing("HOST:PORT"))?;
        let token = flags.token.or(discovery.token);
        let discovery_token = flags
            .discovery_token
            .or_else(|| token.clone())
            .ok_or_else(|| missing("--token"))?;
        let bootstrap_token = flags.bootstrap_token.or(join.discovery.tls_bootstrap_token).or(token);
        let pins: Vec<_> = flags
            .pins
            .into_iter()
            .chain(discovery.ca_cert_hashes)
            .map(|pin| pin.to_lowercase())
            .collect();
        let is_pin = |pin: &String| {
            let hex = pin.strip_prefix("sha256:").unwrap_or_default();
            hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if let Some(pin) = pins.iter().find(|pin| !is_pin(pin)) {
            return Err(Error::Invalid {
                what: "--discovery-token-ca-cert-hash",
                reason: format!("{pin:?} is not sha256: and 64 hexadecimal digits; {LINE}"),
            });
        }
        if pins.is_empty() && !flags.unsafe_skip_ca_verification && !discovery.unsafe_skip_ca_verification {
            return Err(missing("--discovery-token-ca-cert-hash"));
        }
        let given = (flags.certificate_key, flags.advertise_address, flags.bind_port);
        let (control_plane, advertise_address) = control_plane(flags.control_plane, given, join.control_plane)?;
        let mut node = NodeWish::new(flags.node, join.node_registration)?;
        node.ip = advertise_address.or(node.ip);
        let mut timeouts = Timeouts::from(join.timeouts);
        timeouts.discovery = flags.discovery_timeout.unwrap_or(timeouts.discovery);
        Ok(Self {
            endpoint: Endpoint::parse(&endpoint, API_PORT).map_err(invalid("HOST:PORT"))?,
            bootstrap_token: bootstrap_token.unwrap_or_else(|| discovery_token.clone()),
            discovery_token,
            pins,
            control_plane,
            kubelet,
            proxy,
            timeouts,
            node,
        })
    }
}

type ControlPlaneFlags = (Option<CertificateKey>, Option<IpAddr>, Option<u16>);

/// What the control plane is to be, and the address that is advertised.
fn control_plane(
    wanted: bool,
    (key, address, port): ControlPlaneFlags,
    file: Option<kubeadm::JoinControlPlane>,
) -> Result<(Option<ControlPlane>, Option<IpAddr>), Error> {
    if !wanted && file.is_none() {
        let flag = [
            ("--certificate-key", key.is_some()),
            ("--apiserver-advertise-address", address.is_some()),
            ("--apiserver-bind-port", port.is_some()),
        ];
        return match flag.into_iter().find(|(_, given)| *given) {
            Some((what, _)) => Err(Error::Invalid {
                what,
                reason: "has a meaning together with --control-plane alone".to_owned(),
            }),
            None => Ok((None, None)),
        };
    }
    let file = file.unwrap_or_default();
    let address = address.or(file.local_api_endpoint.advertise_address);
    let control_plane = ControlPlane {
        port: port.or(file.local_api_endpoint.bind_port).unwrap_or(API_PORT),
        certificate_key: key.or(file.certificate_key),
    };
    Ok((Some(control_plane), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> JoinFlags {
        JoinFlags {
            endpoint: Some("10.0.0.1:6443".to_owned()),
            token: Some("abcdef.0123456789abcdef".parse().unwrap()),
            pins: vec![format!("sha256:{}", "A".repeat(64))],
            ..JoinFlags::default()
        }
    }

    #[test]
    fn a_line_that_was_copied_in_part_is_refused_with_where_to_find_it() {
        type Spoil = fn(&mut JoinFlags);
        let cases: [(Spoil, &str); 4] = [
            (|flags| flags.endpoint = None, "HOST:PORT: is missing"),
            (|flags| flags.token = None, "--token: is missing"),
            (|flags| flags.pins.clear(), "--discovery-token-ca-cert-hash: is missing"),
            (
                |flags| flags.pins = vec!["sha256:00".to_owned()],
                "64 hexadecimal digits",
            ),
        ];
        for (spoil, wanted) in cases {
            let mut given = flags();
            spoil(&mut given);
            let error = Join::new(given, None).unwrap_err().to_string();
            assert!(
                error.contains(wanted) && error.contains("skiff token create --print-join-command"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_worker_has_no_key_and_a_control_plane_may() {
        assert!(Join::new(flags(), None).unwrap().control_plane.is_none());
        let key: CertificateKey = "0".repeat(64).parse().unwrap();
        let with_key = JoinFlags {
            certificate_key: Some(key),
            ..flags()
        };
        let error = Join::new(with_key.clone(), None).unwrap_err().to_string();
        assert!(error.contains("together with --control-plane"), "{error}");
        let joining = JoinFlags {
            control_plane: true,
            bind_port: Some(7443),
            ..with_key
        };
        let control_plane = Join::new(joining, None).unwrap().control_plane.unwrap();
        assert_eq!(control_plane.port, 7443);
        assert!(control_plane.certificate_key.is_some());
    }

    #[test]
    fn kubeadms_file_is_understood() {
        let file = "---
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
controlPlane:
  localAPIEndpoint: {advertiseAddress: 10.0.0.7}
discovery:
  bootstrapToken: {apiServerEndpoint: 'api.example:6443', token: abcdef.0123456789abcdef, unsafeSkipCAVerification: true}
timeouts: {discovery: 2m0s}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failSwapOn: false
";
        let join = Join::new(JoinFlags::default(), Some(file)).unwrap();
        assert_eq!(join.endpoint.to_string(), "api.example:6443");
        assert_eq!(join.control_plane.unwrap().port, API_PORT);
        assert_eq!(join.node.ip.unwrap().to_string(), "10.0.0.7");
        assert_eq!(join.timeouts.discovery.as_secs(), 120);
        assert_eq!(join.timeouts.kubelet, Timeouts::default().kubelet);
        assert_eq!(join.kubelet["failSwapOn"], false);
    }
}
