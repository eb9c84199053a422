//! Lifecycle hooks: postStart and preStop.

use std::time::Duration;

use skiff_api::k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::agent::Agent;
use crate::events::Severity;
use crate::probes::{http, port};

/// Runs a hook to its end, for as long as the caller waits; the error is text for an event.
pub(super) async fn run(
    agent: &Agent,
    pod: &Pod,
    container: &Container,
    id: &str,
    pod_ip: Option<&String>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match agent.runtime.exec_sync(id, &command, Duration::ZERO).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "command '{}' exited with {}: {}",
                command.join(" "),
                output.exit_code,
                String::from_utf8_lossy(&output.stderr).trim_end()
            )),
            Err(error) => Err(error.rpc_text()),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    let host_ip = agent.node_ips.first().map(ToString::to_string);
    let address = if crate::pod::host_network(pod) {
        host_ip
    } else {
        pod_ip.cloned()
    };
    if let Some(action) = &hook.http_get {
        let target = http::Target::new(action, container, address.as_deref())?;
        if http::call(&target).await? {
            let host = target.authority();
            let text = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
            let events = &agent.events;
            events.pod(pod, Severity::Warning, "LifecycleHTTPFallback", text);
            agent.measures.hook_fell_back();
        }
        return Ok(());
    }
    if let Some(action) = &hook.tcp_socket {
        let port = port(&action.port, container)?;
        let host = action
            .host
            .clone()
            .filter(|host| !host.is_empty())
            .or(address)
            .unwrap_or_default();
        let connect = tokio::net::TcpStream::connect((host.as_str(), port));
        return connect.await.map(drop).map_err(|error| error.to_string());
    }
    Err("invalid handler: no action".into())
}
