//! Finding out whom to trust: `cluster-info` is read from whoever answers, and believed when the token signed it and the authority in it
//! is the one that the person named.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::api::Client;
use crate::config::Join;
use crate::init::ClusterInfo;
use crate::{Error, Machine};

const PHASE: &str = "discovery";
const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
/// A fresh token is signed with within moments; no longer than the API server is waited for.
const SIGNED_WITHIN: Duration = Duration::from_secs(10);
/// Certificates begin five minutes before they are issued: up to there clocks may differ.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Why a cluster is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody answers.
    #[error(
        "no API server answers at {endpoint} within {seconds} s; check the address, that the server runs (on its machine: skiff check), and that no firewall keeps port {port} from this machine; one that needs longer is waited for with --discovery-timeout"
    )]
    Dead {
        /// What was asked.
        endpoint: String,
        /// Its port.
        port: u16,
        /// How long it was waited for.
        seconds: u64,
        /// The last failure.
        source: Box<Error>,
    },
    /// It has no signature by this token.
    #[error(
        "the cluster does not know the token with the id {id:?}: it is wrong, was deleted, or has expired; get a new one on the control plane: skiff token create --print-join-command"
    )]
    UnknownToken {
        /// The token's public half.
        id: String,
    },
    /// The signature is not this token's.
    #[error(
        "the cluster knows a token with the id {id:?}, but not with this secret: look for a slip of the finger, or get a new one on the control plane: skiff token create --print-join-command"
    )]
    WrongSecret {
        /// The token's public half.
        id: String,
    },
    /// The authority is another one.
    #[error(
        "the cluster's authority has the hash {found}, not {wanted}: this is another cluster, or somebody stands in between; take the hash from the control plane: skiff token create --print-join-command"
    )]
    WrongAuthority {
        /// What the cluster shows.
        found: String,
        /// What was given.
        wanted: String,
    },
    /// Its certificate does not hold.
    #[error(
        "the API server at {endpoint} shows a certificate that is not valid here ({reason}); if it has expired, run on the control plane: skiff certs renew all; if it is for other names, give the address that the cluster is known by, or begin it with --control-plane-endpoint or --apiserver-cert-extra-sans"
    )]
    Certificate {
        /// What was asked.
        endpoint: String,
        /// What the TLS library says.
        reason: String,
    },
    /// The clocks are apart.
    #[error(
        "this machine's clock shows {ours}, the API server's {theirs}: certificates would not be valid here; set the clock (timedatectl set-ntp true), then run the same command again"
    )]
    Clock {
        /// What time it is here.
        ours: String,
        /// What time it is there.
        theirs: String,
    },
    /// What is told differs by who is asked.
    #[error("the cluster tells trusted and other clients different things: somebody stands in between")]
    Differs,
}

/// Asks, and checks.
pub(super) async fn run(machine: &Machine<'_>, wish: &Join) -> Result<ClusterInfo, Error> {
    let url = wish.endpoint.url();
    machine.say(PHASE, format!("Asking {url} for the cluster's authority"));
    let stranger = Client::with_token(&url, None, None)?;
    let deadline = Instant::now() + SIGNED_WITHIN.min(wish.timeouts.discovery);
    let (text, date) = ask(&stranger, wish).await?;
    check_clock((machine.now)(), date.as_deref())?;
    let mut text = text;
    let told = loop {
        match verify(&text, wish) {
            Err(Failure::UnknownToken { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(300)).await,
            verified => break verified?,
        }
        text = ask(&stranger, wish).await?.0;
    };
    let info = ClusterInfo::read(&told)?;
    check_pin(&info, wish)?;
    // Now as somebody who knows whom to trust.
    let trusting = Client::with_token(&url, Some(&info.ca_pem), None)?;
    let (text, _) = ask(&trusting, wish).await?;
    if verify(&text, wish)? != told {
        return Err(Failure::Differs.into());
    }
    machine.say(
        PHASE,
        format!(
            "The cluster at {} is the right one: its authority is {}",
            info.server,
            info.pins.join(" and ")
        ),
    );
    Ok(info)
}

/// Reads the ConfigMap, again and again for a while.
async fn ask(client: &Client, wish: &Join) -> Result<(String, Option<String>), Error> {
    let deadline = Instant::now() + wish.timeouts.discovery;
    loop {
        match tokio::time::timeout_at(deadline, client.text_and_date(PATH)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if refusal(&error).is_some() => {
                let reason = refusal(&error).unwrap_or_default();
                let endpoint = wish.endpoint.to_string();
                return Err(Failure::Certificate { endpoint, reason }.into());
            }
            Ok(Err(error)) if Instant::now() + Duration::from_secs(1) >= deadline => return Err(dead(wish, error)),
            Ok(Err(_)) => sleep(Duration::from_millis(500)).await,
            Err(_) => {
                let silent = Error::TooLate {
                    what: format!("{} does not answer", wish.endpoint),
                    seconds: wish.timeouts.discovery.as_secs(),
                    hint: "it is silent".to_owned(),
                };
                return Err(dead(wish, silent));
            }
        }
    }
}

/// What is wrong with the server's certificate, where that is what is wrong: asking again does not help.
fn refusal(error: &Error) -> Option<String> {
    const MARK: &str = "invalid peer certificate: ";
    let chain = skiff_daemon::error_chain(error);
    let reason = chain.split(MARK).nth(1)?;
    Some(reason.split(": ").next().unwrap_or(reason).to_owned())
}

fn dead(wish: &Join, source: Error) -> Error {
    Failure::Dead {
        endpoint: wish.endpoint.to_string(),
        port: wish.endpoint.port,
        seconds: wish.timeouts.discovery.as_secs(),
        source: Box::new(source),
    }
    .into()
}

/// The kubeconfig in the ConfigMap, if the token signed it.
fn verify(text: &str, wish: &Join) -> Result<String, Failure> {
    let map: Value = serde_json::from_str(text).unwrap_or_default();
    let id = || wish.discovery_token.id().to_owned();
    let signature = map["data"][format!("jws-kubeconfig-{}", id())].as_str();
    let (Some(kubeconfig), Some(signature)) = (map["data"]["kubeconfig"].as_str(), signature) else {
        return Err(Failure::UnknownToken { id: id() });
    };
    if !wish.discovery_token.verifies(kubeconfig, signature) {
        return Err(Failure::WrongSecret { id: id() });
    }
    Ok(kubeconfig.to_owned())
}

fn check_pin(info: &ClusterInfo, wish: &Join) -> Result<(), Failure> {
    // As kubeadm: while an authority takes over from another, lines that name either are good.
    if wish.pins.is_empty() || info.pins.iter().any(|pin| wish.pins.contains(pin)) {
        return Ok(());
    }
    Err(Failure::WrongAuthority {
        found: info.pins.join(" and "),
        wanted: wish.pins.join(" or "),
    })
}

/// Compares clocks by the `Date` of an answer; without one there is nothing to compare.
fn check_clock(ours: Timestamp, date: Option<&str>) -> Result<(), Failure> {
    let Some(theirs) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        return Ok(());
    };
    let theirs = theirs.timestamp();
    if ours.duration_since(theirs).unsigned_abs() <= SKEW {
        return Ok(());
    }
    Err(Failure::Clock {
        ours: ours.strftime("%FT%TZ").to_string(),
        theirs: theirs.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::JoinFlags;

    fn wish(token: &str, pins: &[&str]) -> Join {
        let flags = JoinFlags {
            endpoint: Some("10.0.0.1:6443".to_owned()),
            token: Some(token.parse().unwrap()),
            pins: pins.iter().map(|&pin| pin.to_owned()).collect(),
            unsafe_skip_ca_verification: pins.is_empty(),
            ..JoinFlags::default()
        };
        Join::new(flags, None).unwrap()
    }

    #[test]
    fn only_what_the_token_signed_is_believed() {
        let right = wish("abcdef.0123456789abcdef", &[]);
        let signature = right.discovery_token.sign_detached("kubeconfig");
        let told = |kubeconfig: &str| {
            json!({"data": {"kubeconfig": kubeconfig, "jws-kubeconfig-abcdef": signature}}).to_string()
        };
        assert_eq!(verify(&told("kubeconfig"), &right).unwrap(), "kubeconfig");
        assert!(matches!(
            verify(&told("another"), &right),
            Err(Failure::WrongSecret { .. })
        ));
        let typo = wish("abcdef.0123456789abcdee", &[]);
        assert!(matches!(
            verify(&told("kubeconfig"), &typo),
            Err(Failure::WrongSecret { .. })
        ));
        let unknown = wish("ffffff.0123456789abcdef", &[]);
        let error = verify(&told("kubeconfig"), &unknown).unwrap_err().to_string();
        assert!(
            error.contains("\"ffffff\"") && error.contains("skiff token create --print-join-command"),
            "{error}"
        );
        assert!(!error.contains("0123456789abcdef"));
        assert!(verify("no JSON", &right).is_err());
    }

    #[test]
    fn the_authority_must_be_the_one_that_was_named() {
        let mut info = ClusterInfo {
            server: String::new(),
            ca_pem: String::new(),
            pins: vec!["sha256:aa".to_owned()],
        };
        let pin = format!("sha256:{}", "b".repeat(64));
        let error = check_pin(&info, &wish("abcdef.0123456789abcdef", &[&pin]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("sha256:aa, not sha256:bbb"), "{error}");
        check_pin(&info, &wish("abcdef.0123456789abcdef", &[])).unwrap();
        info.pins.push(pin.clone());
        check_pin(&info, &wish("abcdef.0123456789abcdef", &[&pin])).unwrap();
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let ours: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        for (date, fine) in [
            (Some("Sat, 21 Nov 2026 10:04:00 GMT"), true),
            (Some("Sat, 21 Nov 2026 09:56:00 GMT"), true),
            (Some("Sat, 21 Nov 2026 11:00:00 GMT"), false),
            (Some("Sat, 21 Nov 2026 09:00:00 GMT"), false),
            (Some("garbage"), true),
            (None, true),
        ] {
            assert_eq!(check_clock(ours, date).is_ok(), fine, "{date:?}");
        }
        let error = check_clock(ours, Some("Sat, 21 Nov 2026 11:00:00 GMT"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("timedatectl") && error.contains("2026-11-21T11:00:00Z"),
            "{error}"
        );
    }
}
