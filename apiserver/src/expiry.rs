//! Events go an hour after they were written last.
//!
//! What clients write into an event does not count, only when the store took it: every few minutes it is noted which revision the
//! store has come to ([`Marks`]), so whatever has a revision from before a mark is older than that mark. The marks are in the store:
//! they outlive the server, and servers that share a store share them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_daemon::{Shutdown, error_chain};
use skiff_store::{Error, Revision, Store, Write};

use crate::registry::Registry;

/// How long events stay, in seconds; upstream's `--event-ttl`.
const LIFE: i64 = 3600;
/// How often one looks.
const PERIOD: Duration = Duration::from_secs(60);
/// Seconds from one mark to the next: so much longer an event may stay.
const STEP: i64 = 300;
/// Where the marks are.
const KEY: &str = "/registry/ages/events";

/// What the store had come to at times past, oldest first.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Marks(Vec<Mark>);

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Mark {
    /// The newest revision
    revision: u64,
    /// at this second of the servers' clock.
    second: i64,
}

impl Marks {
    /// The revision up to which everything has been there for longer than events may.
    fn outlived(&self, now: i64) -> Option<Revision> {
        let old = self.0.iter().filter(|mark| mark.second + LIFE <= now);
        old.map(|mark| Revision(mark.revision)).max()
    }

    /// Adds a mark when it is time to, and forgets those that are of no more use; whether anything has changed.
    fn add(&mut self, Revision(revision): Revision, now: i64) -> bool {
        // From before the clock was set back.
        let ahead = self.0.iter_mut().filter(|mark| mark.second > now);
        let is_set_back = ahead.map(|mark| mark.second = now).count() > 0;
        if self.0.last().is_some_and(|last| last.second + STEP > now) {
            return is_set_back;
        }
        let outlived = self.outlived(now);
        self.0
            .retain(|mark| outlived.is_none_or(|outlived| mark.revision >= outlived.0));
        self.0.push(Mark { revision, second: now });
        true
    }
}

/// Removes old events until shutdown.
pub(crate) async fn run(registry: Arc<Registry>, shutdown: Shutdown) {
    let sweep = async {
        loop {
            if let Err(error) = sweep(&registry).await {
                tracing::warn!(error = error_chain(&error), "cannot remove old events");
            }
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = sweep => {}
    }
}

async fn sweep(registry: &Registry) -> Result<(), Error> {
    let Some(outlived) = mark(&*registry.store).await? else {
        return Ok(());
    };
    let Some(events) = registry.resources.any_version("", "events") else {
        return Ok(());
    };
    for object in events.cache.all("") {
        if object.revision > outlived.0 {
            continue;
        }
        // Only this version of it: an event that is written again lives on.
        let delete = Write::Delete {
            key: Arc::clone(object.key()),
            expected: Some(Revision(object.revision)),
        };
        unless_conflict(registry.store.write(delete).await)?;
    }
    Ok(())
}

/// Notes where the store stands now; the revision up to which everything is old.
async fn mark(store: &dyn Store) -> Result<Option<Revision>, Error> {
    let noted = store.get(KEY).await?;
    let mut marks: Marks = (noted.as_ref())
        .and_then(|entry| serde_json::from_slice(&entry.value).ok())
        .unwrap_or_default();
    // Before the clock is read: what has such a revision was written before.
    let newest = store.revision().await?;
    let now = Timestamp::now().as_second();
    if marks.add(newest, now) {
        let key = Arc::from(KEY);
        let value = Bytes::from(serde_json::to_vec(&marks).unwrap_or_default());
        let write = match noted {
            Some(entry) => Write::Update {
                key,
                value,
                expected: entry.mod_revision,
            },
            None => Write::Create { key, value },
        };
        unless_conflict(store.write(write).await)?;
    }
    Ok(marks.outlived(now))
}

/// Another server, or whoever wrote an event again, was faster.
fn unless_conflict(written: Result<Revision, Error>) -> Result<(), Error> {
    match written {
        Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_an_old_mark_is_old() {
        let mut marks = Marks::default();
        // One revision a second, a look each minute.
        for now in (0..=4 * LIFE).step_by(60) {
            let is_time = now % STEP == 0;
            assert_eq!(marks.add(Revision(now.unsigned_abs()), now), is_time, "{now}");
            assert!(marks.0.len() <= 14, "{:?}", marks.0);
            let at_least = (now - LIFE) / STEP * STEP;
            let wanted = (now >= LIFE).then(|| Revision(at_least.unsigned_abs()));
            assert_eq!(marks.outlived(now), wanted, "{now}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_old_and_keeps_nothing_for_long() {
        let year = 365 * 24 * 3600;
        let mut marks = Marks(vec![
            Mark {
                revision: 5,
                second: year - STEP,
            },
            Mark {
                revision: 9,
                second: year,
            },
        ]);
        assert!(marks.add(Revision(12), 1000));
        assert_eq!(marks.outlived(1000), None);
        assert!(marks.add(Revision(20), 1000 + STEP));
        assert_eq!(marks.outlived(1000 + LIFE), Some(Revision(9)));
    }
}
