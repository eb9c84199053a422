//! Refuses new `spec.externalIPs` of Services: whoever may write Services could take any address's traffic (CVE-2020-8554).

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::{Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::errors::Result;

/// Off by default, as upstream's of the same name; see the module.
#[derive(Debug)]
pub(super) struct DenyServiceExternalIPs;

impl Plugin for DenyServiceExternalIPs {
    fn validate(&self, review: &Review<'_>, service: &Value) -> Result<()> {
        let written = matches!(review.operation, Operation::Create | Operation::Update);
        if !written || !review.is_about("", "services") || !adds(review.old, service) {
            return Ok(());
        }
        Err(Status::forbidden(
            Qualified::new("", "services"),
            meta::name(service),
            "Use of external IPs is denied by admission control",
        ))
    }
}

/// Whether there is an address that was not there before: what was stays, so that services can be changed otherwise.
fn adds(old: Option<&Value>, new: &Value) -> bool {
    let addresses = |service: &Value| service["spec"]["externalIPs"].as_array().cloned().unwrap_or_default();
    let before = old.map(addresses).unwrap_or_default();
    addresses(new).iter().any(|address| !before.contains(address))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::adds;

    #[test]
    fn what_was_there_may_stay_and_go() {
        let with = |addresses: &[&str]| json!({"spec": {"externalIPs": addresses}});
        for (old, new, refused) in [
            (None, with(&[]), false),
            (None, json!({"spec": {}}), false),
            (None, with(&["192.0.2.1"]), true),
            (Some(with(&["192.0.2.1", "192.0.2.2"])), with(&["192.0.2.2"]), false),
            (Some(with(&["192.0.2.1"])), with(&["192.0.2.1", "192.0.2.3"]), true),
        ] {
            assert_eq!(adds(old.as_ref(), &new), refused, "{old:?} {new}");
        }
    }
}
