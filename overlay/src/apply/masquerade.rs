//! The masquerade: one chain of our own. What stays in the cluster keeps its address, the rest leaves with this node's.

use ipnet::IpNet;
use skiff_net::iptables::{Error, Family, Iptables, Restore};

use crate::plan::Plan;

const CHAIN: &str = "SKIFF-POSTROUTING";
const JUMP: &str = "-m comment --comment \"skiff: pods to the outside\" -j SKIFF-POSTROUTING";

/// Makes the chain match the plan. Returns whether something changed.
pub(super) fn ensure(plan: &Plan) -> Result<bool, Error> {
    let mut changed = false;
    for (family, multicast) in [(Family::V4, "224.0.0.0/4"), (Family::V6, "ff00::/8")] {
        let ours = |net: &&IpNet| net.addr().is_ipv4() == (family == Family::V4);
        let own: Vec<_> = plan.own.iter().filter(ours).collect();
        if own.is_empty() {
            continue;
        }
        let mut rules: Vec<String> = plan
            .unmasked
            .iter()
            .filter(ours)
            .map(|range| format!("-d {range} -j RETURN"))
            .collect();
        rules.push(format!("-d {multicast} -j RETURN"));
        rules.extend(
            own.iter()
                .map(|range| format!("-s {} -j MASQUERADE --random-fully", range.trunc())),
        );
        changed |= ensure_rules(family, &rules)?;
    }
    Ok(changed)
}

fn ensure_rules(family: Family, rules: &[String]) -> Result<bool, Error> {
    let programs = Iptables::detect(family)?;
    let present = programs.rules("nat", CHAIN)?;
    let jumped = !jumps(&programs)?.is_empty();
    let mut changes = Restore::new();
    let nat = changes.table("nat");
    if present.as_deref() != Some(rules) {
        nat.chain(CHAIN);
        rules.iter().for_each(|rule| nat.append(CHAIN, rule));
    }
    if !jumped {
        nat.append("POSTROUTING", JUMP);
    }
    programs.apply(&changes)?;
    Ok(!changes.is_empty())
}

/// Removes the chain and the jumps to it. Returns whether there was something.
pub(super) fn remove() -> Result<bool, Error> {
    let mut changed = false;
    for family in [Family::V4, Family::V6] {
        let programs = match Iptables::detect(family) {
            // Without the programs nothing can have been set.
            Err(Error::Missing { .. }) => continue,
            detected => detected?,
        };
        let mut changes = Restore::new();
        let nat = changes.table("nat");
        for jump in jumps(&programs)? {
            nat.delete("POSTROUTING", &jump);
        }
        if programs.rules("nat", CHAIN)?.is_some() {
            nat.delete_chain(CHAIN);
        }
        programs.apply(&changes)?;
        changed |= !changes.is_empty();
    }
    Ok(changed)
}

fn jumps(programs: &Iptables) -> Result<Vec<String>, Error> {
    let mut rules = programs.rules("nat", "POSTROUTING")?.unwrap_or_default();
    rules.retain(|rule| rule.ends_with(&format!("-j {CHAIN}")));
    Ok(rules)
}
