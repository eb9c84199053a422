//! What every backend promises: the same suite for each. Another backend adds a line to `backends!`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backups;
mod etcd_server;
#[allow(dead_code, reason = "the end-to-end suites need more of it")]
mod member;
mod only_etcd;
mod suite;

use std::path::PathBuf;
use std::time::Duration;

use skiff_store::sqlite::{self, Options};
use skiff_store::{SqliteStore, Store};

/// A place for a store that can be opened, closed and opened again.
struct Sqlite {
    directory: tempfile::TempDir,
}

impl suite::Factory for Sqlite {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> Box<dyn Store> {
        Box::new(self.open_with(Options {
            compaction_interval: None,
            // Small, so that the suite's bursts overrun it.
            watch_buffer: 100,
            ..Options::default()
        }))
    }
}

impl Sqlite {
    fn path(&self) -> PathBuf {
        self.directory.path().join("deep/state.db")
    }

    fn open_with(&self, options: Options) -> SqliteStore {
        sqlite::open(self.path(), options).unwrap()
    }
}

macro_rules! conformance {
    ($backend:ident, $factory:ty, [$($case:ident),* $(,)?]) => {
        mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() {
                let case = super::suite::$case(<$factory as super::suite::Factory>::new());
                tokio::time::timeout(std::time::Duration::from_secs(60), case).await.expect("the case does not end");
            })*
        }
    };
}

/// The same cases for each.
macro_rules! backends {
    ($($backend:ident: $factory:ty),* $(,)?) => {
        $(conformance!($backend, $factory, [
            an_empty_store,
            create_get_update_delete,
            conditions_that_do_not_hold,
            keys_that_are_none,
            values_that_are_too_large,
            prefixes_are_directories,
            pages_stay_consistent,
            the_past_can_be_listed,
            a_watch_replays_then_follows,
            a_watch_from_the_future_waits,
            a_slow_watcher_misses_nothing,
            watchers_under_churn_see_each_change_once,
            list_then_watch_has_no_gap,
            concurrent_updates_lose_nothing,
            one_creator_wins,
            compaction_keeps_the_newest,
            compaction_ends_old_watches,
            compaction_under_load,
            revisions_survive_a_restart,
            revisions_grow_past_compacted_deletions,
            ]);)*
    };
}

backends! {
    on_sqlite: super::Sqlite,
    on_etcd: super::etcd_server::Etcd,
}

mod only_sqlite {
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;
    use skiff_store::{Error, Revision, Write};

    use super::suite::{Factory as _, create, put};
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_open_is_refused_and_says_who() {
        let place = Sqlite::new();
        let store = place.open().await;
        let error = sqlite::open(place.path(), Options::default()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Locked { holder: Some(pid), .. } if pid == std::process::id()),
            "{text}"
        );
        drop(store);
        place.open().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn garbled_files_are_refused_untouched() {
        let place = Sqlite::new();
        std::fs::create_dir_all(place.path().parent().unwrap()).unwrap();
        std::fs::write(
            place.path(),
            "this is no database, but long enough to be taken for one".repeat(100),
        )
        .unwrap();
        let before = std::fs::read(place.path()).unwrap();
        let error = sqlite::open(place.path(), Options::default()).unwrap_err();
        assert!(matches!(error, Error::Garbled { .. }), "{error}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
        assert_eq!(std::fs::read(place.path()).unwrap(), before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_page_is_an_error_not_an_empty_list() {
        let place = Sqlite::new();
        let store = place.open_with(Options::default());
        for number in 0..500 {
            create(
                &store,
                &format!("/registry/core/pods/default/p{number}"),
                &"x".repeat(500),
            )
            .await;
        }
        store.close().await;
        let mut bytes = std::fs::read(place.path()).unwrap();
        let length = bytes.len();
        bytes[length / 4..].fill(0xa5);
        std::fs::write(place.path(), bytes).unwrap();
        let error = match sqlite::open(place.path(), Options::default()) {
            Err(error) => error,
            Ok(store) => store.list("/registry", None, None, 0).await.unwrap_err(),
        };
        assert!(matches!(error, Error::Garbled { .. }), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_of_other_programs_and_newer_versions_are_refused() {
        for (pragma, newer) in [("application_id = 77", false), ("user_version = 99", true)] {
            let place = Sqlite::new();
            place.open_with(Options::default()).close().await;
            let connection = rusqlite::Connection::open(place.path()).unwrap();
            connection.execute_batch(&format!("PRAGMA {pragma}")).unwrap();
            drop(connection);
            let error = sqlite::open(place.path(), Options::default()).unwrap_err();
            assert_eq!(matches!(error, Error::NewerSchema { .. }), newer, "{error}");
            assert_eq!(matches!(error, Error::Garbled { .. }), !newer, "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_fails_writes_and_loses_nothing() {
        let place = Sqlite::new();
        let store = place.open_with(Options {
            max_bytes: Some(512 * 1024),
            compaction_interval: None,
            ..Options::default()
        });
        let value = Bytes::from(vec![b'v'; 10_000]);
        let mut stored = Vec::new();
        let error = loop {
            let key = format!("/k/{:04}", stored.len());
            let write = Write::Create {
                key: key.as_str().into(),
                value: value.clone(),
            };
            match store.write(write).await {
                Ok(_) => stored.push(key),
                Err(error) => break error,
            }
            assert!(stored.len() < 1000, "the limit does not hold");
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        let page = store.list("/k", None, None, 0).await.unwrap();
        assert_eq!(page.entries.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), stored);

        // Room is made by deleting and compacting, and writes go on.
        for key in &stored[..stored.len() / 2] {
            let write = Write::Delete {
                key: key.as_str().into(),
                expected: None,
            };
            // A deletion needs a little room of its own; the reserve of a nearly full file has it.
            if store.write(write).await.is_err() {
                break;
            }
        }
        let newest = store.revision().await.unwrap();
        store.compact(newest).await.unwrap();
        create(&store, "/k/again", "v").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_database_is_private() {
        let place = Sqlite::new();
        let store = place.open().await;
        create(&*store, "/secret", "s").await;
        for entry in std::fs::read_dir(place.path().parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn history_is_compacted_by_itself_and_space_comes_back() {
        let place = Sqlite::new();
        let store = place.open_with(Options {
            compaction_interval: Some(Duration::from_millis(100)),
            keep_revisions: 10,
            ..Options::default()
        });
        let value = "x".repeat(4000);
        for _ in 0..1500 {
            put(&store, "/k", &value).await;
        }
        let newest = store.revision().await.unwrap();
        let wanted = Revision(newest.0 - 10);
        let shrunk = async {
            loop {
                let stats = store.stats();
                if stats.compacted >= wanted && stats.bytes < 2 << 20 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(20), shrunk).await;
        assert!(outcome.is_ok(), "{:?}", store.stats());
        assert_eq!(store.get("/k").await.unwrap().unwrap().value, value);
    }
}
