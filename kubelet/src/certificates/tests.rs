//! A kubelet's certificates that live for seconds, from a real API server with the real approver and signer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::defaults::base64;
use skiff_apiserver::ApiServer;
use skiff_controllers::{Clients, ClusterSigning};
use skiff_daemon::{Context, Shutdown};
use skiff_pki::{BootstrapToken, CertificateAuthority, Identity, Kubeconfig, Request, ServiceAccountKey};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{Connect, Error, Options, Serving, connect, keep_kubeconfig};

/// Long enough for a request on a busy machine, short enough to see several.
const LIFE: Duration = Duration::from_secs(6);
const APPROVE_AND_SIGN: [&str; 2] = ["csrapproving", "csrsigning"];

struct Cluster {
    admin: kube::Client,
    authority: CertificateAuthority,
    url: String,
    context: Context,
    directory: tempfile::TempDir,
}

impl Cluster {
    async fn start(controllers: &[&str]) -> Self {
        skiff_daemon::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        authority.save(directory.path(), "ca").unwrap();
        let loopback: std::net::IpAddr = [127, 0, 0, 1].into();
        let identity = authority
            .issue(&Request::server("kube-apiserver", &[], &[loopback]))
            .unwrap();
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = skiff_store::sqlite::Options::default();
        let store = skiff_store::sqlite::open(directory.path().join("state.db"), options).unwrap();
        let config = skiff_apiserver::Config::new(
            identity,
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            ("192.0.2.1".parse().unwrap(), port),
        );
        let context = Context::default();
        let server = ApiServer::start(config, Arc::new(store), context.clone())
            .await
            .unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(vec![listener]).await });
        let mut signing = ClusterSigning::new(CertificateAuthority::load(directory.path(), "ca").unwrap());
        signing.duration = LIFE;
        let manager = skiff_controllers::Config {
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            cluster_signing: Some(signing),
            ..skiff_controllers::Config::default()
        };
        let accounts = server.clone();
        let clients = Clients::each(server.client("system:kube-controller-manager", &[]), move |name| {
            accounts.account_client("kube-system", name)
        });
        let process = Context {
            shutdown: context.shutdown.clone(),
            ..Context::default()
        };
        tokio::spawn(skiff_controllers::run(manager, clients, process));
        Self {
            admin: server.client("admin", &["system:masters"]),
            authority,
            url: format!("https://127.0.0.1:{port}"),
            context,
            directory,
        }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind);
        self.admin
            .request(request.body(body.to_string().into_bytes()).unwrap())
            .await
            .unwrap()
    }

    /// A kubeconfig with a fresh bootstrap token.
    async fn bootstrap(&self) -> PathBuf {
        let token = BootstrapToken::generate().unwrap();
        let data = json!({
            "token-id": token.id(), "token-secret": token.secret(), "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        });
        let secret = json!({"metadata": {"name": token.secret_name()}, "type": "bootstrap.kubernetes.io/token", "stringData": data});
        self.send("POST", "/api/v1/namespaces/kube-system/secrets", secret)
            .await;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": self.url, "certificate-authority-data": base64(self.authority.certificate_pem().as_bytes()),
            }}],
            "users": [{"name": "u", "user": {"token": token.reveal()}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.directory.path().join("bootstrap.conf");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn options(&self, bootstrap: Option<PathBuf>) -> Options {
        Options {
            kubeconfig: self.directory.path().join("kubelet.conf"),
            bootstrap_kubeconfig: bootstrap,
            cert_dir: self.directory.path().join("pki"),
            node: "n1".to_owned(),
            rotate: true,
        }
    }

    /// A node's client, got by a token, and what ends its renewal.
    async fn join(&self) -> (kube::Client, Shutdown) {
        let bootstrap = self.bootstrap().await;
        let shutdown = Shutdown::new();
        let joined = connect(self.options(Some(bootstrap)), connector(), shutdown.clone()).await;
        (joined.unwrap(), shutdown)
    }

    fn current(&self) -> PathBuf {
        self.directory.path().join("pki/kubelet-client-current.pem")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}

fn connector() -> Connect {
    Arc::new(|path: PathBuf| {
        async move {
            let config = kube::config::Kubeconfig::read_from(path)?;
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
            Ok(kube::Client::try_from(config)?)
        }
        .boxed()
    })
}

async fn who(client: &kube::Client) -> Result<String, kube::Error> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let request = request.header("content-type", "application/json");
    let answer: Value = client
        .request(request.body(review.to_string().into_bytes()).unwrap())
        .await?;
    Ok(answer["status"]["userInfo"]["username"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn end_of(path: &Path) -> Timestamp {
    let identity = Identity::from_combined_pem(&std::fs::read_to_string(path).unwrap()).unwrap();
    identity.validity().unwrap().not_after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_its_certificate_by_a_token_and_renews_it_while_it_works() {
    let cluster = Cluster::start(&APPROVE_AND_SIGN).await;
    let (client, shutdown) = cluster.join().await;
    assert_eq!(who(&client).await.unwrap(), "system:node:n1");
    let first = end_of(&cluster.current());
    // The file alone is enough for others, and nobody else may read the key.
    let written = Kubeconfig::load(&cluster.directory.path().join("kubelet.conf")).unwrap();
    assert!(written.identity.is_some() && written.token.is_none());
    // Longer than two lives: whoever holds the client notices nothing.
    let deadline = Instant::now() + 2 * LIFE + Duration::from_secs(2);
    while Instant::now() < deadline {
        assert_eq!(who(&client).await.unwrap(), "system:node:n1");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(end_of(&cluster.current()) > first);
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_asked_anew_by_token_or_says_what_to_do() {
    let cluster = Cluster::start(&APPROVE_AND_SIGN).await;
    let bootstrap = cluster.bootstrap().await;
    let off = Shutdown::new();
    let lost = connect(cluster.options(None), connector(), off.clone())
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(&lost, Error::NoKubeconfig { .. }) && lost.to_string().contains("skiff join"),
        "{lost}"
    );
    let asleep = Options {
        rotate: false,
        ..cluster.options(Some(bootstrap.clone()))
    };
    connect(asleep, connector(), off.clone()).await.unwrap();
    let first = end_of(&cluster.current());
    while Timestamp::now() <= first {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = connect(cluster.options(None), connector(), off.clone())
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(&ended, Error::Expired { .. }) && ended.to_string().contains("skiff token create"),
        "{ended}"
    );
    let client = connect(cluster.options(Some(bootstrap)), connector(), off.clone())
        .await
        .unwrap();
    assert_eq!(who(&client).await.unwrap(), "system:node:n1");
    assert!(end_of(&cluster.current()) > first);
    off.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_outlives_the_process_that_made_it() {
    // Nobody approves by themselves here.
    let cluster = Cluster::start(&["csrsigning"]).await;
    let bootstrap = cluster.bootstrap().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let list = async || {
        cluster.send("GET", requests, Value::Null).await["items"]
            .as_array()
            .unwrap()
            .clone()
    };
    for _ in 0..2 {
        let shutdown = Shutdown::new();
        let waiting = tokio::spawn(connect(
            cluster.options(Some(bootstrap.clone())),
            connector(),
            shutdown.clone(),
        ));
        while list().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shutdown.cancel();
        assert!(matches!(waiting.await.unwrap(), Err(Error::Stopped)));
    }
    let found = list().await;
    assert_eq!(found.len(), 1, "the second process asked for the same");
    let path = format!("{requests}/{}", found[0]["metadata"]["name"].as_str().unwrap());
    let approved = json!([{"type": "Approved", "status": "True", "reason": "Test", "message": ""}]);
    cluster
        .send(
            "PATCH",
            &format!("{path}/approval"),
            json!({"status": {"conditions": approved}}),
        )
        .await;
    let shutdown = Shutdown::new();
    let client = connect(cluster.options(Some(bootstrap)), connector(), shutdown.clone())
        .await
        .unwrap();
    assert_eq!(who(&client).await.unwrap(), "system:node:n1");
    assert_eq!(list().await.len(), 1);
    shutdown.cancel();
}

/// Neither before there is a certificate, nor where one comes with it that is good.
#[test]
fn what_the_server_cannot_use_replaces_nothing() {
    skiff_daemon::install_crypto();
    let authority = |name| skiff_pki::CertificateAuthority::generate(name).unwrap();
    let (former, new) = (authority("former"), authority("new"));
    let issue = || new.issue(&skiff_pki::Request::client("n", &["g"])).unwrap();
    let serving = Serving::new(skiff_pki::OldestTls::V12, Some(former.certificate_pem()));
    for broken in ["", "no certificate"] {
        assert!(serving.replace(None, Some(broken)).is_err(), "{broken:?}");
        assert!(serving.replace(Some(issue()), Some(broken)).is_err(), "{broken:?}");
    }
    assert!(serving.acceptor().is_none());
    assert_eq!(&*serving.authorities(), former.certificate_pem());
    serving.replace(Some(issue()), Some(new.certificate_pem())).unwrap();
    assert_eq!(&*serving.authorities(), new.certificate_pem());
    assert!(serving.acceptor().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_shows_a_new_certificate_without_a_restart() {
    let cluster = Cluster::start(&APPROVE_AND_SIGN).await;
    let (client, shutdown) = cluster.join().await;
    let address: std::net::IpAddr = "192.0.2.11".parse().unwrap();
    cluster
        .send("POST", "/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await;
    let serving = Serving::new(skiff_pki::OldestTls::V12, Some(cluster.authority.certificate_pem()));
    assert!(serving.acceptor().is_none());
    let (task, dir, stop) = (serving.clone(), cluster.directory.path().join("pki"), shutdown.clone());
    tokio::spawn(async move { task.keep(client, &dir, "n1", &[address], stop).await });
    let addresses = json!([{"type": "InternalIP", "address": "192.0.2.11"}, {"type": "Hostname", "address": "n1"}]);
    cluster
        .send(
            "PATCH",
            "/api/v1/nodes/n1/status",
            json!({"status": {"addresses": addresses}}),
        )
        .await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while serving.acceptor().is_none() {
        assert!(Instant::now() < deadline, "no serving certificate");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let trusting = skiff_pki::client_config(None, cluster.authority.certificate_pem()).unwrap();
    let connector = TlsConnector::from(Arc::new(trusting));
    let shake = async || -> Vec<u8> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let acceptor = serving.acceptor().unwrap();
        let server = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
        let stream = connector.connect("192.0.2.11".try_into().unwrap(), near).await.unwrap();
        drop(server);
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = shake().await;
    // Always a valid one, and in the end another.
    let end = Instant::now() + LIFE + Duration::from_secs(3);
    let mut last = first.clone();
    while Instant::now() < end {
        last = shake().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_ne!(last, first);
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_renews_what_its_kubeconfig_holds() {
    const USER: &str = "system:kube-proxy";
    let cluster = Cluster::start(&APPROVE_AND_SIGN).await;
    let path = cluster.directory.path().join("proxy.conf");
    let ca = cluster.authority.certificate_pem();
    let write = |wanted: &Request, authorities: &str| {
        let identity = cluster.authority.issue(wanted).unwrap();
        let config = Kubeconfig::embedded("c", &cluster.url, authorities, "proxy", &identity);
        config.write(&path).unwrap();
        identity
    };
    let renewed = async |first: Identity| {
        let client = connector()(path.clone()).await.unwrap();
        let keeping = tokio::spawn(keep_kubeconfig(
            client,
            path.clone(),
            USER,
            cluster.context.shutdown.clone(),
        ));
        let held = async {
            while Kubeconfig::load(&path).unwrap().identity.unwrap() == first {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIFE * 3, held).await.expect("it is renewed");
        keeping.abort();
    };
    // A young one of an authority that goes.
    let next = CertificateAuthority::generate("next").unwrap();
    let both = format!("{}{ca}", next.certificate_pem());
    renewed(write(&Request::client(USER, &[]), &both)).await;
    // One that nears its end.
    renewed(write(&Request::client(USER, &[]).lifetime(LIFE), ca)).await;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let next = connector()(path.clone()).await.unwrap();
    assert_eq!(who(&next).await.unwrap(), USER);
    // What is not the proxy's own is nobody's business.
    write(&Request::client("admin", &["system:masters"]).lifetime(LIFE), ca);
    keep_kubeconfig(next, path.clone(), USER, cluster.context.shutdown.clone()).await;
}
