//! SIGKILL under load: what was acknowledged is there, once, at the revision that was told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use rand::RngExt as _;
use skiff_store::sqlite::{self, Options};
use skiff_store::{Revision, Store, Write};

const CHILD: &str = "SKIFF_STORE_CRASH_CHILD";
const ROUNDS: usize = 8;
const WRITERS: usize = 8;

/// Small intervals, so that kills also hit compactions.
fn options() -> Options {
    Options {
        compaction_interval: Some(Duration::from_millis(30)),
        keep_revisions: 200,
        ..Options::default()
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled() {
    // This same test, run in a process of its own, is the one that gets killed.
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let mut acknowledged: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut newest = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(&path);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after = rand::rng().random_range(50..1500);
        for (count, line) in lines.map_while(Result::ok).filter_map(acknowledgement).enumerate() {
            let (key, revision, value) = line;
            newest = newest.max(revision);
            acknowledged.insert(key, (revision, value));
            if count == kill_after {
                // Only the process that this test started.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        check(&path, &acknowledged, newest, round);
    }
}

fn acknowledgement(line: String) -> Option<(String, u64, String)> {
    // The test runner's own output is in the same stream; a killed writer may leave half a line.
    let mut words = line.strip_prefix("ack ")?.strip_suffix(" .")?.split(' ');
    Some((
        words.next()?.to_owned(),
        words.next()?.parse().ok()?,
        words.next()?.to_owned(),
    ))
}

fn spawn(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_acknowledged_is_lost_or_doubled", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn check(path: &Path, acknowledged: &BTreeMap<String, (u64, String)>, newest: u64, round: usize) {
    runtime().block_on(async {
        let store = sqlite::open(path, options()).unwrap();
        let revision = store.revision().await.unwrap();
        assert!(
            revision.0 >= newest,
            "round {round}: {revision} is older than acknowledged {newest}"
        );
        let page = store.list("/k", None, None, 0).await.unwrap();
        assert!(page.entries.iter().all(|entry| entry.mod_revision <= revision));
        for (key, (wrote, value)) in acknowledged {
            let entry = store
                .get(key)
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("round {round}: {key} is lost"));
            let found = std::str::from_utf8(&entry.value).unwrap();
            // One write of each writer may have been on its way when the process died: committed, not yet told.
            let later = entry.mod_revision.0 > *wrote && counter(found) == counter(value) + 1;
            let same = entry.mod_revision.0 == *wrote && found == value;
            assert!(
                same || later,
                "round {round}: {key}: acknowledged {wrote} {value}, found {entry:?}"
            );
        }
        // History since the last compaction has each revision once.
        let from = store.stats().compacted;
        let mut watch = store.watch("/k", from).await.unwrap();
        let mut last = from;
        while last < revision {
            for event in watch.next().await.unwrap().unwrap() {
                assert!(event.revision() > last);
                assert!(
                    last == from || event.revision() == Revision(last.0 + 1),
                    "round {round}: a gap"
                );
                last = event.revision();
            }
        }
        store.close().await;
    });
}

fn counter(value: &str) -> u64 {
    value.parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn write_until_killed(path: &Path) -> ! {
    let store: Arc<dyn Store> = Arc::new(sqlite::open(path, options()).unwrap());
    runtime().block_on(async {
        let writers = (0..WRITERS).map(|writer| tokio::spawn(count_up(Arc::clone(&store), format!("/k/{writer}"))));
        futures::future::join_all(writers).await;
    });
    unreachable!("the writers never end")
}

/// Writes 1, 2, 3 … under one key, and tells each only after it is acknowledged.
async fn count_up(store: Arc<dyn Store>, key: String) {
    loop {
        let entry = store.get(&key).await.unwrap();
        let (next, expected) = match &entry {
            None => (1, None),
            Some(entry) => (
                counter(std::str::from_utf8(&entry.value).unwrap()) + 1,
                Some(entry.mod_revision),
            ),
        };
        let value = Bytes::from(next.to_string());
        let write = match expected {
            None => Write::Create {
                key: key.as_str().into(),
                value,
            },
            Some(expected) => Write::Update {
                key: key.as_str().into(),
                value,
                expected,
            },
        };
        let revision = store.write(write).await.unwrap();
        let line = format!("ack {key} {revision} {next} .\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}
