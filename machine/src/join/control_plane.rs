//! A further control plane: the same keys, the same etcd, a server of its own.
//!
//! Whoever has the authority's key needs no certificate signing request: from there on it is as `init` does it.

use super::{Joined, Plan};
use crate::api::Client;
use crate::config::{Cluster, ControlPlane, Join};
use crate::init::{self, certs, containerd, kubeconfig, runtime, start, upload_certs};
use crate::record::Role;
use crate::{Error, Machine};

/// Joins as a control plane.
pub(super) async fn join(machine: &Machine<'_>, wish: &Join, mut plan: Plan) -> Result<Joined, Error> {
    let Some(wanted) = &wish.control_plane else {
        return Err(Error::OneServer);
    };
    let cluster = cluster(&plan, wanted).await?;
    plan.node.taints = wish.node.taints.clone().unwrap_or_else(init::control_plane_taints);
    let former = plan.former.take();
    let node = &plan.node;
    let mut record = init::begin(machine, former, Role::ControlPlane, &node.name, &plan.endpoint)?;
    init::mend(machine, &wish.node.ignore)?;
    containerd::mend(machine, &plan.endpoint, &mut record).await?;
    keys(machine, &plan, &cluster, wanted).await?;

    let authority = certs::apply(machine, &cluster, node)?;
    let local = init::local_url(cluster.port, node);
    kubeconfig::apply(machine, &authority, &plan.info.server, &local, node)?;
    start::server(machine, &cluster, node).await?;
    let api = Client::from_file_at(&machine.layout.kubeconfig("super-admin"), &local).await?;
    start::wait_for_api(machine, &api, wish.timeouts.control_plane).await?;

    let found = runtime::observe(&plan.endpoint).await?;
    runtime::apply(machine, &found, &mut record)?;
    start::node(machine, plan.shared.files(machine, node, &found), node.proxy)?;
    let network = plan.shared.network != "none";
    start::wait_for_node(machine, &api, &node.name, network, wish.timeouts.kubelet).await?;
    start::mark_control_plane(machine, &api, node, &plan.endpoint).await?;
    init::complete(machine, record)?;
    Ok(Joined {
        node: node.name.clone(),
        address: node.address,
        server: plan.info.server,
        control_plane: true,
    })
}

/// The cluster, if it can have another control plane.
pub(super) async fn cluster(plan: &Plan, wanted: &ControlPlane) -> Result<Cluster, Error> {
    let mut cluster = upload_certs::cluster(&plan.api).await?;
    if cluster.etcd.is_none() {
        return Err(Error::OneServer);
    }
    if cluster.endpoint.is_none() {
        return Err(Error::NoEndpoint);
    }
    cluster.port = wanted.port;
    Ok(cluster)
}

/// The cluster's keys: those that it keeps for us, or those that somebody has copied.
async fn keys(machine: &Machine<'_>, plan: &Plan, cluster: &Cluster, wanted: &ControlPlane) -> Result<(), Error> {
    if let Some(key) = &wanted.certificate_key {
        upload_certs::download(machine, &plan.api, cluster, key).await?;
    }
    let missing = upload_certs::missing(&machine.layout, cluster);
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(|path| path.display().to_string()).collect();
        let missing = missing.join(", ");
        return Err(Error::MissingKeys { missing });
    }
    let path = machine.layout.ca_certificate();
    let pin = skiff_pki::public_key_pin(&skiff_pki::files::read(&path)?)?;
    if !plan.info.pins.contains(&pin) {
        return Err(Error::OtherAuthority {
            path,
            server: plan.info.server.clone(),
            pin: plan.info.pins.join(" or "),
        });
    }
    Ok(())
}
