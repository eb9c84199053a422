//! From wanted rules to transactions: what is in the kernel is remembered, and only differences are written.
//!
//! A difference goes out in two steps. The first makes new rules work and old ones harmless: chains are made,
//! rewritten or emptied, rules come into hubs at their start. That costs the size of the change. Taking a rule out of a
//! hub costs the size of the hub (the kernel's list is searched), so in large hubs it waits until nothing urgent is
//! there: [`Applied::collect`] removes what has become waste.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use skiff_net::iptables::{Restore, Saved};

use crate::index::Key;
use crate::names::PREFIXES;
use crate::plan::{Base, Chain, Hub, Rules, Stranded, UdpPort};

/// Chains in one transaction of many: see [`chains`].
const BATCH: usize = 1000;
/// Rules or chains that one transaction removes.
const REMOVALS: usize = 500;
/// In hubs up to this size a rule is removed at once.
const SMALL_HUB: usize = 200;

/// What is in the kernel, as far as this process has put it there.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    services: HashMap<Key, Trace>,
    hub_sizes: BTreeMap<Hub, usize>,
    /// Rules in hubs that lead to empty chains.
    stale_rules: BTreeSet<(Hub, String)>,
    /// Empty chains.
    stale_chains: BTreeSet<String>,
    /// Rules in chains of Services.
    chain_rules: usize,
    stranded: Sums,
}

/// Ports that find no endpoint on this node, over all Services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) internal: i64,
    pub(crate) external: i64,
}

/// What is remembered of one Service.
#[derive(Debug, Default)]
struct Trace {
    chains: Box<[(Box<str>, u64)]>,
    hubs: Box<[(Hub, Box<str>)]>,
    udp: Box<[UdpPort]>,
    chain_rules: u32,
    stranded: Stranded,
}

impl Trace {
    fn new(chains: Box<[(Box<str>, u64)]>, hubs: Box<[(Hub, Box<str>)]>, rules: Rules) -> Self {
        let count: usize = rules.chains.iter().map(|chain| chain.rules.len()).sum();
        Self {
            chains,
            hubs,
            udp: rules.udp.into(),
            chain_rules: u32::try_from(count).unwrap_or(u32::MAX),
            stranded: rules.stranded,
        }
    }
}

impl Applied {
    /// Whether something waits for [`Self::collect`].
    pub(crate) fn has_waste(&self) -> bool {
        !self.stale_rules.is_empty() || !self.stale_chains.is_empty()
    }

    /// Rules of Services in a table, for the metrics.
    pub(crate) fn rules(&self, table: &str) -> usize {
        let hubs = self.hub_sizes.iter().filter(|(hub, _)| hub.table() == table);
        let chains = if table == "nat" { self.chain_rules } else { 0 };
        hubs.map(|(_, size)| size).sum::<usize>() + chains
    }

    /// Ports that find no endpoint on this node.
    pub(crate) fn stranded(&self) -> Sums {
        self.stranded
    }

    /// Whether a Service keeps all ways into it that it has, with these rules instead of its own. Refusals are none.
    pub(crate) fn only_gains(&self, key: &str, rules: &Rules) -> bool {
        let ways = self.services.get(key).into_iter().flat_map(|trace| trace.hubs.iter());
        ways.filter(|(hub, _)| !matches!(hub, Hub::Refused | Hub::ExternalRefused))
            .all(|(hub, rule)| rules.hubs.iter().any(|(found, text)| found == hub && **text == **rule))
    }

    fn count(&mut self, old: &Trace, new: &Trace) {
        self.chain_rules = (self.chain_rules + new.chain_rules as usize).saturating_sub(old.chain_rules as usize);
        self.stranded.internal += i64::from(new.stranded.internal) - i64::from(old.stranded.internal);
        self.stranded.external += i64::from(new.stranded.external) - i64::from(old.stranded.external);
    }

    /// Writes the difference that a changed Service makes; `None` removes it. Returns its UDP ports when those changed:
    /// as they were before.
    pub(crate) fn update(&mut self, changes: &mut Restore, key: &Key, rules: Option<Rules>) -> Option<Vec<UdpPort>> {
        let mut rules = rules.unwrap_or_default();
        let mut old = self.services.remove(key).unwrap_or_default();
        let nat = changes.table("nat");
        let mut chains: Vec<(Box<str>, u64)> = Vec::with_capacity(rules.chains.len());
        for chain in &rules.chains {
            let mark = digest(chain);
            let unchanged = old
                .chains
                .iter()
                .any(|(name, old)| **name == *chain.name && *old == mark);
            if !unchanged {
                nat.chain(&chain.name);
                chain.rules.iter().for_each(|rule| nat.append(&chain.name, rule));
            }
            self.stale_chains.remove(&chain.name);
            chains.push((chain.name.as_str().into(), mark));
        }
        for (name, _) in old
            .chains
            .iter()
            .filter(|(name, _)| !chains.iter().any(|(new, _)| new == name))
        {
            // Emptied now, so that nothing goes this way any more; removed when no rule leads to it.
            nat.chain(name);
            self.stale_chains.insert(name.to_string());
        }

        let mut hubs: Vec<(Hub, Box<str>)> = Vec::with_capacity(rules.hubs.len());
        for (hub, rule) in std::mem::take(&mut rules.hubs) {
            let present = old.hubs.iter().any(|(old, text)| *old == hub && **text == *rule);
            // One that still waits for its removal just stays.
            let (hub, rule) = match self.stale_rules.take(&(hub, rule.clone())) {
                Some(kept) => kept,
                None if present => (hub, rule),
                None => {
                    changes.table(hub.table()).insert(hub.chain(), &rule);
                    *self.hub_sizes.entry(hub).or_default() += 1;
                    (hub, rule)
                }
            };
            hubs.push((hub, rule.into()));
        }
        for (hub, rule) in std::mem::take(&mut old.hubs)
            .into_iter()
            .filter(|old| !hubs.contains(old))
        {
            self.stale_rules.insert((hub, rule.into()));
        }

        let before = (*old.udp != *rules.udp).then(|| std::mem::take(&mut old.udp).into_vec());
        let trace = Trace::new(chains.into(), hubs.into(), rules);
        self.count(&old, &trace);
        if !trace.chains.is_empty() || !trace.hubs.is_empty() {
            self.services.insert(key.clone(), trace);
        }
        before
    }

    /// Writes the removal of waste as far as it is cheap.
    pub(crate) fn collect_cheap(&mut self, changes: &mut Restore) {
        if Hub::ALL
            .iter()
            .all(|hub| self.hub_sizes.get(hub).is_none_or(|size| *size <= SMALL_HUB))
        {
            self.collect(changes);
            return;
        }
        let small = |hub: &Hub| self.hub_sizes.get(hub).is_none_or(|size| *size <= SMALL_HUB);
        let (cheap, costly) = std::mem::take(&mut self.stale_rules)
            .into_iter()
            .partition(|(hub, _)| small(hub));
        self.stale_rules = costly;
        self.remove_rules(changes, cheap);
    }

    /// Writes the removal of waste, as much as one transaction should have. Chains go when no rule leads to them.
    pub(crate) fn collect(&mut self, changes: &mut Restore) {
        let first: BTreeSet<_> = std::iter::from_fn(|| self.stale_rules.pop_first())
            .take(REMOVALS)
            .collect();
        let budget = REMOVALS - first.len();
        self.remove_rules(changes, first);
        if self.stale_rules.is_empty() {
            for chain in std::iter::from_fn(|| self.stale_chains.pop_last()).take(budget) {
                changes.table("nat").delete_chain(&chain);
            }
        }
    }

    fn remove_rules(&mut self, changes: &mut Restore, stale: BTreeSet<(Hub, String)>) {
        for (hub, rule) in stale {
            changes.table(hub.table()).delete(hub.chain(), &rule);
            if let Some(size) = self.hub_sizes.get_mut(&hub) {
                *size = size.saturating_sub(1);
            }
        }
    }

    /// Writes everything anew, and the removal of what an earlier process left. `saved` is what is in the kernel.
    ///
    /// The transactions are to be applied in order. Packets go by the old rules until the one that fills the hubs; the
    /// ones before it write each Service's own chains, which is atomic for each.
    pub(crate) fn rebuild(
        base: &Base,
        services: impl Iterator<Item = (Key, Rules)>,
        saved: &Saved,
    ) -> (Self, Vec<Restore>) {
        let mut applied = Self::default();
        let mut first = Restore::new();
        for (table, name, rules) in &base.chains {
            let table = first.table(table);
            table.chain(name);
            rules.iter().for_each(|rule| table.append(name, rule));
        }
        let mut transactions = vec![first];
        let mut switch = Restore::new();
        for hub in Hub::ALL {
            switch.table(hub.table()).chain(hub.chain());
        }
        let mut batch: Vec<Chain> = Vec::new();
        for (key, rules) in services {
            batch.extend(applied.restore(&mut switch, key, rules));
            if batch.len() >= BATCH {
                transactions.push(chains(&mut batch));
            }
        }
        transactions.push(chains(&mut batch));
        for (hub, rule) in &base.tails {
            switch.table(hub.table()).append(hub.chain(), rule);
        }
        for jump in &base.jumps {
            let present = saved.chain(jump.table, jump.from).unwrap_or_default();
            if !jump.is_among(present) {
                switch.table(jump.table).insert(jump.from, &jump.rule);
            }
        }
        transactions.push(switch);
        transactions.extend(applied.removals(saved));
        (applied, transactions)
    }

    /// Remembers a Service, writes its rules in hubs and returns its chains.
    fn restore(&mut self, switch: &mut Restore, key: Key, mut rules: Rules) -> Vec<Chain> {
        for (hub, rule) in &rules.hubs {
            switch.table(hub.table()).append(hub.chain(), rule);
            *self.hub_sizes.entry(*hub).or_default() += 1;
        }
        let names = rules
            .chains
            .iter()
            .map(|chain| (chain.name.as_str().into(), digest(chain)))
            .collect();
        let hubs = std::mem::take(&mut rules.hubs).into_iter();
        let hubs = hubs.map(|(hub, rule)| (hub, rule.into())).collect();
        let chains = std::mem::take(&mut rules.chains);
        let count: usize = chains.iter().map(|chain| chain.rules.len()).sum();
        let mut trace = Trace::new(names, hubs, rules);
        trace.chain_rules = u32::try_from(count).unwrap_or(u32::MAX);
        self.count(&Trace::default(), &trace);
        self.services.insert(key, trace);
        chains
    }

    /// The removal of chains that no Service of ours has, those first that lead to others.
    fn removals(&self, saved: &Saved) -> Vec<Restore> {
        let chains = self.services.values().flat_map(|trace| trace.chains.iter());
        let wanted: BTreeSet<&str> = chains.map(|(name, _)| &**name).collect();
        let stale = PREFIXES.iter().flat_map(|prefix| saved.chains("nat", prefix));
        removal_of(stale.filter(|name| !wanted.contains(name)).collect())
    }

    /// The UDP ports of all Services.
    pub(crate) fn udp_ports(&self) -> impl Iterator<Item = &UdpPort> {
        self.services.values().flat_map(|trace| trace.udp.iter())
    }

    /// The UDP ports of one Service.
    pub(crate) fn udp_ports_of(&self, key: &str) -> &[UdpPort] {
        self.services.get(key).map(|trace| &*trace.udp).unwrap_or_default()
    }
}

/// Transactions that remove chains of the nat table, given in the order in which they can go.
pub(crate) fn removal_of(chains: Vec<&str>) -> Vec<Restore> {
    let batches = chains.chunks(BATCH).map(|batch| {
        let mut changes = Restore::new();
        batch.iter().for_each(|name| changes.table("nat").delete_chain(name));
        changes
    });
    batches.collect()
}

/// Writes chains, last name first: iptables-nft keeps a sorted list of the chains that a transaction names and looks for
/// each place from its start, so that any other order, or too many in one transaction, costs the square of their number.
fn chains(batch: &mut Vec<Chain>) -> Restore {
    let mut changes = Restore::new();
    batch.sort_by(|one, other| other.name.cmp(&one.name));
    let nat = changes.table("nat");
    for chain in batch.drain(..) {
        nat.chain(&chain.name);
        chain.rules.iter().for_each(|rule| nat.append(&chain.name, rule));
    }
    changes
}

/// Tells two contents of a chain apart.
fn digest(chain: &Chain) -> u64 {
    let mut hasher = DefaultHasher::new();
    chain.rules.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
