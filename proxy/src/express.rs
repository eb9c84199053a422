//! A small table for what changed last.
//!
//! The kernel looks at all rules of a table whenever one of them changes: with 10,000 Services that takes 0.1 s and
//! more. So a change to one of many Services is first written into a table of its own, in milliseconds, and moves in
//! with the others when there is time. The table's chains are called just before those of `iptables`, and have
//! upstream's names and rules.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use skiff_net::netlink;
use skiff_net::nftables::{Batch, Hook, Nftables, Rule};

use crate::index::Key;
use crate::plan::{LocalTraffic, Settings, Way};

/// The table, of the family `ip`.
const TABLE: &str = "kube-proxy-express";
/// The chains that the kernel calls.
const HOOKS: [(&str, Hook); 2] = [("PREROUTING", Hook::Prerouting), ("OUTPUT", Hook::Output)];
/// The chain with a rule for each Service.
const SERVICES: &str = "KUBE-SERVICES";
/// The chains of iptables that translate destinations have -100.
const PRIORITY: i32 = -101;
/// Services in it at once.
const MOST_SERVICES: usize = 64;
/// Endpoints in it at once.
const MOST_ENDPOINTS: usize = 1000;
/// TCP in an IP header.
const TCP: u8 = 6;

/// What is in the table. Changes make another one, which counts when the kernel has taken them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Express {
    services: BTreeMap<Key, Vec<Way>>,
    /// Its chains, but for those that are always there.
    chains: BTreeSet<String>,
    made: bool,
}

impl Express {
    /// Adds Services or replaces them. Returns the table then and what is to be written, or nothing when it would grow too
    /// large.
    pub(crate) fn put(&self, settings: &Settings, changed: Vec<(Key, Vec<Way>)>) -> Option<(Self, Batch)> {
        let mut services = self.services.clone();
        services.extend(changed);
        let endpoints: usize = services.values().flatten().map(|way| way.endpoints.len()).sum();
        if services.len() > MOST_SERVICES || endpoints > MOST_ENDPOINTS {
            return None;
        }
        Some(self.rewrite(settings, services))
    }

    /// Whether no Service is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Takes all Services out.
    pub(crate) fn clear(&self, settings: &Settings) -> (Self, Batch) {
        self.rewrite(settings, BTreeMap::new())
    }

    fn rewrite(&self, settings: &Settings, services: BTreeMap<Key, Vec<Way>>) -> (Self, Batch) {
        let mut batch = Batch::new();
        if !self.made {
            batch.table(TABLE);
            batch.chain(TABLE, SERVICES);
            for (name, hook) in HOOKS {
                batch.translation_chain(TABLE, name, hook, PRIORITY);
                batch.rule(TABLE, name, &Rule::new("kubernetes service portals").jump(SERVICES));
            }
        }
        batch.flush(TABLE, SERVICES);
        self.chains.iter().for_each(|chain| batch.flush(TABLE, chain));
        self.chains.iter().for_each(|chain| batch.delete_chain(TABLE, chain));
        let mut next = Self {
            made: true,
            ..Self::default()
        };
        for way in services.values().flatten() {
            next.write(&mut batch, settings, way);
        }
        next.services = services;
        (next, batch)
    }

    fn write(&mut self, batch: &mut Batch, settings: &Settings, way: &Way) {
        let mark = 1_u32 << settings.masquerade_bit.min(31);
        let names = way.endpoints.iter().map(|(chain, _)| chain).chain([&way.chain]);
        for name in names {
            batch.chain(TABLE, name);
            self.chains.insert(name.clone());
        }
        let to_service = Rule::new(&format!("{} cluster IP", way.id));
        let to_service = to_service.protocol(TCP).to(way.ip).to_port(way.port);
        batch.rule(TABLE, SERVICES, &to_service.jump(&way.chain));
        if let Some(others) = others(settings) {
            batch.rule(TABLE, &way.chain, &others.mark(mark));
        }
        for (index, (chain, address)) in way.endpoints.iter().enumerate() {
            let rule = Rule::new(&format!("{} -> {address}", way.id));
            // Each rule takes its share of what the ones before it left; the last takes the rest.
            let left = u32::try_from(way.endpoints.len() - index).unwrap_or(u32::MAX);
            let rule = if left > 1 { rule.one_in(left) } else { rule };
            batch.rule(TABLE, &way.chain, &rule.jump(chain));
            // A pod that reaches itself through its Service would answer itself past us.
            let itself = Rule::new(&way.id).from(*address.ip()).mark(mark);
            batch.rule(TABLE, chain, &itself);
            let translate = Rule::new(&way.id).protocol(TCP).translate_to(*address);
            batch.rule(TABLE, chain, &translate);
        }
    }
}

/// A rule for packets that are to leave with the node's address; none where nobody's are.
fn others(settings: &Settings) -> Option<Rule> {
    let rule = Rule::new("masquerade");
    match &settings.local {
        _ if settings.masquerade_all => Some(rule),
        LocalTraffic::Range(IpNet::V4(range)) => Some(rule.not_from(*range)),
        LocalTraffic::Bridge(name) => Some(rule.not_by_interface(name, false)),
        LocalTraffic::InterfacePrefix(prefix) => Some(rule.not_by_interface(prefix, true)),
        _ => None,
    }
}

/// Writes to the calling thread's network namespace.
pub(crate) fn apply(batch: &Batch) -> Result<(), netlink::Error> {
    Nftables::open()?.apply(batch)
}

/// Removes the table; its absence is no error.
pub(crate) fn remove() -> Result<(), netlink::Error> {
    let mut batch = Batch::new();
    // Made first, so that there is something to remove.
    batch.table(TABLE);
    batch.delete_table(TABLE);
    apply(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(id: usize, endpoints: usize) -> Way {
        let endpoints = (0..endpoints).map(|at| (format!("KUBE-SEP-{id}-{at}"), "10.244.0.2:8080".parse().unwrap()));
        Way {
            id: format!("n/s{id}"),
            ip: [10, 96, 0, 1].into(),
            port: 80,
            chain: format!("KUBE-SVC-{id}"),
            endpoints: endpoints.collect(),
        }
    }

    #[test]
    fn it_stays_small() {
        let settings = Settings::default();
        let some =
            |range: std::ops::Range<usize>| range.map(|id| (format!("n/s{id}").into(), vec![way(id, 2)])).collect();
        let (full, _) = Express::default().put(&settings, some(0..MOST_SERVICES)).unwrap();
        let (full, _) = full.put(&settings, some(0..1)).unwrap();
        assert!(full.put(&settings, some(100..101)).is_none());
        assert_eq!(full.services.len(), MOST_SERVICES);
        let (empty, _) = full.clear(&settings);
        assert!(empty.is_empty() && empty.chains.is_empty());
        assert!(
            empty
                .put(&settings, vec![("n/a".into(), vec![way(0, MOST_ENDPOINTS + 1)])])
                .is_none()
        );
    }
}
