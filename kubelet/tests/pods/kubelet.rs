//! A kubelet and its scripted API, whatever the runtime below: what the suites share.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use skiff_cri::Runtime;
use skiff_daemon::{Context, Shutdown};
use skiff_kubelet::{Config, Flags};

use crate::api::Api;

/// A kubelet that can be killed and started again.
pub(crate) struct Kubelet {
    pub(crate) api: Api,
    pub(crate) config: Config,
    /// What each pod's spec has unless a test says otherwise.
    base: Value,
    shutdown: Shutdown,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Kubelet {
    /// One that keeps everything below `directory` and runs nothing yet.
    pub(crate) fn new(directory: &Path, cgroup: &str, base: Value) -> Self {
        let mut config = Config {
            flags: Flags {
                hostname_override: Some("node-1".into()),
                node_ips: vec![std::net::Ipv4Addr::LOCALHOST.into()],
                root_dir: directory.join("kubelet"),
                ..Flags::default()
            },
            ..Config::default()
        };
        config.kubelet.pod_logs_dir = directory.join("logs");
        config.kubelet.cgroup_root = cgroup.to_owned();
        config.kubelet.enable_server = false;
        config.kubelet.healthz_port = 0;
        // The disk of the machine is not the test's affair.
        config.kubelet.eviction_hard.clear();
        config.kubelet.image_gc_high_threshold_percent = 100;
        Self {
            api: Api::new(),
            config,
            base,
            shutdown: Shutdown::new(),
            task: None,
        }
    }

    pub(crate) fn start_on(&mut self, runtime: Arc<dyn Runtime>) {
        self.shutdown = Shutdown::new();
        let daemon = Context {
            shutdown: self.shutdown.clone(),
            ..Context::default()
        };
        let kubelet = skiff_kubelet::run_with(self.config.clone(), self.api.client(), runtime, daemon);
        self.task = Some(tokio::spawn(async move { kubelet.await.expect("a kubelet that runs") }));
    }

    /// Ends the kubelet as SIGKILL does: nothing is tidied.
    pub(crate) async fn kill(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.ok();
        }
    }

    pub(crate) fn path(name: &str) -> String {
        format!("/api/v1/namespaces/ns/pods/{name}")
    }

    /// Creates a pod bound to this node, defaulted as an API server does.
    pub(crate) fn create(&self, name: &str, spec: &Value) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "generation": 1,
                         "labels": {"app": name}},
            "spec": self.base.clone(),
            "status": {"phase": "Pending"},
        });
        pod["spec"]["nodeName"] = "node-1".into();
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        skiff_api::defaults::apply("", "v1", "Pod", &mut pod);
        self.api.put(&Self::path(name), pod);
    }

    /// What `kubectl delete` does.
    pub(crate) fn delete(&self, name: &str, grace: i64) {
        self.api.edit(&Self::path(name), |pod| {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        });
    }

    pub(crate) async fn until_status(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let find = |api: &Api| {
            api.get(&Self::path(name))
                .map(|pod| pod["status"].clone())
                .filter(|status| holds(status))
        };
        self.api.until(what, find).await
    }

    pub(crate) async fn until_ready(&self, name: &str) -> Value {
        self.until_status(name, "Ready pod", is_ready).await
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        self.api
            .until("end of the pod", |api| {
                api.get(&Self::path(name)).is_none().then_some(())
            })
            .await;
    }

    pub(crate) async fn until_event(&self, text: &str) {
        self.api
            .until(&format!("event {text:?}"), |api| {
                api.events().contains(&text.to_owned()).then_some(())
            })
            .await;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
