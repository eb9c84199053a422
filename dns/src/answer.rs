//! What the cluster says to a question: a pure function of the index.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::index::{Endpoint, Entry, Index, Key, Kind, Port, Service};
use crate::names::{self, Part, Wanted};

/// The version of the DNS specification that the names follow.
const SPECIFICATION: &str = "1.1.0";
/// As upstream: the version does not change while the server runs.
const VERSION_TTL: u32 = 28_800;
/// Aliases of aliases are followed this far.
pub(crate) const MAX_ALIASES: usize = 10;
const DNS: (&str, &str) = ("kube-system", "kube-dns");
/// See [`Told`].
const FEW: usize = 16;

/// The cluster's domain.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    domain: Name,
    ttl: u32,
    name_server: Name,
    hostmaster: Name,
}

/// What is known about a question.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// Whether the name exists.
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// The answers end with an alias: the rest of the answer is behind this name.
    pub(crate) alias: Option<Name>,
    /// More is known than there is room for.
    pub(crate) cut: bool,
}

/// The question, taken apart.
struct Asked<'a> {
    zone: &'a Zone,
    name: &'a Name,
    kind: RecordType,
    room: usize,
}

/// What has been told already. Few are compared one by one: that takes less than their hashes.
struct Told<T> {
    first: Vec<T>,
    /// All of them, once they are many.
    many: HashSet<T>,
}

impl<T: Copy + Eq + Hash> Told<T> {
    fn nothing() -> Self {
        Self {
            first: Vec::new(),
            many: HashSet::new(),
        }
    }

    /// Whether this is told for the first time.
    fn is_new(&mut self, item: T) -> bool {
        if self.first.len() == FEW {
            return self.many.insert(item);
        }
        let is_new = !self.first.contains(&item);
        if is_new {
            self.first.push(item);
        }
        if self.first.len() == FEW {
            self.many.extend(self.first.iter().copied());
        }
        is_new
    }
}

// === impl Zone ===

impl Zone {
    /// The zone of a domain; records live for `ttl` seconds.
    ///
    /// # Errors
    /// When the domain leaves no room for names below it.
    pub(crate) fn new(domain: Name, ttl: u32) -> Result<Self, hickory_proto::ProtoError> {
        Ok(Self {
            name_server: Name::from_labels(["ns", "dns"])?.append_domain(&domain)?,
            hostmaster: Name::from_labels(["hostmaster"])?.append_domain(&domain)?,
            domain,
            ttl,
        })
    }

    /// Whether a name is the domain's or below it: then nobody else is asked.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        let mut name = Name::new();
        for label in labels {
            name = name.append_label(label.as_bytes()).ok()?;
        }
        name.append_domain(&self.domain).ok()
    }

    fn service_name(&self, key: &Key) -> Option<Name> {
        self.below(&[&key.name, &key.namespace, "svc"])
    }

    fn soa(&self, serial: u32) -> Record {
        let (name_server, hostmaster) = (self.name_server.clone(), self.hostmaster.clone());
        let soa = SOA::new(name_server, hostmaster, serial, 7200, 1800, 86_400, self.ttl);
        Record::from_rdata(self.domain.clone(), self.ttl, RData::SOA(soa))
    }
}

// === impl Answer ===

impl Answer {
    /// Nothing but a code.
    pub(crate) fn of(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }

    /// Goes on where this answer's alias led.
    pub(crate) fn join(&mut self, next: Self) {
        self.code = next.code;
        append(&mut self.answers, next.answers);
        append(&mut self.authorities, next.authorities);
        append(&mut self.additionals, next.additionals);
        self.alias = next.alias;
        self.cut |= next.cut;
    }

    fn some(answers: Vec<Record>) -> Self {
        Self {
            answers,
            ..Self::default()
        }
    }
}

/// Most answers have nothing before them.
fn append(records: &mut Vec<Record>, more: Vec<Record>) {
    if records.is_empty() {
        *records = more;
    } else {
        records.extend(more);
    }
}

/// Answers a question about a name in the zone. At most `room` records are told.
pub(crate) fn answer(index: &Index, zone: &Zone, query: &Query, room: usize) -> Answer {
    let lower = query.name().to_lowercase();
    let below = usize::from(lower.num_labels()).saturating_sub(zone.domain.num_labels().into());
    let labels: Result<Vec<&str>, _> = lower.iter().take(below).map(std::str::from_utf8).collect();
    let asked = Asked {
        zone,
        name: query.name(),
        kind: query.query_type(),
        room,
    };
    let mut answer = match labels {
        Ok(labels) => asked.about(index, names::parse(&labels)),
        Err(_) => Answer::of(ResponseCode::NXDomain),
    };
    if answer.answers.is_empty() && !answer.cut {
        answer.authorities.push(zone.soa(index.serial));
    }
    answer
}

/// The name of an address, where a Service or a named endpoint has it.
pub(crate) fn reverse(index: &Index, zone: &Zone, query: &Query) -> Option<Answer> {
    if query.query_type() != RecordType::PTR {
        return None;
    }
    let lower = query.name().to_lowercase();
    let labels: Vec<&str> = lower.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let ip = names::reverse_ip(&labels)?;
    let names: Vec<Name> = match index.by_cluster_ip(ip) {
        Some(key) => zone.service_name(key).into_iter().collect(),
        None => endpoint_names(index, zone, ip),
    };
    let record = |name| Record::from_rdata(query.name().clone(), zone.ttl, RData::PTR(PTR(name)));
    let answers: Vec<Record> = names.into_iter().map(record).collect();
    (!answers.is_empty()).then(|| Answer::some(answers))
}

fn endpoint_names(index: &Index, zone: &Zone, ip: IpAddr) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    for (key, hostname) in index.by_endpoint(ip) {
        let entry = index.service(&key.namespace, &key.name).map(|(_, entry)| entry);
        let told = entry.is_some_and(|entry| entry.endpoints(Some(hostname)).any(|(endpoint, _)| endpoint.ip == ip));
        let name = zone.below(&[hostname, &key.name, &key.namespace, "svc"]);
        // An endpoint on its way from one slice to another is in both.
        names.extend(name.filter(|name| told && !names.contains(name)));
    }
    names
}

// === impl Asked ===

impl Asked<'_> {
    fn about(&self, index: &Index, wanted: Wanted<'_>) -> Answer {
        let no_name = || Answer::of(ResponseCode::NXDomain);
        match wanted {
            Wanted::Apex => self.apex(index),
            Wanted::Version => self.version(),
            Wanted::NameServer => Answer::some(self.addresses(name_server(index).into_iter())),
            Wanted::Parent => Answer::default(),
            Wanted::Namespace(namespace) if index.has_namespace(namespace) => Answer::default(),
            Wanted::Pod { namespace, ip } if index.has_namespace(namespace) => {
                Answer::some(self.addresses(std::iter::once(ip)))
            }
            Wanted::Service {
                namespace,
                service,
                part,
            } => match index.service(namespace, service) {
                Some((found, entry)) => self.service(&Key::new(namespace, service), found, entry, part),
                None => no_name(),
            },
            Wanted::Namespace(_) | Wanted::Pod { .. } | Wanted::Nothing => no_name(),
        }
    }

    fn apex(&self, index: &Index) -> Answer {
        match self.kind {
            RecordType::SOA => Answer::some(vec![self.zone.soa(index.serial)]),
            RecordType::NS => {
                let name = &self.zone.name_server;
                let ips = name_server(index).into_iter();
                Answer {
                    answers: vec![self.record(RData::NS(NS(name.clone())))],
                    additionals: ips.map(|ip| self.address_of(name.clone(), ip)).collect(),
                    ..Answer::default()
                }
            }
            _ => Answer::default(),
        }
    }

    fn version(&self) -> Answer {
        if self.kind != RecordType::TXT {
            return Answer::default();
        }
        let text = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
        Answer::some(vec![Record::from_rdata(self.name.clone(), VERSION_TTL, text)])
    }

    fn service(&self, key: &Key, service: &Service, entry: &Entry, part: Part<'_>) -> Answer {
        let (label, port) = match part {
            Part::Whole => (None, None),
            Part::Endpoint(label) => (Some(label), None),
            Part::Port { port, protocol } => (None, Some((port, protocol))),
        };
        match &service.kind {
            Kind::External(target) if part == Part::Whole => self.alias(target),
            Kind::External(_) => Answer::of(ResponseCode::NXDomain),
            Kind::Nowhere if part == Part::Whole => Answer::default(),
            Kind::ClusterIps(ips) if label.is_none() => self.cluster_ips(key, service, ips, port),
            _ => self.endpoints(key, entry, label, port),
        }
    }

    fn alias(&self, target: &Name) -> Answer {
        Answer {
            answers: vec![self.record(RData::CNAME(CNAME(target.clone())))],
            alias: (self.kind != RecordType::CNAME).then(|| target.clone()),
            ..Answer::default()
        }
    }

    fn cluster_ips(&self, key: &Key, service: &Service, ips: &[IpAddr], port: Option<(&str, &str)>) -> Answer {
        let ports: Vec<&Port> = service.ports(port).collect();
        if port.is_some() && ports.is_empty() {
            return Answer::of(ResponseCode::NXDomain);
        }
        if self.kind != RecordType::SRV {
            return Answer::some(self.addresses(ips.iter().copied()));
        }
        let Some(target) = self.zone.service_name(key) else {
            return Answer::default();
        };
        let weight = weight(ports.len());
        let numbers = ports.iter().filter_map(|port| port.number);
        let answers = numbers.map(|number| self.record(srv(weight, number, target.clone())));
        Answer {
            answers: answers.take(self.room).collect(),
            additionals: ips.iter().map(|ip| self.address_of(target.clone(), *ip)).collect(),
            ..Answer::default()
        }
    }

    fn endpoints(&self, key: &Key, entry: &Entry, label: Option<&str>, port: Option<(&str, &str)>) -> Answer {
        // A slice without ports has them all; a port that is asked for by name is none of them.
        let has_port = |ports: &[Port]| port.is_none() || ports.iter().any(|candidate| candidate.is(port));
        let mut found = entry.endpoints(label).filter(|(_, ports)| has_port(ports)).peekable();
        if found.peek().is_none() {
            return Answer::of(ResponseCode::NXDomain);
        }
        if self.kind == RecordType::SRV {
            return self.endpoint_ports(key, found, port);
        }
        let mut ips = Vec::new();
        let mut told = Told::nothing();
        for (endpoint, _) in found.filter(|(endpoint, _)| is_of(endpoint.ip, self.kind)) {
            if ips.len() == self.room {
                return Answer {
                    cut: true,
                    ..Answer::some(self.addresses(ips.into_iter()))
                };
            }
            if told.is_new(endpoint.ip) {
                ips.push(endpoint.ip);
            }
        }
        Answer::some(self.addresses(ips.into_iter()))
    }

    fn endpoint_ports<'a>(
        &self,
        key: &Key,
        found: impl Iterator<Item = (&'a Endpoint, &'a [Port])>,
        port: Option<(&str, &str)>,
    ) -> Answer {
        let mut pairs: Vec<(&Endpoint, u16)> = Vec::new();
        let mut told = Told::nothing();
        for (endpoint, ports) in found {
            for number in ports
                .iter()
                .filter(|candidate| candidate.is(port))
                .filter_map(|port| port.number)
            {
                if told.is_new((endpoint.ip, &endpoint.hostname, number)) {
                    pairs.push((endpoint, number));
                }
            }
        }
        let weight = weight(pairs.len());
        let mut answer = Answer {
            cut: pairs.len() > self.room,
            ..Answer::default()
        };
        let Some(service) = self.zone.service_name(key) else {
            return answer;
        };
        let mut last: Option<(&Endpoint, Name)> = None;
        for (endpoint, number) in pairs.into_iter().take(self.room) {
            // An endpoint with several ports comes with them in a row.
            let known = last.filter(|(known, _)| std::ptr::eq(*known, endpoint));
            let target = match known {
                Some((_, target)) => target,
                None => {
                    let Ok(target) = service.prepend_label(endpoint.label().as_bytes()) else {
                        last = None;
                        continue;
                    };
                    answer.additionals.push(self.address_of(target.clone(), endpoint.ip));
                    target
                }
            };
            answer.answers.push(self.record(srv(weight, number, target.clone())));
            last = Some((endpoint, target));
        }
        answer
    }

    /// The addresses of the family that is asked for.
    fn addresses(&self, ips: impl Iterator<Item = IpAddr>) -> Vec<Record> {
        ips.filter(|ip| is_of(*ip, self.kind))
            .map(|ip| self.record(address(ip)))
            .collect()
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), self.zone.ttl, data)
    }

    fn address_of(&self, name: Name, ip: IpAddr) -> Record {
        Record::from_rdata(name, self.zone.ttl, address(ip))
    }
}

fn name_server(index: &Index) -> Vec<IpAddr> {
    match index.service(DNS.0, DNS.1) {
        Some((service, _)) => match &service.kind {
            Kind::ClusterIps(ips) => ips.clone(),
            _ => Vec::new(),
        },
        None => Vec::new(),
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn is_of(ip: IpAddr, kind: RecordType) -> bool {
    match ip {
        IpAddr::V4(_) => kind == RecordType::A,
        IpAddr::V6(_) => kind == RecordType::AAAA,
    }
}

fn srv(weight: u16, port: u16, target: Name) -> RData {
    RData::SRV(SRV::new(0, weight, port, target))
}

/// A hundred, shared by all, and at least one.
fn weight(targets: usize) -> u16 {
    u16::try_from(100 / targets.max(1)).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests;
