//! Logs and streams through the server to a kubelet: here a scripted one with a certificate of the cluster's authority.

use std::sync::Arc;

use rustls::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::cluster::Cluster;

/// Answers each connection by what is asked: a log, an upgrade that echoes, a redirect, a refusal.
async fn kubelet(cluster: &Cluster) -> u16 {
    let identity = cluster
        .authority
        .issue(&skiff_pki::Request::server(
            "system:node:n",
            &[],
            &[[127, 0, 0, 1].into()],
        ))
        .unwrap();
    let config: ServerConfig = skiff_pki::server_config(&identity, Some(cluster.authority.certificate_pem())).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                assert!(
                    stream.get_ref().1.peer_certificates().is_some(),
                    "the server shows who it is"
                );
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(!head.to_lowercase().contains("authorization:"), "{head}");
                let answer: &[u8] = if head.starts_with("GET /containerLogs/default/p/c?tailLines=1 ") {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n"
                } else if ["GET /containerLogs/default/p/moved", "POST /exec/default/p/moved"]
                    .iter()
                    .any(|begin| head.starts_with(begin))
                {
                    b"HTTP/1.1 302 Found\r\nlocation: https://198.51.100.7/\r\ncontent-length: 0\r\n\r\n"
                } else if head.starts_with("POST /exec/default/p/c?output=1&error=1&command=echo ")
                    && head.contains("SPDY/3.1")
                {
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n"
                } else {
                    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nnot ready"
                };
                stream.write_all(answer).await.unwrap();
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer).await.ok();
            });
        }
    });
    port
}

async fn pod_on_node(cluster: &Cluster, port: u16) {
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}, {"name": "moved", "image": "i"}, {"name": "new", "image": "i"}]},
    });
    for object in [node, pod] {
        cluster.kubectl_with(&["create", "-f", "-"], &object.to_string()).await;
    }
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    cluster
        .kubectl(&["patch", "node", "n", "--subresource=status", "-p", &status.to_string()])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_kubelet() {
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster).await;
    pod_on_node(&cluster, port).await;
    assert_eq!(cluster.kubectl(&["logs", "p", "-c", "c", "--tail=1"]).await, "hello\n");
    let refused = cluster.kubectl_fails(&["logs", "p", "-c", "new"]).await;
    assert!(refused.contains("not ready"), "{refused}");
    let moved = cluster.kubectl_fails(&["logs", "p", "-c", "moved"]).await;
    assert!(moved.contains("redirect"), "{moved}");
    let unknown = cluster
        .kubectl_fails(&["get", "--raw", "/api/v1/namespaces/default/pods/p/log?container=zz"])
        .await;
    assert!(unknown.contains("container zz is not valid for pod p"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_are_copied_byte_by_byte_and_refusals_are_statuses() {
    let cluster = Cluster::start().await;
    let port = kubelet(&cluster).await;
    pod_on_node(&cluster, port).await;
    let mut stream = cluster.connect().await;
    let ask = async |stream: &mut tokio_rustls::client::TlsStream<_>, container: &str| {
        let request = format!(
            "POST /api/v1/namespaces/default/pods/p/exec?container={container}&command=echo&stdout=true&stderr=true HTTP/1.1\r\n\
             host: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: v4.channel.k8s.io\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    };
    let head = ask(&mut stream, "c").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"any bytes at all").await.unwrap();
    let mut back = [0; 16];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"any bytes at all");

    // CVE-2020-8559: neither this server nor, by it, the client goes where a compromised kubelet points.
    let mut stream = cluster.connect().await;
    let head = ask(&mut stream, "moved").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(!head.to_lowercase().contains("location:"), "{head}");

    let mut stream = cluster.connect().await;
    let head = ask(&mut stream, "new").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert!(head.contains("application/json"), "{head}");
    // CVE-2018-1002105: after a failed upgrade nothing that the client sends reaches the kubelet, which would send it back here.
    let next = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(next).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.ok();
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("HTTP/1.1 200") && rest.ends_with("ok"), "{rest}");
    assert!(!rest.contains("GET /livez"), "{rest}");
}
