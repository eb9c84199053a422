//! `skiff check`: how every part of this machine does, and the probable cause where one does not. [`judge`] is pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use skiff_pki::{Kubeconfig, Validity};

use crate::api::Client;
use crate::init::start::is_ready;
use crate::preflight::{self, Facts, Level};
use crate::record::{Record, Role};
use crate::services::{Service, State};
use crate::{Error, Machine, certs};

/// A certificate that ends within this is told of.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a part does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should.
    Ok,
    /// It works, but will not for long, or not well.
    Warning,
    /// It does not work.
    Failed,
}

/// A part, and how it does.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// What it is.
    pub name: String,
    /// How it does.
    pub health: Health,
    /// What was seen, and for a fault the probable cause and what to do.
    pub text: String,
}

/// What is seen of a machine that is a node.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it is, by its record.
    pub role: Role,
    /// Whether `init` or `join` ended well.
    pub completed: bool,
    /// The node's name.
    pub node: String,
    /// Services, how they do, and where their log is.
    pub services: Vec<(Service, State, String)>,
    /// What the preflight checks say now.
    pub findings: Vec<preflight::Finding>,
    /// `/readyz?verbose`, or why there is none.
    pub api: Result<String, String>,
    /// The Node object; `None` when the API does not answer or has none.
    pub object: Option<Value>,
    /// Certificates and how long they are valid yet.
    pub certificates: Vec<Ending>,
}

/// A certificate, and how it ends.
#[derive(Clone, Debug)]
pub struct Ending {
    /// `apiserver`, or `admin.conf`.
    pub name: String,
    /// How long it is valid yet.
    pub left: Duration,
    /// Who has another made.
    pub renewal: Renewal,
}

/// Who has a certificate renewed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Renewal {
    /// The process that shows it, while the cluster believes it.
    ByItself,
    /// A person, on this machine.
    Here,
    /// A person, where its authority's key is.
    Elsewhere,
    /// Nobody: all that trust it must be told of another.
    Authority,
}

/// Looks at everything.
///
/// # Errors
/// When this machine is no node at all.
pub async fn check(machine: &Machine<'_>) -> Result<Vec<Part>, Error> {
    let record = Record::read(&machine.layout)?.ok_or(Error::NoNode)?;
    Ok(judge(&see(machine, &record).await?))
}

async fn see(machine: &Machine<'_>, record: &Record) -> Result<Seen, Error> {
    let mut services = Vec::new();
    for service in Service::ALL {
        let wanted = machine.layout.config_file(service.name()).exists();
        if wanted {
            services.push((
                service,
                machine.services.state(service)?,
                machine.services.log_hint(service),
            ));
        }
    }
    let facts = preflight::observe(
        machine,
        record.role,
        &record.node,
        &record.runtime_endpoint,
        api_port(machine),
        true,
        None,
    )
    .await;
    let (api, object) = ask(machine, record).await;
    let now = (machine.now)();
    Ok(Seen {
        role: record.role,
        completed: record.completed.is_some(),
        node: record.node.clone(),
        services,
        findings: lasting(&facts),
        api,
        object,
        certificates: certificates(machine, record.role, now),
    })
}

/// The port that this machine's API server was given.
fn api_port(machine: &Machine<'_>) -> u16 {
    let text = std::fs::read_to_string(machine.layout.config_file("server")).unwrap_or_default();
    let file: Option<Value> = serde_saphyr::from_str(&text).ok();
    let port = file.and_then(|file| u16::try_from(file["securePort"].as_u64()?).ok());
    port.unwrap_or(crate::config::API_PORT)
}

/// The checks that hold for a node that runs, too: its ports are its own now.
fn lasting(facts: &Facts) -> Vec<preflight::Finding> {
    let mut findings = preflight::judge(facts, &std::collections::BTreeSet::new());
    findings.retain(|finding| !finding.check.starts_with("Port-"));
    findings
}

async fn ask(machine: &Machine<'_>, record: &Record) -> (Result<String, String>, Option<Value>) {
    let name = match record.role {
        Role::ControlPlane => "admin",
        Role::Worker => "kubelet",
    };
    let told = |error: Error| skiff_daemon::error_chain(&error);
    let client = match Client::from_file(&machine.layout.kubeconfig(name)).await {
        Ok(client) => client,
        Err(error) => return (Err(told(error)), None),
    };
    let ready = client.text("/readyz?verbose").await.map_err(told);
    let object = client
        .get(&format!("/api/v1/nodes/{}", record.node))
        .await
        .ok()
        .flatten();
    (ready, object)
}

fn certificates(machine: &Machine<'_>, role: Role, now: Timestamp) -> Vec<Ending> {
    let ending = |(name, validity): (&str, Validity)| Ending {
        name: name.to_owned(),
        left: validity.remaining(now),
        renewal: Renewal::ByItself,
    };
    if role == Role::Worker {
        let own = ["kubelet", "proxy"].map(|name| (format!("{name}.conf"), machine.layout.kubeconfig(name)));
        let read = own.iter().filter_map(|(name, path)| {
            let identity = Kubeconfig::load(path).ok()?.identity?;
            Some((name.as_str(), identity.validity().ok()?))
        });
        return read.map(ending).collect();
    }
    let Ok((leaves, authorities)) = certs::check_expiration(&machine.layout, now) else {
        return Vec::new();
    };
    let mut found: Vec<_> = (leaves.into_iter().map(|leaf| (leaf, false)))
        .chain(authorities.into_iter().map(|authority| (authority, true)))
        .map(|(found, is_authority)| Ending {
            left: found.residual(),
            renewal: match (is_authority, found.externally_managed) {
                (true, _) => Renewal::Authority,
                (false, true) => Renewal::Elsewhere,
                (false, false) => Renewal::Here,
            },
            name: found.name,
        })
        .collect();
    // It is among the others once it has ended.
    if found.iter().all(|found| found.name != certs::KUBELET) {
        let pem = skiff_pki::files::read(&machine.layout.kubelet_certificate());
        let validity = pem.and_then(|pem| Validity::of_pem(&pem)).ok();
        found.extend(validity.map(|validity| ending((certs::KUBELET, validity))));
    }
    found
}

/// How every part does, in the order in which they rest on each other: the first that failed is the one to mend first.
pub fn judge(seen: &Seen) -> Vec<Part> {
    let mut parts = Vec::new();
    if !seen.completed {
        let command = match seen.role {
            // Both make one, and the record does not tell which it was.
            Role::ControlPlane => "`skiff init` or `skiff join --control-plane`",
            Role::Worker => "`skiff join`",
        };
        let text = format!("{command} was interrupted here; run the same command again, with the same flags");
        parts.push(failed("machine", text));
    }
    parts.extend(seen.findings.iter().map(|finding| Part {
        name: finding.check.clone(),
        health: if finding.level == Level::Error {
            Health::Failed
        } else {
            Health::Warning
        },
        text: finding.text.clone(),
    }));
    if seen.findings.iter().all(|finding| finding.level == Level::Warning) {
        parts.push(ok(
            "system",
            "kernel, container runtime, disk and memory are as a node needs them",
        ));
    }
    parts.extend(seen.certificates.iter().filter_map(judge_certificate));
    if !seen.certificates.is_empty() && seen.certificates.iter().all(|ending| ending.left > SOON) {
        parts.push(ok(
            "certificates",
            format!("all {} are valid for more than 30 days", seen.certificates.len()),
        ));
    }
    parts.extend(
        seen.services
            .iter()
            .map(|(service, state, log)| judge_service(*service, *state, log)),
    );
    parts.push(judge_api(seen));
    parts.extend(judge_node(seen));
    parts
}

fn judge_certificate(certificate: &Ending) -> Option<Part> {
    let name = format!("certificate {}", certificate.name);
    let has_ended = certificate.left.is_zero();
    let remedy = match certificate.renewal {
        Renewal::ByItself if has_ended => {
            "run on a control plane: skiff token create --print-join-command; and the line that it prints here: the node keeps its name and its pods"
        }
        Renewal::ByItself => "who uses it renews it, while skiff-kubelet and skiff-proxy run and reach the API server",
        Renewal::Here => "run here: skiff certs renew all",
        Renewal::Elsewhere => {
            "the key of its authority is not on this machine: have another one signed where that is, and put it in its place"
        }
        Renewal::Authority => {
            "no command renews an authority: docs/certificates.md, \"Another authority\", has the steps, before it ends"
        }
    };
    if has_ended {
        Some(failed(name, format!("has expired; {remedy}")))
    } else if certificate.left <= SOON {
        let text = format!("ends in {}; {remedy}", crate::duration::short(certificate.left));
        let health = Health::Warning;
        Some(Part { name, health, text })
    } else {
        None
    }
}

fn judge_service(service: Service, state: State, log: &str) -> Part {
    let name = service.to_string();
    match state {
        State::Running => ok(name, "runs"),
        State::Starting => Part {
            name,
            health: Health::Warning,
            text: format!("is being started; its log says what it waits for: {log}"),
        },
        State::Stopped => failed(name, format!("is stopped; start it: systemctl start {service}")),
        State::Failed => failed(name, format!("ends again and again; its log says why: {log}")),
        State::Absent => failed(name, "its unit is not installed; install the skiff package again"),
    }
}

fn judge_api(seen: &Seen) -> Part {
    match &seen.api {
        Ok(text) => {
            let bad: Vec<_> = text.lines().filter(|line| line.starts_with("[-]")).collect();
            if bad.is_empty() {
                ok("API server", "is ready")
            } else {
                failed("API server", format!("is not ready: {}", bad.join("; ")))
            }
        }
        Err(reason) => {
            let cause = match seen.role {
                Role::ControlPlane if runs(seen, Service::Server) => {
                    let log = log(seen, Service::Server);
                    format!("skiff-server runs: its log says what it waits for: {log}")
                }
                Role::ControlPlane => "skiff-server does not run: systemctl restart skiff-server".to_owned(),
                Role::Worker => "is its machine up, and no firewall in between? (on it: skiff check)".to_owned(),
            };
            failed("API server", format!("does not answer ({reason}); {cause}"))
        }
    }
}

fn judge_node(seen: &Seen) -> Option<Part> {
    let name = format!("node {}", seen.node);
    let Some(object) = &seen.object else {
        // Without an API nothing can be said of it.
        return seen.api.is_ok().then(|| {
            let log = log(seen, Service::Kubelet);
            let text = format!("the cluster does not know it; the kubelet registers it: its log says why not: {log}");
            failed(name, text)
        });
    };
    if is_ready(object) {
        return Some(ok(name, "is Ready"));
    }
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let message = ready
        .and_then(|ready| ready["message"].as_str())
        .unwrap_or("it has not reported yet");
    let cause = if !runs(seen, Service::Kubelet) {
        "skiff-kubelet does not run: systemctl restart skiff-kubelet".to_owned()
    } else if message.contains("network") || message.contains("cni") {
        let log = log(seen, Service::Proxy);
        format!("the network of pods is made by skiff-proxy, or by what you put in its place: {log}")
    } else {
        format!("the kubelet's log says more: {}", log(seen, Service::Kubelet))
    };
    Some(failed(name, format!("is not Ready: {message}; {cause}")))
}

fn runs(seen: &Seen, service: Service) -> bool {
    seen.services
        .iter()
        .any(|(found, state, _)| *found == service && matches!(state, State::Running | State::Starting))
}

/// How a person sees the log of a service, also of one that is not wanted here.
fn log(seen: &Seen, service: Service) -> String {
    let found = seen.services.iter().find(|(found, ..)| *found == service);
    found.map_or_else(|| format!("journalctl -u {service}"), |(.., log)| log.clone())
}

fn ok(name: impl Into<String>, text: impl Into<String>) -> Part {
    Part {
        name: name.into(),
        health: Health::Ok,
        text: text.into(),
    }
}

fn failed(name: impl Into<String>, text: impl Into<String>) -> Part {
    Part {
        name: name.into(),
        health: Health::Failed,
        text: text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn well() -> Seen {
        let services = Service::ALL.map(|service| (service, State::Running, format!("journalctl -u {service}")));
        Seen {
            role: Role::ControlPlane,
            completed: true,
            node: "master".to_owned(),
            services: services.to_vec(),
            findings: Vec::new(),
            api: Ok("[+]ping ok\nreadyz check passed\n".to_owned()),
            object: Some(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
            certificates: vec![ending("apiserver", SOON * 2, Renewal::Here)],
        }
    }

    fn ending(name: &str, left: Duration, renewal: Renewal) -> Ending {
        Ending {
            name: name.to_owned(),
            left,
            renewal,
        }
    }

    #[test]
    fn a_machine_that_does_well() {
        let parts = judge(&well());
        assert!(parts.iter().all(|part| part.health == Health::Ok), "{parts:?}");
        assert_eq!(parts.len(), 8);
    }

    #[test]
    fn each_fault_has_its_cause() {
        type Spoil = fn(&mut Seen);
        let cases: [(Spoil, &str, Health, &str); 9] = [
            (
                |seen| seen.completed = false,
                "machine",
                Health::Failed,
                "`skiff init` or `skiff join --control-plane` was interrupted here",
            ),
            (
                |seen| (seen.completed, seen.role) = (false, Role::Worker),
                "machine",
                Health::Failed,
                "`skiff join` was interrupted here",
            ),
            (
                |seen| seen.services[1].1 = State::Failed,
                "skiff-kubelet",
                Health::Failed,
                "journalctl -u skiff-kubelet",
            ),
            (
                |seen| seen.services[2].1 = State::Stopped,
                "skiff-proxy",
                Health::Failed,
                "systemctl start skiff-proxy",
            ),
            (
                |seen| seen.api = Err("refused".to_owned()),
                "API server",
                Health::Failed,
                "its log says what it waits for",
            ),
            (
                |seen| seen.api = Ok("[+]ping ok\n[-]etcd failed: x\n".to_owned()),
                "API server",
                Health::Failed,
                "[-]etcd failed: x",
            ),
            (
                |seen| seen.object = None,
                "node master",
                Health::Failed,
                "does not know it",
            ),
            (
                |seen| {
                    let ready = json!({"type": "Ready", "status": "False", "message": "cni plugin not initialized"});
                    seen.object = Some(json!({"status": {"conditions": [ready]}}));
                },
                "node master",
                Health::Failed,
                "made by skiff-proxy",
            ),
            (
                |seen| seen.services[0].1 = State::Absent,
                "skiff-server",
                Health::Failed,
                "install the skiff package again",
            ),
        ];
        for (spoil, name, health, cause) in cases {
            let mut seen = well();
            spoil(&mut seen);
            let parts = judge(&seen);
            let part = parts.iter().find(|part| part.health != Health::Ok).unwrap();
            assert_eq!((part.name.as_str(), part.health), (name, health));
            assert!(part.text.contains(cause), "{}", part.text);
        }
    }

    #[test]
    fn each_certificate_that_ends_has_its_remedy() {
        let day = Duration::from_secs(86_400);
        let cases = [
            (
                "apiserver",
                day,
                Renewal::Here,
                Health::Warning,
                "ends in 24h; run here: skiff certs renew all",
            ),
            (
                "admin.conf",
                Duration::ZERO,
                Renewal::Here,
                Health::Failed,
                "expired; run here: skiff certs renew all",
            ),
            (
                "apiserver",
                day,
                Renewal::Elsewhere,
                Health::Warning,
                "signed where that is",
            ),
            ("ca", day, Renewal::Authority, Health::Warning, "docs/certificates.md"),
            (
                "kubelet.conf",
                day,
                Renewal::ByItself,
                Health::Warning,
                "while skiff-kubelet and skiff-proxy run",
            ),
            (
                "kubelet.conf",
                Duration::ZERO,
                Renewal::ByItself,
                Health::Failed,
                "skiff token create --print-join-command",
            ),
        ];
        for (name, left, renewal, health, remedy) in cases {
            let part = judge_certificate(&ending(name, left, renewal)).unwrap();
            assert_eq!((part.name, part.health), (format!("certificate {name}"), health));
            assert!(part.text.contains(remedy), "{}", part.text);
        }
        assert_eq!(judge_certificate(&ending("ca", SOON * 2, Renewal::Authority)), None);
    }
}
