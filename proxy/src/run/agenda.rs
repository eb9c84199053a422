//! What is to be done, and when.

use std::time::Duration;

use tokio::time::Instant;

/// The times of the loop's next steps.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// Rules for what changed, or for everything.
    pub(super) sync: Option<Instant>,
    /// Removal of what became waste.
    pub(super) collect: Option<Instant>,
    /// Since when there is waste.
    pub(super) waste_since: Option<Instant>,
    /// Changes that took the quick way move in with the others.
    pub(super) moving: Option<Instant>,
    /// Since when some wait for that.
    pub(super) moving_since: Option<Instant>,
    /// A look whether the rules are still there.
    pub(super) look: Option<Instant>,
    /// The pause after the last failure.
    pub(super) pause: Duration,
    /// No transaction before.
    pub(super) not_before: Option<Instant>,
}

impl Agenda {
    pub(super) async fn due(&self) {
        match [self.sync, self.moving, self.collect, self.look]
            .into_iter()
            .flatten()
            .min()
        {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Nothing moves in by itself: all is written, or has been.
    pub(super) fn stay(&mut self) {
        self.moving = None;
        self.moving_since = None;
    }

    /// Rules are to be written as soon as allowed.
    pub(super) fn sync_soon(&mut self, now: Instant) {
        let allowed = self.not_before.map_or(now, |at| at.max(now));
        self.sync = Some(self.sync.map_or(allowed, |at| at.min(allowed)));
    }
}
