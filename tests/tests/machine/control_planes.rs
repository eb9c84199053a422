//! Two control planes on etcd: the second joins with the keys that the first keeps in the cluster, and goes on alone.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use skiff_api::config::EtcdConfiguration;
use skiff_machine::CertificateKey;
use skiff_machine::config::InitFlags;
use skiff_machine::init::upload_certs;
use skiff_tests::machine::{Beside, Machines, TestMachine};
use skiff_tests::wait::until;
use skiff_tests::{binary, build_images};

use super::member::Member;
use super::{ailments, refusal, told};

const LIMIT: Duration = Duration::from_secs(40);
/// The cluster's address: that of a load balancer, or, as here, one that moves between the machines.
const SHARED: &str = "172.30.0.100";
/// Short, so that nobody waits long for the end of a killed server's Leases.
const ELECTION: [&str; 3] = [
    "--leader-elect-lease-duration=4s",
    "--leader-elect-renew-deadline=3s",
    "--leader-elect-retry-period=1s",
];

async fn etcd(near: &TestMachine) -> anyhow::Result<(Beside, String)> {
    let member = Member::new(near.node.directory(), "default").at(TestMachine::lan_address());
    let etcd = near.beside(&mut member.command(&[member.introduction()]))?;
    let look = async || near.reaches(member.clients());
    until("etcd listens", LIMIT, look, |reached| *reached).await?;
    Ok((etcd, member.url()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_goes_on_when_the_first_is_gone() -> anyhow::Result<()> {
    let mut machines = Machines::start(2).await?;
    for machine in &mut machines.all {
        machine.services.server_arguments = ELECTION.to_vec();
    }
    let (first, second) = (&machines.all[0], &machines.all[1]);
    build_images(&binary()?, &second.layout.images())?;
    let (_etcd, url) = etcd(first).await?;
    let shared: IpAddr = SHARED.parse()?;
    first.share_address(shared, true)?;

    let flags = InitFlags {
        etcd: Some(EtcdConfiguration {
            endpoints: vec![url],
            ..EtcdConfiguration::default()
        }),
        endpoint: Some(SHARED.to_owned()),
        upload_certs: true,
        ..InitFlags::default()
    };
    let done = told(first.init(flags)?, first)?;
    assert!(
        !done.join_command.contains("--certificate-key"),
        "{}",
        done.join_command
    );
    let line = done.control_plane_join_command.context("no line for control planes")?;
    assert!(line.contains("skiff join 172.30.0.100:6443"), "{line}");
    keys_go_with_their_token(first)?;

    let without = refusal(second.join(&line)?)?;
    assert!(
        without.contains("skiff init phase upload-certs --upload-certs"),
        "{without}"
    );
    let key = first.run(async |machine| upload_certs::again(machine, None).await)?;
    let key = told(key, first)?;
    let wrong = refusal(second.join_with(&line, |flags| flags.certificate_key = CertificateKey::generate().ok())?)?;
    assert!(wrong.contains("do not open with this --certificate-key"), "{wrong}");
    // It went on until the keys, and goes on from there.
    let joined = second.join_with(&line, |flags| flags.certificate_key = Some(key.clone()))?;
    let joined = told(joined, second).with_context(|| first.report())?;
    assert!(joined.control_plane && joined.server == "https://172.30.0.100:6443");
    for name in ["ca.key", "sa.key", "front-proxy-ca.key"] {
        let read = |machine: &TestMachine| std::fs::read(machine.layout.pki().join(name));
        assert_eq!(read(first)?, read(second)?, "{name}");
    }
    let marked = [
        "get",
        "nodes",
        "-l",
        "node-role.kubernetes.io/control-plane",
        "-o",
        "name",
    ];
    assert_eq!(second.kubectl(&marked)?.lines().count(), 2);
    assert_eq!(ailments(second)?, []);

    first.switch_off()?;
    first.share_address(shared, false)?;
    second.share_address(shared, true)?;
    goes_on(second).await
}

/// The Secret is its token's: when that ends, after two hours, it goes.
fn keys_go_with_their_token(first: &TestMachine) -> anyhow::Result<()> {
    let secret = ["get", "secret", "kubeadm-certs", "-n", "kube-system", "-o"];
    let owner = first.kubectl(&[&secret[..], &["jsonpath={.metadata.ownerReferences[0].name}"]].concat())?;
    let key = std::fs::read_to_string(first.layout.pki().join("ca.key"))?;
    let kept = first.kubectl(&[&secret[..], &["jsonpath={.data['ca\\.key']}"]].concat())?;
    // 12 bytes of nonce and 16 of tag, in base64.
    assert_eq!(kept.len(), (key.len() + 28).div_ceil(3) * 4);
    first.kubectl(&["delete", "secret", &owner, "-n", "kube-system"])?;
    let gone = [
        "wait",
        "--for=delete",
        "secret/kubeadm-certs",
        "-n",
        "kube-system",
        "--timeout=30s",
    ];
    first.kubectl(&gone).map(drop)
}

/// `kubectl` and controllers, scheduler and kubelet.
async fn goes_on(second: &TestMachine) -> anyhow::Result<()> {
    let ready = async || Ok(second.kubectl(&["get", "--raw", "/readyz"]).unwrap_or_default());
    until("the cluster answers at its address", LIMIT, ready, |text| text == "ok").await?;
    let name = &second.node.name;
    second.kubectl(&["taint", "nodes", name, "node-role.kubernetes.io/control-plane-"])?;
    second.kubectl(&["create", "deployment", "web", "--image=skiff.local/hello:1"])?;
    let status = second.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    status.with_context(|| second.report())?;
    let place = second.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    assert_eq!(&place, name);
    Ok(())
}
