//! Leader election on a real API server and a real store.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use skiff_api::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use skiff_apiserver::ApiServer;
use skiff_daemon::election::{Election, Timing};
use skiff_daemon::{Context, Metrics, Shutdown};
use skiff_pki::{CertificateAuthority, Request, ServiceAccountKey};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const LIMIT: Duration = Duration::from_secs(20);
const TIMING: Timing = Timing {
    lease_duration: Duration::from_secs(3),
    renew_deadline: Duration::from_secs(2),
    retry_period: Duration::from_millis(400),
};

struct Cluster {
    server: ApiServer,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        skiff_daemon::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let request = Request::server("kube-apiserver", &["localhost"], &[]);
        let store = skiff_store::sqlite::open(
            directory.path().join("state.db"),
            skiff_store::sqlite::Options::default(),
        );
        let config = skiff_apiserver::Config::new(
            authority.issue(&request).unwrap(),
            authority.certificate_pem(),
            ServiceAccountKey::generate().unwrap(),
            ("192.0.2.1".parse().unwrap(), 6443),
        );
        let server = ApiServer::start(config, Arc::new(store.unwrap()), Context::default());
        Self {
            server: server.await.unwrap(),
            _directory: directory,
        }
    }

    /// As the scheduler, with nothing but its roles.
    fn client(&self) -> kube::Client {
        self.server.client("system:kube-scheduler", &["system:authenticated"])
    }

    async fn lease(&self) -> LeaseSpec {
        let leases: Api<Lease> = Api::namespaced(self.client(), "kube-system");
        leases.get("kube-scheduler").await.unwrap().spec.unwrap()
    }
}

/// Work of which only one may be going on.
#[derive(Clone, Default)]
struct Work {
    going_on: Arc<AtomicUsize>,
    twice: Arc<AtomicBool>,
}

/// One candidate, and what is seen of it.
struct Candidate {
    identity: String,
    shutdown: Shutdown,
    /// Whether it leads.
    leads: watch::Receiver<bool>,
    /// Its calls of the API hang while this is set.
    cut_off: Arc<AtomicBool>,
    metrics: Metrics,
    task: tokio::task::JoinHandle<()>,
}

impl Candidate {
    fn start(client: kube::Client, work: &Work) -> Self {
        let cut_off = Arc::new(AtomicBool::new(false));
        let is_cut_off = Arc::clone(&cut_off);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (client, is_cut_off) = (client.clone(), Arc::clone(&is_cut_off));
            async move {
                if is_cut_off.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                client.send(request).await
            }
        });
        let client = kube::Client::new(service, "default");
        let election = Election::new("kube-scheduler", TIMING);
        let identity = election.identity.clone();
        let (sender, leads) = watch::channel(false);
        let (shutdown, metrics, work) = (Shutdown::new(), Metrics::default(), work.clone());
        let (until, registry) = (shutdown.clone(), metrics.clone());
        let task = tokio::spawn(async move {
            let term = |shutdown: Shutdown| {
                let (work, sender) = (work.clone(), sender.clone());
                async move {
                    if work.going_on.fetch_add(1, Ordering::SeqCst) > 0 {
                        work.twice.store(true, Ordering::SeqCst);
                    }
                    sender.send_replace(true);
                    shutdown.cancelled().await;
                    work.going_on.fetch_sub(1, Ordering::SeqCst);
                    sender.send_replace(false);
                    Ok::<(), Infallible>(())
                }
            };
            election.lead(client, &registry, &until, term).await.unwrap();
        });
        Self {
            identity,
            shutdown,
            leads,
            cut_off,
            metrics,
            task,
        }
    }

    async fn until_leads(&mut self, wanted: bool) {
        let reached = self.leads.wait_for(|leads| *leads == wanted);
        timeout(LIMIT, reached).await.expect("in time").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_given_back_goes_to_the_next_at_once() {
    let cluster = Cluster::start().await;
    let work = Work::default();
    let mut first = Candidate::start(cluster.client(), &work);
    first.until_leads(true).await;
    let lease = cluster.lease().await;
    assert_eq!(lease.holder_identity.as_deref(), Some(first.identity.as_str()));
    assert_eq!(
        (lease.lease_duration_seconds, lease.lease_transitions),
        (Some(3), Some(0))
    );
    let status = "leader_election_master_status{name=\"kube-scheduler\"} ";
    assert!(first.metrics.encode().contains(&format!("{status}1")));

    let mut second = Candidate::start(cluster.client(), &work);
    // It has seen who leads once its own watch runs; a renewal later the first still leads.
    let renewed = cluster.lease().await.renew_time;
    while cluster.lease().await.renew_time == renewed {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!*second.leads.borrow());
    assert!(second.metrics.encode().contains(&format!("{status}0")));

    let begin = Instant::now();
    first.shutdown.cancel();
    second.until_leads(true).await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}: it waited for the end of the Lease",
        begin.elapsed()
    );
    timeout(LIMIT, first.task).await.unwrap().unwrap();
    let lease = cluster.lease().await;
    assert_eq!(lease.holder_identity.as_deref(), Some(second.identity.as_str()));
    assert_eq!(lease.lease_transitions, Some(1));
    second.shutdown.cancel();
    timeout(LIMIT, second.task).await.unwrap().unwrap();
    assert_eq!(cluster.lease().await.holder_identity.as_deref(), Some(""));
    assert!(!work.twice.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_stops_before_the_next_begins() {
    let cluster = Cluster::start().await;
    let work = Work::default();
    let mut first = Candidate::start(cluster.client(), &work);
    first.until_leads(true).await;
    let mut second = Candidate::start(cluster.client(), &work);
    for _ in 0..2 {
        let begin = Instant::now();
        first.cut_off.store(true, Ordering::SeqCst);
        first.until_leads(false).await;
        assert!(
            begin.elapsed() <= TIMING.renew_deadline + Duration::from_millis(500),
            "{:?}",
            begin.elapsed()
        );
        second.until_leads(true).await;
        assert!(
            begin.elapsed() >= TIMING.lease_duration - TIMING.retry_period * 2,
            "{:?}",
            begin.elapsed()
        );
        // Back again it is a candidate like any other.
        first.cut_off.store(false, Ordering::SeqCst);
        std::mem::swap(&mut first, &mut second);
    }
    assert!(!work.twice.load(Ordering::SeqCst), "two led at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_lease_was_taken_stops_at_its_next_renewal() {
    let cluster = Cluster::start().await;
    let work = Work::default();
    let mut first = Candidate::start(cluster.client(), &work);
    first.until_leads(true).await;
    let leases: Api<Lease> = Api::namespaced(cluster.client(), "kube-system");
    // A label that a person writes costs nothing.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    leases
        .patch("kube-scheduler", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    let renewed = cluster.lease().await.renew_time;
    while cluster.lease().await.renew_time == renewed {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(*first.leads.borrow());
    let taken = json!({"spec": {"holderIdentity": "a person", "leaseDurationSeconds": 1}});
    leases
        .patch("kube-scheduler", &PatchParams::default(), &Patch::Merge(taken))
        .await
        .unwrap();
    first.until_leads(false).await;
    assert_eq!(cluster.lease().await.holder_identity.as_deref(), Some("a person"));
    // Whoever took it does not renew it.
    first.until_leads(true).await;
    assert!(!work.twice.load(Ordering::SeqCst));
}
