//! The ways to a Service.

use crate::cluster::{Cluster, LIMIT};
use crate::wait::until;

/// Of examples/hello.yaml.
pub(crate) const NODE_PORT: u16 = 30080;

const CLIENT: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 'docker.io/library/busybox:1.36', imagePullPolicy: Never, command: [sh, -c, 'trap exit TERM; sleep 36000 & wait']}]
";

pub(crate) fn cluster_ip(cluster: &mut Cluster) -> anyhow::Result<()> {
    let address = cluster.kubectl("get service hello --output jsonpath={.spec.clusterIP}")?;
    for machine in &cluster.lab.machines {
        cluster.ask(machine, &address)?;
    }
    Ok(())
}

pub(crate) fn node_port(cluster: &mut Cluster) -> anyhow::Result<()> {
    let [master, worker] = [cluster.master(), &cluster.workers()[0]];
    cluster.ask(master, &format!("{}:{NODE_PORT}", worker.address))?;
    // No pod runs on the master: the packet goes there and back again.
    cluster.ask(worker, &format!("{}:{NODE_PORT}", master.address))?;
    Ok(())
}

pub(crate) fn dns(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(CLIENT)?;
    cluster.kubectl("wait --for=condition=Ready pod/client --timeout=150s")?;
    let address = cluster.kubectl("get service hello --output jsonpath={.spec.clusterIP}")?;
    for name in [
        "hello.default.svc.cluster.local",
        "kubernetes.default.svc.cluster.local",
    ] {
        let wanted = if name.starts_with("hello") {
            address.as_str()
        } else {
            "10.96.0.1"
        };
        let look = || cluster.kubectl(&format!("exec client -- nslookup {name}"));
        until(name, LIMIT, look, |answer| answer.contains(wanted))?;
    }
    Ok(())
}
