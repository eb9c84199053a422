//! A file system without room: writes fail with a clear error, nothing acknowledged is lost, and they go on when there is
//! room again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use skiff_store::sqlite::{self, Options};
use skiff_store::{Error, Store, Write};

const CHILD: &str = "SKIFF_STORE_FULL_DISK_CHILD";
const TEST: &str = "a_full_file_system_fails_writes_and_loses_nothing";

#[test]
fn a_full_file_system_fails_writes_and_loses_nothing() {
    if let Some(directory) = std::env::var_os(CHILD) {
        return fill(Path::new(&directory));
    }
    // The small file system is in a mount namespace of the child's own: nobody else sees it, and it goes with it.
    let directory = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=2m none \"${CHILD}\" && exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}

fn fill(directory: &Path) {
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![0; 700 * 1024]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let path = directory.join("state.db");
        let options = Options {
            compaction_interval: None,
            ..Options::default()
        };
        let store = sqlite::open(&path, options.clone()).unwrap();
        let mut stored = Vec::new();
        let error = loop {
            match write(&store, stored.len()).await {
                Ok(key) => stored.push(key),
                Err(error) => break error,
            }
            assert!(stored.len() < 10_000, "the file system is not full");
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().contains("free some"), "{error}");
        // It stays so, and reads go on.
        assert!(matches!(write(&store, stored.len()).await, Err(Error::DiskFull { .. })));
        check(&store, &stored).await;

        std::fs::remove_file(&ballast).unwrap();
        for _ in 0..10 {
            stored.push(write(&store, stored.len()).await.unwrap());
        }
        check(&store, &stored).await;
        store.close().await;
        check(&sqlite::open(&path, options).unwrap(), &stored).await;
    });
}

async fn write(store: &dyn Store, number: usize) -> Result<String, Error> {
    let key = format!("/k/{number:05}");
    let write = Write::Create {
        key: key.as_str().into(),
        value: Bytes::from(vec![b'v'; 3000]),
    };
    store.write(write).await.map(|_| key)
}

async fn check(store: &dyn Store, stored: &[String]) {
    let page = store.list("/k", None, None, 0).await.unwrap();
    let found: Vec<&str> = page.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(found, stored);
}
