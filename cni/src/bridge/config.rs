//! The `bridge` plugin's part of the configuration, checked.

use serde::Deserialize;
use skiff_net::netlink::{Mac, check_name};

use crate::config::nullable;
use crate::error::{Code, Error};
use crate::request::Request;

/// The largest number of a VLAN.
const MAX_VLAN: u16 = 4094;

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    #[serde(deserialize_with = "nullable")]
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    preserve_default_vlan: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    vlan_trunk: Vec<serde_json::Value>,
    macspoofchk: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    #[serde(deserialize_with = "nullable")]
    runtime_config: MacArgument,
    #[serde(deserialize_with = "nullable")]
    args: Arguments,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arguments {
    #[serde(deserialize_with = "nullable")]
    cni: MacArgument,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MacArgument {
    #[serde(deserialize_with = "nullable")]
    mac: String,
}

/// A VLAN of the bridge that a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vlan {
    pub(super) number: u16,
    /// The container's port stays in the bridge's default VLAN too, as a receiver.
    pub(super) keep_default: bool,
}

/// As it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) bridge: String,
    /// The bridge has the gateway's address, and this machine forwards.
    pub(super) gateway: bool,
    /// The container's default route goes through the bridge.
    pub(super) default_gateway: bool,
    /// Another address of the bridge in the same subnet is replaced.
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    pub(super) mtu: Option<u32>,
    /// Untagged packets of the container are of this VLAN.
    pub(super) vlan: Option<Vlan>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    /// The container's hardware address, when the runtime or the configuration wants one.
    pub(super) mac: Option<Mac>,
    /// Without address management, the container is joined to the segment and no more.
    pub(super) layer3: bool,
}

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let written: Written = request.config()?;
        refuse_unserved(&written)?;
        if written.hairpin_mode && written.promisc_mode {
            let message = "cannot set hairpin mode and promiscuous mode at the same time.";
            return Err(Error::new(Code::Internal, message));
        }
        let vlan = match u16::try_from(written.vlan) {
            Ok(0) => None,
            Ok(number @ 1..=MAX_VLAN) => Some(Vlan {
                number,
                keep_default: written.preserve_default_vlan.unwrap_or(true),
            }),
            _ => {
                let message = format!("invalid VLAN ID {} (must be between 0 and {MAX_VLAN})", written.vlan);
                return Err(Error::new(Code::Internal, message));
            }
        };
        let bridge = if written.bridge.is_empty() {
            "cni0".to_owned()
        } else {
            written.bridge
        };
        check_name(&bridge).map_err(|source| Error::new(Code::Internal, source.to_string()))?;
        let arguments = request.arguments(&["MAC"])?;
        let mac = [
            arguments.get("MAC").map(String::as_str).unwrap_or_default(),
            &written.args.cni.mac,
            &written.runtime_config.mac,
        ]
        .into_iter()
        .rfind(|text| !text.is_empty())
        .map(str::parse)
        .transpose()
        .map_err(|source: skiff_net::netlink::MacError| Error::new(Code::Internal, source.to_string()))?;
        Ok(Self {
            bridge,
            gateway: written.is_gateway || written.is_default_gateway,
            default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            masquerade: written.ip_masq,
            mtu: u32::try_from(written.mtu).ok().filter(|mtu| *mtu != 0),
            vlan,
            hairpin: written.hairpin_mode,
            promiscuous: written.promisc_mode,
            mac,
            layer3: !request.network.ipam.kind.is_empty(),
        })
    }
}

/// What upstream's plugin has and this one has not: refused, since leaving it out would give less isolation than asked.
fn refuse_unserved(written: &Written) -> Result<(), Error> {
    let fields = [
        ("vlanTrunk", !written.vlan_trunk.is_empty()),
        ("macspoofchk", written.macspoofchk),
        ("disableContainerInterface", written.disable_container_interface),
        ("portIsolation", written.port_isolation),
    ];
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => {
            let message = format!("the bridge plugin does not serve {field:?} yet: remove it from the configuration");
            Err(Error::new(Code::UnsupportedField, message))
        }
        None => Ok(()),
    }
}
