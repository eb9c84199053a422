//! Cluster DNS on a real API server and a real store, as `system:skiff-dns` with nothing but its role; in a network
//! namespace with addresses for two servers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use skiff_api::config::ServerConfiguration;
use skiff_api::k8s_openapi::api::coordination::v1::Lease;
use skiff_api::k8s_openapi::api::core::v1::Service;
use skiff_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_apiserver::ApiServer;
use skiff_daemon::{Context, Shutdown};
use skiff_net::netlink::Netlink;
use skiff_net::netns::Namespace;
use skiff_pki::{CertificateAuthority, Request, ServiceAccountKey};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);
const FIRST: [u8; 4] = [10, 0, 0, 1];
const SECOND: [u8; 4] = [10, 0, 0, 2];

struct Cluster {
    server: ApiServer,
    client: kube::Client,
    context: Context,
    _directory: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}

/// A running DNS server.
struct Dns {
    address: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

/// Runs a test in a network namespace of its own.
fn isolated(test: impl AsyncFnOnce(Cluster) + Send) {
    let namespace = Namespace::anonymous().unwrap();
    let mut links = Netlink::open_in(&namespace).unwrap();
    let loopback = links.need_link("lo").unwrap().index;
    for address in [FIRST, SECOND] {
        let address = ipnet::IpNet::new_assert(address.into(), 32);
        links.add_address(loopback, address).unwrap();
    }
    links.set_up(loopback).unwrap();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test(Cluster::start().await).await });
    };
    namespace.run(run).unwrap();
}

impl Cluster {
    async fn start() -> Self {
        skiff_daemon::install_crypto();
        skiff_daemon::LogOptions::default().init();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let database = directory.path().join("state.db");
        let store = skiff_store::sqlite::open(database, skiff_store::sqlite::Options::default()).unwrap();
        let identity = authority.issue(&Request::server("kube-apiserver", &["localhost"], &[]));
        let config = skiff_apiserver::Config::new(
            identity.unwrap(),
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            (FIRST.into(), 6443),
        );
        let context = Context::default();
        let server = ApiServer::start(config, Arc::new(store), context.clone())
            .await
            .unwrap();
        Self {
            client: server.client("admin", &["system:masters"]),
            server,
            context,
            _directory: directory,
        }
    }

    /// Starts a DNS server at an address, whose Lease lasts for `lease`.
    fn dns(&self, ip: [u8; 4], lease: Duration) -> Dns {
        let mut server = ServerConfiguration::new("/data".into(), "/pki".into(), ip.into());
        server.dns.resolv_conf = "/nonexistent".into();
        let config = skiff_dns::Config {
            lease,
            ..skiff_dns::Config::new(&server).unwrap()
        };
        let address = config.address;
        let client = self.server.client("system:skiff-dns", &["system:authenticated"]);
        let shutdown = self.context.shutdown.child_token();
        let context = Context {
            shutdown: shutdown.clone(),
            ..Context::default()
        };
        let task = tokio::spawn(async move { skiff_dns::run(config, client, context).await.unwrap() });
        Dns {
            address,
            shutdown,
            task,
        }
    }

    async fn create<K: kube::Resource<DynamicType = ()>>(&self, namespace: &str, mut object: Value) {
        let resource = kube::core::ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        let object = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    /// The names of the slices that lead to DNS servers.
    async fn slices(&self) -> Vec<String> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), "kube-system");
        let list = api.list(&kube::api::ListParams::default()).await.unwrap();
        list.items.into_iter().filter_map(|slice| slice.metadata.name).collect()
    }

    async fn until_slices(&self, wanted: &[&str]) {
        let begin = Instant::now();
        loop {
            let seen = self.slices().await;
            if seen == wanted {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{seen:?} instead of {wanted:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Option<Message> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message
        .queries
        .push(Query::query(Name::from_ascii(name).unwrap(), kind));
    let socket = UdpSocket::bind(("0.0.0.0", 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&message.to_vec().unwrap()).await.ok()?;
    let mut buffer = vec![0; 2048];
    let size = timeout(Duration::from_secs(1), socket.recv(&mut buffer))
        .await
        .ok()?
        .ok()?;
    Some(Message::from_vec(&buffer[..size]).unwrap())
}

/// Asks until there is an answer with these addresses.
async fn until_says(server: SocketAddr, name: &str, wanted: &[&str]) {
    let begin = Instant::now();
    loop {
        let seen = ask(server, name, RecordType::A).await.map(|answer| {
            let data = answer.answers.iter().map(|record| record.data.to_string());
            let mut data: Vec<String> = data.collect();
            data.sort();
            data
        });
        if seen.as_ref().is_some_and(|seen| seen == wanted) {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "{name}: {seen:?} instead of {wanted:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn what_the_api_holds_can_be_asked_for_at_once() {
    isolated(async |cluster| {
        let dns = cluster.dns(FIRST, LIMIT);
        until_says(dns.address, "kubernetes.default.svc.cluster.local.", &["10.96.0.1"]).await;
        until_says(dns.address, "kube-dns.kube-system.svc.cluster.local.", &["10.96.0.10"]).await;
        let service = json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
        cluster.create::<Service>("default", service).await;
        let slice = json!({
            "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "ports": [{"port": 1}],
            "endpoints": [{"addresses": ["10.244.0.2"], "hostname": "db-0"}, {"addresses": ["10.244.0.3"]}],
        });
        cluster.create::<EndpointSlice>("default", slice).await;
        until_says(
            dns.address,
            "db.default.svc.cluster.local.",
            &["10.244.0.2", "10.244.0.3"],
        )
        .await;
        until_says(dns.address, "db-0.db.default.svc.cluster.local.", &["10.244.0.2"]).await;
        let services = Api::<Service>::default_namespaced(cluster.client.clone());
        services.delete("db", &DeleteParams::default()).await.unwrap();
        until_says(dns.address, "db.default.svc.cluster.local.", &[]).await;
        let gone = ask(dns.address, "db.default.svc.cluster.local.", RecordType::A)
            .await
            .unwrap();
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    });
}

#[test]
fn every_server_is_published_for_as_long_as_it_runs() {
    isolated(async |cluster| {
        let first = cluster.dns(FIRST, Duration::from_secs(1));
        let second = cluster.dns(SECOND, Duration::from_secs(1));
        cluster.until_slices(&["kube-dns-10-0-0-1", "kube-dns-10-0-0-2"]).await;
        until_says(
            second.address,
            "kube-dns.kube-system.svc.cluster.local.",
            &["10.96.0.10"],
        )
        .await;
        // One that is asked to stop takes its own away.
        second.shutdown.cancel();
        second.task.await.unwrap();
        assert_eq!(cluster.slices().await, ["kube-dns-10-0-0-1"]);
        // Of one that is killed, the other does.
        let second = cluster.dns(SECOND, Duration::from_secs(1));
        cluster.until_slices(&["kube-dns-10-0-0-1", "kube-dns-10-0-0-2"]).await;
        second.task.abort();
        cluster.until_slices(&["kube-dns-10-0-0-1"]).await;
        let leases = Api::<Lease>::namespaced(cluster.client.clone(), "kube-system");
        assert!(leases.get_opt("kube-dns-10-0-0-2").await.unwrap().is_none());
        // What somebody deletes is put back.
        let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), "kube-system");
        slices
            .delete("kube-dns-10-0-0-1", &DeleteParams::default())
            .await
            .unwrap();
        cluster.until_slices(&["kube-dns-10-0-0-1"]).await;
        drop(first);
    });
}

#[test]
fn a_dns_of_the_users_own_is_left_alone() {
    isolated(async |cluster| {
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        let spec = json!({"clusterIP": "10.96.0.10", "selector": {"k8s-app": "kube-dns"}, "ports": ports});
        cluster
            .create::<Service>("kube-system", json!({"metadata": {"name": "kube-dns"}, "spec": spec}))
            .await;
        let dns = cluster.dns(FIRST, Duration::from_millis(400));
        until_says(dns.address, "kube-dns.kube-system.svc.cluster.local.", &["10.96.0.10"]).await;
        sleep_for_two_syncs().await;
        assert!(cluster.slices().await.is_empty());
        // When it goes, ours takes its place.
        let services = Api::<Service>::namespaced(cluster.client.clone(), "kube-system");
        services.delete("kube-dns", &DeleteParams::default()).await.unwrap();
        cluster.until_slices(&["kube-dns-10-0-0-1"]).await;
    });
}

/// That nothing happens cannot be awaited: it is given the time in which it would.
async fn sleep_for_two_syncs() {
    sleep(Duration::from_millis(250)).await;
}

#[test]
fn a_taken_address_and_a_taken_port_are_waited_for() {
    isolated(async |cluster| {
        let taken =
            json!({"metadata": {"name": "squatter"}, "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 1}]}});
        cluster.create::<Service>("default", taken).await;
        let port = std::net::TcpListener::bind((IpAddr::from(FIRST), 53)).unwrap();
        let dns = cluster.dns(FIRST, Duration::from_millis(400));
        assert!(
            ask(dns.address, "kubernetes.default.svc.cluster.local.", RecordType::A)
                .await
                .is_none()
        );
        drop(port);
        until_says(dns.address, "squatter.default.svc.cluster.local.", &["10.96.0.10"]).await;
        let services = Api::<Service>::default_namespaced(cluster.client.clone());
        services.delete("squatter", &DeleteParams::default()).await.unwrap();
        cluster.until_slices(&["kube-dns-10-0-0-1"]).await;
        until_says(dns.address, "kube-dns.kube-system.svc.cluster.local.", &["10.96.0.10"]).await;
    });
}
