//! The `bridge` plugin's part of the configuration, checked.

use serde::Deserialize;
use skiff_net::netlink::{Mac, check_name};

use crate::config::nullable;
use crate::error::{Code, Error};
use crate::request::Request;

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
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u32,
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
            return Err(Error::new(Code::InvalidConfiguration, message));
        }
        let bridge = if written.bridge.is_empty() {
            "cni0".to_owned()
        } else {
            written.bridge
        };
        check_name(&bridge).map_err(|source| Error::new(Code::InvalidConfiguration, source.to_string()))?;
        let mac = [
            request.arguments.get("MAC").map(String::as_str).unwrap_or_default(),
            &written.args.cni.mac,
            &written.runtime_config.mac,
        ]
        .into_iter()
        .rfind(|text| !text.is_empty())
        .map(str::parse)
        .transpose()
        .map_err(|source: skiff_net::netlink::MacError| Error::new(Code::InvalidConfiguration, source.to_string()))?;
        Ok(Self {
            bridge,
            gateway: written.is_gateway || written.is_default_gateway,
            default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            masquerade: written.ip_masq,
            mtu: Some(written.mtu).filter(|mtu| *mtu != 0),
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
        ("vlan", written.vlan != 0),
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
