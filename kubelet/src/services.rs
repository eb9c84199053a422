//! Services as environment variables: `REDIS_SERVICE_HOST`, `REDIS_PORT_6379_TCP_ADDR` ...
//!
//! One task watches all Services and keeps of each only what the variables need.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::RwLock;
use skiff_api::k8s_openapi::api::core::v1::Service;
use skiff_daemon::Shutdown;
use tokio::sync::watch;

use crate::watching::{Failures, patiently};

/// How long a pod's start waits for the first list of Services.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often they are asked for in the end while they are refused.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    ip: String,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq)]
struct Port {
    name: Option<String>,
    port: i32,
    protocol: String,
}

type Table = BTreeMap<(String, String), Entry>;

/// All Services that have an address.
#[derive(Debug)]
pub(crate) struct Services {
    table: RwLock<Table>,
    synced: watch::Sender<bool>,
}

impl Services {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::default(),
            synced: watch::Sender::new(false),
        })
    }

    /// Watches Services until shutdown.
    pub(crate) async fn run(self: Arc<Self>, client: kube::Client, shutdown: Shutdown) {
        let api: Api<Service> = Api::all(client);
        let events = watcher(api, watcher::Config::default().page_size(500));
        let mut stream = patiently(Failures::of("services", LONGEST), events);
        let mut fresh = Table::new();
        loop {
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                Some(Event::Init) => fresh = Table::new(),
                Some(Event::InitApply(service)) => apply(&mut fresh, &service),
                Some(Event::InitDone) => {
                    *self.table.write() = std::mem::take(&mut fresh);
                    self.synced.send_replace(true);
                }
                Some(Event::Apply(service)) => apply(&mut self.table.write(), &service),
                Some(Event::Delete(service)) => {
                    self.table.write().remove(&key(&service));
                }
                None => return,
            }
        }
    }

    /// Whether Services have been listed; waits a moment for that.
    pub(crate) async fn listed(&self) -> bool {
        let mut synced = self.synced.subscribe();
        let listed = tokio::time::timeout(PATIENCE, synced.wait_for(|synced| *synced)).await;
        matches!(listed, Ok(Ok(_)))
    }

    /// Variables for a pod of `namespace`: the API server's Service, and with `links` those of the namespace.
    pub(crate) fn environment(&self, namespace: &str, links: bool) -> Vec<(String, String)> {
        let table = self.table.read();
        let mut chosen: BTreeMap<&str, &Entry> = BTreeMap::new();
        if let Some(entry) = table.get(&("default".to_owned(), "kubernetes".to_owned())) {
            chosen.insert("kubernetes", entry);
        }
        if links {
            let first = (namespace.to_owned(), String::new());
            for ((_, name), entry) in table.range(first..).take_while(|((ns, _), _)| ns == namespace) {
                chosen.insert(name, entry);
            }
        }
        chosen
            .into_iter()
            .flat_map(|(name, entry)| variables(name, entry))
            .collect()
    }
}

fn key(service: &Service) -> (String, String) {
    (
        service.metadata.namespace.clone().unwrap_or_default(),
        service.metadata.name.clone().unwrap_or_default(),
    )
}

fn apply(table: &mut Table, service: &Service) {
    let spec = service.spec.as_ref();
    let ip = spec
        .and_then(|spec| spec.cluster_ip.clone())
        .filter(|ip| !ip.is_empty() && ip != "None");
    let Some(ip) = ip else {
        table.remove(&key(service));
        return;
    };
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let ports = ports.iter().map(|port| Port {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
    });
    table.insert(
        key(service),
        Entry {
            ip,
            ports: ports.collect(),
        },
    );
}

fn variables(name: &str, entry: &Entry) -> Vec<(String, String)> {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let host = if entry.ip.contains(':') {
        format!("[{}]", entry.ip)
    } else {
        entry.ip.clone()
    };
    let Some(first) = entry.ports.first() else {
        return Vec::new();
    };
    let mut list = vec![
        (format!("{prefix}_SERVICE_HOST"), entry.ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &entry.ports {
        if let Some(name) = &port.name {
            list.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
        }
    }
    for (index, port) in entry.ports.iter().enumerate() {
        let url = format!("{}://{host}:{}", port.protocol.to_lowercase(), port.port);
        if index == 0 {
            list.push((format!("{prefix}_PORT"), url.clone()));
        }
        let one = format!("{prefix}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        list.push((one.clone(), url));
        list.push((format!("{one}_PROTO"), port.protocol.to_lowercase()));
        list.push((format!("{one}_PORT"), port.port.to_string()));
        list.push((format!("{one}_ADDR"), entry.ip.clone()));
    }
    list
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_of_a_namespace_and_of_the_api_server() {
        let services = Services::new();
        for (namespace, name, ip) in [
            ("default", "kubernetes", "10.96.0.1"),
            ("ns", "my-db", "10.96.0.7"),
            ("ns", "headless", "None"),
        ] {
            let service = serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "main", "port": 5432, "protocol": "TCP"}]},
            }))
            .unwrap();
            apply(&mut services.table.write(), &service);
        }
        services.synced.send_replace(true);
        let all = services.environment("ns", true);
        let get = |key: &str| {
            all.iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(get("MY_DB_SERVICE_HOST"), Some("10.96.0.7"));
        assert_eq!(get("MY_DB_SERVICE_PORT_MAIN"), Some("5432"));
        assert_eq!(get("MY_DB_PORT_5432_TCP"), Some("tcp://10.96.0.7:5432"));
        assert_eq!(get("MY_DB_PORT_5432_TCP_ADDR"), Some("10.96.0.7"));
        assert_eq!(get("KUBERNETES_SERVICE_HOST"), Some("10.96.0.1"));
        assert_eq!(get("HEADLESS_SERVICE_HOST"), None);
        let few = services.environment("ns", false);
        assert!(few.iter().all(|(name, _)| name.starts_with("KUBERNETES")));
    }
}
