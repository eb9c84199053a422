//! The `loopback` plugin: the container's `lo` is up and has its addresses.

use std::path::Path;

use skiff_net::netlink::{self, LinkChange, Netlink};
use skiff_net::netns::Namespace;

use crate::error::{Code, Error};
use crate::outcome::{Interface, Ip, Network, Reply};
use crate::request::{Request, Verb};

/// The one interface that this plugin knows, whatever the runtime calls it.
const NAME: &str = "lo";

pub(crate) fn run(request: &Request) -> Result<Reply, Error> {
    match request.verb {
        Verb::Add => add(request),
        Verb::Del => del(request),
        Verb::Check => check(request),
        Verb::Status | Verb::Gc | Verb::Version => Ok(Reply::Silent),
    }
}

fn add(request: &Request) -> Result<Reply, Error> {
    let mut netlink = open(&request.namespace)?;
    let failed = |source| Error::internal("failed to set up lo", &source);
    let lo = netlink.need_link(NAME).map_err(failed)?;
    netlink.set_up(lo.index).map_err(failed)?;
    if let Some(previous) = &request.network.prev_result {
        return Ok(Reply::Network(previous.clone()));
    }
    let addresses = netlink.addresses(Some(lo.index)).map_err(failed)?;
    let interface = Interface {
        name: NAME.to_owned(),
        mac: lo.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(lo.mtu),
        sandbox: request.namespace.display().to_string(),
        ..Interface::default()
    };
    let ips = addresses
        .iter()
        .map(|found| Ip {
            interface: Some(0),
            address: found.net,
            gateway: None,
        })
        .collect();
    Ok(Reply::Network(Network {
        interfaces: vec![interface],
        ips,
        ..Network::default()
    }))
}

fn del(request: &Request) -> Result<Reply, Error> {
    // A namespace that is gone has taken its interfaces along.
    let Ok(mut netlink) = open(&request.namespace) else {
        return Ok(Reply::Silent);
    };
    let failed = |source| Error::internal("failed to set lo down", &source);
    let lo = netlink.need_link(NAME).map_err(failed)?;
    netlink
        .set_link(
            lo.index,
            &LinkChange {
                up: Some(false),
                ..LinkChange::default()
            },
        )
        .map_err(failed)?;
    Ok(Reply::Silent)
}

fn check(request: &Request) -> Result<Reply, Error> {
    let mut netlink = open(&request.namespace)?;
    let lo = netlink
        .need_link(NAME)
        .map_err(|source| Error::internal("failed to check lo", &source))?;
    if lo.up {
        Ok(Reply::Silent)
    } else {
        Err(Error::new(Code::Internal, "loopback interface is down"))
    }
}

fn open(namespace: &Path) -> Result<Netlink, Error> {
    let failed = |source: &dyn std::error::Error| {
        Error::internal(format_args!("failed to open netns \"{}\"", namespace.display()), source)
    };
    let opened = Namespace::open(namespace).map_err(|source| failed(&source))?;
    Netlink::open_visiting(&opened).map_err(|source: netlink::Error| failed(&source))
}
