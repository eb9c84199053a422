//! Packet rules: a chain of our own in each table, and one jump to it. What stays in the cluster keeps its address, the
//! rest leaves with this node's; and what is forwarded for pods is let through where others let nothing through.

use ipnet::IpNet;
use skiff_net::iptables::{Error, Family, Iptables, Restore};

use crate::plan::Plan;

/// A chain, and the rule that leads to it: the last of its chain, so that whoever refuses packets of pods comes first.
struct Chain {
    table: &'static str,
    from: &'static str,
    name: &'static str,
    purpose: &'static str,
}

const MASQUERADE: Chain = Chain {
    table: "nat",
    from: "POSTROUTING",
    name: "SKIFF-POSTROUTING",
    purpose: "skiff: pods to the outside",
};
/// Other programs (Docker is one) forward nothing unless a rule says so.
const FORWARD: Chain = Chain {
    table: "filter",
    from: "FORWARD",
    name: "SKIFF-FORWARD",
    purpose: "skiff: packets of pods",
};

/// Makes the chains match the plan. Returns whether something changed.
pub(super) fn ensure(plan: &Plan) -> Result<bool, Error> {
    let mut changed = false;
    for family in [Family::V4, Family::V6] {
        if !plan.own.iter().any(|net| is_of(family, net)) {
            continue;
        }
        let programs = Iptables::detect(family)?;
        let mut changes = Restore::new();
        MASQUERADE.set(&programs, &mut changes, &masquerade(plan, family))?;
        FORWARD.set(&programs, &mut changes, &forward(plan, family))?;
        programs.apply(&changes)?;
        changed |= !changes.is_empty();
    }
    Ok(changed)
}

/// Removes the chains and the jumps to them. Returns whether there was something.
pub(super) fn remove() -> Result<bool, Error> {
    let mut changed = false;
    for family in [Family::V4, Family::V6] {
        let programs = match Iptables::detect(family) {
            // Without the programs nothing can have been set.
            Err(Error::Missing { .. }) => continue,
            detected => detected?,
        };
        let mut changes = Restore::new();
        MASQUERADE.unset(&programs, &mut changes)?;
        FORWARD.unset(&programs, &mut changes)?;
        programs.apply(&changes)?;
        changed |= !changes.is_empty();
    }
    Ok(changed)
}

fn is_of(family: Family, net: &IpNet) -> bool {
    net.addr().is_ipv4() == (family == Family::V4)
}

fn masquerade(plan: &Plan, family: Family) -> Vec<String> {
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let unmasked = plan.unmasked.iter().filter(|net| is_of(family, net));
    let mut rules: Vec<_> = unmasked.map(|range| format!("-d {range} -j RETURN")).collect();
    rules.push(format!("-d {multicast} -j RETURN"));
    let own = plan.own.iter().filter(|net| is_of(family, net));
    rules.extend(own.map(|range| format!("-s {} -j MASQUERADE --random-fully", range.trunc())));
    rules
}

/// Every packet that is forwarded to or from a pod is one of this node's own pods': nothing else is routed through it.
fn forward(plan: &Plan, family: Family) -> Vec<String> {
    let own = plan.own.iter().filter(|net| is_of(family, net)).map(IpNet::trunc);
    own.flat_map(|range| [format!("-s {range} -j ACCEPT"), format!("-d {range} -j ACCEPT")])
        .collect()
}

impl Chain {
    fn set(&self, programs: &Iptables, changes: &mut Restore, rules: &[String]) -> Result<(), Error> {
        let present = programs.rules(self.table, self.name)?;
        let jumped = !self.jumps(programs)?.is_empty();
        let table = changes.table(self.table);
        if present.as_deref() != Some(rules) {
            table.chain(self.name);
            rules.iter().for_each(|rule| table.append(self.name, rule));
        }
        if !jumped {
            let jump = format!("-m comment --comment \"{}\" -j {}", self.purpose, self.name);
            table.append(self.from, &jump);
        }
        Ok(())
    }

    fn unset(&self, programs: &Iptables, changes: &mut Restore) -> Result<(), Error> {
        let table = changes.table(self.table);
        for jump in self.jumps(programs)? {
            table.delete(self.from, &jump);
        }
        if programs.rules(self.table, self.name)?.is_some() {
            table.delete_chain(self.name);
        }
        Ok(())
    }

    fn jumps(&self, programs: &Iptables) -> Result<Vec<String>, Error> {
        let mut rules = programs.rules(self.table, self.from)?.unwrap_or_default();
        rules.retain(|rule| rule.ends_with(&format!("-j {}", self.name)));
        Ok(rules)
    }
}
