//! A pod's volumes, cgroup and sandbox.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::{Pod, PodSecurityContext};
use skiff_api::k8s_openapi::api::node::v1::RuntimeClass;
use skiff_cri::{
    NamespaceMode, NamespaceOptions, PortMapping, Protocol, SandboxConfig, SandboxMetadata, SandboxSecurity,
    SecurityProfile,
};
use skiff_daemon::error_chain;
use tokio::time::Instant;

use super::{Context, Outcome};
use crate::admission;
use crate::agent::Agent;
use crate::events::Severity;
use crate::hop::{self, hop};
use crate::{cgroups, dns, hosts, labels, pod, volumes};

pub(super) async fn prepare_volumes(context: &Context) -> Outcome {
    let agent = &context.agent;
    let ips = context
        .sandbox
        .as_ref()
        .map(|sandbox| sandbox.ips.clone())
        .unwrap_or_default();
    let facts = agent.facts(&ips, pod::host_network(&context.pod));
    match agent.volumes.prepare(&context.pod, &facts).await {
        Ok(()) => {
            hop(&context.pod, "volumes ready");
            Outcome::Done
        }
        Err(errors) => not_mounted(context, &errors),
    }
}

/// Tells of each volume that is not ready, unless the pod ends: what it is made from may go before it.
fn not_mounted(context: &Context, errors: &[volumes::Error]) -> Outcome {
    let reason = "FailedMount";
    let messages: Vec<String> = errors.iter().map(|error| error_chain(error)).collect();
    for (error, message) in errors.iter().zip(&messages).filter(|_| !context.is_ending) {
        let events = &context.agent.events;
        events.pod(&context.pod, Severity::Warning, error.reason(), message.clone());
    }
    let message = messages.join("; ");
    if errors.iter().any(|error| matches!(error, volumes::Error::Claim { .. })) {
        Outcome::NotYet { reason, message }
    } else {
        Outcome::Failed { reason, message }
    }
}

/// Makes the cgroup, then the sandbox in it.
pub(super) async fn create(context: &Context, attempt: u32) -> Outcome {
    let (agent, pod) = (&context.agent, &context.pod);
    let failed = |message: String| {
        let message = format!("Failed to create pod sandbox: {message}");
        agent
            .events
            .pod(pod, Severity::Warning, "FailedCreatePodSandBox", message.clone());
        Outcome::Failed {
            reason: "FailedCreatePodSandBox",
            message,
        }
    };
    if context.ran_before || !context.observed.sandboxes.is_empty() {
        let message = "Pod sandbox changed, it will be killed and re-created.".into();
        agent.events.pod(pod, Severity::Normal, "SandboxChanged", message);
        for sandbox in &context.observed.sandboxes {
            if let Err(error) = agent.runtime.stop_sandbox(&sandbox.id).await {
                return failed(error.rpc_text());
            }
        }
    }
    let begun = Instant::now();
    let made = agent.cgroups.create_pod(pod, &agent.rules).await;
    agent.measures.changed_cgroup("create", begun);
    if let Err(error) = made {
        let message = error_chain(&error);
        agent
            .events
            .pod(pod, Severity::Warning, "FailedToCreateContainer", message.clone());
        return failed(message);
    }
    let log_dir = agent.log_dir(pod);
    if let Err(error) = tokio::fs::create_dir_all(&log_dir).await {
        return failed(format!("cannot create {}: {error}", log_dir.display()));
    }
    let config = match config(agent, pod, attempt) {
        Ok(config) => config,
        Err(error) => return failed(error),
    };
    let handler = match handler(context).await {
        Ok(handler) => handler,
        Err(error) => return failed(error),
    };
    let wanted = || {
        hop(pod, "sandbox begun");
        !context.cancel.is_cancelled()
    };
    let Some(made) = agent
        .turns
        .take(wanted, agent.runtime.run_sandbox(&config, &handler))
        .await
    else {
        return Outcome::Cancelled;
    };
    match made {
        Ok(id) => {
            hop::container(pod, &id, "sandbox made");
            agent.ids.insert(&id, pod::uid(pod));
            tell_of_dns(agent, pod);
            Outcome::Done
        }
        Err(error) => failed(error.rpc_text()),
    }
}

/// Tells what of the pod's resolver settings is not as the pod asks for.
fn tell_of_dns(agent: &Agent, pod: &Pod) {
    let tell = |reason: &'static str, message: String| agent.events.pod(pod, Severity::Warning, reason, message);
    if let Some(missing) = dns::fallback(pod, &agent.dns) {
        let reason = "MissingClusterDNS";
        tell(reason, format!("pod: {:?}. {missing}", pod::full_name(pod)));
        agent.events.node(Severity::Warning, reason, missing.into());
    }
    for message in dns::omissions(pod, &agent.dns) {
        tell("DNSConfigForming", message);
    }
}

/// The runtime's handler that the pod's RuntimeClass names; empty for the default.
async fn handler(context: &Context) -> Result<String, String> {
    let name = pod::spec(&context.pod)
        .runtime_class_name
        .as_deref()
        .unwrap_or_default();
    if name.is_empty() {
        return Ok(String::new());
    }
    let classes: kube::Api<RuntimeClass> = kube::Api::all(context.agent.client.clone());
    match classes.get(name).await {
        Ok(class) => Ok(class.handler),
        Err(error) => Err(format!("failed to get RuntimeClass {name:?}: {}", error_chain(&error))),
    }
}

pub(super) async fn stop(context: &Context, id: &str) -> Outcome {
    match context.agent.runtime.stop_sandbox(id).await {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed {
            reason: "FailedKillPod",
            message: error.rpc_text(),
        },
    }
}

/// All that the pod's sandbox is made from.
pub(super) fn config(agent: &Agent, pod: &Pod, attempt: u32) -> Result<SandboxConfig, String> {
    let host = pod::host_network(pod);
    let hostname = if host {
        String::new()
    } else {
        hosts::hostname(pod, &agent.config.kubelet.cluster_domain)?
    };
    Ok(SandboxConfig {
        metadata: SandboxMetadata {
            name: pod::name(pod).into(),
            uid: pod::uid(pod).into(),
            namespace: pod::namespace(pod).into(),
            attempt,
        },
        hostname,
        log_directory: agent.log_dir(pod).to_string_lossy().into_owned(),
        dns: Some(dns::config(pod, &agent.dns)),
        port_mappings: if host { Vec::new() } else { port_mappings(pod) },
        labels: labels::sandbox(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: agent.cgroups.parent(pod),
        security: security(pod),
        sysctls: sysctls(pod),
        overhead: cgroups::overhead(pod, &agent.rules),
        resources: Some(cgroups::containers_resources(pod, &agent.rules)),
    })
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let ports = pod::main_containers(pod)
        .iter()
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                container_port: u16::try_from(port.container_port).ok()?,
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod::spec(pod).security_context.as_ref();
    let list = context
        .and_then(|context| context.sysctls.as_deref())
        .unwrap_or_default();
    list.iter()
        .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
        .collect()
}

fn security(pod: &Pod) -> SandboxSecurity {
    let empty = PodSecurityContext::default();
    let context = pod::spec(pod).security_context.as_ref().unwrap_or(&empty);
    let privileged = pod::containers(pod).any(|(_, container)| {
        container
            .security_context
            .as_ref()
            .and_then(|context| context.privileged)
            .unwrap_or(false)
    });
    SandboxSecurity {
        namespaces: namespaces(pod),
        selinux: context.se_linux_options.as_ref().map(super::security::selinux),
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_user.and(context.run_as_group),
        supplemental_groups: super::security::groups(context),
        strict_groups: admission::strict_groups(context),
        readonly_rootfs: false,
        privileged,
        // The pause process is the runtime's: a profile of the pod that is made for its containers may not let it begin.
        seccomp: Some(SecurityProfile::RuntimeDefault),
    }
}

/// The namespaces that a pod's containers share with each other or with the node.
pub(super) fn namespaces(pod: &Pod) -> NamespaceOptions {
    let spec = pod::spec(pod);
    let of = |host: Option<bool>| {
        if host.unwrap_or(false) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    NamespaceOptions {
        network: of(spec.host_network),
        ipc: of(spec.host_ipc),
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => NamespaceMode::Node,
            (_, Some(true)) => NamespaceMode::Pod,
            _ => NamespaceMode::Container,
        },
        target: String::new(),
    }
}
