//! Everything in an etcd cluster: read at one revision, replaced by a backup.
//!
//! A replacement takes many transactions. The first removes what is there and leaves a note under [`RESTORE_STATE`]; each of the others
//! writes a part of the backup and moves the note on, on condition that nobody else has touched it; the last one says that all is there.
//! Servers refuse a cluster whose note says otherwise, and the same restore goes on where the note says.
//!
//! etcd's own revisions cannot be moved, and a new cluster begins at one. So the note holds what is added to them ([`Scale`]), for as
//! long as the cluster lives.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::convert::{self, Scale};
use super::failure::{explain, garbled};
use super::protocol::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::protocol::etcdserverpb::request_op::Request;
use super::protocol::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use super::{Client, EtcdStore, Options, channel, once};
use crate::backup::{REVISION_GAP, Reader, Sum};
use crate::types::check_size;
use crate::{Error, Page, Prefix, Revision};

/// Under which all keys are; upstream's `--etcd-prefix`.
const ROOT: &str = "/registry";
/// The note's key; caches of servers know no resource of its name.
pub(crate) const RESTORE_STATE: &str = "/registry/restore";
/// Where servers tell that they live, and for how long one may be silent before it counts as gone.
const SERVERS: &str = "/registry/masterleases";
const SILENCE: Duration = Duration::from_secs(13);
/// A transaction takes no more than this: etcd's own limits are 128 operations and 1.5 MiB.
const BATCH_ENTRIES: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// Entries read at a time.
const PAGE: usize = 500;

/// What the note says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct State {
    /// What is added to etcd's revisions.
    offset: u64,
    /// Whose backup is written.
    sha256: String,
    /// The last key that has been written.
    after: Option<String>,
    /// Whether all is there.
    done: bool,
}

/// The note, and the revision of etcd's that it has.
type Noted = (State, i64);

impl State {
    fn encode(&self) -> Bytes {
        let Self {
            offset,
            sha256,
            after,
            done,
        } = self;
        let note = json!({"offset": offset, "sha256": sha256, "after": after, "done": done});
        Bytes::from(note.to_string())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let note: Value = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            offset: note["offset"].as_u64()?,
            sha256: note["sha256"].as_str()?.to_owned(),
            after: note["after"].as_str().map(str::to_owned),
            done: note["done"].as_bool()?,
        })
    }
}

impl EtcdStore {
    /// A connection that compacts nothing.
    pub(crate) async fn connect_quietly(options: &Options) -> Result<Self, Error> {
        let options = Options {
            compaction_interval: None,
            ..options.clone()
        };
        super::connect(options).await
    }

    /// A part of everything, behind the last key of the part before, at its revision.
    pub(crate) async fn snapshot(&self, after: Option<(Revision, &str)>) -> Result<Page, Error> {
        let (at, after) = after.unzip();
        let range = convert::range(&Prefix::new(ROOT), after);
        self.client.page(range, at, PAGE).await
    }
}

/// What is added to etcd's revisions.
///
/// # Errors
/// [`Error::Unfinished`] when a restore was cut short.
pub(super) async fn scale(client: &Client) -> Result<Scale, Error> {
    match look(client).await? {
        None => Ok(Scale::default()),
        Some((state, _)) if state.done => Ok(Scale { offset: state.offset }),
        Some(_) => Err(Error::Unfinished),
    }
}

async fn look(client: &Client) -> Result<Option<Noted>, Error> {
    let request = RangeRequest {
        key: RESTORE_STATE.into(),
        ..RangeRequest::default()
    };
    let answer = client
        .range(request)
        .await
        .map_err(|status| explain("look for a restore", &status))?;
    let Some(kv) = answer.kvs.into_iter().next() else {
        return Ok(None);
    };
    let state = State::decode(&kv.value).ok_or_else(|| garbled("the note of a restore cannot be read"))?;
    Ok(Some((state, kv.mod_revision)))
}

/// Replaces everything with a backup; the revision that the store goes on from.
pub(crate) async fn replace(
    options: &Options,
    backup: Reader,
    force: bool,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Revision, Error> {
    // Before anything is removed: a store of an older skiff may hold what etcd does not take.
    backup.each(0, |key, value| {
        check_size(key, key.len() + value.len())?;
        Ok(true)
    })?;
    // Without a scale: revisions here are etcd's own.
    let client = Client {
        channel: channel::connect(options)?,
        scale: Scale::default(),
    };
    let noted = look(&client).await?;
    refuse_servers(&client).await?;
    let own = |(state, _): &&Noted| !state.done && state.sha256 == backup.summary().sha256;
    let mut noted = match noted.as_ref().filter(own) {
        Some(noted) if noted.0.after.is_some() => noted.clone(),
        // Nothing of it is there yet, or what was there was not as it should be. To replace what is there was allowed before.
        own => begin(&client, &backup, noted.clone(), force || own.is_some(), options).await?,
    };
    let after = noted.0.after.as_deref();
    let mut written = after.map(|key| backup.up_to(key)).transpose()?.unwrap_or_default();
    loop {
        let entries = batch(&backup, written)?;
        let Some((last, _)) = entries.last() else { break };
        written += entries.len() as u64;
        noted.0.after = Some(last.clone());
        let puts = entries.into_iter().map(|(key, value)| put(key.into(), value)).collect();
        noted.1 = step(&client, puts, &noted).await?;
        progress(written);
    }
    if let Err(error) = verify(&client, &backup).await {
        // The same restore begins anew: what was written is of no use. Where the note cannot be written, the first reason counts.
        noted.0.after = None;
        step(&client, Vec::new(), &noted).await.ok();
        return Err(error);
    }
    noted.0.done = true;
    noted.0.after = None;
    let end = step(&client, Vec::new(), &noted).await?;
    // Whoever watches from before has to list anew.
    client.compact(client.scale.ours(end)).await?;
    Ok(Scale { offset: noted.0.offset }.ours(end))
}

/// Removes what is there, and notes that a restore has begun.
async fn begin(
    client: &Client,
    backup: &Reader,
    noted: Option<Noted>,
    force: bool,
    options: &Options,
) -> Result<Noted, Error> {
    let prefix = Prefix::new(ROOT);
    let page = client.page(convert::range(&prefix, None), None, 2).await?;
    if !force && page.entries.iter().any(|entry| &*entry.key != RESTORE_STATE) {
        return Err(Error::NotEmpty {
            place: format!("etcd at {}", options.servers.join(",")),
        });
    }
    let (before, version) = noted.unwrap_or_default();
    let now = page.revision.0;
    // Never less than it was: clients have seen what the store said until now.
    let base = (now + before.offset).max(backup.summary().revision.0) + REVISION_GAP;
    let state = State {
        offset: base - now,
        sha256: backup.summary().sha256.clone(),
        after: None,
        done: false,
    };
    let remove = |start: Vec<u8>, end: Vec<u8>| {
        Request::RequestDeleteRange(DeleteRangeRequest {
            key: start.into(),
            range_end: end.into(),
        })
    };
    // All but the note, which the same transaction writes.
    let (start, end) = convert::range(&prefix, None);
    let behind = [RESTORE_STATE.as_bytes(), b"\0"].concat();
    let removals = vec![remove(start, RESTORE_STATE.as_bytes().to_vec()), remove(behind, end)];
    let noted = (state, version);
    let version = step(client, removals, &noted).await?;
    Ok((noted.0, version))
}

/// The next entries.
fn batch(backup: &Reader, written: u64) -> Result<Vec<(String, Bytes)>, Error> {
    let mut entries: Vec<(String, Bytes)> = Vec::new();
    let mut bytes = 0;
    backup.each(written, |key, value| {
        bytes += key.len() + value.len();
        if !entries.is_empty() && (entries.len() == BATCH_ENTRIES || bytes > BATCH_BYTES) {
            return Ok(false);
        }
        entries.push((key.to_owned(), Bytes::copy_from_slice(value)));
        Ok(true)
    })?;
    Ok(entries)
}

fn put(key: Bytes, value: Bytes) -> Request {
    Request::RequestPut(PutRequest { key, value })
}

/// Does these things and writes the note, if nobody has touched it; the revision of etcd's that both have.
async fn step(client: &Client, mut requests: Vec<Request>, (state, version): &Noted) -> Result<i64, Error> {
    requests.push(put(Bytes::from_static(RESTORE_STATE.as_bytes()), state.encode()));
    let operation = |request| RequestOp { request: Some(request) };
    let condition = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: RESTORE_STATE.into(),
        // Zero: there is none.
        target_union: Some(TargetUnion::ModRevision(*version)),
    };
    let request = TxnRequest {
        compare: vec![condition],
        success: requests.into_iter().map(operation).collect(),
        failure: Vec::new(),
    };
    let answer = once(client.kv().txn(request)).await;
    let answer = answer.map_err(|status| explain("write a part of the backup", &status))?;
    if !answer.succeeded {
        return Err(garbled("another restore goes on at the same time"));
    }
    Ok(answer.header.unwrap_or_default().revision)
}

/// Refuses a cluster that a server uses: it writes its key every ten seconds.
async fn refuse_servers(client: &Client) -> Result<(), Error> {
    let range = convert::range(&Prefix::new(SERVERS), None);
    let before = client.page(range.clone(), None, 0).await?.entries;
    let begin = Instant::now();
    while !before.is_empty() && begin.elapsed() < SILENCE {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = client.page(range.clone(), None, 0).await?.entries;
        let is_new = |entry: &&crate::Entry| before.iter().all(|old| old.mod_revision != entry.mod_revision);
        if let Some(living) = now.iter().find(is_new) {
            let address = living.key.rsplit('/').next().unwrap_or_default();
            return Err(Error::InUse {
                server: address.to_owned(),
            });
        }
    }
    Ok(())
}

/// Reads back what was written.
async fn verify(client: &Client, backup: &Reader) -> Result<(), Error> {
    let prefix = Prefix::new(ROOT);
    let mut sum = Sum::default();
    let mut page = client.page(convert::range(&prefix, None), None, PAGE).await?;
    loop {
        for entry in page.entries.iter().filter(|entry| &*entry.key != RESTORE_STATE) {
            sum.add(&entry.key, &entry.value);
        }
        let Some(last) = page.entries.last().filter(|_| page.more) else {
            break;
        };
        let range = convert::range(&prefix, Some(&last.key));
        page = client.page(range, Some(page.revision), PAGE).await?;
    }
    if sum.finish(backup.summary().revision) == *backup.summary() {
        return Ok(());
    }
    Err(garbled(
        "what was written is not what is read back: does something else write to this cluster?",
    ))
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn a_note_says_what_was_noted() {
        let state = State {
            offset: 7,
            sha256: "ab".to_owned(),
            after: Some("/registry/a".to_owned()),
            done: false,
        };
        assert_eq!(State::decode(&state.encode()), Some(state));
        assert_eq!(State::decode(b"{}"), None);
    }
}
