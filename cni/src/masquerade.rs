//! `ipMasq`: what a container sends out of its subnet leaves with this machine's address.
//!
//! Upstream's chain names and comments, so that either plugin removes what the other made. All rules of a container are
//! one transaction, in both directions; only the chains that matter are read, however many others there are.

use ipnet::IpNet;
use skiff_net::iptables::{Error as RulesError, Family, Iptables, Restore};

use crate::error::Error;
use crate::request::Request;
use crate::rules::{FAMILIES, Turn, chain_name, comment, programs, target};

const TABLE: &str = "nat";
/// Where the rules of all containers start.
const TOP: &str = "POSTROUTING";

/// Adds the rules of a container. Rules that are there already are made anew.
pub(crate) fn set_up(request: &Request, addresses: &[IpNet]) -> Result<(), Error> {
    let failed = |source: RulesError| Error::internal("failed to set up IP masquerading", &source);
    let _turn = Turn::take()?;
    for (family, addresses) in by_family(addresses) {
        let programs = Iptables::detect(family).map_err(failed)?;
        let top = programs.rules(TABLE, TOP).map_err(failed)?.unwrap_or_default();
        programs.apply(&additions(request, &addresses, &top)).map_err(failed)?;
    }
    Ok(())
}

/// Removes the rules of a container; none there is no error.
pub(crate) fn remove(network: &str, container: &str) -> Result<(), Error> {
    let chain = chain_name("", network, container);
    let _turn = Turn::take()?;
    // Both families are tried, whatever becomes of the first.
    let results = FAMILIES.map(|family| match programs(family)? {
        Some(programs) => remove_chains(&programs, |name| name == chain, std::slice::from_ref(&chain)),
        None => Ok(()),
    });
    let result: Result<(), RulesError> = results.into_iter().collect();
    result.map_err(|source| Error::internal("failed to remove IP masquerading", &source))
}

/// Removes the rules of this network whose container is not among the valid ones.
pub(crate) fn collect(request: &Request) -> Result<(), Error> {
    let Some(valid) = &request.network.valid_attachments else {
        return Ok(());
    };
    let kept: Vec<String> = valid
        .iter()
        .map(|attachment| chain_name("", &request.network.name, &attachment.container))
        .collect();
    let ours = format!("name: \\\"{}\\\" id: ", request.network.name);
    let _turn = Turn::take()?;
    let results = FAMILIES.map(|family| {
        let Some(programs) = programs(family)? else {
            return Ok(());
        };
        let top = programs.rules(TABLE, TOP)?.unwrap_or_default();
        let mut stale: Vec<String> = top
            .iter()
            .filter(|rule| rule.contains(&ours))
            .filter_map(|rule| target(rule))
            .filter(|name| name.starts_with("CNI-") && !kept.iter().any(|kept| kept == name))
            .map(str::to_owned)
            .collect();
        stale.dedup();
        remove_chains(&programs, |name| stale.iter().any(|stale| stale == name), &stale)
    });
    let result: Result<(), RulesError> = results.into_iter().collect();
    result.map_err(|source| Error::internal("failed to remove stale IP masquerading", &source))
}

/// Removes chains, as far as they are there, and what leads to them.
fn remove_chains(programs: &Iptables, wanted: impl Fn(&str) -> bool, chains: &[String]) -> Result<(), RulesError> {
    let mut changes = Restore::new();
    let nat = changes.table(TABLE);
    for chain in chains {
        if programs.rules(TABLE, chain)?.is_some() {
            nat.delete_chain(chain);
        }
    }
    if nat.is_empty() {
        // Without the chain nothing can lead to it.
        return Ok(());
    }
    for rule in programs.rules(TABLE, TOP)?.unwrap_or_default() {
        if target(&rule).is_some_and(&wanted) {
            nat.delete(TOP, &rule);
        }
    }
    programs.apply(&changes)
}

fn additions(request: &Request, addresses: &[IpNet], top: &[String]) -> Restore {
    let chain = chain_name("", &request.network.name, &request.container);
    let words = comment(&format!(
        "name: \"{}\" id: \"{}\"",
        request.network.name, request.container
    ));
    let mut changes = Restore::new();
    let nat = changes.table(TABLE);
    for rule in top.iter().filter(|rule| target(rule) == Some(&chain)) {
        nat.delete(TOP, rule);
    }
    nat.chain(&chain);
    for address in addresses {
        let multicast = if address.addr().is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        nat.append(&chain, &format!("-d {} {words} -j ACCEPT", address.trunc()));
        nat.append(&chain, &format!("! -d {multicast} {words} -j MASQUERADE"));
        nat.append(TOP, &format!("-s {} {words} -j {chain}", IpNet::from(address.addr())));
    }
    changes
}

fn by_family(addresses: &[IpNet]) -> Vec<(Family, Vec<IpNet>)> {
    let (four, six): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| address.addr().is_ipv4());
    [(Family::V4, four), (Family::V6, six)]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .collect()
}
