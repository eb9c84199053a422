//! The backend for several servers at once: etcd v3.
//!
//! The cluster is skiff's own: every revision is a change of one of its keys, so whoever has seen the newest change under the root is
//! level with [`Store::revision`]. Once a backup has been restored into it, our revisions are etcd's plus a constant ([`restore`]).
//!
//! One HTTP/2 connection to one member carries everything; when it breaks, the next member in turn is asked ([`channel`]). Reads are
//! linearizable and are asked again when a member fails under them. A write is asked once: whether it happened is not known when its
//! member fails. A watch goes on by itself from what it delivered last ([`watch`]).

mod channel;
mod convert;
mod failure;
mod restore;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::AbortHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::{Entry, Error, Page, Prefix, Revision, Store, Watch, Write};
use convert::Scale;
use failure::{explain, is_compacted, is_passing};
use protocol::etcdserverpb::kv_client::KvClient;
use protocol::etcdserverpb::{CompactionRequest, RangeRequest, RangeResponse, TxnRequest};

#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    reason = "generated from proto/"
)]
mod protocol {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}

pub(crate) use restore::{RESTORE_STATE, replace};

/// The largest answer that is taken: a page of the largest objects.
const MAX_MESSAGE: usize = 256 << 20;
/// Entries asked for at a time when all are wanted.
const PAGE: usize = 1000;
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a read is asked again while members fail, a new leader is elected and the like.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Where etcd is, and how to get in.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of the members' client ports; upstream's `--etcd-servers`.
    pub servers: Vec<String>,
    /// The authority that signed the members' certificates, PEM; upstream's `--etcd-cafile`. Needed for `https`.
    pub ca_file: Option<PathBuf>,
    /// Our client certificate, PEM; upstream's `--etcd-certfile`.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM; upstream's `--etcd-keyfile`.
    pub key_file: Option<PathBuf>,
    /// How often history is compacted by itself; never when `None`. What is younger than this is kept.
    pub compaction_interval: Option<Duration>,
}

/// A store in an etcd cluster.
#[derive(Debug)]
pub struct EtcdStore {
    client: Client,
    compaction: Option<AbortHandle>,
}

/// Connects to etcd, and makes sure that it answers.
///
/// # Errors
/// [`Error::Configuration`] for URLs and files that cannot be used, [`Error::Etcd`] when no member answers in time.
pub async fn connect(options: Options) -> Result<EtcdStore, Error> {
    let mut client = Client {
        channel: channel::connect(&options)?,
        scale: Scale::default(),
    };
    client.scale = restore::scale(&client).await?;
    let compaction = options
        .compaction_interval
        .map(|interval| tokio::spawn(compact_regularly(client.clone(), interval)).abort_handle());
    Ok(EtcdStore { client, compaction })
}

impl Options {
    /// Plain HTTP to these members.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            compaction_interval: Some(Duration::from_secs(5 * 60)),
        }
    }
}

/// Each server compacts to where it saw the store an interval ago: never younger, however many servers do so.
async fn compact_regularly(client: Client, interval: Duration) {
    let mut mark = None;
    loop {
        if let Some(mark) = mark
            && let Err(error) = client.compact(mark).await
        {
            tracing::warn!(%error, "cannot compact the store; trying again in {interval:?}");
        }
        mark = client.revision().await.ok();
        tokio::time::sleep(interval).await;
    }
}

/// Calls of etcd.
#[derive(Clone, Debug)]
struct Client {
    channel: Channel,
    scale: Scale,
}

/// The key and the end of a range.
type Range = (Vec<u8>, Vec<u8>);

// === impl Client ===

impl Client {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Asks until there is an answer, or an error that will not pass.
    async fn read<T, F>(&self, call: impl Fn(KvClient<Channel>) -> F + Send + Sync) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let begin = tokio::time::Instant::now();
        loop {
            match once(call(self.kv())).await {
                Err(status) if is_passing(&status) && begin.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.read(|mut kv| {
            let request = request.clone();
            async move { kv.range(request).await }
        })
        .await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let request = RangeRequest {
            key: b"/".to_vec().into(),
            count_only: true,
            ..RangeRequest::default()
        };
        let answer = self
            .range(request)
            .await
            .map_err(|status| explain("ask for the newest revision", &status))?;
        Ok(self.scale.revision(answer.header))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let request = CompactionRequest {
            revision: self.scale.to_wire(revision),
            physical: true,
        };
        match self.read(|mut kv| async move { kv.compact(request).await }).await {
            // Somebody else was faster, or went further.
            Err(status) if is_compacted(&status) => Ok(()),
            Err(status) => Err(self.explain_revision("compact history", revision, &status).await),
            Ok(_) => Ok(()),
        }
    }

    async fn page(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        let request = RangeRequest {
            key: range.0.into(),
            range_end: range.1.into(),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            revision: at.map_or(0, |at| self.scale.to_wire(at)),
            count_only: false,
        };
        let answer = match self.range(request).await {
            Ok(answer) => answer,
            Err(status) => {
                return Err(self
                    .explain_revision("list keys", at.unwrap_or_default(), &status)
                    .await);
            }
        };
        let all = u64::try_from(answer.count).unwrap_or_default();
        let entries = answer
            .kvs
            .into_iter()
            .map(|kv| self.scale.entry(kv))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Page {
            revision: at.unwrap_or(self.scale.revision(answer.header)),
            more: answer.more,
            remaining: all.saturating_sub(entries.len() as u64),
            entries,
        })
    }

    /// Refuses a revision that is no longer in history; one that has not happened yet is none of its business.
    async fn check_readable(&self, revision: Revision) -> Result<(), Error> {
        let request = RangeRequest {
            key: b"/".to_vec().into(),
            // Zero would mean "now".
            revision: self.scale.to_wire(revision).max(1),
            count_only: true,
            ..RangeRequest::default()
        };
        match self.range(request).await {
            Err(status) if !failure::is_future(&status) => {
                Err(self.explain_revision("watch keys", revision, &status).await)
            }
            _ => Ok(()),
        }
    }

    /// What a refused revision means: it is forgotten, or has not happened yet.
    async fn explain_revision(&self, step: &'static str, requested: Revision, status: &Status) -> Error {
        if is_compacted(status) {
            let compacted = watch::compacted(self).await;
            return compacted.map_or_else(|error| error, |compacted| Error::Compacted { requested, compacted });
        }
        if failure::is_future(status) {
            let current = self.revision().await;
            return current.map_or_else(|error| error, |current| Error::FutureRevision { requested, current });
        }
        explain(step, status)
    }
}

async fn once<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {} s",
            CALL.as_secs()
        ))),
    }
}

// === impl EtcdStore ===

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let request = RangeRequest {
            key: key.as_bytes().to_vec().into(),
            ..RangeRequest::default()
        };
        let answer = self.client.range(request).await;
        let answer = answer.map_err(|status| explain("get a key", &status))?;
        let first = answer.kvs.into_iter().next();
        first.map(|kv| self.client.scale.entry(kv)).transpose()
    }

    async fn list(&self, prefix: &str, at: Option<Revision>, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        let prefix = Prefix::new(prefix);
        if limit > 0 {
            return self.client.page(convert::range(&prefix, after), at, limit).await;
        }
        let mut whole = self.client.page(convert::range(&prefix, after), at, PAGE).await?;
        while whole.more {
            let after = whole.entries.last().map(|entry| entry.key.clone());
            let range = convert::range(&prefix, after.as_deref());
            let next = self.client.page(range, Some(whole.revision), PAGE).await?;
            whole.entries.extend(next.entries);
            whole.more = next.more;
            whole.remaining = next.remaining;
        }
        Ok(whole)
    }

    async fn write(&self, write: Write) -> Result<Revision, Error> {
        write.check()?;
        let request: TxnRequest = convert::transaction(write, self.client.scale);
        let answer = once(self.client.kv().txn(request)).await;
        let answer = answer.map_err(|status| explain("write a key", &status))?;
        if answer.succeeded {
            return Ok(self.client.scale.revision(answer.header));
        }
        let current = self.client.scale.current(answer.responses)?;
        Err(Error::Conflict { current })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        watch::start(self.client.clone(), &Prefix::new(prefix), from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.client.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.client.revision().await
    }

    fn is_shared(&self) -> bool {
        true
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(compaction) = &self.compaction {
            compaction.abort();
        }
    }
}
