//! The machines that are nodes already: two with one name would take each other's pods, two with one address each other's packets.

use std::net::IpAddr;

use serde_json::Value;

use crate::api::{Client, code};
use crate::init::{Node, start};
use crate::{Error, Machine};

/// So many nodes are asked for at once.
const PAGE: usize = 500;

/// Refuses a name or an address that a live node elsewhere has.
pub(super) async fn check(machine: &Machine<'_>, api: &Client, node: &Node) -> Result<(), Error> {
    let own = Own {
        name: &node.name,
        address: node.address,
        boot_id: boot_id(),
    };
    let found = match api.get(&format!("/api/v1/nodes/{}", node.name)).await {
        Err(Error::Api { source, .. }) if code(&source) == Some(401) => return Err(Error::TokenRefused),
        found => found?,
    };
    if let Some(conflict) = found.as_ref().and_then(|found| own.conflict(found)) {
        return Err(conflict);
    }
    machine.say("discovery", format!("The name {:?} is free in the cluster", node.name));
    let mut path = format!("/api/v1/nodes?limit={PAGE}");
    loop {
        let page = match api.get(&path).await {
            // A cluster whose init knew nothing of this right.
            Err(Error::Api { source, .. }) if code(&source) == Some(403) => return Ok(()),
            page => page?.unwrap_or_default(),
        };
        for found in page["items"].as_array().into_iter().flatten() {
            if let Some(conflict) = own.conflict(found) {
                return Err(conflict);
            }
            if let Some(former) = own.former_name(found) {
                let text = format!(
                    "WARNING: this machine was joined as {former:?} before, by a run that was interrupted; its kubelet gets no certificate to serve with before `kubectl delete node {former}`, or before that node has been silent for five minutes"
                );
                machine.say("discovery", text);
            }
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => path = format!("/api/v1/nodes?limit={PAGE}&continue={token}"),
            _ => break,
        }
    }
    machine.say("discovery", format!("No other node has the address {}", node.address));
    Ok(())
}

/// Another at each start of a machine, and never that of another machine.
fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// A node's addresses among nodes.
fn internal(node: &Value) -> impl Iterator<Item = &str> {
    let addresses = node["status"]["addresses"].as_array();
    (addresses.into_iter().flatten())
        .filter(|address| address["type"] == "InternalIP")
        .filter_map(|address| address["address"].as_str())
}

/// What this machine is known by.
struct Own<'a> {
    name: &'a str,
    address: IpAddr,
    boot_id: String,
}

impl Own<'_> {
    /// What a live node elsewhere has of ours. A node that is this machine was joined by a run that was interrupted.
    fn conflict(&self, found: &Value) -> Option<Error> {
        if !start::is_ready(found) || self.is_this_machine(found) {
            return None;
        }
        let name = found["metadata"]["name"].as_str().unwrap_or_default();
        if name != self.name {
            return self.has_address(found).then(|| Error::AddressTaken {
                name: name.to_owned(),
                address: self.address,
            });
        }
        Some(Error::NameTaken {
            name: name.to_owned(),
            address: internal(found).next().unwrap_or("an unknown address").to_owned(),
        })
    }

    /// The name under which this machine was joined, where that is another.
    fn former_name<'a>(&self, found: &'a Value) -> Option<&'a str> {
        let name = found["metadata"]["name"].as_str()?;
        (name != self.name && self.is_this_machine(found)).then_some(name)
    }

    /// The same address alone does not tell: every virtual machine behind a NAT of its own has the same one.
    fn is_this_machine(&self, found: &Value) -> bool {
        self.has_address(found) && found["status"]["nodeInfo"]["bootID"] == *self.boot_id
    }

    fn has_address(&self, found: &Value) -> bool {
        internal(found).any(|address| address.parse() == Ok(self.address))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_live_node_elsewhere_holds_a_name_or_an_address() {
        let own = Own {
            name: "n",
            address: "10.0.2.15".parse().unwrap(),
            boot_id: "this".to_owned(),
        };
        let node = |name: &str, address: &str, ready: &str, boot: &str| {
            json!({"metadata": {"name": name}, "status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": ready}],
                "nodeInfo": {"bootID": boot},
            }})
        };
        let cases = [
            (
                node("n", "10.0.0.3", "True", "that"),
                Some("called \"n\" already, at 10.0.0.3"),
            ),
            (node("n", "10.0.2.15", "True", "this"), None),
            // The trap of machines made from one image: the same name and the same address.
            (
                node("n", "10.0.2.15", "True", "that"),
                Some("called \"n\" already, at 10.0.2.15"),
            ),
            (node("n", "10.0.0.3", "Unknown", "that"), None),
            (node("m", "10.0.0.3", "True", "that"), None),
            (
                node("m", "10.0.2.15", "True", "that"),
                Some("live node \"m\" is known by 10.0.2.15"),
            ),
            (node("m", "10.0.2.15", "False", "that"), None),
            // This machine, joined under another name by a run that was interrupted.
            (node("m", "10.0.2.15", "True", "this"), None),
            (json!({}), None),
        ];
        assert_eq!(own.former_name(&node("m", "10.0.2.15", "True", "this")), Some("m"));
        for other in [
            node("n", "10.0.2.15", "True", "this"),
            node("m", "10.0.2.15", "True", "that"),
        ] {
            assert_eq!(own.former_name(&other), None);
        }
        for (found, wanted) in cases {
            let conflict = own.conflict(&found).map(|error| error.to_string());
            match (conflict, wanted) {
                (None, None) => {}
                (Some(error), Some(wanted)) => assert!(error.contains(wanted), "{error}"),
                (conflict, _) => panic!("{found}: {conflict:?}"),
            }
        }
    }
}
