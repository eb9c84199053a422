//! Backups: in all four directions, while the store is in use, damaged, refused, cut short.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use skiff_store::backup::{self, Place, Summary};
use skiff_store::etcd::{self, Options};
use skiff_store::{Error, MAX_SIZE, Revision, Store, Write, sqlite};

use super::member::Member;
use super::suite::{create, put};

const ROOT: &str = "/registry";
const OBJECTS: usize = 1200;

/// A store that can be opened and backed up.
struct Site {
    place: Place,
    _member: Option<Member>,
    directory: tempfile::TempDir,
}

impl Site {
    fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            place: Place::Sqlite(directory.path().join("state.db")),
            _member: None,
            directory,
        }
    }

    fn etcd() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut member = Member::new(directory.path(), "alone");
        let introduction = member.introduction();
        member.start(&[introduction]);
        Self {
            place: Place::Etcd(Options::new([member.url()])),
            _member: Some(member),
            directory,
        }
    }

    async fn open(&self) -> Arc<dyn Store> {
        match &self.place {
            Place::Sqlite(path) => Arc::new(sqlite::open(path, sqlite::Options::default()).unwrap()),
            Place::Etcd(options) => Arc::new(etcd::connect(options.clone()).await.unwrap()),
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("backup")
    }
}

async fn save(site: &Site, file: &Path) -> Summary {
    backup::save(&site.place, file, false, |_| {}).await.unwrap()
}

async fn restore(file: &Path, site: &Site, force: bool) -> Result<Revision, Error> {
    backup::restore(file, &site.place, force, |_| {}).await
}

/// Objects of a size that needs several transactions, and what is not to be saved.
async fn fill(store: &dyn Store) {
    let writes = (0..OBJECTS).map(|number| async move {
        let key = format!("{ROOT}/core/configmaps/default/c-{number:04}");
        create(store, &key, &format!("{number} ").repeat(1000)).await;
    });
    futures::future::join_all(writes).await;
    for key in [
        "core/events/default/e",
        "masterleases/10.0.0.1",
        "ranges/services/10.96.0.9",
    ] {
        create(store, &format!("{ROOT}/{key}"), "gone soon").await;
    }
}

async fn content(store: &dyn Store) -> BTreeMap<String, Bytes> {
    let page = store.list(&format!("{ROOT}/core"), None, None, 0).await.unwrap();
    let entries = page
        .entries
        .into_iter()
        .map(|entry| (entry.key.to_string(), entry.value));
    entries.filter(|(key, _)| !key.contains("/events/")).collect()
}

async fn check_direction(from: Site, to: Site) {
    let source = from.open().await;
    fill(&*source).await;
    let before = content(&*source).await;
    let known = source.revision().await.unwrap();
    let summary = save(&from, &from.file()).await;
    assert_eq!((summary.objects, summary.revision), (OBJECTS as u64, known));
    let mode = std::fs::metadata(from.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(backup::check(&from.file()).unwrap(), summary);

    let begins_at = restore(&from.file(), &to, false).await.unwrap();
    assert!(begins_at > known);
    {
        let target = to.open().await;
        assert_eq!(content(&*target).await, before);
        assert_eq!(target.revision().await.unwrap(), begins_at);
        let page = target.list(ROOT, None, None, 0).await.unwrap();
        let objects = page.entries.iter().filter(|entry| entry.key.contains("/core/"));
        // No restored object has a version that a client may know.
        assert!(objects.clone().all(|entry| entry.mod_revision > known));
        assert_eq!(objects.count(), OBJECTS);
        // Whoever watches from before is told so: never does a watch miss something in silence.
        for old in [Revision(1), known] {
            let watch = target.watch(ROOT, old).await;
            assert!(matches!(watch, Err(Error::Compacted { .. })), "{old}: {watch:?}");
            let list = target.list(ROOT, Some(old), None, 0).await;
            assert!(matches!(list, Err(Error::Compacted { .. })), "{old}: {list:?}");
        }
        let key = format!("{ROOT}/core/configmaps/default/c-0000");
        let stale = Write::Update {
            key: key.as_str().into(),
            value: Bytes::from_static(b"stale"),
            expected: Revision(2),
        };
        assert!(matches!(
            target.write(stale).await,
            Err(Error::Conflict { current: Some(_) })
        ));
        assert!(put(&*target, &key, "new").await > begins_at);
    }
    // Now there is something to lose.
    let refused = restore(&from.file(), &to, false).await;
    assert!(matches!(refused, Err(Error::NotEmpty { .. })), "{refused:?}");
    let again = restore(&from.file(), &to, true).await.unwrap();
    assert!(again > begins_at);
    let target = to.open().await;
    assert_eq!(content(&*target).await, before);
    assert_eq!(target.revision().await.unwrap(), again);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_sqlite() {
    check_direction(Site::sqlite(), Site::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_etcd() {
    check_direction(Site::sqlite(), Site::etcd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_sqlite() {
    check_direction(Site::etcd(), Site::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_etcd_to_etcd() {
    check_direction(Site::etcd(), Site::etcd()).await;
}

/// One writer counts two keys up in turns, far from each other in the order of keys: a snapshot shows them at most one apart.
async fn check_snapshot(site: Site) {
    let store = site.open().await;
    fill(&*store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, until) = (Arc::clone(&store), Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !until.load(Ordering::Relaxed) {
            number += 1;
            for key in ["core/configmaps/a", "core/configmaps/z"] {
                put(&*writing, &format!("{ROOT}/{key}"), &number.to_string()).await;
            }
        }
        number
    });
    for _ in 0..5 {
        save(&site, &site.file()).await;
        let copy = Site::sqlite();
        restore(&site.file(), &copy, false).await.unwrap();
        let copy = copy.open().await;
        let read = async |key: &str| {
            let entry = copy.get(&format!("{ROOT}/{key}")).await.unwrap();
            entry.map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap())
        };
        let (first, last): (u64, u64) = (read("core/configmaps/a").await, read("core/configmaps/z").await);
        assert!(first == last || first == last + 1, "{first} and {last}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 5, "nothing was written meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_saved_at_one_moment_while_it_is_written() {
    check_snapshot(Site::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_saved_at_one_revision_while_it_is_written() {
    check_snapshot(Site::etcd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_closed_is_saved_too() {
    let site = Site::sqlite();
    let key = format!("{ROOT}/core/configmaps/a");
    create(&*site.open().await, &key, "v").await;
    assert_eq!(save(&site, &site.file()).await.objects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_backup_is_not_restored() {
    let site = Site::sqlite();
    fill(&*site.open().await).await;
    save(&site, &site.file()).await;
    let whole = std::fs::read(site.file()).unwrap();
    let target = Site::sqlite();
    let key = format!("{ROOT}/core/kept");
    create(&*target.open().await, &key, "kept").await;
    let bad = site.directory.path().join("bad");
    let position = |what: &[u8]| whole.windows(what.len()).position(|window| window == what).unwrap();
    let mut flipped = whole.clone();
    flipped[position(b"777 777 777")] = b'8';
    let Place::Sqlite(database) = &site.place else {
        unreachable!()
    };
    let store = std::fs::read(database).unwrap();
    for (name, bytes) in [
        ("a wrong digit", flipped),
        ("half of it", whole[..whole.len() / 2].to_vec()),
        ("nonsense", b"nonsense".repeat(100)),
        ("a store", store),
        ("nothing", Vec::new()),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let refused = restore(&bad, &target, true).await;
        assert!(matches!(refused, Err(Error::Backup { .. })), "{name}: {refused:?}");
    }
    std::fs::remove_file(&bad).unwrap();
    assert!(matches!(restore(&bad, &target, true).await, Err(Error::File { .. })));
    assert_eq!(target.open().await.get(&key).await.unwrap().unwrap().value, "kept");
    // A store is not overwritten by its own backup, nor anything else by one.
    let over = backup::save(&site.place, database, false, |_| {}).await;
    assert!(matches!(over, Err(Error::File { .. })), "{over:?}");
}

/// An older skiff's SQLite took what etcd does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_does_not_take_is_refused_before_anything_is_removed() {
    let site = Site::sqlite();
    let key = format!("{ROOT}/core/configmaps/default/big");
    create(&*site.open().await, &key, "small").await;
    let Place::Sqlite(database) = &site.place else {
        unreachable!()
    };
    let grow = format!("UPDATE log SET value = zeroblob({MAX_SIZE}) WHERE key = '{key}'");
    rusqlite::Connection::open(database)
        .unwrap()
        .execute(&grow, [])
        .unwrap();
    save(&site, &site.file()).await;
    let etcd = Site::etcd();
    let kept = format!("{ROOT}/core/kept");
    create(&*etcd.open().await, &kept, "kept").await;
    let refused = restore(&site.file(), &etcd, true).await;
    assert!(
        matches!(&refused, Err(Error::TooLarge { key: of, .. }) if *of == key),
        "{refused:?}"
    );
    assert_eq!(etcd.open().await.get(&kept).await.unwrap().unwrap().value, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_not_replaced() {
    let site = Site::sqlite();
    let store = site.open().await;
    create(&*store, &format!("{ROOT}/core/a"), "v").await;
    save(&site, &site.file()).await;
    let refused = restore(&site.file(), &site, true).await;
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");

    let etcd = Site::etcd();
    let server = etcd.open().await;
    let key = format!("{ROOT}/masterleases/10.0.0.7");
    create(&*server, &key, "1").await;
    let alive = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            put(&*server, &key, "again").await;
        }
    });
    let refused = restore(&site.file(), &etcd, true).await;
    assert!(
        matches!(&refused, Err(Error::InUse { server }) if server == "10.0.0.7"),
        "{refused:?}"
    );
    alive.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_etcd_that_was_cut_short_is_gone_on_with() {
    let site = Site::sqlite();
    let source = site.open().await;
    fill(&*source).await;
    save(&site, &site.file()).await;
    let etcd = Site::etcd();
    let old = etcd.open().await;
    create(&*old, &format!("{ROOT}/core/old"), "v").await;
    drop(old);
    let (sender, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |done| {
        sender.send(done).ok();
    };
    let file = site.file();
    tokio::select! {
        _ = backup::restore(&file, &etcd.place, true, progress) => panic!("it was too fast"),
        _ = begun.recv() => {}
    }
    let Place::Etcd(options) = &etcd.place else {
        unreachable!()
    };
    let refused = etcd::connect(options.clone()).await;
    assert!(matches!(refused, Err(Error::Unfinished)), "{refused:?}");
    let (sender, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |done| {
        sender.send(done).ok();
    };
    // Without force: it was allowed before.
    backup::restore(&site.file(), &etcd.place, false, progress)
        .await
        .unwrap();
    assert!(begun.recv().await.unwrap() > 100, "it began anew");
    assert_eq!(content(&*etcd.open().await).await, content(&*source).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_etcd_that_others_wrote_into_can_be_repeated() {
    let site = Site::sqlite();
    let source = site.open().await;
    fill(&*source).await;
    save(&site, &site.file()).await;
    let etcd = Site::etcd();
    let other = etcd.open().await;
    let key = format!("{ROOT}/core/other");
    let mut written = false;
    let progress = {
        let (other, key) = (other.clone(), key.clone());
        move |_| {
            if !std::mem::replace(&mut written, true) {
                let write = create(&*other, &key, "v");
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(write));
            }
        }
    };
    let failed = backup::restore(&site.file(), &etcd.place, false, progress).await;
    let told = failed.unwrap_err().to_string();
    assert!(!matches!(other.get(&key).await, Ok(None)), "{told}");
    // Without force: nothing was there when it began.
    restore(&site.file(), &etcd, false).await.unwrap();
    assert_eq!(content(&*etcd.open().await).await, content(&*source).await);
}
