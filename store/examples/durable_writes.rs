//! Durable writes a second: `cargo run --release -p skiff-store --example durable_writes -- DIRECTORY [SECONDS]`.
//!
//! 128 concurrent callers (8 connections of 16 streams, as `bench/apibench.sh` has them) create objects of 1 KiB; then
//! they update them. One watcher reads along, and the number of changes that it saw is printed beside.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use skiff_store::sqlite::{self, Options};
use skiff_store::{Revision, Store, Write};
use tokio::time::Instant;

const CALLERS: usize = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("name a directory for the database")?);
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(directory, Duration::from_secs(seconds)))
}

async fn run(directory: PathBuf, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(sqlite::open(directory.join("bench.db"), Options::default())?);
    let start = store.revision().await?;
    let seen = Arc::new(AtomicU64::new(0));
    let mut watch = store.watch("/registry", start).await?;
    let counting = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            while let Some(Ok(events)) = watch.next().await {
                seen.fetch_add(events.len() as u64, Ordering::Relaxed);
            }
        }
    });
    for update in [false, true] {
        let before = store.revision().await?;
        let began = Instant::now();
        let callers = (0..CALLERS).map(|caller| tokio::spawn(call(Arc::clone(&store), caller, began + time, update)));
        let mut slowest = Duration::ZERO;
        for result in futures::future::join_all(callers).await {
            slowest = slowest.max(result?);
        }
        let count = store.revision().await?.0 - before.0;
        let name = if update { "update" } else { "create" };
        println!(
            "{name}: {:.0}/s, slowest {slowest:?}",
            count as f64 / began.elapsed().as_secs_f64()
        );
    }
    println!(
        "written {}, watched {}",
        store.revision().await?.0 - start.0,
        seen.load(Ordering::Relaxed)
    );
    println!("{:?}", store.stats());
    counting.abort();
    Ok(())
}

/// Writes one after the other until the time is over; the longest wait for one.
async fn call(store: Arc<sqlite::SqliteStore>, caller: usize, until: Instant, update: bool) -> Duration {
    let value = Bytes::from(vec![b'x'; 1024]);
    let mut slowest = Duration::ZERO;
    let mut newest: Option<Revision> = None;
    let mut number = 0;
    while Instant::now() < until {
        let value = value.clone();
        let write = match (update, newest) {
            (false, _) => Write::Create {
                key: format!("/registry/creates/c{caller}-{number}").into(),
                value,
            },
            // The first write of an updating caller makes what it updates.
            (true, None) => Write::Create {
                key: format!("/registry/updates/c{caller}").into(),
                value,
            },
            (true, Some(expected)) => Write::Update {
                key: format!("/registry/updates/c{caller}").into(),
                value,
                expected,
            },
        };
        let began = Instant::now();
        match store.write(write).await {
            Ok(revision) => newest = Some(revision),
            Err(error) => {
                eprintln!("{error}");
                break;
            }
        }
        slowest = slowest.max(began.elapsed());
        number += 1;
    }
    slowest
}
