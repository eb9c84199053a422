//! The VXLAN link, and its entries for the nodes behind it.
//!
//! Nothing is learned and nothing is asked for: a node behind the tunnel has one neighbour entry (which hardware address
//! its end has) and one forwarding entry (which machine that is at), both permanent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use skiff_net::netlink::{Error, Forwarding, Link, LinkChange, Mac, Netlink, Vxlan};

use super::merge;
use crate::TUNNEL_LINK;
use crate::plan::{Tunnel, difference};

/// The network's number and port that the field uses for pods' networks.
const VNI: u32 = 1;
const PORT: u16 = 8472;

/// Makes the link and the entries that are wanted. Returns the link's number, and whether something changed.
pub(super) fn ensure(netlink: &mut Netlink, wanted: Option<&Tunnel>) -> Result<(Option<u32>, bool), Error> {
    let Some(wanted) = wanted else {
        return Ok((None, false));
    };
    let (index, made) = ensure_link(netlink, wanted)?;
    let addressed = ensure_address(netlink, index, wanted)?;
    let neighbours = difference(&macs(wanted), &neighbours(netlink, index)?);
    let forwarding = difference(&remotes(wanted), &forwarding(netlink, index)?);
    let entries = neighbours
        .write
        .into_iter()
        .map(|(inside, mac)| netlink.replace_neighbour(index, inside, mac).map(|()| true));
    let known = merge(entries)?;
    let entries = forwarding.write.into_iter().map(|(mac, remote)| {
        netlink
            .replace_forwarding(&Forwarding { index, mac, remote })
            .map(|()| true)
    });
    let reached = merge(entries)?;
    Ok((Some(index), made | addressed | known | reached))
}

/// Removes the entries that nobody wants, or the whole link. Returns whether there was something.
pub(super) fn prune(netlink: &mut Netlink, wanted: Option<&Tunnel>) -> Result<bool, Error> {
    let Some(link) = netlink.link(TUNNEL_LINK)? else {
        return Ok(false);
    };
    let Some(wanted) = wanted else {
        return netlink.delete_link_by_index(link.index);
    };
    let neighbours = difference(&macs(wanted), &neighbours(netlink, link.index)?);
    let forwarding = difference(&remotes(wanted), &forwarding(netlink, link.index)?);
    let gone = merge(
        neighbours
            .remove
            .into_iter()
            .map(|(inside, _)| netlink.delete_neighbour(link.index, inside)),
    );
    let unreached = merge(forwarding.remove.into_iter().map(|(mac, remote)| {
        netlink.delete_forwarding(&Forwarding {
            index: link.index,
            mac,
            remote,
        })
    }));
    merge([gone, unreached])
}

fn ensure_link(netlink: &mut Netlink, wanted: &Tunnel) -> Result<(u32, bool), Error> {
    let vxlan = Vxlan {
        id: VNI,
        port: PORT,
        local: Some(wanted.local.into()),
        learning: false,
    };
    let mut changed = false;
    let found = netlink.link(TUNNEL_LINK)?;
    let fits = |link: &Link| link.mac == Some(wanted.mac);
    if !found.as_ref().is_some_and(fits) || netlink.vxlan(TUNNEL_LINK)? != Some(vxlan) {
        // What makes the link cannot be changed. The name is ours: whatever else has it is a leftover.
        netlink.delete_link(TUNNEL_LINK)?;
        netlink.add_vxlan(TUNNEL_LINK, &vxlan, wanted.mac, wanted.mtu)?;
        changed = true;
    }
    let link = netlink.need_link(TUNNEL_LINK)?;
    let mtu = wanted.mtu.filter(|mtu| *mtu != link.mtu);
    if mtu.is_some() || !link.up {
        let change = LinkChange {
            up: Some(true),
            mtu,
            ..LinkChange::default()
        };
        netlink.set_link(link.index, &change)?;
        changed = true;
    }
    Ok((link.index, changed))
}

/// The one address that packets of the node itself are sent from. IPv6 link-local ones are the kernel's own.
fn ensure_address(netlink: &mut Netlink, index: u32, wanted: &Tunnel) -> Result<bool, Error> {
    let wanted = IpNet::V4(wanted.address);
    let found = netlink.addresses(Some(index))?;
    let mut changed = false;
    for other in found
        .iter()
        .filter(|found| found.net != wanted && found.net.addr().is_ipv4())
    {
        changed |= netlink.delete_address(index, other.net)?;
    }
    if !found.iter().any(|found| found.net == wanted) {
        netlink.add_address(index, wanted)?;
        changed = true;
    }
    Ok(changed)
}

fn macs(tunnel: &Tunnel) -> BTreeMap<IpAddr, Mac> {
    let entry = |(inside, peer): (&Ipv4Addr, &crate::plan::Peer)| (IpAddr::V4(*inside), peer.mac);
    tunnel.peers.iter().map(entry).collect()
}

fn remotes(tunnel: &Tunnel) -> BTreeMap<Mac, IpAddr> {
    tunnel
        .peers
        .values()
        .map(|peer| (peer.mac, IpAddr::V4(peer.node)))
        .collect()
}

/// The link's permanent entries; the kernel keeps some of its own beside them (multicast).
fn neighbours(netlink: &mut Netlink, index: u32) -> Result<BTreeMap<IpAddr, Mac>, Error> {
    let found = netlink.neighbours()?;
    let ours = found
        .into_iter()
        .filter(|entry| entry.index == index && entry.permanent);
    Ok(ours.filter_map(|entry| Some((entry.ip, entry.mac?))).collect())
}

fn forwarding(netlink: &mut Netlink, index: u32) -> Result<BTreeMap<Mac, IpAddr>, Error> {
    let found = netlink.forwarding(index)?;
    Ok(found.into_iter().map(|entry| (entry.mac, entry.remote)).collect())
}
