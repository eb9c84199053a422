//! What several servers on one store keep each other from giving out twice.
//!
//! A key in the store, made only if nobody has made it, reserves an address or a port from before its Service is written until after:
//! whoever reserves it next, and then brings its cache up to that reservation, sees the Service. So nothing has to be kept in step with
//! the Services, and what a killed server leaves behind blocks one address for a minute or two.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skiff_daemon::{Shutdown, error_chain};
use skiff_store::{Error, Revision, Store, Write};
use tokio::runtime::Handle;

use super::Item;

/// Where the keys are; upstream's place for what it gives out.
const PREFIX: &str = "/registry/ranges/services";
/// A reservation that outlives this was left behind: no request takes so long.
const SWEEP: Duration = Duration::from_secs(90);

/// Makes and takes back reservations.
#[derive(Clone)]
pub(super) struct Reservations {
    store: Arc<dyn Store>,
}

/// Some that were made; they last until [`Reserved::release`].
#[derive(Debug, Default)]
pub(super) struct Reserved {
    keys: Vec<(Arc<str>, Revision)>,
}

impl std::fmt::Debug for Reservations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservations").finish_non_exhaustive()
    }
}

impl Reserved {
    /// The cache must have come to this before it tells whether what is reserved is free.
    pub(super) fn newest(&self) -> u64 {
        self.keys.iter().map(|(_, revision)| revision.0).max().unwrap_or(0)
    }
}

impl Reservations {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Reserves all of them; the first that another server has reserved is the other answer.
    pub(super) async fn make(&self, items: &[Item]) -> Result<Result<Reserved, Item>, Error> {
        let mut reserved = Guard {
            reservations: self,
            reserved: Reserved::default(),
        };
        for item in items {
            let key: Arc<str> = format!("{PREFIX}/{item}").into();
            let write = Write::Create {
                key: Arc::clone(&key),
                value: Bytes::from_static(b"{}"),
            };
            match self.store.write(write).await {
                Ok(revision) => reserved.reserved.keys.push((key, revision)),
                Err(Error::Conflict { .. }) => return Ok(Err(*item)),
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(std::mem::take(&mut reserved.reserved)))
    }

    /// Takes them back after `delay`, on a task of its own.
    pub(super) fn release(&self, reserved: Reserved, delay: Duration) {
        if reserved.keys.is_empty() {
            return;
        }
        // At the end of the process the sweep of another does it.
        let Ok(runtime) = Handle::try_current() else { return };
        let store = Arc::clone(&self.store);
        runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            for (key, revision) in reserved.keys {
                remove(&*store, key, revision).await;
            }
        });
    }

    /// Removes what killed servers left behind, until shutdown.
    pub(super) async fn sweep(self, shutdown: Shutdown) {
        let mut known: HashMap<Arc<str>, Revision> = HashMap::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
            let page = match self.store.list(PREFIX, None, None, 0).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(
                        error = error_chain(&error),
                        "cannot look for reservations that were left behind"
                    );
                    continue;
                }
            };
            let mut young = HashMap::new();
            for entry in page.entries {
                if known.get(&entry.key) == Some(&entry.mod_revision) {
                    remove(&*self.store, entry.key, entry.mod_revision).await;
                } else {
                    young.insert(entry.key, entry.mod_revision);
                }
            }
            known = young;
        }
    }
}

async fn remove(store: &dyn Store, key: Arc<str>, revision: Revision) {
    let delete = Write::Delete {
        key,
        expected: Some(revision),
    };
    match store.write(delete).await {
        Ok(_) | Err(Error::Conflict { .. }) => {}
        Err(error) => tracing::debug!(
            error = error_chain(&error),
            "cannot take a reservation back; it will be swept"
        ),
    }
}

/// Takes back what was reserved when the rest cannot be, or nobody waits for it any more.
struct Guard<'a> {
    reservations: &'a Reservations,
    reserved: Reserved,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        self.reservations.release(reserved, Duration::ZERO);
    }
}
