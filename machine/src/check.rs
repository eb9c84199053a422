//! `skiff check`: how every part of this machine does, and the probable cause where one does not. [`judge`] is pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

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
    pub certificates: Vec<(String, Duration)>,
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
        certificates: certificates(machine, now),
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

fn certificates(machine: &Machine<'_>, now: Timestamp) -> Vec<(String, Duration)> {
    let kubelet = machine.layout.kubelet_pki().join("kubelet-client-current.pem");
    let kubelet = skiff_pki::files::read(&kubelet).and_then(|pem| skiff_pki::Validity::of_pem(&pem));
    let mut found: Vec<_> = kubelet
        .map(|validity| ("kubelet-client-current.pem".to_owned(), validity.remaining(now)))
        .into_iter()
        .collect();
    if let Ok((leaves, authorities)) = certs::check_expiration(&machine.layout, now) {
        found.extend(
            leaves
                .into_iter()
                .chain(authorities)
                .map(|found| (found.name.clone(), found.residual())),
        );
    }
    found
}

/// How every part does, in the order in which they rest on each other: the first that failed is the one to mend first.
pub fn judge(seen: &Seen) -> Vec<Part> {
    let mut parts = Vec::new();
    if !seen.completed {
        let command = if seen.role == Role::ControlPlane {
            "skiff init"
        } else {
            "skiff join"
        };
        parts.push(failed(
            "machine",
            format!("`{command}` was interrupted here; run it again"),
        ));
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
    parts.extend(
        seen.certificates
            .iter()
            .filter_map(|(name, left)| judge_certificate(name, *left)),
    );
    if !seen.certificates.is_empty() && seen.certificates.iter().all(|(_, left)| *left > SOON) {
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

fn judge_certificate(name: &str, left: Duration) -> Option<Part> {
    let remedy = if name == "kubelet-client-current.pem" {
        "the kubelet renews it while it runs and reaches the API server; on a worker, one that has ended is replaced by `skiff reset` and `skiff join`; a control plane's reset would remove the cluster"
    } else {
        "run on the control plane: skiff certs renew all"
    };
    if left.is_zero() {
        Some(failed(format!("certificate {name}"), format!("has expired; {remedy}")))
    } else if left <= SOON {
        let text = format!("ends in {}; {remedy}", crate::duration::short(left));
        Some(Part {
            name: format!("certificate {name}"),
            health: Health::Warning,
            text,
        })
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
                    "skiff-server runs: its log says what it waits for"
                }
                Role::ControlPlane => "skiff-server does not run",
                Role::Worker => "is its machine up, and no firewall in between? (on it: skiff check)",
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
            failed(
                name,
                "the cluster does not know it; the kubelet registers it: see its log",
            )
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
        "skiff-kubelet does not run"
    } else if message.contains("network") || message.contains("cni") {
        "the network of pods is made by skiff-proxy: see its log"
    } else {
        "see the log of skiff-kubelet"
    };
    Some(failed(name, format!("is not Ready: {message}; {cause}")))
}

fn runs(seen: &Seen, service: Service) -> bool {
    seen.services
        .iter()
        .any(|(found, state, _)| *found == service && matches!(state, State::Running | State::Starting))
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
            certificates: vec![("apiserver".to_owned(), SOON * 2)],
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
                "`skiff init` was interrupted",
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
                |seen| seen.certificates.push(("admin.conf".to_owned(), Duration::ZERO)),
                "certificate admin.conf",
                Health::Failed,
                "skiff certs renew all",
            ),
            (
                |seen| {
                    seen.certificates
                        .push(("apiserver".to_owned(), Duration::from_secs(86_400)))
                },
                "certificate apiserver",
                Health::Warning,
                "ends in 24h",
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
}
