//! Services of type LoadBalancer get the addresses of nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, text};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

async fn create(cluster: &Cluster, name: &str, port: u16, extra: Value) {
    let mut spec =
        json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": port, "targetPort": 8080}]});
    crate::cluster::merge(&mut spec, extra);
    let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    cluster.post(SERVICES, body).await;
}

async fn with_nodes(count: usize) -> Cluster {
    let cluster = Cluster::start().await;
    cluster.play_nodes(count).await;
    for number in 0..count {
        let address = json!({"type": "InternalIP", "address": format!("192.0.2.{}", number + 10)});
        let path = format!("/api/v1/nodes/node-{number}/status");
        cluster.patch(&path, json!({"status": {"addresses": [address]}})).await;
    }
    cluster
}

async fn service(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&format!("{SERVICES}/{name}")).await
}

async fn addresses(cluster: &Cluster, name: &str) -> Vec<String> {
    let service = service(cluster, name).await;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
    let ingress = ingress.unwrap_or_default();
    assert!(ingress.iter().all(|ingress| ingress["ipMode"] == "VIP"), "{ingress:?}");
    ingress.iter().map(|ingress| text(&ingress["ip"]).to_owned()).collect()
}

async fn has(cluster: &Cluster, name: &str, wanted: &[&str]) {
    let what = format!("{name} has {wanted:?}");
    eventually(&what, async || addresses(cluster, name).await == wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_the_addresses_of_the_nodes_while_they_can_answer() {
    let cluster = with_nodes(2).await;
    create(&cluster, "web", 80, json!({})).await;
    has(&cluster, "web", &["192.0.2.10", "192.0.2.11"]).await;
    assert_eq!(
        service(&cluster, "web").await["metadata"]["finalizers"],
        json!([FINALIZER])
    );
    eventually("both steps are told", async || {
        let events = cluster.events("Service", "web").await;
        ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]
            .iter()
            .all(|reason| events.iter().any(|event| event.contains(reason)))
    })
    .await;

    cluster.set_node_ready(0, "Unknown").await;
    has(&cluster, "web", &["192.0.2.11"]).await;
    cluster.set_node_ready(0, "True").await;
    has(&cluster, "web", &["192.0.2.10", "192.0.2.11"]).await;
    let excluded = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}});
    cluster.patch("/api/v1/nodes/node-1", excluded).await;
    has(&cluster, "web", &["192.0.2.10"]).await;

    cluster.set_node_ready(0, "Unknown").await;
    has(&cluster, "web", &[]).await;
    eventually("that nobody answers is told", async || {
        let events = cluster.events("Service", "web").await;
        events.iter().any(|event| event.contains("UnAvailableLoadBalancer"))
    })
    .await;
    cluster.set_node_ready(0, "True").await;
    has(&cluster, "web", &["192.0.2.10"]).await;

    // It stops being a load balancer: nothing is left of it.
    cluster
        .patch(&format!("{SERVICES}/web"), json!({"spec": {"type": "ClusterIP"}}))
        .await;
    has(&cluster, "web", &[]).await;
    eventually("the finalizer goes", async || {
        service(&cluster, "web").await["metadata"]["finalizers"].is_null()
    })
    .await;
    cluster
        .patch(&format!("{SERVICES}/web"), json!({"spec": {"type": "LoadBalancer"}}))
        .await;
    has(&cluster, "web", &["192.0.2.10"]).await;
    cluster.delete(&format!("{SERVICES}/web"), "Background").await;
    eventually("the Service goes", async || service(&cluster, "web").await.is_null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_local_policy_the_nodes_of_its_endpoints_answer() {
    let cluster = with_nodes(3).await;
    create(&cluster, "web", 80, json!({"externalTrafficPolicy": "Local"})).await;
    eventually("it is taken up", async || {
        !service(&cluster, "web").await["metadata"]["finalizers"].is_null()
    })
    .await;
    assert!(addresses(&cluster, "web").await.is_empty());
    cluster.create_deployment("web", 1, json!({})).await;
    eventually("the pod runs", async || {
        let pods = cluster.pods("web").await;
        pods.first().is_some_and(|pod| !pod["status"]["podIP"].is_null())
    })
    .await;
    let pod = cluster.pods("web").await.remove(0);
    let number: usize = text(&pod["spec"]["nodeName"])
        .trim_start_matches("node-")
        .parse()
        .unwrap();
    has(&cluster, "web", &[&format!("192.0.2.{}", number + 10)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_given_to_one_service_until_it_is_free() {
    let cluster = with_nodes(1).await;
    create(&cluster, "first", 80, json!({})).await;
    has(&cluster, "first", &["192.0.2.10"]).await;
    create(&cluster, "second", 80, json!({})).await;
    create(&cluster, "other", 81, json!({})).await;
    create(
        &cluster,
        "foreign",
        82,
        json!({"loadBalancerClass": "example.com/other"}),
    )
    .await;
    has(&cluster, "other", &["192.0.2.10"]).await;
    eventually("the second is told why", async || {
        let events = cluster.events("Service", "second").await;
        events.iter().any(|event| event.contains("SyncLoadBalancerFailed"))
    })
    .await;
    assert!(addresses(&cluster, "second").await.is_empty());
    cluster.delete(&format!("{SERVICES}/first"), "Background").await;
    has(&cluster, "second", &["192.0.2.10"]).await;
    let foreign = service(&cluster, "foreign").await;
    assert!(foreign["metadata"]["finalizers"].is_null() && foreign["status"]["loadBalancer"]["ingress"].is_null());
}

/// Ports that a patch gives to a Service.
async fn set_ports(cluster: &Cluster, name: &str, ports: &[u16]) {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port}))
        .collect();
    cluster
        .patch(&format!("{SERVICES}/{name}"), json!({"spec": {"ports": ports}}))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_asks_for_anothers_port_does_not_get_it() {
    let cluster = with_nodes(1).await;
    create(&cluster, "first", 80, json!({})).await;
    has(&cluster, "first", &["192.0.2.10"]).await;
    create(&cluster, "second", 9000, json!({})).await;
    has(&cluster, "second", &["192.0.2.10"]).await;
    create(&cluster, "third", 80, json!({})).await;
    set_ports(&cluster, "first", &[80, 9000]).await;
    has(&cluster, "first", &[]).await;
    has(&cluster, "third", &["192.0.2.10"]).await;
    assert_eq!(addresses(&cluster, "second").await, ["192.0.2.10"]);
    cluster.delete(&format!("{SERVICES}/second"), "Background").await;
    cluster.delete(&format!("{SERVICES}/third"), "Background").await;
    has(&cluster, "first", &["192.0.2.10"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_loses_one_port_gives_back_all() {
    let cluster = with_nodes(1).await;
    create(&cluster, "first", 80, json!({})).await;
    set_ports(&cluster, "first", &[80, 443]).await;
    has(&cluster, "first", &["192.0.2.10"]).await;
    create(&cluster, "second", 80, json!({})).await;
    eventually("the second is told why", async || {
        let events = cluster.events("Service", "second").await;
        events.iter().any(|event| event.contains("SyncLoadBalancerFailed"))
    })
    .await;
    set_ports(&cluster, "first", &[80, 30_080]).await;
    has(&cluster, "first", &[]).await;
    has(&cluster, "second", &["192.0.2.10"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_the_cluster_takes_are_taken_back() {
    let cluster = with_nodes(1).await;
    create(&cluster, "first", 81, json!({})).await;
    create(&cluster, "second", 82, json!({})).await;
    has(&cluster, "first", &["192.0.2.10"]).await;
    has(&cluster, "second", &["192.0.2.10"]).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "more", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": [], "ports": [{"name": "https", "port": 81}]});
    cluster.post(slices, slice).await;
    has(&cluster, "first", &[]).await;
    cluster.delete(&format!("{slices}/more"), "Background").await;
    has(&cluster, "first", &["192.0.2.10"]).await;
    let kubelet = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 82}}}});
    cluster.patch("/api/v1/nodes/node-0/status", kubelet).await;
    has(&cluster, "second", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_leaves_others_finalizers_alone() {
    let mut cluster = with_nodes(1).await;
    create(&cluster, "web", 80, json!({})).await;
    has(&cluster, "web", &["192.0.2.10"]).await;
    let (client, once) = (cluster.client.clone(), Arc::new(AtomicBool::new(false)));
    let path = format!("{SERVICES}/web");
    let status = format!("{path}/status");
    let finalizers = json!({"metadata": {"finalizers": [FINALIZER, "example.com/hold"]}});
    let add = finalizers.to_string().into_bytes();
    // Somebody adds theirs after the decision to clean up.
    cluster.restart_manager_behind(move |method, at| {
        let first = method == "PATCH" && at == status && !once.swap(true, Ordering::SeqCst);
        let request = http::Request::patch(&*path)
            .header("content-type", "application/merge-patch+json")
            .body(add.clone())
            .unwrap();
        let client = client.clone();
        async move {
            if first {
                client.request::<Value>(request).await.unwrap();
            }
            None
        }
    });
    cluster
        .patch(&format!("{SERVICES}/web"), json!({"spec": {"type": "ClusterIP"}}))
        .await;
    eventually("ours goes", async || {
        let finalizers = service(&cluster, "web").await["metadata"]["finalizers"].clone();
        finalizers.as_array().is_none_or(|all| !all.contains(&json!(FINALIZER)))
    })
    .await;
    assert_eq!(
        service(&cluster, "web").await["metadata"]["finalizers"],
        json!(["example.com/hold"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_ingress_controllers_and_node_ports_are_not_given() {
    let cluster = with_nodes(2).await;
    let class = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": "skiff", "annotations": {"listens.ingress.skiff/192.0.2.10": "192.0.2.10:80,192.0.2.10:443"}},
        "spec": {"controller": "skiff/ingress"}});
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    cluster.post(classes, class).await;
    create(&cluster, "web", 80, json!({})).await;
    create(&cluster, "other", 81, json!({})).await;
    create(&cluster, "high", 30_080, json!({})).await;
    has(&cluster, "web", &["192.0.2.11"]).await;
    has(&cluster, "other", &["192.0.2.10", "192.0.2.11"]).await;
    let told = async |service: &str, wanted: &str| {
        eventually(wanted, async || {
            let events = cluster.events("Service", service).await;
            events
                .iter()
                .any(|event| event.contains("SyncLoadBalancerFailed") && event.contains(wanted))
        })
        .await;
    };
    told(
        "web",
        "port 80/TCP of 192.0.2.10 belongs to the ingress controller of IngressClass skiff",
    )
    .await;
    told("high", "port 30080/TCP lies in the range of node ports, 30000-32767").await;
    assert!(addresses(&cluster, "high").await.is_empty());

    // The only other node goes: nothing is left.
    cluster.set_node_ready(1, "Unknown").await;
    has(&cluster, "web", &[]).await;
    // The controller gives its ports up.
    let freed = json!({"metadata": {"annotations": {"listens.ingress.skiff/192.0.2.10": null}}});
    cluster.patch(&format!("{classes}/skiff"), freed).await;
    has(&cluster, "web", &["192.0.2.10"]).await;
}
