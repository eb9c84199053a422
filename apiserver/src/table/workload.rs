//! What keeps pods running.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, at, containers, int, labels, list, selector, text};
use super::{AGE, Column, NAME, Printer, age};

const CONTAINERS: Column = Column::wide("Containers");
const IMAGES: Column = Column::wide("Images");
const SELECTOR: Column = Column::wide("Selector");

pub(super) static DEPLOYMENTS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready"),
        Column::text("Up-to-date"),
        Column::text("Available"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: deployment,
};

/// How many replicas are ready, of how many: `2/3`.
fn ready(object: &Value) -> Value {
    let [ready, wanted] = ["status.readyReplicas", "spec.replicas"].map(|path| int(object, path));
    format!("{ready}/{wanted}").into()
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template"));
    vec![
        meta::name(object).into(),
        ready(object),
        int(object, "status.updatedReplicas").into(),
        int(object, "status.availableReplicas").into(),
        age::of(object, now),
        names,
        images,
        selector(at(object, "spec.selector")).into(),
    ]
}

const REPLICATED: &[Column] = &[
    NAME,
    Column::integer("Desired"),
    Column::integer("Current"),
    Column::integer("Ready"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) static REPLICA_SETS: Printer = Printer {
    columns: REPLICATED,
    row: |object, now| replicated(object, now, selector(at(object, "spec.selector"))),
};
pub(super) static REPLICATION_CONTROLLERS: Printer = Printer {
    columns: REPLICATED,
    row: |object, now| replicated(object, now, labels(at(object, "spec.selector"))),
};

fn replicated(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template"));
    vec![
        meta::name(object).into(),
        int(object, "spec.replicas").into(),
        int(object, "status.replicas").into(),
        int(object, "status.readyReplicas").into(),
        age::of(object, now),
        names,
        images,
        selector.into(),
    ]
}

pub(super) static STATEFUL_SETS: Printer = Printer {
    columns: &[NAME, Column::text("Ready"), AGE, CONTAINERS, IMAGES],
    row: stateful_set,
};

fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template"));
    vec![
        meta::name(object).into(),
        ready(object),
        age::of(object, now),
        names,
        images,
    ]
}

pub(super) static DAEMON_SETS: Printer = Printer {
    columns: &[
        NAME,
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::text("Node Selector"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: daemon_set,
};

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(at(object, "spec.template"));
    vec![
        meta::name(object).into(),
        int(object, "status.desiredNumberScheduled").into(),
        int(object, "status.currentNumberScheduled").into(),
        int(object, "status.numberReady").into(),
        int(object, "status.updatedNumberScheduled").into(),
        int(object, "status.numberAvailable").into(),
        labels(at(object, "spec.template.spec.nodeSelector")).into(),
        age::of(object, now),
        names,
        images,
        selector(at(object, "spec.selector")).into(),
    ]
}

pub(super) static POD_TEMPLATES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Containers"),
        Column::text("Images"),
        Column::text("Pod Labels"),
    ],
    row: |object, _now| {
        let [names, images] = containers(at(object, "template"));
        vec![
            meta::name(object).into(),
            names,
            images,
            labels(at(object, "template.metadata.labels")).into(),
        ]
    },
};

pub(super) static REVISIONS: Printer = Printer {
    columns: &[NAME, Column::text("Controller"), Column::integer("Revision"), AGE],
    row: |object, now| {
        let owner = list(object, "metadata.ownerReferences")
            .iter()
            .find(|owner| at(owner, "controller") == &Value::Bool(true))
            .map_or_else(|| NONE.to_owned(), owner_name);
        vec![
            meta::name(object).into(),
            owner.into(),
            int(object, "revision").into(),
            age::of(object, now),
        ]
    },
};

/// `statefulset.apps/web`
fn owner_name(owner: &Value) -> String {
    let (group, _) = meta::group_version(text(owner, "apiVersion"));
    let dot = if group.is_empty() { "" } else { "." };
    format!(
        "{}{dot}{group}/{}",
        text(owner, "kind").to_lowercase(),
        text(owner, "name")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    #[test]
    fn deployments() {
        let deployment = json!({
            "metadata": {"name": "web", "creationTimestamp": "2025-12-31T21:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}]}}},
            "status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
        });
        check(
            "apps",
            "deployments",
            &deployment,
            "NAME | READY | UP-TO-DATE | AVAILABLE | AGE | CONTAINERS | IMAGES | SELECTOR",
            "web | 2/3 | 3 | 2 | 3h | a,b | x:1,y:2 | app=web",
        );
        check(
            "apps",
            "replicasets",
            &deployment,
            "NAME | DESIRED | CURRENT | READY | AGE | CONTAINERS | IMAGES | SELECTOR",
            "web | 3 | 3 | 2 | 3h | a,b | x:1,y:2 | app=web",
        );
        check(
            "apps",
            "statefulsets",
            &deployment,
            "NAME | READY | AGE | CONTAINERS | IMAGES",
            "web | 2/3 | 3h | a,b | x:1,y:2",
        );
    }

    #[test]
    fn daemon_sets() {
        let set = json!({"metadata": {"name": "d", "creationTimestamp": "2025-12-31T23:59:30Z"},
            "spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "a", "image": "x"}]}}},
            "status": {"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberReady": 1}});
        check(
            "apps",
            "daemonsets",
            &set,
            "NAME | DESIRED | CURRENT | READY | UP-TO-DATE | AVAILABLE | NODE SELECTOR | AGE | CONTAINERS | IMAGES | SELECTOR",
            "d | 3 | 2 | 1 | 0 | 0 | disk=ssd | 30s | a | x | <none>",
        );
    }

    #[test]
    fn revisions() {
        let revision = json!({"metadata": {"name": "r", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "controller": true}]}, "revision": 2});
        check(
            "apps",
            "controllerrevisions",
            &revision,
            "NAME | CONTROLLER | REVISION | AGE",
            "r | statefulset.apps/db | 2 | <unknown>",
        );
    }
}
