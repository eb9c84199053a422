//! `ipMasq`: what a container sends out of its subnet leaves with this machine's address.
//!
//! Upstream's chain names and comments, so that either plugin removes what the other made. All rules of a container are
//! one transaction, in both directions.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha512};
use skiff_net::iptables::{Error as RulesError, Family, Iptables, Restore};

use crate::error::Error;
use crate::request::Request;

/// Upstream cuts chain names at this length, which every backend takes.
const NAME_LENGTH: usize = 28;

/// Adds the rules of a container. Rules that are there already are made anew.
pub(super) fn set_up(request: &Request, addresses: &[IpNet]) -> Result<(), Error> {
    tear_down(request)?;
    for (family, addresses) in by_family(addresses) {
        let rules = additions(request, &addresses);
        let applied = Iptables::detect(family).and_then(|programs| programs.apply(&rules));
        applied.map_err(|source| Error::internal("failed to set up IP masquerading", &source))?;
    }
    Ok(())
}

/// Removes the rules of a container; none there is no error.
pub(super) fn tear_down(request: &Request) -> Result<(), Error> {
    let chain = chain_name(&request.network.name, &request.container);
    for family in [Family::V4, Family::V6] {
        let removed = remove(family, |name| name == chain);
        match removed {
            // Without programs of a family there are no rules of it either.
            Ok(()) | Err(RulesError::Missing { .. }) => {}
            Err(source) => return Err(Error::internal("failed to remove IP masquerading", &source)),
        }
    }
    Ok(())
}

/// Removes the rules of this network whose container is not among the valid ones.
pub(super) fn collect(request: &Request) -> Result<(), Error> {
    let Some(valid) = &request.network.valid_attachments else {
        return Ok(());
    };
    let network = &request.network.name;
    let kept: Vec<String> = valid
        .iter()
        .map(|attachment| chain_name(network, &attachment.container))
        .collect();
    let ours = format!("name: \\\"{network}\\\" id: ");
    for family in [Family::V4, Family::V6] {
        let programs = match Iptables::detect(family) {
            Ok(programs) => programs,
            Err(RulesError::Missing { .. }) => continue,
            Err(source) => return Err(Error::internal("failed to find the rules of IP masquerading", &source)),
        };
        let saved = programs.save(Some("nat"));
        let saved = saved.map_err(|source| Error::internal("failed to read the rules of IP masquerading", &source))?;
        let stale: Vec<&str> = saved
            .chains("nat", "CNI-")
            .filter(|name| !kept.iter().any(|kept| kept == name))
            .filter(|name| {
                saved
                    .chain("nat", name)
                    .is_some_and(|rules| rules.iter().any(|rule| rule.contains(&ours)))
            })
            .collect();
        remove(family, |name| stale.contains(&name))
            .map_err(|source| Error::internal("failed to remove stale IP masquerading", &source))?;
    }
    Ok(())
}

fn remove(family: Family, wanted: impl Fn(&str) -> bool) -> Result<(), RulesError> {
    let programs = Iptables::detect(family)?;
    let saved = programs.save(Some("nat"))?;
    let mut changes = Restore::new();
    let nat = changes.table("nat");
    for rule in saved.chain("nat", "POSTROUTING").unwrap_or_default() {
        if rule.rsplit_once("-j ").is_some_and(|(_, target)| wanted(target.trim())) {
            nat.delete("POSTROUTING", rule);
        }
    }
    for chain in saved.chains("nat", "CNI-").filter(|name| wanted(name)) {
        nat.delete_chain(chain);
    }
    programs.apply(&changes)
}

fn additions(request: &Request, addresses: &[IpNet]) -> Restore {
    let chain = chain_name(&request.network.name, &request.container);
    let comment = format!(
        r#"-m comment --comment "name: \"{}\" id: \"{}\"""#,
        request.network.name, request.container
    );
    let mut changes = Restore::new();
    let nat = changes.table("nat");
    nat.chain(&chain);
    for address in addresses {
        let multicast = if address.addr().is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        nat.append(&chain, &format!("-d {} {comment} -j ACCEPT", address.trunc()));
        nat.append(&chain, &format!("! -d {multicast} {comment} -j MASQUERADE"));
        nat.append(
            "POSTROUTING",
            &format!("-s {} {comment} -j {chain}", single(address.addr())),
        );
    }
    changes
}

fn single(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

fn by_family(addresses: &[IpNet]) -> Vec<(Family, Vec<IpNet>)> {
    let (four, six): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| address.addr().is_ipv4());
    [(Family::V4, four), (Family::V6, six)]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .collect()
}

/// `CNI-` and the start of the SHA-512 of network and container, in hexadecimal.
fn chain_name(network: &str, container: &str) -> String {
    let mut name = "CNI-".to_owned();
    for byte in Sha512::digest(format!("{network}{container}")) {
        // Writing to a String cannot fail.
        write!(name, "{byte:02x}").ok();
    }
    name.truncate(NAME_LENGTH);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_are_upstreams() {
        // Seen with Debian's bridge plugin 1.1.1 for network "t" and container "abc".
        assert_eq!(chain_name("t", "abc"), "CNI-e2554e428afffaa6fb496266");
    }
}
