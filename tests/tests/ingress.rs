//! From outside to pods through Ingresses: hosts, paths, TLS, upgrades, rolling updates, a broken Secret, a crash.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_pki::{CertificateAuthority, Request};
use skiff_tests::traffic::{Traffic, get_in};
use skiff_tests::wait::until;
use skiff_tests::{Fixture, Kubectl, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const MANIFEST: &str = include_str!("ingress/manifest.yaml");

/// `curl` from the LAN, where all names lead to the first node: the status code and the body, or curl's own complaint.
fn curl(fixture: &Fixture, arguments: &[&str]) -> anyhow::Result<String> {
    let address = fixture.cluster.node("node-1")?.address;
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
    ]);
    command.args(["--connect-to", &format!("::{address}:")]);
    command.args(arguments);
    let output = fixture.cluster.lan()?.run(|| command.output())?.context("run curl")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn make_secret(kubectl: &Kubectl, directory: &Path, host: &str) -> anyhow::Result<String> {
    let authority = CertificateAuthority::generate("test")?;
    let identity = authority.issue(&Request::server(host, &[host], &[]))?;
    identity.save(directory, host)?;
    let path = |ending: &str| directory.join(format!("{host}.{ending}")).display().to_string();
    std::fs::write(path("ca"), authority.certificate_pem())?;
    let (certificate, key) = (format!("--cert={}", path("crt")), format!("--key={}", path("key")));
    kubectl.run(&["create", "secret", "tls", host, &certificate, &key])?;
    Ok(path("ca"))
}

async fn answers(fixture: &Fixture, arguments: &[&str], wanted: &str) -> anyhow::Result<()> {
    let what = format!("curl {} tells {wanted:?}", arguments.join(" "));
    until(
        &what,
        LIMIT,
        async || curl(fixture, arguments),
        |text| text.contains(wanted),
    )
    .await
    .map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn ingresses_lead_from_outside_to_pods() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let kubectl = &fixture.kubectl;
        let directory = tempfile::tempdir()?;
        let authority = make_secret(kubectl, directory.path(), "secure.test")?;
        kubectl.apply(MANIFEST)?;
        for name in ["first", "second"] {
            kubectl.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"])?;
        }

        // Host and path.
        answers(fixture, &["http://plain.test/"], "version 1\n\n200").await?;
        answers(fixture, &["http://plain.test/second/index.html"], "\n404").await?;
        answers(fixture, &["http://any.wild.test/"], "version 2\n\n200").await?;
        assert!(curl(fixture, &["http://plain.test/"])?.contains("hello from first-"));
        assert!(curl(fixture, &["http://any.wild.test/"])?.contains("hello from second-"));

        // TLS by the name that is asked for, with HTTP/2; plain requests are sent there.
        answers(
            fixture,
            &["--cacert", &authority, "https://secure.test/"],
            "version 1\n\n200",
        )
        .await?;
        let version = [
            "--cacert",
            &authority,
            "--write-out",
            "%{http_version}",
            "https://secure.test/",
        ];
        assert!(curl(fixture, &version)?.ends_with("\n2"), "HTTP/2 by ALPN");
        let redirect = curl(fixture, &["--head", "http://secure.test/x"])?.to_ascii_lowercase();
        assert!(
            redirect.contains("308") && redirect.contains("location: https://secure.test/x"),
            "{redirect}"
        );
        let other = curl(fixture, &["--cacert", &authority, "https://plain.test/"])?;
        assert!(
            other.contains("certificate"),
            "another name is shown the default certificate: {other}"
        );

        // What the API shows of it.
        let address = fixture.cluster.node("node-1")?.address.to_string();
        let shown = async || kubectl.field(&["ingress", "secure"], "{.status.loadBalancer.ingress[0].ip}");
        until("the status shows the node's address", LIMIT, shown, |ip| *ip == address).await?;
        let controller = kubectl.field(&["ingressclass", "skiff"], "{.spec.controller}")?;
        assert_eq!(controller, "skiff/ingress");

        broken_secret(fixture, &authority).await?;
        upgrade(fixture).await?;
        crash(fixture).await
    })
    .await
}

/// The host with a broken Secret gets the default certificate and an event; all others are as they were.
async fn broken_secret(fixture: &Fixture, authority: &str) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.apply(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: broken}\ntype: kubernetes.io/tls\n\
         stringData: {tls.crt: junk, tls.key: junk}\n\
         ---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: broken}\nspec:\n\
         \x20 tls: [{hosts: [broken.test], secretName: broken}]\n\
         \x20 rules: [{host: broken.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: first, port: {number: 80}}}}]}}]\n",
    )?;
    answers(fixture, &["--insecure", "https://broken.test/"], "version 1\n\n200").await?;
    let trusted = curl(fixture, &["--cacert", authority, "https://broken.test/"])?;
    assert!(trusted.contains("certificate"), "{trusted}");
    let events = async || kubectl.run(&["describe", "ingress", "broken"]);
    let wanted = "Secret default/broken: tls.crt holds no certificate in PEM form";
    let described = until("an event tells what is wrong", LIMIT, events, |text| {
        text.contains(wanted)
    })
    .await?;
    assert!(
        described.contains("Warning") && described.contains("InvalidCertificate"),
        "{described}"
    );
    answers(
        fixture,
        &["--cacert", authority, "https://secure.test/"],
        "version 1\n\n200",
    )
    .await
}

/// A pod that accepts an upgrade and sends back what it gets.
async fn upgrade(fixture: &Fixture) -> anyhow::Result<()> {
    fixture
        .kubectl
        .run(&["wait", "pod/echo", "--for=condition=Ready", "--timeout=60s"])?;
    let address = SocketAddr::new(fixture.cluster.node("node-1")?.address, 80);
    let talk = || -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(
            b"GET /chat HTTP/1.1\r\nHost: echo.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        anyhow::ensure!(head.starts_with("HTTP/1.1 101 "), "no upgrade: {head}");
        stream.write_all(b"there and back\n")?;
        let mut back = [0; 15];
        stream.read_exact(&mut back)?;
        Ok(String::from_utf8_lossy(&back).into_owned())
    };
    let lan = fixture.cluster.lan()?;
    let ask = async || lan.run(talk)?;
    until("an upgraded connection echoes", LIMIT, ask, |text| {
        text == "there and back\n"
    })
    .await
    .map(|_| ())
}

/// Killed and started again, it serves what it served.
async fn crash(fixture: &mut Fixture) -> anyhow::Result<()> {
    fixture.cluster.kill(Role::Ingress, "node-1")?;
    let refused = curl(fixture, &["http://plain.test/"])?;
    assert!(refused.contains("connect"), "{refused}");
    fixture.cluster.restart(Role::Ingress, "node-1")?;
    answers(fixture, &["http://plain.test/"], "version 1\n\n200").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_loses_no_request_through_an_ingress() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let kubectl = &fixture.kubectl;
        kubectl.apply(MANIFEST)?;
        kubectl.run(&["rollout", "status", "deployment/first", "--timeout=60s"])?;
        // The traffic names the address as its host: a rule for every host.
        let target = SocketAddr::new(fixture.cluster.node("node-1")?.address, 80);
        let lan = fixture.cluster.lan()?;
        until(
            "the Ingress answers",
            LIMIT,
            async || get_in(&lan, target),
            |body| body.contains("version 1"),
        )
        .await?;

        let traffic = Traffic::start(lan, target)?;
        kubectl.run(&["set", "image", "deployment/first", "web=skiff.local/hello:2"])?;
        kubectl.run(&["rollout", "status", "deployment/first", "--timeout=60s"])?;
        let images = async || kubectl.field(&["pods", "-l", "app=first"], "{.items[*].spec.containers[0].image}");
        until("only the second version is left", LIMIT, images, |images| {
            !images.contains("hello:1")
        })
        .await?;
        traffic.stop()?.check_rolled_over("an Ingress");
        Ok(())
    })
    .await
}
