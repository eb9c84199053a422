//! What only a store of several members, reached over a network, has to stand.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use skiff_store::etcd::{self, Options};
use skiff_store::{Error, Event, Revision, Store, Write};

use super::member::{Member, free_port};
use super::suite::create;

const LOCAL: &str = "127.0.0.1";
/// A year that a test does not see.
const LATE: i32 = 4096;

/// Writes until it is known to be there.
async fn insist(store: &dyn Store, key: &str) {
    let value = Bytes::from_static(b"v");
    loop {
        let write = Write::Create {
            key: key.into(),
            value: value.clone(),
        };
        match store.write(write).await {
            // The second: an attempt whose answer was lost.
            Ok(_) | Err(Error::Conflict { current: Some(_) }) => return,
            Err(Error::Etcd { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_members_dies_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut members = ["a", "b", "c"].map(|name| Member::new(directory.path(), name));
    let cluster: Vec<String> = members.iter().map(Member::introduction).collect();
    for member in &mut members {
        member.start(&cluster);
    }
    let options = Options::new(members.iter().map(Member::url));
    let store: Arc<dyn Store> = Arc::new(etcd::connect(options).await.unwrap());
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("/k", start).await.unwrap();
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 0..200 {
                insist(&*store, &format!("/k/{number:03}")).await;
            }
        }
    });
    let mut seen = Vec::new();
    let mut last = start;
    while seen.len() < 200 {
        let next = tokio::time::timeout(Duration::from_secs(40), watch.next());
        for event in next.await.expect("changes go on").unwrap().unwrap() {
            assert!(event.revision() > last, "in order, each once");
            last = event.revision();
            assert!(matches!(event, Event::Put { previous: None, .. }), "{event:?}");
            seen.push(event.key().to_string());
        }
        if seen.len() > 50 {
            // The one that everything goes through; later it is dead already.
            members[0].kill();
        }
    }
    writer.await.unwrap();
    let page = store.list("/k", None, None, 0).await.unwrap();
    let keys: Vec<String> = page.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(keys, seen);
}

/// An authority, and a certificate of it for that host with that last year, written to files.
fn certificates(directory: &Path, host: &str, last: i32) -> [PathBuf; 3] {
    let authority = {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(last, 1, 1);
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &authority.1).unwrap();
    std::fs::create_dir_all(directory).unwrap();
    [
        ("ca.crt", authority.0),
        ("both.crt", certificate.pem()),
        ("both.key", key.serialize_pem()),
    ]
    .map(|(name, pem)| {
        let path = directory.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_let_us_in_and_others_not() {
    skiff_daemon::install_crypto();
    let directory = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = certificates(directory.path(), LOCAL, LATE);
    let mut member = Member::new(directory.path(), "tls").with_tls(&ca, &certificate, &key);
    let cluster = [member.introduction()];
    member.start(&cluster);
    let nobody = Options {
        ca_file: Some(ca),
        ..Options::new([member.url()])
    };
    let known = Options {
        cert_file: Some(certificate),
        key_file: Some(key),
        ..nobody.clone()
    };
    let (refused, store) = tokio::join!(etcd::connect(nobody), etcd::connect(known));
    let refused = refused.unwrap_err().to_string();
    // It closes the connection, too, and either may be seen first.
    let told = ["--etcd-certfile", "are its members running"];
    assert!(told.iter().any(|told| refused.contains(told)), "{refused}");
    let store = store.unwrap();
    assert!(create(&store, "/k/a", "1").await > Revision(1));

    // All from another authority: the next connection is made with what the files hold by then.
    certificates(directory.path(), LOCAL, LATE);
    member.kill();
    member.start(&cluster);
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match store.get("/k/a").await {
                Ok(found) => return found,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    assert!(found.await.expect("the renewed certificates are used").is_some());
}

/// A server of TLS that is not etcd, ended with the test: only the handshake counts.
struct Acceptor {
    process: Child,
    port: u16,
}

impl Acceptor {
    fn start(certificate: &Path, key: &Path, version: &str) -> Self {
        let port = free_port();
        let process = openssl(&["s_server", "-quiet", version, "-cipher", "ALL:@SECLEVEL=0"])
            .args(["-accept", &format!("{LOCAL}:{port}")])
            .arg("-cert")
            .arg(certificate)
            .arg("-key")
            .arg(key)
            .stdin(Stdio::piped())
            .spawn();
        Self {
            process: process.expect("openssl is installed"),
            port,
        }
    }

    /// What a store says that is given this server as its only member.
    async fn refused(&self, ca: &Path) -> String {
        let options = Options {
            ca_file: Some(ca.to_owned()),
            ..Options::new([format!("https://{LOCAL}:{}", self.port)])
        };
        etcd::connect(options).await.unwrap_err().to_string()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Without Debian's own settings, which refuse old versions by themselves.
fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments).env("OPENSSL_CONF", "/dev/null");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_trusted_is_refused() {
    skiff_daemon::install_crypto();
    let directory = tempfile::tempdir().unwrap();
    let folder = |name: &str| directory.path().join(name);
    let [ca, good, good_key] = certificates(&folder("good"), LOCAL, LATE);
    let [_, stranger, stranger_key] = certificates(&folder("stranger"), LOCAL, LATE);
    let [ended_ca, ended, ended_key] = certificates(&folder("ended"), LOCAL, 2020);
    let [other_ca, other, other_key] = certificates(&folder("other"), "127.0.0.2", LATE);

    let old = Acceptor::start(&good, &good_key, "-tls1_1");
    let strange = Acceptor::start(&stranger, &stranger_key, "-tls1_3");
    let late = Acceptor::start(&ended, &ended_key, "-tls1_2");
    let elsewhere = Acceptor::start(&other, &other_key, "-tls1_3");
    let told = tokio::join!(
        old.refused(&ca),
        strange.refused(&ca),
        late.refused(&ended_ca),
        elsewhere.refused(&other_ca),
    );
    assert!(told.0.contains("neither TLS 1.2 nor 1.3"), "{}", told.0);
    for (told, why) in [
        (told.1, "BadSignature"),
        (told.2, "certificate expired"),
        (told.3, "not valid for name"),
    ] {
        assert!(told.contains(why) && told.contains("--etcd-cafile"), "{told}");
    }
    // Somebody who likes it so does speak 1.1 with the first.
    let host = format!("{LOCAL}:{}", old.port);
    let status = openssl(&["s_client", "-connect", &host, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).status();
    assert!(status.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_said() {
    let file = |path: &str| Some(path.into());
    let https = Options::new(["https://127.0.0.1:1"]);
    for (options, expected) in [
        (Options::new(Vec::<String>::new()), "no etcd servers are given"),
        (
            Options::new(["127.0.0.1:2379"]),
            "the URL of an etcd server begins with",
        ),
        (https.clone(), "https needs --etcd-cafile"),
        (
            Options {
                ca_file: file("/no/such/file"),
                ..https
            },
            "cannot read the certificates in /no/such/file",
        ),
    ] {
        let error = etcd::connect(options).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
