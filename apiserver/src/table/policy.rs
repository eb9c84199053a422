//! Disruption budgets, leases, priority and runtime classes.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{at, int, or, shown, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static BUDGETS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::integer("Allowed Disruptions"),
        AGE,
    ],
    row: budget,
};

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |path: &str| match at(object, path) {
        Value::Null => "N/A".into(),
        value => shown(value).into(),
    };
    vec![
        meta::name(object).into(),
        bound("spec.minAvailable"),
        bound("spec.maxUnavailable"),
        int(object, "status.disruptionsAllowed").into(),
        age::of(object, now),
    ]
}

pub(super) static LEASES: Printer = Printer {
    columns: &[NAME, Column::text("Holder"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            text(object, "spec.holderIdentity").into(),
            age::of(object, now),
        ]
    },
};

pub(super) static PRIORITY_CLASSES: Printer = Printer {
    columns: &[
        NAME,
        Column::integer("Value"),
        Column::boolean("Global-Default"),
        AGE,
        Column::text("PreemptionPolicy"),
    ],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            int(object, "value").into(),
            at(object, "globalDefault").as_bool().unwrap_or(false).into(),
            age::of(object, now),
            or(text(object, "preemptionPolicy"), "PreemptLowerPriority").into(),
        ]
    },
};

pub(super) static RUNTIME_CLASSES: Printer = Printer {
    columns: &[NAME, Column::text("Handler"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            text(object, "handler").into(),
            age::of(object, now),
        ]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn cells() {
        let budget =
            json!({"metadata": {"name": "b"}, "spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}});
        check(
            "policy",
            "poddisruptionbudgets",
            &budget,
            "NAME | MIN AVAILABLE | MAX UNAVAILABLE | ALLOWED DISRUPTIONS | AGE",
            "b | 50% | N/A | 1 | <unknown>",
        );
        let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "n1"}});
        check(
            "coordination.k8s.io",
            "leases",
            &lease,
            "NAME | HOLDER | AGE",
            "l | n1 | <unknown>",
        );
        let class = json!({"metadata": {"name": "p"}, "value": 1000});
        check(
            "scheduling.k8s.io",
            "priorityclasses",
            &class,
            "NAME | VALUE | GLOBAL-DEFAULT | AGE | PREEMPTIONPOLICY",
            "p | 1000 | false | <unknown> | PreemptLowerPriority",
        );
    }
}
