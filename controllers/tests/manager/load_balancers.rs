//! Services of type LoadBalancer get the addresses of nodes.

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
