//! What is wrong with Services on this node, and with this node itself: told in the log and by events, once each.

use tracing::warn;

use super::{Proxy, blocking};
use crate::index::{Change, Key};
use crate::ports_taken;

impl Proxy {
    /// Tells of node ports that are new here and that a program of this node holds.
    pub(super) async fn tell_of_ports_taken(&mut self, keys: &[Key]) {
        let mut new = Vec::new();
        for key in keys {
            let ports = self.index.get(key).map(|(service, _)| &*service.ports);
            for port in ports.into_iter().flatten().filter(|port| port.node_port != 0) {
                let port = (port.protocol, port.node_port);
                if self.node_ports.insert(port) {
                    new.push((key, port));
                }
            }
        }
        if new.is_empty() {
            return;
        }
        let held = blocking(ports_taken::held).await;
        for (key, (protocol, number)) in new.into_iter().filter(|(_, port)| held.contains(port)) {
            let (node, protocol) = (&self.config.node_name, protocol.name());
            let message = format!(
                "node {node}: a program has port {number}/{protocol}, which is a node port of this Service: \
                 packets from outside go to the Service"
            );
            warn!(service = &**key, "{message}");
            self.events.service(key, "NodePortInUse", "Listen", message);
        }
    }

    /// Tells of addresses in a slice that nothing is sent to: API servers refuse them, but an old one may have let them in.
    pub(super) fn tell_of_addresses_refused(&mut self, change: &Change) {
        let (name, service, refused) = match change {
            Change::Slice {
                name, service, refused, ..
            } => (name, service, refused),
            Change::SliceGone(name) => return drop(self.refused.remove(name)),
            _ => return,
        };
        if refused.is_empty() {
            self.refused.remove(name);
            return;
        }
        if self.refused.insert(name.clone(), refused.clone()).as_ref() == Some(refused) {
            return;
        }
        let Some(service) = service else { return };
        let message = format!(
            "node {}: EndpointSlice {name} holds {}: addresses of loopback, link-local, or of no single machine are left out",
            self.config.node_name,
            refused.join(", ")
        );
        warn!(service, "{message}");
        self.events.service(service, "EndpointAddressRefused", "Sync", message);
    }

    /// Tells of rules that cannot be written: once, however often that is tried again.
    pub(super) fn tell_of_a_failure(&mut self, error: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            let message = format!("the rules of Services cannot be written, which is tried again: {error}");
            self.events.node("RulesNotWritten", "Sync", message);
        }
    }

    /// Tells of rules that somebody else has removed.
    pub(super) fn tell_of_a_flush(&self) {
        let message =
            "another program has removed rules of Services from this node: they are written anew. Look for a \
                       firewall that flushes tables which it does not own"
                .to_owned();
        self.events.node("RulesRemoved", "Sync", message);
    }
}
