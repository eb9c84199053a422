use super::*;

fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let metadata = json!({"namespace": "ns", "name": "c", "uid": "u", "annotations": annotations});
    serde_json::from_value(json!({"metadata": metadata, "spec": all})).unwrap()
}

fn volume(name: &str, spec: Value) -> Arc<PersistentVolume> {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let object = json!({"metadata": {"name": name}, "spec": all, "status": {"phase": "Available"}});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn class(provisioner: &str, mode: &str) -> StorageClass {
    serde_json::from_value(json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode}))
        .unwrap()
}

struct Scene {
    claim: PersistentVolumeClaim,
    volumes: Vec<Arc<PersistentVolume>>,
    class: Option<StorageClass>,
    default_class: Option<&'static str>,
    pods: Vec<String>,
}

impl Scene {
    fn of(claim: PersistentVolumeClaim) -> Self {
        Self {
            claim,
            volumes: Vec::new(),
            class: None,
            default_class: None,
            pods: Vec::new(),
        }
    }

    /// The plan in a word or two: what, and the event's reason or the object's name.
    fn plan(&self) -> String {
        let named = volumes::claimed_volume(&self.claim);
        let decided = plan(&Sight {
            claim: &self.claim,
            named: self
                .volumes
                .iter()
                .find(|volume| volume.name() == named)
                .map(|volume| &**volume),
            volumes: &self.volumes,
            class: self.class.as_ref(),
            default_class: self.default_class,
            waiting_pods: &self.pods,
        });
        match decided {
            Plan::Wait(None) => "wait".to_owned(),
            Plan::Wait(Some(note)) => format!("wait: {}: {}", note.reason, note.message),
            Plan::Classify(class) => format!("class {class}"),
            Plan::Provision(provisioner) => format!("ask {provisioner}"),
            Plan::Bind(volume) => format!("bind {volume}"),
            Plan::Lose(note) => format!("lose: {}", note.reason),
        }
    }
}

#[test]
fn an_unbound_claim_waits_provisions_or_binds() {
    let plain = || claim(json!({}), json!({}));
    let classed = || claim(json!({}), json!({"storageClassName": "k"}));
    let sent = || claim(json!({SELECTED_NODE: "n"}), json!({"storageClassName": "k"}));
    let free = || vec![volume("v", json!({}))];
    let of_class = || vec![volume("v", json!({"storageClassName": "k"}))];
    let none = "wait: FailedBinding: no persistent volumes available for this claim and no storage class is set";
    let cases = [
        (Scene::of(plain()), none),
        (
            Scene {
                volumes: free(),
                ..Scene::of(plain())
            },
            "bind v",
        ),
        (
            Scene {
                default_class: Some("d"),
                ..Scene::of(plain())
            },
            "class d",
        ),
        (
            Scene {
                default_class: Some("d"),
                ..Scene::of(claim(json!({}), json!({"storageClassName": ""})))
            },
            none,
        ),
        (
            Scene::of(classed()),
            "wait: ProvisioningFailed: storageclass.storage.k8s.io \"k\" not found",
        ),
        (
            Scene {
                class: Some(class("p", "Immediate")),
                ..Scene::of(classed())
            },
            "ask p",
        ),
        (
            Scene {
                class: Some(class(NO_PROVISIONER, "Immediate")),
                ..Scene::of(classed())
            },
            "wait: ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
        ),
        (
            Scene {
                class: Some(class("p", "Immediate")),
                volumes: of_class(),
                ..Scene::of(classed())
            },
            "bind v",
        ),
        (
            Scene {
                class: Some(class("p", "WaitForFirstConsumer")),
                volumes: of_class(),
                ..Scene::of(classed())
            },
            "wait: WaitForFirstConsumer: waiting for first consumer to be created before binding",
        ),
        (
            Scene {
                class: Some(class("p", "WaitForFirstConsumer")),
                pods: vec!["a".into(), "b".into()],
                ..Scene::of(classed())
            },
            "wait: WaitForPodScheduled: waiting for pods a,b to be scheduled",
        ),
        (
            Scene {
                class: Some(class("p", "WaitForFirstConsumer")),
                ..Scene::of(sent())
            },
            "ask p",
        ),
        (
            Scene {
                class: Some(class(LOCAL_PATH, "WaitForFirstConsumer")),
                ..Scene::of(sent())
            },
            "ask skiff/local-path",
        ),
        (
            Scene {
                class: Some(class(LOCAL_PATH, "Immediate")),
                ..Scene::of(classed())
            },
            "wait: ProvisioningFailed: skiff/local-path provisions volumes on the node of their first pod: class \"k\" needs volumeBindingMode WaitForFirstConsumer",
        ),
    ];
    for (scene, expected) in cases {
        assert_eq!(scene.plan(), expected);
    }
}

#[test]
fn a_claim_that_names_a_volume_gets_that_one_or_none() {
    let named = || claim(json!({}), json!({"volumeName": "v"}));
    let other = json!({"claimRef": {"namespace": "ns", "name": "other", "uid": "o"}});
    let cases = [
        (vec![], "wait"),
        (vec![volume("w", json!({}))], "wait"),
        (vec![volume("v", json!({}))], "bind v"),
        (
            vec![volume("v", json!({"claimRef": {"namespace": "ns", "name": "c"}}))],
            "bind v",
        ),
        (
            vec![volume("v", other)],
            "wait: FailedBinding: volume \"v\" already bound to a different claim.",
        ),
        (
            vec![volume("v", json!({"capacity": {"storage": "1Mi"}}))],
            "wait: VolumeMismatch: Cannot bind to requested volume \"v\": requested PV is too small",
        ),
    ];
    for (volumes, expected) in cases {
        assert_eq!(
            Scene {
                volumes,
                ..Scene::of(named())
            }
            .plan(),
            expected
        );
    }
}

#[test]
fn a_bound_claim_can_lose_its_volume() {
    let bound = |volume: &str| claim(json!({volumes::BIND_COMPLETED: "yes"}), json!({"volumeName": volume}));
    let theirs = json!({"claimRef": {"namespace": "ns", "name": "c", "uid": "former"}});
    let cases = [
        (bound(""), vec![], "lose: ClaimLost"),
        (bound("v"), vec![], "lose: ClaimLost"),
        (bound("v"), vec![volume("v", theirs)], "lose: ClaimMisbound"),
        (bound("v"), vec![volume("v", json!({}))], "bind v"),
    ];
    for (claim, volumes, expected) in cases {
        assert_eq!(
            Scene {
                volumes,
                ..Scene::of(claim)
            }
            .plan(),
            expected
        );
    }
}
