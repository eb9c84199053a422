//! Names, as pods and nodes ask for them: on three nodes, with the server on the first.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use skiff_cluster::Role;
use skiff_tests::traffic::get_in;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);
const DNS: &str = "10.96.0.10";

/// A Service of each kind, pods behind them on the second node, and a client on the third.
const MANIFEST: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node-3
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: docker.io/library/busybox:1.36, imagePullPolicy: Never, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, labels: {app: db}}
spec:
  nodeName: node-2
  hostname: db-0
  subdomain: db
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: docker.io/library/busybox:1.36, imagePullPolicy: Never, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: sick, labels: {app: sick}}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: docker.io/library/busybox:1.36
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /tmp/www; echo not ready > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"]
    readinessProbe: {exec: {command: ["false"]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: sick}}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {clusterIP: None, selector: {app: sick}}
---
apiVersion: v1
kind: Service
metadata: {name: eager}
spec: {publishNotReadyAddresses: true, selector: {app: sick}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: ExternalName, externalName: www.upstream.test}
"#;

/// Ends with the test, however that ends.
struct Upstream(Child);

impl Drop for Upstream {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `dig` on a node: what it prints with `+short`, sorted.
fn dig(fixture: &Fixture, node: &str, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    let text = dig_text(fixture, node, &[&["+short"], arguments].concat())?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

fn dig_text(fixture: &Fixture, node: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let server = format!("@{DNS}");
    let mut command = Command::new("dig");
    command.args(["+tries=1", "+time=3", server.as_str()]).args(arguments);
    let output = fixture
        .cluster
        .namespace(node)?
        .run(|| command.output())?
        .context("run dig")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "dig {arguments:?}: {text}");
    Ok(text)
}

/// `nslookup` in the client's pod.
fn nslookup(fixture: &Fixture, arguments: &[&str]) -> anyhow::Result<String> {
    let command = [&["exec", "client", "--", "nslookup"], arguments].concat();
    let printed = fixture.kubectl.attempt(&command, "")?;
    Ok(printed.stdout + &printed.stderr)
}

async fn until_pod_reads(fixture: &Fixture, name: &str, wanted: &str) -> anyhow::Result<()> {
    let what = format!("nslookup {name} says {wanted}");
    let look = async || nslookup(fixture, &["-type=a", name]);
    until(&what, LIMIT, look, |text| text.contains(wanted)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_and_node_finds_every_name() -> anyhow::Result<()> {
    on_cluster(3, async |fixture| {
        let kubectl = &fixture.kubectl;
        kubectl.apply(MANIFEST)?;
        kubectl.run(&[
            "wait",
            "pod/client",
            "pod/db-0",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?;
        let running = async || kubectl.field(&["pod", "sick"], "{.status.podIP}");
        let sick = until("the sick pod has an address", LIMIT, running, |ip| !ip.is_empty()).await?;

        published(fixture)?;
        from_a_pod(fixture).await?;
        from_nodes(fixture, &sick).await?;
        not_ready_and_asked_all_the_same(fixture).await?;
        as_a_service_changes_its_type(fixture).await?;
        as_things_change(fixture).await
    })
    .await
}

/// The Service is where every tool looks for it, and leads to the server.
fn published(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let service = [
        "service",
        "-n",
        "kube-system",
        "-l",
        "k8s-app=kube-dns,kubernetes.io/name=CoreDNS",
    ];
    let seen = kubectl.field(&service, "{.items[*].metadata.name} {.items[*].spec.clusterIP}")?;
    assert_eq!(seen, format!("kube-dns {DNS}"));
    let slices = [
        "endpointslices",
        "-n",
        "kube-system",
        "-l",
        "kubernetes.io/service-name=kube-dns",
    ];
    let seen = kubectl.field(
        &slices,
        "{.items[*].metadata.name} {.items[*].endpoints[*].addresses[*]}",
    )?;
    assert_eq!(seen, "kube-dns-172-30-0-11 172.30.0.11");
    let resolv_conf = kubectl.run(&["exec", "client", "--", "cat", "/etc/resolv.conf"])?;
    assert!(resolv_conf.contains(&format!("nameserver {DNS}")), "{resolv_conf}");
    assert!(
        resolv_conf.contains("search default.svc.cluster.local svc.cluster.local cluster.local"),
        "{resolv_conf}"
    );
    Ok(())
}

async fn from_a_pod(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let web = kubectl.field(&["service", "web"], "{.spec.clusterIP}")?;
    let db = kubectl.field(&["pod", "db-0"], "{.status.podIP}")?;
    // The endpoints come with the pod's readiness, a moment after kubectl has seen it.
    until_pod_reads(fixture, "db.default.svc.cluster.local", &db).await?;
    until_pod_reads(fixture, "db-0.db.default.svc.cluster.local", &db).await?;
    until_pod_reads(fixture, "web.default.svc.cluster.local", &web).await?;
    until_pod_reads(fixture, "near.default.svc.cluster.local", &web).await?;
    until_pod_reads(fixture, "kubernetes.default.svc.cluster.local", "10.96.0.1").await?;
    let seen = nslookup(fixture, &["-type=srv", "_http._tcp.web.default.svc.cluster.local"])?;
    assert!(seen.contains("0 100 80 web.default.svc.cluster.local"), "{seen}");
    let seen = nslookup(fixture, &[&web])?;
    assert!(seen.contains("name = web.default.svc.cluster.local"), "{seen}");
    let seen = nslookup(fixture, &["missing.default.svc.cluster.local"])?;
    assert!(seen.contains("NXDOMAIN"), "{seen}");
    Ok(())
}

async fn from_nodes(fixture: &Fixture, sick: &str) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let web = kubectl.field(&["service", "web"], "{.spec.clusterIP}")?;
    let db = kubectl.field(&["pod", "db-0"], "{.status.podIP}")?;
    for node in ["node-1", "node-2", "node-3"] {
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(
                dig(fixture, node, &[transport, "web.default.svc.cluster.local"])?,
                [web.as_str()],
                "{node}"
            );
        }
    }
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["SRV", "_sql._tcp.db.default.svc.cluster.local"],
            &["0 100 5432 db-0.db.default.svc.cluster.local."],
        ),
        (&["-x", &db], &["db-0.db.default.svc.cluster.local."]),
        (&["-x", DNS], &["kube-dns.kube-system.svc.cluster.local."]),
        (&["TXT", "dns-version.cluster.local"], &["\"1.1.0\""]),
        (
            &[&format!("{}.default.pod.cluster.local", db.replace('.', "-"))],
            &[&db],
        ),
        (&["CNAME", "far.default.svc.cluster.local"], &["www.upstream.test."]),
        (&["NS", "cluster.local"], &["ns.dns.cluster.local."]),
    ];
    for (arguments, wanted) in cases {
        assert_eq!(dig(fixture, "node-2", arguments)?, wanted, "{arguments:?}");
    }
    // Not ready, and told all the same where the Service says so.
    let look = async || dig(fixture, "node-2", &["early.default.svc.cluster.local"]);
    until("the unready pod is told", LIMIT, look, |seen| {
        *seen == [sick.to_owned()]
    })
    .await?;
    for (kind, name, status) in [
        ("A", "late.default.svc", "NXDOMAIN"),
        ("A", "web.default.svc", "NOERROR"),
        ("AAAA", "web.default.svc", "NOERROR"),
        ("A", "web.nowhere.svc", "NXDOMAIN"),
        ("A", "nowhere.svc", "NXDOMAIN"),
        ("A", "default.svc", "NOERROR"),
    ] {
        let text = dig_text(fixture, "node-2", &[kind, &format!("{name}.cluster.local")])?;
        assert!(text.contains(&format!("status: {status}")), "{kind} {name}: {text}");
        let has_soa = text.contains("SOA\tns.dns.cluster.local. hostmaster.cluster.local.");
        assert_eq!(has_soa, !text.contains("ANSWER: 1"), "{kind} {name}: {text}");
    }
    Ok(())
}

/// Packets find what a Service publishes before it is ready, as names do.
async fn not_ready_and_asked_all_the_same(fixture: &Fixture) -> anyhow::Result<()> {
    let ip = fixture.kubectl.field(&["service", "eager"], "{.spec.clusterIP}")?;
    let service = SocketAddr::new(ip.parse().context("the cluster IP")?, 80);
    let node = fixture.cluster.namespace("node-1")?;
    let ask = async || get_in(&node, service);
    until("the unready pod answers", LIMIT, ask, |body| body == "not ready")
        .await
        .map(drop)
}

/// A Service that becomes one of another type has that type's name, address and port, and gives back what it had.
async fn as_a_service_changes_its_type(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    let change = |spec: &str| {
        let patch = format!("{{\"spec\": {spec}}}");
        kubectl.run(&["patch", "service", "near", "--type=merge", "-p", &patch])
    };
    let told = async |kind: &str, wanted: &str| {
        let look = async || dig(fixture, "node-3", &[kind, "near.default.svc.cluster.local"]);
        let what = format!("the {kind} of near is {wanted}");
        until(&what, LIMIT, look, |seen| *seen == [wanted]).await.map(drop)
    };
    change(r#"{"externalName": "kubernetes.default.svc.cluster.local"}"#)?;
    told("CNAME", "kubernetes.default.svc.cluster.local.").await?;
    change(r#"{"type": "NodePort", "externalName": null, "ports": [{"port": 80}]}"#)?;
    let given = kubectl.field(&["service", "near"], "{.spec.clusterIP} {.spec.ports[0].nodePort}")?;
    let (ip, port) = given.split_once(' ').context("an address and a port")?;
    told("A", ip).await?;
    change(r#"{"type": "ClusterIP"}"#)?;
    let (port, ip_flag) = (format!("--node-port={port}"), format!("--clusterip={ip}"));
    kubectl.run(&["create", "service", "nodeport", "port-again", "--tcp=80", &port])?;
    told("A", ip).await?;
    change(r#"{"type": "ExternalName", "externalName": "www.upstream.test"}"#)?;
    told("CNAME", "www.upstream.test.").await?;
    kubectl.run(&["create", "service", "clusterip", "ip-again", "--tcp=80", &ip_flag])?;
    Ok(())
}

/// A name is there as soon as its Service is, and goes with it.
async fn as_things_change(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    for round in 0..5 {
        let name = format!("new-{round}");
        kubectl.run(&["create", "service", "clusterip", &name, "--tcp=80"])?;
        let ip = kubectl.field(&["service", &name], "{.spec.clusterIP}")?;
        assert_eq!(
            dig(fixture, "node-3", &[&format!("{name}.default.svc.cluster.local")])?,
            [ip]
        );
    }
    kubectl.run(&["delete", "service", "new-0"])?;
    let text = dig_text(fixture, "node-3", &["new-0.default.svc.cluster.local"])?;
    assert!(text.contains("status: NXDOMAIN"), "{text}");
    // What somebody takes away of the way there is put back.
    kubectl.run(&[
        "delete",
        "-n",
        "kube-system",
        "service/kube-dns",
        "endpointslice/kube-dns-172-30-0-11",
    ])?;
    until_pod_reads(fixture, "kubernetes.default.svc.cluster.local", "10.96.0.1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn others_names_come_from_other_servers() -> anyhow::Result<()> {
    on_cluster(2, async |fixture| {
        let upstream = fixture.cluster.node("node-2")?.address;
        let long: Vec<String> = (0..12)
            .map(|n| format!("--txt-record=long.upstream.test,{n}{}", "x".repeat(200)))
            .collect();
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--no-daemon",
                "--user=root",
                "--pid-file=",
            ])
            .args([
                "--conf-file=/dev/null",
                "--bind-interfaces",
                "--port=5353",
                "--local-ttl=60",
            ])
            .arg(format!("--listen-address={upstream}"))
            .args([
                "--address=/www.upstream.test/192.0.2.7",
                "--address=/db.corp.test/192.0.2.8",
                "--local=/test/",
            ])
            .args(&long)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let spawned = fixture.cluster.namespace("node-2")?.run(|| command.spawn())?;
        let _upstream = Upstream(spawned.context("start dnsmasq")?);

        // The server starts again, with somebody to ask: first for all names, who is silent, then one for `corp.test`.
        let path = fixture.cluster.layout().server_config();
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        config["dns"] = serde_json::json!({
            "upstreamNameservers": ["172.30.0.77", format!("{upstream}:5353")],
            "policy": "sequential",
            "stubDomains": {"corp.test": [format!("{upstream}:5353")]},
        });
        std::fs::write(&path, config.to_string())?;
        fixture.cluster.kill(Role::Server, "node-1")?;
        fixture.cluster.restart(Role::Server, "node-1")?;

        let fixture = &*fixture;
        let ask = |arguments: &[&str]| dig(fixture, "node-2", arguments);
        let look = async || ask(&["www.upstream.test"]);
        until("the other server is asked", LIMIT, look, |seen| *seen == ["192.0.2.7"]).await?;
        assert_eq!(ask(&["db.corp.test"])?, ["192.0.2.8"]);
        let service = r#"---
{apiVersion: v1, kind: Service, metadata: {name: far}, spec: {type: ExternalName, externalName: www.upstream.test}}"#;
        fixture.kubectl.apply(service)?;
        assert_eq!(
            ask(&["far.default.svc.cluster.local"])?,
            ["192.0.2.7", "www.upstream.test."]
        );
        // Too long for a datagram: dig asks again over TCP, as the server has done itself.
        assert_eq!(ask(&["TXT", "long.upstream.test"])?.len(), 12);
        let cut = dig_text(fixture, "node-2", &["+ignore", "TXT", "long.upstream.test"])?;
        assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
        let text = dig_text(fixture, "node-2", &["missing.upstream.test"])?;
        assert!(text.contains("status: NXDOMAIN"), "{text}");
        // The cluster's own names do not suffer.
        assert_eq!(ask(&["kubernetes.default.svc.cluster.local"])?, ["10.96.0.1"]);
        metrics(fixture)
    })
    .await
}

fn metrics(fixture: &Fixture) -> anyhow::Result<()> {
    let address = fixture.cluster.node("node-1")?.address;
    let namespace = fixture.cluster.namespace("node-2")?;
    let get = |url: String| -> anyhow::Result<String> {
        let output = namespace.run(|| Command::new("curl").args(["-sS", "-m", "5", &url]).output())??;
        Ok(String::from_utf8(output.stdout)?)
    };
    assert_eq!(get(format!("http://{address}:8080/health"))?, "OK");
    assert_eq!(get(format!("http://{address}:8181/ready"))?, "OK");
    let text = get(format!("http://{DNS}:9153/metrics"))?;
    for series in [
        "coredns_dns_requests_total{",
        "coredns_cache_hits_total{",
        "coredns_forward_requests_total{to=\"172.30.0.12:5353\"}",
        "coredns_proxy_request_duration_seconds_bucket{",
    ] {
        assert!(text.contains(series), "{series} is not in\n{text}");
    }
    Ok(())
}
