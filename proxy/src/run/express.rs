//! Which changes take the quick way, and when they move in with the others.

use std::time::Duration;

use skiff_daemon::error_chain;
use skiff_net::iptables::Backend;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Proxy, blocking};
use crate::express;
use crate::index::Key;
use crate::plan::{self, plan};

/// With fewer rules than these, the kernel is quick enough to change them in place (10 ms).
const MANY_RULES: usize = 10_000;
/// Changes move in with the others when nothing has changed for this long …
const QUIET: Duration = Duration::from_secs(1);
/// … but no later than this.
const AGE: Duration = Duration::from_secs(10);

impl Proxy {
    /// Puts Services into force by the small table, if all of them can be. What is there then moves in later.
    pub(super) async fn express(&mut self, keys: &[Key]) -> bool {
        let is_worth_it = self.express_works && self.applied.rules("nat") > MANY_RULES;
        if keys.is_empty() || !is_worth_it || self.iptables.backend() != Backend::Nft {
            return false;
        }
        let Some(changed) = keys.iter().map(|key| Some((key.clone(), self.ways(key)?))).collect() else {
            return false;
        };
        let Some((next, batch)) = self.express.put(&self.settings, changed) else {
            return false;
        };
        if let Err(error) = blocking(move || express::apply(&batch)).await {
            // The usual way goes on to work; the table is tried again after all rules were written.
            warn!(
                error = error_chain(&error),
                "cannot use the quick way for services that changed: the usual one is taken"
            );
            self.express_works = false;
            return false;
        }
        self.express = next;
        debug!(
            services = keys.len(),
            "services that changed are in force by the quick way"
        );
        let now = Instant::now();
        self.moving.extend(keys.iter().cloned());
        let since = *self.agenda.moving_since.get_or_insert(now);
        self.agenda.moving = Some((now + QUIET).min(since + AGE));
        true
    }

    /// The ways of a Service, if they are all that changes.
    fn ways(&self, key: &Key) -> Option<Vec<plan::Way>> {
        let (service, entry) = self.index.get(key)?;
        let ways = plan::express(&self.settings, key, service, entry.slices())?;
        let rules = plan(&self.settings, key, service, entry.slices());
        self.applied.only_gains(key, &rules).then_some(ways)
    }

    /// Empties the small table, after what was in it has moved in with the others.
    pub(super) async fn end_express(&mut self) {
        self.agenda.stay();
        if self.express.is_empty() {
            return;
        }
        let (next, batch) = self.express.clear(&self.settings);
        match blocking(move || express::apply(&batch)).await {
            Ok(()) => self.express = next,
            Err(error) => {
                warn!(
                    error = error_chain(&error),
                    "the table of the quick way is not as it was left: it is removed"
                );
                self.express_works = false;
                self.remove_express().await;
            }
        }
    }

    /// Forgets the small table, whatever is in it: all rules have been written.
    pub(super) async fn reset_express(&mut self) {
        self.moving.clear();
        self.agenda.stay();
        if self.iptables.backend() == Backend::Nft {
            self.express_works = self.remove_express().await;
        }
    }

    /// Removes the small table where that failed before: packets would go by what it says, however old.
    pub(super) async fn remove_express_left(&mut self) {
        if self.express_left {
            self.remove_express().await;
        }
    }

    /// Removes the small table, and tells whether it is gone.
    async fn remove_express(&mut self) -> bool {
        let removed = blocking(express::remove).await;
        if let Err(error) = &removed
            && !self.express_left
        {
            warn!(
                error = error_chain(error),
                "cannot remove the table of the quick way: tried again"
            );
        }
        self.express = express::Express::default();
        self.express_left = removed.is_err();
        !self.express_left
    }
}
