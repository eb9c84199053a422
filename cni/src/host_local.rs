//! The `host-local` plugin: addresses from ranges of this node, leased in files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{Attachment, Dns, nullable};
use crate::error::{Code, Error};
use crate::outcome::{Ip, Network, Reply, Route};
use crate::request::{Request, Verb};
use crate::{masquerade, portmap};

mod holder;
mod range;
mod resolv_conf;
mod store;

use range::{RangeConfig, RangeSet};
use store::{Applicant, Store};

/// Where upstream keeps its leases.
const DATA_FOLDER: &str = "/var/lib/cni/networks";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    #[serde(deserialize_with = "nullable")]
    ipam: Ipam,
    #[serde(deserialize_with = "nullable")]
    runtime_config: RuntimeConfig,
    #[serde(deserialize_with = "nullable")]
    args: Arguments,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ipam {
    /// The one range of old configurations.
    #[serde(flatten)]
    single: RangeConfig,
    #[serde(deserialize_with = "nullable")]
    ranges: Vec<Vec<RangeConfig>>,
    #[serde(deserialize_with = "nullable")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "nullable")]
    data_dir: String,
    #[serde(deserialize_with = "nullable")]
    resolv_conf: String,
}

/// What the runtime adds for a capability.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(deserialize_with = "nullable")]
    ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    ip_ranges: Vec<Vec<RangeConfig>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arguments {
    #[serde(deserialize_with = "nullable")]
    cni: CniArguments,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArguments {
    #[serde(deserialize_with = "nullable")]
    ips: Vec<String>,
}

/// A configuration that makes sense.
struct Plan {
    sets: Vec<RangeSet>,
    wanted: Vec<IpAddr>,
    routes: Vec<Route>,
    dns: Dns,
    folder: PathBuf,
}

pub(crate) fn run(request: &Request) -> Result<Reply, Error> {
    match request.verb {
        Verb::Add => add(request),
        Verb::Del => del(request),
        Verb::Check => check(request),
        Verb::Gc => gc(request),
        Verb::Status => plan(request).map(|_| Reply::Silent),
        Verb::Version => Ok(Reply::Silent),
    }
}

fn add(request: &Request) -> Result<Reply, Error> {
    let plan = plan(request)?;
    let store = Store::open(&plan.folder)?;
    let owner = owner(request);
    let mut wanted = plan.wanted;
    let mut ips = Vec::new();
    for (index, set) in plan.sets.iter().enumerate() {
        let asked = wanted
            .iter()
            .position(|ip| set.contains(*ip))
            .map(|at| wanted.swap_remove(at));
        let applicant = Applicant {
            owner: &owner,
            namespace: &request.namespace,
        };
        match store.lease(index, set, asked, applicant, |container| abandon(request, container)) {
            Ok(ip) => ips.push(ip),
            Err(error) => {
                // The addresses of earlier sets were leased in this very call; the first error is the one to tell.
                ips.iter().for_each(|ip: &Ip| store.remove(ip.address.addr()));
                return Err(Error {
                    message: format!("failed to allocate for range {index}: {}", error.message),
                    ..error
                });
            }
        }
    }
    if let Some(unserved) = wanted.first() {
        ips.iter().for_each(|ip| store.remove(ip.address.addr()));
        return Err(Error::new(
            Code::Internal,
            format!("failed to allocate all requested IPs: {unserved}"),
        ));
    }
    Ok(Reply::Network(Network {
        ips,
        routes: plan.routes,
        dns: plan.dns,
        ..Network::default()
    }))
}

/// Takes away the rules that a container left behind: they would lead to whoever gets its address.
fn abandon(request: &Request, container: &str) -> Result<(), Error> {
    let network = &request.network.name;
    portmap::remove(network, container).and(masquerade::remove(network, container))
}

fn del(request: &Request) -> Result<Reply, Error> {
    // Only the place of the leases matters here: a network whose ranges have changed still lets go of old leases.
    let config: Config = request.config()?;
    if let Some(store) = Store::open_existing(&folder(&config, request))? {
        store.release(&owner(request))?;
    }
    Ok(Reply::Silent)
}

fn check(request: &Request) -> Result<Reply, Error> {
    let plan = plan(request)?;
    let owner = owner(request);
    let held = match Store::open_existing(&plan.folder)? {
        Some(store) => store.leases()?.into_iter().any(|lease| lease.belongs_to(&owner)),
        None => false,
    };
    if held {
        return Ok(Reply::Silent);
    }
    let message = format!(
        "host-local: Failed to find address added by container {}",
        request.container
    );
    Err(Error::new(Code::Internal, message))
}

fn gc(request: &Request) -> Result<Reply, Error> {
    let config: Config = request.config()?;
    let Some(valid) = &request.network.valid_attachments else {
        return Ok(Reply::Silent);
    };
    if let Some(store) = Store::open_existing(&folder(&config, request))? {
        for lease in store.leases()? {
            if !valid.iter().any(|attachment| lease.belongs_to(attachment)) {
                store.remove(lease.ip);
            }
        }
    }
    Ok(Reply::Silent)
}

fn owner(request: &Request) -> Attachment {
    Attachment {
        container: request.container.clone(),
        interface: request.interface.clone(),
    }
}

fn folder(config: &Config, request: &Request) -> PathBuf {
    let base = if config.ipam.data_dir.is_empty() {
        DATA_FOLDER
    } else {
        &config.ipam.data_dir
    };
    // The name has been checked: it is one plain component.
    Path::new(base).join(&request.network.name)
}

fn plan(request: &Request) -> Result<Plan, Error> {
    let mut config: Config = request.config()?;
    let wanted = wanted(request, &config)?;
    let folder = folder(&config, request);
    let mut ranges = std::mem::take(&mut config.runtime_config.ip_ranges);
    if config.ipam.single.subnet.is_some() {
        ranges.push(vec![config.ipam.single]);
    }
    ranges.append(&mut config.ipam.ranges);
    let invalid = |message: String| Error::new(Code::Internal, message);
    if ranges.is_empty() {
        return Err(invalid("no IP ranges specified".to_owned()));
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, set) in ranges.iter().enumerate() {
        let set = RangeSet::new(set).map_err(|why| invalid(format!("invalid range set {index}: {why}")))?;
        if let Some(other) = sets.iter().position(|earlier| earlier.overlaps(&set)) {
            return Err(invalid(format!("range set {other} overlaps with {index}")));
        }
        sets.push(set);
    }

    let dns = match config.ipam.resolv_conf.as_str() {
        "" => Dns::default(),
        path => resolv_conf::read(Path::new(path))?,
    };
    Ok(Plan {
        sets,
        wanted,
        routes: config.ipam.routes,
        dns,
        folder,
    })
}

/// The addresses that are asked for: by argument, by the configuration, by the runtime.
fn wanted(request: &Request, config: &Config) -> Result<Vec<IpAddr>, Error> {
    let parse = |text: &str| text.split('/').next().unwrap_or_default().parse::<IpAddr>();
    let arguments = request.arguments(&["IP"])?;
    let mut wanted = Vec::new();
    if let Some(text) = arguments.get("IP") {
        let message = || format!("ARGS: error parsing value of pair \"IP={text}\": invalid IP address {text}");
        wanted.push(parse(text).map_err(|_| Error::new(Code::Internal, message()))?);
    }
    for text in config.args.cni.ips.iter().chain(&config.runtime_config.ips) {
        wanted.push(parse(text).map_err(|_| Error::new(Code::Internal, format!("invalid IP address {text}")))?);
    }
    Ok(wanted)
}
