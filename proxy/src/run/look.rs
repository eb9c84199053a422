//! What is done now and then, whether or not anything changed: others may have changed the rules.

use skiff_daemon::error_chain;
use skiff_net::iptables::{self, Iptables};
use tokio::time::Instant;
use tracing::warn;

use super::{Proxy, blocking};
use crate::plan::{self, Jump};

impl Proxy {
    /// Looks whether the rules are still there, and tries again what could not be done before.
    pub(super) async fn look(&mut self) {
        self.service_health.retry(&self.node_addresses).await;
        if !self.in_force {
            return;
        }
        self.count_invalid().await;
        self.remove_express_left().await;
        let (iptables, jumps) = (self.iptables.clone(), self.base.jumps.clone());
        match blocking(move || are_there(&iptables, &jumps)).await {
            Ok(true) => {}
            Ok(false) => {
                warn!("somebody removed the rules of services: they are written anew");
                self.tell_of_a_flush();
                self.write_anew();
                self.health.queued();
                self.agenda.sync_soon(Instant::now());
            }
            Err(error) => warn!(error = error_chain(&error), "cannot look at the rules of services"),
        }
    }

    /// Reads how many packets the rule against invalid ones has dropped.
    async fn count_invalid(&mut self) {
        let iptables = self.iptables.clone();
        let read = blocking(move || iptables.packets("filter", "KUBE-FORWARD", "--ctstate INVALID"));
        if let Ok(Some(packets)) = read.await {
            // The rule begins anew whenever all rules are written.
            let more = packets.checked_sub(self.invalid_dropped).unwrap_or(packets);
            self.metrics.invalid_dropped.inc_by(more);
            self.invalid_dropped = packets;
        }
    }
}

/// Looks at chains one by one: the cost of that does not grow with the number of Services.
fn are_there(iptables: &Iptables, jumps: &[Jump]) -> Result<bool, iptables::Error> {
    for table in plan::CANARY_TABLES {
        if iptables.rules(table, plan::CANARY)?.is_none() {
            return Ok(false);
        }
    }
    for (table, chain) in plan::NEVER_EMPTY {
        if iptables.rules(table, chain)?.is_none_or(|rules| rules.is_empty()) {
            return Ok(false);
        }
    }
    // Our chains may all be there, and no packet reach them.
    for (from, jumps) in plan::by_chain(jumps) {
        let rules = iptables.rules(from.0, from.1)?.unwrap_or_default();
        if !jumps.iter().all(|jump| jump.is_among(&rules)) {
            return Ok(false);
        }
    }
    Ok(true)
}
