//! The `portmap` plugin: ports of this machine that lead to ports of the container. Called after the plugin that gave
//! the container its addresses.
//!
//! Upstream's chains and rules, so that either's plugin removes what the other's made; one transaction for a container
//! and family. Beyond upstream's: 127.0.0.1, which forwarding to containers must let through to their bridge, stays
//! closed to the containers themselves (see [`loopback`]).

use std::net::IpAddr;

use skiff_net::conntrack::{self, Conntrack};
use skiff_net::iptables::{Error as RulesError, Family, Iptables};
use skiff_net::netlink::Netlink;

use crate::config::Attachment;
use crate::error::{Code, Error, chain};
use crate::outcome::{Network, Reply};
use crate::request::{Request, Verb};
use crate::rules::{FAMILIES, Turn, programs, target};

mod config;
mod loopback;
mod rules;

use config::{Config, Mapping, Protocol, addresses};
use rules::{Forwarding, Found, MASQUERADE, SET_MARK, TABLE, TOP, own_chain};

pub(crate) fn run(request: &Request) -> Result<Reply, Error> {
    match request.verb {
        Verb::Add => add(request),
        Verb::Del => del(request),
        Verb::Check => check(request),
        Verb::Gc => gc(request),
        Verb::Status => status(request),
        Verb::Version => Ok(Reply::Silent),
    }
}

fn add(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    let Some(previous) = &request.network.prev_result else {
        return Err(Error::new(Code::Internal, "must be called as chained plugin"));
    };
    if config.mappings.is_empty() {
        return Ok(Reply::Network(previous.clone()));
    }
    let made = set_up(request, &config, previous);
    if let Err(error) = made {
        // Its own error would hide the one that led here.
        remove(&request.network.name, &request.container).ok();
        return Err(error);
    }
    for (_, address) in addresses(previous) {
        let ip = address.addr();
        forget(&config, ip.is_ipv4(), |reply| reply != ip);
    }
    Ok(Reply::Network(previous.clone()))
}

fn set_up(request: &Request, config: &Config, previous: &Network) -> Result<(), Error> {
    let failed = |source: &dyn std::error::Error| Error::internal("unable to setup DNAT", source);
    let _turn = Turn::take()?;
    for (family, address) in addresses(previous) {
        let programs = Iptables::detect(family).map_err(|source| failed(&source))?;
        if family == Family::V4 && config.masquerade.is_some() {
            loopback::open(&programs, address.addr())?;
        }
        let forwarding = forwarding(request, config, family, address);
        let changes = look(&programs).map(|found| forwarding.additions(&found));
        changes
            .and_then(|changes| programs.apply(&changes))
            .map_err(|source| failed(&source))?;
    }
    Ok(())
}

fn forwarding<'a>(request: &'a Request, config: &'a Config, family: Family, address: ipnet::IpNet) -> Forwarding<'a> {
    Forwarding {
        network: &request.network.name,
        container: &request.container,
        config,
        family,
        address,
    }
}

fn look(programs: &Iptables) -> Result<Found, RulesError> {
    let rules = |chain| programs.rules(TABLE, chain);
    Ok(Found {
        prerouting: rules("PREROUTING")?.unwrap_or_default(),
        output: rules("OUTPUT")?.unwrap_or_default(),
        postrouting: rules("POSTROUTING")?.unwrap_or_default(),
        top: rules(TOP)?,
        set_mark: rules(SET_MARK)?,
        masquerade: rules(MASQUERADE)?,
    })
}

fn del(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    if config.mappings.is_empty() {
        return Ok(Reply::Silent);
    }
    remove(&request.network.name, &request.container)?;
    // The container's own connections end with it; a client of UDP would speak to it for ever.
    for (_, address) in request.network.prev_result.iter().flat_map(addresses) {
        let ip = address.addr();
        forget(&config, ip.is_ipv4(), |reply| reply == ip);
    }
    Ok(Reply::Silent)
}

/// Removes the forwarding to a container; none there is no error.
pub(crate) fn remove(network: &str, container: &str) -> Result<(), Error> {
    let own = own_chain(network, container);
    let _turn = Turn::take()?;
    // Both families are tried, whatever becomes of the first.
    let results = FAMILIES.map(|family| match programs(family)? {
        Some(programs) if programs.rules(TABLE, &own)?.is_some() => {
            let top = programs.rules(TABLE, TOP)?.unwrap_or_default();
            programs.apply(&rules::removal(&top, |chain| chain == own, std::slice::from_ref(&own)))
        }
        _ => Ok(()),
    });
    let result: Result<(), RulesError> = results.into_iter().collect();
    result.map_err(|source| Error::internal("unable to remove DNAT", &source))
}

fn check(request: &Request) -> Result<Reply, Error> {
    let config = Config::read(request)?;
    let Some(previous) = &request.network.prev_result else {
        return Err(Error::new(Code::Internal, "Required prevResult missing"));
    };
    if config.mappings.is_empty() {
        return Ok(Reply::Silent);
    }
    for (family, address) in addresses(previous) {
        let step = match family {
            Family::V4 => "could not check ipv4 dnat",
            Family::V6 => "could not check ipv6 dnat",
        };
        let looked = Iptables::detect(family).and_then(|programs| {
            let own = programs.rules(TABLE, &own_chain(&request.network.name, &request.container))?;
            Ok((look(&programs)?, own))
        });
        let (found, own) = looked.map_err(|source| Error::internal(step, &source))?;
        if let Some(missing) = forwarding(request, &config, family, address).missing(&found, own.as_deref()) {
            return Err(Error::new(Code::Internal, format!("{step}: {missing}")));
        }
    }
    Ok(Reply::Silent)
}

/// Removes the forwarding of this network's containers that are not among the valid ones.
fn gc(request: &Request) -> Result<Reply, Error> {
    let Some(valid) = &request.network.valid_attachments else {
        return Ok(Reply::Silent);
    };
    let _turn = Turn::take()?;
    let collected = FAMILIES.map(|family| match programs(family)? {
        Some(programs) => collect(&programs, &request.network.name, valid),
        None => Ok(()),
    });
    let result: Result<(), RulesError> = collected.into_iter().collect();
    result.map_err(|source| Error::internal("unable to remove stale DNAT", &source))?;
    Ok(Reply::Silent)
}

fn collect(programs: &Iptables, network: &str, valid: &[Attachment]) -> Result<(), RulesError> {
    let kept: Vec<String> = valid
        .iter()
        .map(|attachment| own_chain(network, &attachment.container))
        .collect();
    let top = programs.rules(TABLE, TOP)?.unwrap_or_default();
    let words = rules::network_words(network).replace('"', "\\\"");
    let mut stale: Vec<String> = top
        .iter()
        .filter(|rule| rule.contains(&words))
        .filter_map(|rule| target(rule))
        .filter(|chain| !kept.iter().any(|kept| kept == chain))
        .map(str::to_owned)
        .collect();
    stale.dedup();
    if stale.is_empty() {
        return Ok(());
    }
    programs.apply(&rules::removal(
        &top,
        |chain| stale.iter().any(|stale| stale == chain),
        &stale,
    ))
}

fn status(request: &Request) -> Result<Reply, Error> {
    let unavailable = |message: String| Error::new(Code::NotAvailable, message);
    Config::read(request).map_err(|error| unavailable(error.message))?;
    Iptables::detect(Family::V4).map_err(|source| unavailable(chain(&source)))?;
    Ok(Reply::Silent)
}

/// Makes the kernel forget UDP connections to the mapped ports of this machine whose answers come from where `stale`
/// says. A client that keeps sending would otherwise reach that place, past the rules. Failures only leave them there.
fn forget(config: &Config, four: bool, stale: impl Fn(IpAddr) -> bool) {
    let ours =
        |mapping: &&Mapping| mapping.protocol == Protocol::Udp && mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == four);
    let mappings: Vec<&Mapping> = config.mappings.iter().filter(ours).collect();
    if mappings.is_empty() {
        return;
    }
    let forgotten = Netlink::open()
        .and_then(|mut netlink| netlink.addresses(None))
        .and_then(|own| {
            let here = |ip: IpAddr| ip.is_loopback() || own.iter().any(|address| address.net.addr() == ip);
            Conntrack::open()?.delete_matching(|entry| {
                let sent_to = entry.original.destination;
                entry.protocol == conntrack::UDP
                    && sent_to.is_ipv4() == four
                    && stale(entry.reply.source)
                    && mappings.iter().any(|mapping| {
                        mapping.host_port == entry.original.destination_port
                            && mapping.destination().map_or_else(|| here(sent_to), |ip| ip == sent_to)
                    })
            })
        });
    if let Err(error) = forgotten {
        eprintln!("portmap: stale UDP connections may remain: {}", chain(&error));
    }
}
