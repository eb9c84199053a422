//! Pods bound a second on hollow nodes: `cargo run --release -p skiff-scheduler --example hollow_nodes -- [NODES] [PODS]`.
//!
//! API server, store and scheduler in this process, as in `skiff server`; the nodes are objects only. First all pods are
//! made while the scheduler runs; the time is from the first creation to the last binding seen on a watch.

use std::sync::Arc;

use futures::StreamExt as _;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_api::k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use skiff_apiserver::ApiServer;
use skiff_daemon::Context;
use skiff_pki::{CertificateAuthority, Request, ServiceAccountKey};
use tokio::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let nodes: usize = arguments.next().map_or(Ok(500), |text| text.parse())?;
    let pods: usize = arguments.next().map_or(Ok(5000), |text| text.parse())?;
    skiff_daemon::install_crypto();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(nodes, pods))
}

async fn run(nodes: usize, pods: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let context = Context::default();
    let server = start(directory.path(), &context).await?;
    let client = server.client("admin", &["system:masters"]);
    create::<ServiceAccount>(
        Api::default_namespaced(client.clone()),
        json!({"metadata": {"name": "default"}}),
    )
    .await
    .ok();
    for number in 0..nodes {
        let name = format!("n{number}");
        let resources = json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
        let metadata = json!({"name": name, "labels": {"kubernetes.io/hostname": name}});
        let node = json!({"metadata": metadata, "status": {"capacity": resources, "allocatable": resources}});
        create::<Node>(Api::all(client.clone()), node).await?;
    }
    let scheduler = server.client("system:kube-scheduler", &["system:authenticated"]);
    tokio::spawn(skiff_scheduler::run(
        skiff_scheduler::Config::default(),
        scheduler,
        context.clone(),
    ));

    let began = Instant::now();
    let bound = tokio::spawn(count_bound(client.clone(), pods));
    let makers = (0..16).map(|maker| tokio::spawn(make(client.clone(), maker, pods)));
    for made in futures::future::join_all(makers).await {
        made??;
    }
    println!("made:  {:.0} pods/s", pods as f64 / began.elapsed().as_secs_f64());
    bound.await?;
    println!(
        "bound: {:.0} pods/s on {nodes} nodes",
        pods as f64 / began.elapsed().as_secs_f64()
    );
    let metrics = context.metrics.encode();
    for line in metrics
        .lines()
        .filter(|line| line.contains("algorithm_duration_seconds_sum"))
    {
        println!("{line}");
    }
    context.shutdown.cancel();
    Ok(())
}

async fn start(directory: &std::path::Path, context: &Context) -> Result<ApiServer> {
    let authority = CertificateAuthority::generate("kubernetes")?;
    let store = skiff_store::sqlite::open(directory.join("state.db"), skiff_store::sqlite::Options::default())?;
    let request = Request::server("kube-apiserver", &["localhost"], &[]);
    let config = skiff_apiserver::Config::new(
        authority.issue(&request)?,
        authority.certificate_pem(),
        ServiceAccountKey::generate()?,
        ("192.0.2.1".parse()?, 6443),
    );
    Ok(ApiServer::start(config, Arc::new(store), context.clone()).await?)
}

async fn make(client: kube::Client, maker: usize, pods: usize) -> Result<()> {
    for number in (maker..pods).step_by(16) {
        let container =
            json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}});
        let pod = json!({"metadata": {"name": format!("p{number}")}, "spec": {"containers": [container]}});
        create::<Pod>(Api::default_namespaced(client.clone()), pod).await?;
    }
    Ok(())
}

async fn create<K>(api: Api<K>, object: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}

async fn count_bound(client: kube::Client, pods: usize) {
    let mut bound = std::collections::HashSet::new();
    let mut changes = std::pin::pin!(watcher(Api::<Pod>::all(client), watcher::Config::default()).applied_objects());
    while let Some(change) = changes.next().await {
        if let Ok(pod) = change
            && pod.spec.is_some_and(|spec| spec.node_name.is_some())
        {
            bound.insert(pod.metadata.name);
        }
        if bound.len() == pods {
            return;
        }
    }
}
