//! The looks that were taken at each node, and taking them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::status::Status;
use tokio::time::Instant;

use super::scrape::{self, Scrape};
use super::usage::Pair;
use crate::errors::Result;
use crate::proxy::{self, Kubelets};

/// Kubelets asked at once.
const AT_ONCE: usize = 32;
/// A look that is younger is shown again.
const FRESH: Duration = Duration::from_secs(5);
/// An older look says nothing of what is used now.
const STALE: Duration = Duration::from_secs(120);
/// Between the two looks that the first request needs: longer than kubelets show theirs again.
const APART: Duration = Duration::from_millis(1200);
/// How long a kubelet may take, as metrics-server's.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is read of one kubelet: some 50 KB for a hundred pods.
const LIMIT: usize = 32 << 20;

/// What is known of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    known: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>,
}

/// What is known of one node. Who asks while another looks gets what that one finds.
#[derive(Debug, Default)]
struct Known {
    before: Option<(Instant, Scrape)>,
    last: Option<(Instant, Scrape)>,
}

impl Nodes {
    /// Two looks at each of these nodes (name and object); those that do not answer are left out.
    pub(super) async fn look(&self, kubelets: &Kubelets, wanted: &[(String, Value)]) -> HashMap<String, Pair> {
        let looks: Vec<_> = wanted
            .iter()
            .map(|(name, node)| self.look_at(kubelets, name, node).boxed())
            .collect();
        let found: Vec<_> = futures::stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        self.forget();
        found.into_iter().flatten().collect()
    }

    async fn look_at(&self, kubelets: &Kubelets, name: &str, node: &Value) -> Option<(String, Pair)> {
        let known = Arc::clone(self.known.lock().entry(name.to_owned()).or_default());
        match known.lock().await.look(kubelets, node).await {
            Ok(pair) => Some((name.to_owned(), pair)),
            Err(error) => {
                tracing::warn!(
                    node = name,
                    error = error.message,
                    "a kubelet does not tell what its pods use"
                );
                None
            }
        }
    }

    /// Nodes that nobody asked about for a while, and those that are gone with them.
    fn forget(&self) {
        let mut known = self.known.lock();
        let idle: HashSet<String> = known
            .iter()
            .filter(|(_, node)| {
                let node = node.try_lock();
                node.is_ok_and(|node| node.last.as_ref().is_none_or(|(at, _)| at.elapsed() > STALE))
            })
            .map(|(name, _)| name.clone())
            .collect();
        known.retain(|name, _| !idle.contains(name));
    }
}

impl Known {
    async fn look(&mut self, kubelets: &Kubelets, node: &Value) -> Result<Pair> {
        let address = proxy::kubelet_address(node)?;
        let age = |look: &Option<(Instant, Scrape)>| look.as_ref().map(|(at, _)| at.elapsed());
        if age(&self.last).is_none_or(|age| age > FRESH) {
            let usable = age(&self.last).is_some_and(|age| age < STALE);
            if !usable {
                self.last = Some((Instant::now(), ask(kubelets, &address).await?));
                tokio::time::sleep(APART).await;
            }
            let next = (Instant::now(), ask(kubelets, &address).await?);
            self.before = self.last.replace(next);
        }
        match (&self.before, &self.last) {
            (Some((_, before)), Some((_, last))) => Ok(Pair {
                before: before.clone(),
                last: last.clone(),
            }),
            _ => Err(Status::internal("no figures yet")),
        }
    }
}

async fn ask(kubelets: &Kubelets, address: &str) -> Result<Scrape> {
    let request = Request::get("/metrics/resource")
        .header(header::HOST, address)
        .body(Full::new(Bytes::new()))
        .map_err(|error| Status::internal(error.to_string()))?;
    let work = async {
        let response = kubelets.send(address, request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(Status::internal(format!("the kubelet answered {status}")));
        }
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        let bytes = body.map_err(|error| Status::internal(error.to_string()))?.to_bytes();
        Ok(scrape::parse(&String::from_utf8_lossy(&bytes)))
    };
    let answer = tokio::time::timeout(PATIENCE, work).await;
    answer.unwrap_or_else(|_| Err(Status::internal("the kubelet did not answer in time")))
}
