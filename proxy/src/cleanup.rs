//! `--cleanup`: everything of this proxy leaves the kernel, and nothing of anybody else.

use std::collections::BTreeSet;

use skiff_daemon::error_chain;
use skiff_net::iptables::{Family, Iptables, Restore, Saved};
use skiff_net::sysctl;
use tracing::{debug, info, warn};

use crate::kernel::ROUTE_LOCALNET;
use crate::names::PREFIXES;
use crate::plan::{self, Hub, Settings};
use crate::sync;
use crate::{Error, express};

/// Removes the proxy's rules and chains from the calling thread's network namespace. Repeating it is no error.
///
/// # Errors
/// When the packet-rule programs are missing or refuse.
pub fn cleanup() -> Result<(), Error> {
    let iptables = Iptables::detect(Family::V4).map_err(Error::Iptables)?;
    let saved = iptables.save(None).map_err(Error::Iptables)?;
    let transactions = removal(&saved, close_loopback(&saved));
    for changes in &transactions {
        iptables.apply(changes).map_err(Error::Iptables)?;
    }
    // Where the kernel has no such tables, there is none of ours.
    if let Err(error) = express::remove() {
        debug!(
            error = error_chain(&error),
            "there is no table of the quick way to remove"
        );
    }
    info!(transactions = transactions.len(), "the rules of services are removed");
    Ok(())
}

/// Whether loopback is closed to other machines without a rule of ours: then the rule may go.
fn close_loopback(saved: &Saved) -> bool {
    if !saved
        .chain("filter", FIREWALL)
        .unwrap_or_default()
        .iter()
        .any(|rule| is_guard(rule))
    {
        return true;
    }
    match sysctl::set(ROUTE_LOCALNET, "0") {
        Ok(_) => true,
        Err(error) => {
            warn!(
                error = error_chain(&error),
                "this node's loopback stays open to routed packets: the rule that guards it stays, too"
            );
            false
        }
    }
}

fn is_guard(rule: &str) -> bool {
    rule.contains("block incoming localnet connections")
}

/// The chains that do not depend on any Service, by table.
fn fixed() -> BTreeSet<(&'static str, &'static str)> {
    let base = plan::base(&Settings::default());
    let hubs = Hub::ALL.iter().map(|hub| (hub.table(), hub.chain()));
    base.chains
        .iter()
        .map(|(table, name, _)| (*table, *name))
        .chain(hubs)
        .collect()
}

/// Decides what goes, in the order in which it can; the guard of loopback only where it is not needed.
fn removal(saved: &Saved, loopback_is_closed: bool) -> Vec<Restore> {
    let fixed: Vec<_> = fixed()
        .into_iter()
        .filter(|(table, name)| saved.chain(table, name).is_some())
        .filter(|(_, name)| loopback_is_closed || *name != FIREWALL)
        .collect();
    let is_own = |table: &str, name: &str| {
        fixed.contains(&(table, name)) || (table == "nat" && PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
    };
    let mut first = Restore::new();
    let mut needed = BTreeSet::new();
    let shared = loopback_is_closed && shared_firewall(saved, &mut first);
    for (table, chains) in &saved.tables {
        let Some(table) = TABLES.into_iter().find(|known| known == table) else {
            continue;
        };
        for (chain, rules) in chains.iter().filter(|(chain, _)| !is_own(table, chain)) {
            for rule in rules {
                match target(rule).filter(|to| is_own(table, to)) {
                    Some(FIREWALL) if shared => {}
                    Some(_) if BUILT_IN.contains(&chain.as_str()) => first.table(table).delete(chain, rule),
                    // Somebody's own rule leads to a chain of ours: it stays, empty.
                    Some(to) => drop(needed.insert((table, to.to_owned()))),
                    None => {}
                }
            }
        }
    }
    let mut last = Restore::new();
    for (table, name) in fixed.iter().filter(|(_, name)| !(shared && *name == FIREWALL)) {
        first.table(table).chain(name);
        if !needed.contains(&(*table, (*name).to_owned())) {
            last.table(table).delete_chain(name);
        }
    }
    let own = PREFIXES.iter().flat_map(|prefix| saved.chains("nat", prefix));
    let free = own
        .filter(|name| !needed.contains(&("nat", (*name).to_owned())))
        .collect();
    let mut transactions = vec![first];
    transactions.extend(sync::removal_of(free));
    transactions.push(last);
    transactions.retain(|changes| !changes.is_empty());
    transactions
}

const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Older kubelets have rules in it, too.
const FIREWALL: &str = "KUBE-FIREWALL";

/// Whether the firewall chain has rules of others. Then only ours goes.
fn shared_firewall(saved: &Saved, first: &mut Restore) -> bool {
    let rules = saved.chain("filter", FIREWALL).unwrap_or_default();
    let (ours, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| is_guard(rule));
    if others.is_empty() {
        return false;
    }
    ours.iter()
        .for_each(|rule| first.table("filter").delete(FIREWALL, rule));
    true
}

/// Where a rule leads.
fn target(rule: &str) -> Option<&str> {
    let words: Vec<_> = rule.split(' ').collect();
    let at = words.iter().position(|word| matches!(*word, "-j" | "-g"))?;
    words.get(at + 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(saved: &str) -> String {
        removal(&Saved::parse(saved), true).iter().map(Restore::text).collect()
    }

    #[test]
    fn only_what_is_ours_goes_and_what_others_need_stays_empty() {
        let text = text(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SVC-A - [0:0]\n\
             :KUBE-SEP-B - [0:0]\n:CNI-HOSTPORT - [0:0]\n:MINE - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A PREROUTING -j MINE\n-A MINE -j KUBE-MARK-MASQ\n-A KUBE-SERVICES -j KUBE-SVC-A\n\
             -A KUBE-SVC-A -j KUBE-SEP-B\nCOMMIT\n*raw\n:KUBE-SERVICES - [0:0]\nCOMMIT\n",
        );
        let wanted = "*nat\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                      -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n\
                      *nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-B - [0:0]\n-X KUBE-SVC-A\n-X KUBE-SEP-B\nCOMMIT\n\
                      *nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_kubelets_firewall_rules_stay() {
        let kubelets = "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n";
        let ours = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -j DROP\n";
        let head = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n";
        let shared = text(&format!("{head}{kubelets}{ours}COMMIT\n"));
        assert!(
            shared.contains("-D KUBE-FIREWALL ! -s") && !shared.contains(":KUBE-FIREWALL"),
            "{shared}"
        );
        assert!(!shared.contains("-D INPUT"), "{shared}");
        let own = text(&format!("{head}{ours}COMMIT\n"));
        assert!(
            own.contains("-D INPUT -j KUBE-FIREWALL") && own.contains("-X KUBE-FIREWALL"),
            "{own}"
        );
    }

    #[test]
    fn the_guard_stays_while_loopback_is_open() {
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n-A INPUT -j KUBE-FIREWALL\n\
                     -A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -j DROP\nCOMMIT\n";
        let removed: String = removal(&Saved::parse(saved), false).iter().map(Restore::text).collect();
        assert!(
            removed.contains("-X KUBE-FORWARD") && !removed.contains("KUBE-FIREWALL"),
            "{removed}"
        );
    }

    #[test]
    fn nothing_is_removed_twice() {
        assert_eq!(text("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), "");
    }
}
