//! The cases, written against the trait only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use rand::RngExt as _;
use skiff_store::{Entry, Error, Event, MAX_SIZE, Revision, Store, Watch, Write};

/// Makes stores of one backend. Each value is one place; opening it again finds what was left there.
pub(crate) trait Factory: Sized {
    fn new() -> Self;
    fn open(&self) -> impl Future<Output = Box<dyn Store>>;
}

pub(crate) async fn create(store: &dyn Store, key: &str, value: &str) -> Revision {
    write_create(store, key, value).await.unwrap()
}

async fn write_create(store: &dyn Store, key: &str, value: &str) -> Result<Revision, Error> {
    let write = Write::Create {
        key: key.into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    store.write(write).await
}

async fn update(store: &dyn Store, key: &str, value: &str, expected: Revision) -> Result<Revision, Error> {
    let write = Write::Update {
        key: key.into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expected,
    };
    store.write(write).await
}

async fn delete(store: &dyn Store, key: &str, expected: Option<Revision>) -> Result<Revision, Error> {
    let write = Write::Delete {
        key: key.into(),
        expected,
    };
    store.write(write).await
}

/// Creates or updates, whatever is there.
pub(crate) async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    loop {
        let result = match store.get(key).await.unwrap() {
            None => write_create(store, key, value).await,
            Some(entry) => update(store, key, value, entry.mod_revision).await,
        };
        match result {
            Ok(revision) => return revision,
            Err(Error::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The next `count` changes.
async fn take(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = watch.next().await.expect("the watch ended").unwrap();
        assert!(!batch.is_empty(), "batches are never empty");
        events.extend(batch);
    }
    assert_eq!(events.len(), count, "more came than happened: {events:?}");
    events
}

fn revisions(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.revision().0).collect()
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| &*entry.key).collect()
}

pub(crate) async fn an_empty_store<F: Factory>(place: F) {
    let store = place.open().await;
    let revision = store.revision().await.unwrap();
    assert!(revision > Revision(0), "0 means something else in Kubernetes");
    let page = store.list("/registry", None, None, 0).await.unwrap();
    assert_eq!((page.entries.len(), page.revision, page.more), (0, revision, false));
    assert_eq!(store.get("/registry/a").await.unwrap(), None);
}

pub(crate) async fn create_get_update_delete<F: Factory>(place: F) {
    let store = &*place.open().await;
    let created = create(store, "/a/x", "1").await;
    assert_eq!(store.revision().await.unwrap(), created);
    let updated = update(store, "/a/x", "2", created).await.unwrap();
    assert_eq!(updated.0, created.0 + 1);
    let entry = store.get("/a/x").await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (created, updated));
    assert_eq!(entry.value, "2");
    let deleted = delete(store, "/a/x", Some(updated)).await.unwrap();
    assert_eq!(store.get("/a/x").await.unwrap(), None);
    let again = create(store, "/a/x", "3").await;
    assert_eq!(again.0, deleted.0 + 1);
    assert_eq!(store.get("/a/x").await.unwrap().unwrap().create_revision, again);
    delete(store, "/a/x", None).await.unwrap();
}

pub(crate) async fn conditions_that_do_not_hold<F: Factory>(place: F) {
    let store = &*place.open().await;
    let first = create(store, "/a/x", "1").await;
    let second = update(store, "/a/x", "2", first).await.unwrap();
    let entry = store.get("/a/x").await.unwrap();
    for result in [
        write_create(store, "/a/x", "3").await,
        update(store, "/a/x", "3", first).await,
        delete(store, "/a/x", Some(first)).await,
    ] {
        match result {
            Err(Error::Conflict { current }) => assert_eq!(current, entry),
            other => panic!("{other:?}"),
        }
    }
    for result in [
        update(store, "/a/none", "3", first).await,
        delete(store, "/a/none", Some(first)).await,
        delete(store, "/a/none", None).await,
    ] {
        assert!(matches!(result, Err(Error::Conflict { current: None })), "{result:?}");
    }
    assert_eq!(
        store.revision().await.unwrap(),
        second,
        "a write that fails takes no revision"
    );
}

pub(crate) async fn keys_that_are_none<F: Factory>(place: F) {
    let store = &*place.open().await;
    for key in ["", "a", "/", "/a/"] {
        let result = write_create(store, key, "v").await;
        assert!(matches!(result, Err(Error::InvalidKey { .. })), "{key:?}: {result:?}");
    }
}

pub(crate) async fn values_that_are_too_large<F: Factory>(place: F) {
    let store = &*place.open().await;
    let key = format!("/a/{}", "k".repeat(1000));
    let largest = "v".repeat(MAX_SIZE - key.len());
    let larger = format!("{largest}v");
    let refused = write_create(store, &key, &larger).await;
    assert!(
        matches!(&refused, Err(Error::TooLarge { size, .. }) if *size == MAX_SIZE + 1),
        "{refused:?}"
    );
    assert_eq!(store.get(&key).await.unwrap(), None);
    let created = create(store, &key, &largest).await;
    let refused = update(store, &key, &larger, created).await;
    assert!(
        matches!(&refused, Err(Error::TooLarge { key: of, .. }) if *of == key),
        "{refused:?}"
    );
    let updated = update(store, &key, &largest.replace('v', "w"), created).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().mod_revision, updated);
}

pub(crate) async fn prefixes_are_directories<F: Factory>(place: F) {
    let store = &*place.open().await;
    let from = store.revision().await.unwrap();
    let all = [
        "/registry/core/pods/a/1",
        "/registry/core/pods/b/1",
        "/registry/core/pods-x/a/1",
        "/registry/core/podsx/a/1",
        "/registry/core/pods0/a/1",
        "/registry/corex/pods/a/1",
    ];
    for key in all {
        create(store, key, "v").await;
    }
    for (prefix, expected) in [
        ("/registry/core/pods", &all[..2]),
        ("/registry/core/pods/", &all[..2]),
        ("/registry/core/pods/a", &all[..1]),
        ("/registry/core/podsx", &all[3..4]),
    ] {
        let page = store.list(prefix, None, None, 0).await.unwrap();
        assert_eq!(keys(&page.entries), expected, "{prefix}");
        let mut watch = store.watch(prefix, from).await.unwrap();
        let events = take(&mut watch, expected.len()).await;
        assert!(
            events.iter().all(|event| expected.contains(&&**event.key())),
            "{prefix}"
        );
    }
    assert_eq!(store.list("", None, None, 0).await.unwrap().entries.len(), all.len());
}

pub(crate) async fn pages_stay_consistent<F: Factory>(place: F) {
    let store = &*place.open().await;
    for number in 0..25 {
        create(store, &format!("/k/{number:02}"), "v").await;
    }
    let first = store.list("/k", None, None, 10).await.unwrap();
    assert_eq!((first.entries.len(), first.more, first.remaining), (10, true, 15));
    // What happens between two pages does not show in the second.
    create(store, "/k/105", "new").await;
    create(store, "/k/99", "new").await;
    delete(store, "/k/12", None).await.unwrap();
    put(store, "/k/13", "changed").await;
    let mut seen = first.entries.clone();
    let mut page = first.clone();
    while page.more {
        let after = seen.last().map(|entry| entry.key.to_string());
        page = store
            .list("/k", Some(first.revision), after.as_deref(), 10)
            .await
            .unwrap();
        assert_eq!(page.revision, first.revision);
        seen.extend(page.entries.clone());
    }
    let expected: Vec<String> = (0..25).map(|number| format!("/k/{number:02}")).collect();
    assert_eq!(keys(&seen), expected);
    assert!(seen.iter().all(|entry| entry.value == "v"));
    let exact = store.list("/k", Some(first.revision), None, 25).await.unwrap();
    assert_eq!((exact.more, exact.remaining), (false, 0));
}

pub(crate) async fn the_past_can_be_listed<F: Factory>(place: F) {
    let store = &*place.open().await;
    // A model of every state that the store went through.
    let mut states: Vec<(Revision, BTreeMap<String, String>)> = Vec::new();
    let mut state = BTreeMap::new();
    for step in 0..200 {
        let key = format!("/k/{}", rand::rng().random_range(0..8));
        let revision = if state.contains_key(&key) && rand::rng().random_bool(0.4) {
            state.remove(&key);
            delete(store, &key, None).await.unwrap()
        } else {
            let value = format!("v{step}");
            let revision = put(store, &key, &value).await;
            state.insert(key, value);
            revision
        };
        states.push((revision, state.clone()));
    }
    for (revision, expected) in states {
        let page = store.list("/k", Some(revision), None, 0).await.unwrap();
        let actual: BTreeMap<String, String> = (page.entries.iter())
            .map(|entry| (entry.key.to_string(), String::from_utf8(entry.value.to_vec()).unwrap()))
            .collect();
        assert_eq!(actual, expected, "at {revision}");
    }
    let newest = store.revision().await.unwrap();
    let future = store.list("/k", Some(Revision(newest.0 + 1)), None, 0).await;
    assert!(matches!(future, Err(Error::FutureRevision { .. })), "{future:?}");
}

pub(crate) async fn a_watch_replays_then_follows<F: Factory>(place: F) {
    let store = &*place.open().await;
    let start = store.revision().await.unwrap();
    let created = create(store, "/k/a", "1").await;
    let updated = update(store, "/k/a", "2", created).await.unwrap();
    let mut watch = store.watch("/k", start).await.unwrap();
    let replayed = take(&mut watch, 2).await;
    let deleted = delete(store, "/k/a", None).await.unwrap();
    create(store, "/other/a", "x").await;
    let again = create(store, "/k/a", "3").await;
    let live = take(&mut watch, 2).await;

    let entry = |value: &str, created: Revision, modified: Revision| Entry {
        key: "/k/a".into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: created,
        mod_revision: modified,
    };
    let expected = [
        Event::Put {
            entry: entry("1", created, created),
            previous: None,
        },
        Event::Put {
            entry: entry("2", created, updated),
            previous: Some(entry("1", created, created)),
        },
        Event::Delete {
            revision: deleted,
            previous: entry("2", created, updated),
        },
        Event::Put {
            entry: entry("3", again, again),
            previous: None,
        },
    ];
    assert_eq!([replayed, live].concat(), expected);
    // The same history, all of it replayed, looks the same as it did live.
    let mut watch = store.watch("/k", start).await.unwrap();
    assert_eq!(take(&mut watch, 4).await, expected);
}

pub(crate) async fn a_watch_from_the_future_waits<F: Factory>(place: F) {
    let store = &*place.open().await;
    let first = create(store, "/k/a", "1").await;
    let mut watch = store.watch("/k", Revision(first.0 + 1)).await.unwrap();
    create(store, "/k/b", "not wanted").await;
    let wanted = create(store, "/k/c", "wanted").await;
    assert_eq!(revisions(&take(&mut watch, 1).await), [wanted.0]);
}

pub(crate) async fn a_slow_watcher_misses_nothing<F: Factory>(place: F) {
    let store = &*place.open().await;
    let start = create(store, "/k/a", "0").await;
    let mut slow = store.watch("/k", start).await.unwrap();
    let mut fast = store.watch("/k", start).await.unwrap();
    let mut expected = Vec::new();
    for round in 0..5 {
        for step in 0..400 {
            expected.push(put(store, "/k/a", &format!("{round}-{step}")).await.0);
        }
        // The fast one reads along; the slow one only now and then, long after its buffer has run over.
        let seen = take(&mut fast, 400).await;
        assert_eq!(revisions(&seen), expected[round * 400..]);
    }
    assert_eq!(revisions(&take(&mut slow, expected.len()).await), expected);
    let next = put(store, "/k/a", "end").await;
    assert_eq!(revisions(&take(&mut slow, 1).await), [next.0], "it is live again");
}

pub(crate) async fn watchers_under_churn_see_each_change_once<F: Factory>(place: F) {
    let store: Arc<dyn Store> = Arc::from(place.open().await);
    let start = store.revision().await.unwrap();
    let total = 8 * 100;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for step in 0..100 {
                    put(&*store, &format!("/k/{writer}"), &step.to_string()).await;
                }
            })
        })
        .collect();
    let watchers: Vec<_> = (0..20)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut position = start;
                let mut seen = Vec::new();
                // Each one leaves and comes back at random points.
                while seen.len() < total {
                    let mut watch = store.watch("/k", position).await.unwrap();
                    let batches = rand::rng().random_range(1..6);
                    for _ in 0..batches {
                        if seen.len() >= total {
                            break;
                        }
                        let batch = watch.next().await.unwrap().unwrap();
                        seen.extend(batch.iter().map(|event| event.revision().0));
                        position = Revision(*seen.last().unwrap());
                    }
                }
                seen
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let expected: Vec<u64> = (start.0 + 1..=store.revision().await.unwrap().0).collect();
    assert_eq!(expected.len(), total);
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), expected);
    }
}

pub(crate) async fn list_then_watch_has_no_gap<F: Factory>(place: F) {
    let store: Arc<dyn Store> = Arc::from(place.open().await);
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        async move {
            let mut step = 0;
            while !done.load(Ordering::Relaxed) {
                put(&*store, &format!("/k/{}", step % 5), &step.to_string()).await;
                step += 1;
            }
        }
    });
    for _ in 0..50 {
        let page = store.list("/k", None, None, 0).await.unwrap();
        let mut versions: BTreeMap<Arc<str>, Revision> = page
            .entries
            .iter()
            .map(|entry| (Arc::clone(&entry.key), entry.mod_revision))
            .collect();
        let mut watch = store.watch("/k", page.revision).await.unwrap();
        let mut next = page.revision.0;
        for _ in 0..3 {
            for event in watch.next().await.unwrap().unwrap() {
                next += 1;
                assert_eq!(event.revision().0, next, "a gap or a repetition");
                if let Event::Put { entry, previous } = event {
                    let known = versions.insert(Arc::clone(&entry.key), entry.mod_revision);
                    assert_eq!(known, previous.map(|previous| previous.mod_revision));
                }
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

pub(crate) async fn concurrent_updates_lose_nothing<F: Factory>(place: F) {
    let store: Arc<dyn Store> = Arc::from(place.open().await);
    create(&*store, "/counter", "0").await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..20 {
                    loop {
                        let entry = store.get("/counter").await.unwrap().unwrap();
                        let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                        match update(&*store, "/counter", &(count + 1).to_string(), entry.mod_revision).await {
                            Ok(_) => break,
                            Err(Error::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.get("/counter").await.unwrap().unwrap().value, "320");
}

pub(crate) async fn one_creator_wins<F: Factory>(place: F) {
    let store: Arc<dyn Store> = Arc::from(place.open().await);
    for round in 0..20 {
        let key = format!("/k/{round}");
        let attempts = (0..8).map(|writer| {
            let (store, key) = (Arc::clone(&store), key.clone());
            tokio::spawn(async move { write_create(&*store, &key, &writer.to_string()).await })
        });
        let results = futures::future::join_all(attempts).await;
        let winners = results.iter().filter(|result| matches!(result, Ok(Ok(_)))).count();
        assert_eq!(winners, 1, "{results:?}");
    }
}

pub(crate) async fn compaction_keeps_the_newest<F: Factory>(place: F) {
    let store = &*place.open().await;
    for step in 0..10 {
        put(store, "/k/a", &step.to_string()).await;
    }
    create(store, "/k/b", "b").await;
    let gone = delete(store, "/k/b", None).await.unwrap();
    create(store, "/k/c", "c").await;
    let before = store.list("/k", None, None, 0).await.unwrap();
    store.compact(gone).await.unwrap();
    store.compact(gone).await.unwrap();
    let after = store.list("/k", None, None, 0).await.unwrap();
    assert_eq!(before, after);
    // The boundary itself can still be read; what is before it cannot.
    let boundary = store.list("/k", Some(gone), None, 0).await.unwrap();
    assert_eq!(keys(&boundary.entries), ["/k/a"]);
    assert_eq!(boundary.entries[0].value, "9");
    let past = store.list("/k", Some(Revision(gone.0 - 1)), None, 0).await;
    assert!(
        matches!(past, Err(Error::Compacted { compacted, .. }) if compacted == gone),
        "{past:?}"
    );
    let newest = store.revision().await.unwrap();
    let future = store.compact(Revision(newest.0 + 1)).await;
    assert!(matches!(future, Err(Error::FutureRevision { .. })), "{future:?}");
    // A key that was compacted can be changed, and its last version is known to watchers.
    let mut watch = store.watch("/k", newest).await.unwrap();
    delete(store, "/k/a", None).await.unwrap();
    let events = take(&mut watch, 1).await;
    assert!(matches!(&events[0], Event::Delete { previous, .. } if previous.value == "9"));
}

pub(crate) async fn compaction_ends_old_watches<F: Factory>(place: F) {
    let store = &*place.open().await;
    let start = create(store, "/k/a", "0").await;
    let mut stuck = store.watch("/k", start).await.unwrap();
    for step in 0..600 {
        put(store, "/k/a", &step.to_string()).await;
    }
    let newest = store.revision().await.unwrap();
    store.compact(newest).await.unwrap();
    let late = store.watch("/k", start).await;
    assert!(matches!(late, Err(Error::Compacted { .. })), "{late:?}");
    // The watcher that slept may deliver what its buffer held, but then says that the rest is gone.
    let mut next = start.0;
    let end = loop {
        match stuck.next().await {
            Some(Ok(events)) => {
                for event in events {
                    next += 1;
                    assert_eq!(event.revision().0, next);
                }
            }
            other => break other,
        }
    };
    assert!(matches!(end, Some(Err(Error::Compacted { .. }))), "{end:?}");
    assert!(stuck.next().await.is_none(), "it ends after its error");
    let mut current = store.watch("/k", newest).await.unwrap();
    put(store, "/k/a", "on").await;
    take(&mut current, 1).await;
}

pub(crate) async fn compaction_under_load<F: Factory>(place: F) {
    let store: Arc<dyn Store> = Arc::from(place.open().await);
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("/k", start).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for step in 0..300 {
                    let key = format!("/k/{writer}-{}", step % 7);
                    put(&*store, &key, &step.to_string()).await;
                    if step % 5 == 0 {
                        delete(&*store, &key, None).await.unwrap();
                    }
                }
            })
        })
        .collect();
    let mut next = start.0;
    let mut state: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
    while next < start.0 + 4 * 360 {
        for event in watch.next().await.unwrap().unwrap() {
            next += 1;
            assert_eq!(event.revision().0, next);
            match event {
                Event::Put { entry, previous } => {
                    assert_eq!(state.insert(Arc::clone(&entry.key), entry), previous);
                }
                Event::Delete { previous, .. } => {
                    assert_eq!(state.remove(&previous.key), Some(previous));
                }
            }
        }
        store.compact(Revision(next)).await.unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let page = store.list("/k", None, None, 0).await.unwrap();
    assert_eq!(page.entries, state.into_values().collect::<Vec<_>>());
}

pub(crate) async fn revisions_survive_a_restart<F: Factory>(place: F) {
    let store = place.open().await;
    let start = store.revision().await.unwrap();
    let first = create(&*store, "/k/a", "1").await;
    let last = update(&*store, "/k/a", "2", first).await.unwrap();
    drop(store);
    let store = place.open().await;
    assert_eq!(store.revision().await.unwrap(), last);
    assert_eq!(store.get("/k/a").await.unwrap().unwrap().value, "2");
    let mut watch = store.watch("/k", start).await.unwrap();
    let next = create(&*store, "/k/b", "3").await;
    assert_eq!(revisions(&take(&mut watch, 3).await), [first.0, last.0, next.0]);
}

pub(crate) async fn revisions_grow_past_compacted_deletions<F: Factory>(place: F) {
    let store = place.open().await;
    create(&*store, "/k/a", "1").await;
    let deleted = delete(&*store, "/k/a", None).await.unwrap();
    store.compact(deleted).await.unwrap();
    assert_eq!(store.list("/k", None, None, 0).await.unwrap().revision, deleted);
    drop(store);
    let store = place.open().await;
    assert_eq!(store.revision().await.unwrap(), deleted);
    assert!(create(&*store, "/k/a", "1").await > deleted);
}
