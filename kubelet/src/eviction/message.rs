//! What an evicted pod's status says, in upstream's words.

use skiff_api::quantity::Quantity;

use super::rank::Candidate;
use super::signal::{Amount, Observations, Threshold};
use super::state::Pressure;
use crate::pod;

/// The message for a pod that goes because the node has too little of something.
pub(super) fn low(threshold: &Threshold, observations: &Observations, candidate: &Candidate) -> String {
    let resource = threshold.signal.resource();
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = observations.get(&threshold.signal) {
        let least = match threshold.amount {
            Amount::Absolute(quantity) => quantity,
            Amount::Percent(_) => amount(resource, threshold.amount.of(seen.capacity)),
        };
        message.push_str(&format!(
            "Threshold quantity: {least}, available: {}. ",
            amount(resource, seen.available)
        ));
    }
    for (name, memory, disk) in &candidate.containers {
        let used = match resource {
            "memory" => *memory,
            "ephemeral-storage" => *disk,
            _ => continue,
        };
        let Some((_, container)) = pod::container(&candidate.pod, name) else {
            continue;
        };
        let requested = pod::request(&container, resource).unwrap_or(Quantity::ZERO);
        if requested.value() < i128::from(used) {
            message.push_str(&format!(
                "Container {name} was using {}, request is {requested}, has larger consumption of {resource}. ",
                amount(resource, used)
            ));
        }
    }
    message
}

/// Bytes in binary units, counts as they are.
fn amount(resource: &str, value: i64) -> Quantity {
    match resource {
        // Whole kibibytes are readable; the rest is noise.
        "memory" | "ephemeral-storage" if value >= 1024 => Quantity::from_bytes(value / 1024 * 1024),
        "memory" | "ephemeral-storage" => Quantity::from_bytes(value),
        _ => Quantity::from_value(value),
    }
}

/// The message for a pod that asks to start on a node under pressure.
pub(super) fn refused(pressure: Pressure) -> String {
    format!("The node had condition: [{}]. ", pressure.conditions().join(" "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::signal::{Observation, Signal};
    use super::*;

    fn candidate(spec: &Value, memory: i64, disk: i64) -> Candidate {
        Candidate {
            pod: Arc::new(crate::pod::tests::pod(spec)),
            memory,
            containers: vec![("c".into(), memory, disk)],
            ..Candidate::default()
        }
    }

    #[test]
    fn low_on_memory() {
        let threshold = Threshold {
            signal: Signal::Memory,
            amount: Amount::parse("100Mi").unwrap(),
            grace: Duration::ZERO,
            reclaim: None,
        };
        let seen = Observation {
            available: 50 << 20,
            capacity: 1 << 30,
        };
        let p = candidate(&json!({"containers": [{"name": "c"}]}), 10 << 20, 0);
        assert_eq!(
            low(&threshold, &[(Signal::Memory, seen)].into(), &p),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 10Mi, request is 0, has larger consumption of memory. "
        );
        let within = json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "20Mi"}}}]});
        let p = candidate(&within, 10 << 20, 0);
        assert!(!low(&threshold, &Observations::new(), &p).contains("Container"));
    }

    #[test]
    fn refusals() {
        let pressure = Pressure {
            memory: true,
            disk: true,
            pids: false,
        };
        assert_eq!(
            refused(pressure),
            "The node had condition: [MemoryPressure DiskPressure]. "
        );
    }
}
