//! `vlan`: containers in one VLAN of the bridge do not reach those in another. Tags never leave the bridge: ports send and
//! receive untagged packets.

use skiff_net::netlink::{Error as NetlinkError, Link, Netlink, VethOptions};

use super::add_pair;
use super::config::Vlan;
use crate::error::Error;

/// What every port is in until told otherwise.
const DEFAULT: u16 = 1;

/// Makes a port of the bridge one of the VLAN.
pub(super) fn join(outer: &mut Netlink, port: u32, vlan: Vlan) -> Result<(), NetlinkError> {
    outer.add_port_vlan(port, vlan.number)?;
    if !vlan.keep_default && vlan.number != DEFAULT {
        outer.delete_port_vlan(port, DEFAULT)?;
    }
    Ok(())
}

/// This machine's own interface in the VLAN, under upstream's name: the bridge itself is in the default VLAN only.
pub(super) fn ensure_gateway(outer: &mut Netlink, bridge: &Link, vlan: Vlan) -> Result<Link, Error> {
    let name = format!("{}.{}", bridge.name, vlan.number);
    let failed = |source: NetlinkError| Error::internal(format_args!("failed to create vlan veth {name:?}"), &source);
    if let Some(found) = outer.link(&name).map_err(failed)? {
        outer.set_up(found.index).map_err(failed)?;
        return Ok(found);
    }
    let options = VethOptions {
        mtu: Some(bridge.mtu),
        master: Some(bridge.index),
        up: true,
        ..VethOptions::default()
    };
    match add_pair(outer, &name, &options) {
        Ok(port) => {
            let joined = outer.need_link(&port).and_then(|port| join(outer, port.index, vlan));
            if let Err(source) = joined {
                outer.delete_link(&port).ok();
                return Err(failed(source));
            }
        }
        Err(source) if source.already_exists() => {}
        Err(source) => return Err(failed(source)),
    }
    let link = outer.need_link(&name).map_err(failed)?;
    outer.set_up(link.index).map_err(failed)?;
    Ok(link)
}
