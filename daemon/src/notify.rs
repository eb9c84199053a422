//! What systemd is told of a process that it started (`Type=notify`); nothing happens where it did not.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::health::WATCHDOG;
use crate::{Context, Health};

/// The process serves, or has read its files anew.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process ends.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The process reads its files anew; [`ready`] follows.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell systemd that files are read anew"),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd how the process is");
    }
}

impl Context {
    /// The process serves: tells systemd so, and from then on that it lives, where the unit has a `WatchdogSec`.
    pub fn serving(&self) {
        ready();
        if let Some(limit) = sd_notify::watchdog_enabled() {
            tokio::spawn(
                self.shutdown
                    .clone()
                    .run_until_cancelled_owned(live(self.health.clone(), limit)),
            );
        }
    }
}

/// Feeds systemd's watchdog while the checks pass that a start anew mends. A runtime whose threads are all stuck does not come to it.
async fn live(health: Health, limit: Duration) {
    // Half the time is systemd's advice; a little less, since a busy machine is late.
    let mut beat = tokio::time::interval(limit / 3);
    let mut well = true;
    loop {
        beat.tick().await;
        let report = health.report(WATCHDOG, &[]);
        if report.ok {
            tell(&[NotifyState::Watchdog]);
        } else if well {
            tracing::error!(
                checks = report.text,
                "not alive: systemd will start the process anew if that stays"
            );
        }
        well = report.ok;
    }
}
