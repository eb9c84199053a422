//! SchedulingGates: a pod waits until every one of its gates has been removed.

use crate::framework::{Plugin, PreEnqueue, Rejection};
use crate::model::Pod;

/// Keeps gated pods out of the queue.
#[derive(Debug)]
pub(crate) struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }
}

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &Pod) -> Result<(), Rejection> {
        if pod.wants.gates.is_empty() {
            return Ok(());
        }
        let reason = format!("waiting for scheduling gates: [{}]", pod.wants.gates.join(" "));
        Err(Rejection::unresolvable(self.name(), reason))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::pod;

    #[test]
    fn gates_hold_a_pod_back() {
        assert!(SchedulingGates.pre_enqueue(&pod("a", json!({}))).is_ok());
        let gated = pod(
            "a",
            json!({"schedulingGates": [{"name": "x/quota"}, {"name": "x/net"}]}),
        );
        let rejection = SchedulingGates.pre_enqueue(&gated).unwrap_err();
        assert_eq!(rejection.reasons, ["waiting for scheduling gates: [x/quota x/net]"]);
    }
}
