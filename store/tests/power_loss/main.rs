//! The power goes under load: what was acknowledged is there, once, at the revision that was told, whatever the disk did with
//! what was not synced.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use skiff_store::sqlite::{self, Options};
use skiff_store::{Revision, Store, Write};

use disk::Left;

const LIVES: usize = 4;
const CUTS: usize = 12;
const WRITERS: usize = 8;

/// What was told of each key: the revision and the number that was written.
type Acknowledged = BTreeMap<String, (u64, u64)>;

/// Small intervals, so that cuts also hit compactions.
fn options() -> Options {
    Options {
        compaction_interval: Some(Duration::from_millis(40)),
        keep_revisions: 200,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_when_the_power_goes() {
    disk::install();
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut place = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::new();
    let (mut cuts, mut pending) = (0, 0);
    for life in 0..LIVES {
        let store: Arc<dyn Store> = Arc::new(sqlite::open(place.path().join("state.db"), options()).unwrap());
        let told = Arc::new(Mutex::new(acknowledged.clone()));
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                tokio::spawn(count_up(
                    Arc::clone(&store),
                    writer,
                    Arc::clone(&told),
                    Arc::clone(&stop),
                ))
            })
            .collect();
        let mut next = None;
        for _ in 0..CUTS {
            tokio::time::sleep(Duration::from_micros(random.random_range(2_000..60_000))).await;
            // In this order: what is told by now must be in the wreck.
            let known = told.lock().clone();
            let wreck = disk::cut(place.path());
            pending += wreck.pending();
            for left in [Left::Nothing, Left::Something, Left::Something] {
                let found = tempfile::tempdir().unwrap();
                wreck.restore(found.path(), left, &mut random);
                let seen = check(found.path(), &known, &format!("life {life}, cut {cuts}, {left:?} left")).await;
                next = Some((found, seen));
            }
            cuts += 1;
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        drop(store);
        // The next life begins on the last wreck, with what it was found to hold.
        let (found, seen) = next.unwrap();
        (place, acknowledged) = (found, seen);
    }
    let newest = acknowledged.values().map(|(revision, _)| *revision).max().unwrap();
    println!("{cuts} power cuts, {pending} writes on their way, {newest} revisions");
    assert!(pending > 0, "the cuts hit nothing");
}

/// Checks what was found; what it holds.
async fn check(directory: &Path, acknowledged: &Acknowledged, when: &str) -> Acknowledged {
    let quiet = Options {
        compaction_interval: None,
        ..options()
    };
    let store = sqlite::open(directory.join("state.db"), quiet).unwrap_or_else(|error| panic!("{when}: {error}"));
    let revision = store.revision().await.unwrap();
    let page = store.list("/k", None, None, 0).await.unwrap();
    let found: Acknowledged = page
        .entries
        .iter()
        .map(|entry| {
            let number = number(&entry.value).unwrap_or_else(|| panic!("{when}: {} is garbled", entry.key));
            (entry.key.to_string(), (entry.mod_revision.0, number))
        })
        .collect();
    for (key, (wrote, number)) in acknowledged {
        assert!(
            revision.0 >= *wrote,
            "{when}: {revision} is older than acknowledged {wrote}"
        );
        let (at, what) = found.get(key).unwrap_or_else(|| panic!("{when}: {key} is lost"));
        let same = (at, what) == (wrote, number);
        let later = at > wrote && what > number;
        assert!(
            same || later,
            "{when}: {key}: acknowledged {number} at {wrote}, found {what} at {at}"
        );
    }
    // History since the last compaction has each revision once.
    let from = store.stats().compacted;
    let mut watch = store.watch("/k", from).await.unwrap();
    let mut last = from;
    while last < revision {
        for event in watch.next().await.unwrap().unwrap() {
            let follows = last == from || event.revision() == Revision(last.0 + 1);
            assert!(follows, "{when}: {last} is followed by {}", event.revision());
            last = event.revision();
        }
    }
    store.close().await;
    found
}

/// The number in a value, if it is whole: long enough for several pages, and the same all over.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    words.all(|word| word == first).then(|| first.parse().ok())?
}

fn value(number: u64) -> Bytes {
    let length = if number.is_multiple_of(7) { 3000 } else { 20 };
    format!("{number} ").repeat(length / 4 + 1).into()
}

/// Writes 1, 2, 3 … under one key, and notes each only after it is acknowledged. Sometimes makes another key.
async fn count_up(store: Arc<dyn Store>, writer: usize, told: Arc<Mutex<Acknowledged>>, stop: Arc<AtomicBool>) {
    let key = format!("/k/{writer}");
    let mut current = store.get(&key).await.unwrap().map(|entry| {
        let number = number(&entry.value).unwrap();
        (entry.mod_revision, number)
    });
    while !stop.load(Ordering::Relaxed) {
        let next = current.map_or(1, |(_, number)| number + 1);
        let write = match current {
            None => Write::Create {
                key: key.as_str().into(),
                value: value(next),
            },
            Some((expected, _)) => Write::Update {
                key: key.as_str().into(),
                value: value(next),
                expected,
            },
        };
        let revision = store.write(write).await.unwrap();
        told.lock().insert(key.clone(), (revision.0, next));
        current = Some((revision, next));
        if next.is_multiple_of(50) {
            let other = format!("/k/{writer}-{next}-{revision}");
            let create = Write::Create {
                key: other.as_str().into(),
                value: value(next),
            };
            let revision = store.write(create).await.unwrap();
            told.lock().insert(other, (revision.0, next));
        }
    }
}

/// The disk above does forget: else the test could not fail.
#[test]
fn a_store_that_does_not_sync_would_be_caught() {
    disk::install();
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("careless.db")).unwrap();
    let begin = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t (n);";
    connection.execute_batch(begin).unwrap();
    connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let found = tempfile::tempdir().unwrap();
    disk::cut(directory.path()).restore(found.path(), Left::Nothing, &mut rand::rng());
    let survivor = Connection::open(found.path().join("careless.db")).unwrap();
    assert!(
        survivor
            .query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0))
            .is_err()
    );
    assert_eq!(
        connection
            .query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0))
            .unwrap(),
        1
    );
}
