//! `127.0.0.1:hostPort` leads to the container too: the kernel must let packets from that address out of the bridge.
//!
//! The setting for it (`route_localnet`) opens the other direction as well: a container could send to 127.0.0.1 through
//! the bridge and reach what listens there for this machine alone. So a rule closes it first. Answers of containers
//! are not touched: when they come in they are still addressed to the bridge, which the connection was masqueraded as.

use std::net::IpAddr;

use skiff_net::iptables::{Error as RulesError, Iptables, Restore};
use skiff_net::netlink::Netlink;
use skiff_net::sysctl;

use crate::error::Error;
use crate::rules::comment;

/// Early enough to see addresses as they came, and in use on every node.
const TABLE: &str = "mangle";
const CHAIN: &str = "CNI-HOSTPORT-LOCALNET";

/// Lets 127.0.0.1 be forwarded to a container's address, and nobody behind that interface reach 127.0.0.1.
pub(super) fn open(programs: &Iptables, container: IpAddr) -> Result<(), Error> {
    let failed = |source: &dyn std::error::Error| Error::internal("unable to enable route_localnet", source);
    let mut netlink = Netlink::open().map_err(|source| failed(&source))?;
    let link = match netlink.route_to(container).map_err(|source| failed(&source))? {
        Some(route) => route.link,
        None => None,
    };
    let link = match link {
        Some(index) => netlink.link_by_index(index).map_err(|source| failed(&source))?,
        None => None,
    };
    // Without a way to the container there is nothing to open.
    let Some(link) = link else { return Ok(()) };
    close(programs, &link.name).map_err(|source| failed(&source))?;
    sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", link.name), "1").map_err(|source| failed(&source))?;
    Ok(())
}

fn close(programs: &Iptables, interface: &str) -> Result<(), RulesError> {
    let mut changes = Restore::new();
    let mangle = changes.table(TABLE);
    let found = programs.rules(TABLE, CHAIN)?;
    if found.is_none() {
        mangle.chain(CHAIN);
    }
    let jump = format!("-j {CHAIN}");
    if !programs.rules(TABLE, "PREROUTING")?.unwrap_or_default().contains(&jump) {
        mangle.insert("PREROUTING", &jump);
    }
    for rule in rules(interface) {
        if !found.iter().flatten().any(|there| *there == rule) {
            mangle.append(CHAIN, &rule);
        }
    }
    programs.apply(&changes)
}

/// Neither to nor from 127.0.0.0/8, as `iptables -S` prints it.
fn rules(interface: &str) -> [String; 2] {
    let words = comment("CNI portfwd: loopback addresses stay on this machine");
    ["-s", "-d"].map(|side| format!("{side} 127.0.0.0/8 -i {interface} {words} -j DROP"))
}
