//! From the API's objects to the routing table: a pure function.
//!
//! Ingresses are taken in the order of their age. Where two want the same, the older one has it, and the other is told;
//! whatever is wrong with one takes nothing away from the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Backend, Class, Ingress, Key, PortRef, Protocol, Secret, Service, Slice, Tls};
use crate::table::{Routes, Table, Target, Upstream};

/// Everything that routes are made of.
#[derive(Debug, Default)]
pub struct Objects {
    /// Ingresses of all classes.
    pub ingresses: BTreeMap<Key, Ingress>,
    /// Classes of all controllers.
    pub classes: BTreeMap<Key, Class>,
    /// Services.
    pub services: BTreeMap<Key, Service>,
    /// Their endpoints.
    pub slices: BTreeMap<Key, Slice>,
    /// Certificates.
    pub secrets: BTreeMap<Key, Secret>,
}

/// What follows from the objects.
#[derive(Debug, Default)]
pub struct Plan {
    /// The routes.
    pub table: Table,
    /// The Ingresses that are served here.
    pub ours: BTreeMap<Key, Ours>,
    /// What is wrong with them.
    pub problems: BTreeSet<Problem>,
    /// The Services that were looked at, there or not.
    pub services: HashSet<Key>,
    /// The Secrets that were looked at, there or not.
    pub secrets: HashSet<Key>,
}

/// One Ingress that is served here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ours {
    /// Tells it from a later one of the same name.
    pub uid: String,
    /// The addresses that its status shows.
    pub published: Vec<String>,
}

/// Something that keeps a part of an Ingress from working.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Problem {
    /// Whose.
    pub ingress: Key,
    /// In one word, for machines.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Makes the routing table; `class` is the class whose name the old annotation may give.
pub fn plan(objects: &Objects, class: &str) -> Plan {
    let mut planner = Planner {
        objects,
        plan: Plan::default(),
        slices: HashMap::new(),
        upstreams: HashMap::new(),
        certificate_owners: HashMap::new(),
    };
    for slice in &objects.slices {
        let service = (slice.0.namespace.as_str(), slice.1.service.as_str());
        planner.slices.entry(service).or_default().push(slice.1);
    }
    let ours = objects
        .ingresses
        .iter()
        .filter(|(_, ingress)| is_ours(ingress, &objects.classes, class));
    let mut ours: Vec<_> = ours.collect();
    ours.sort_by_key(|(key, ingress)| (ingress.created, *key));
    for (key, ingress) in &ours {
        planner.ingress(key, ingress);
    }
    // Only after all others: an Ingress without rules is the first to answer for everything.
    ours.sort_by_key(|(_, ingress)| !ingress.rules.is_empty());
    for (key, ingress) in &ours {
        planner.fallback(key, ingress);
    }
    planner.finish()
}

/// Whether an Ingress is served here: by its class, by the annotation that was there before, or because it names none and
/// ours is the default.
pub fn is_ours(ingress: &Ingress, classes: &BTreeMap<Key, Class>, class: &str) -> bool {
    let known = |name: &str| classes.get(&Key::new("", name)).map(|class| class.ours);
    match (&ingress.class, &ingress.legacy_class) {
        (Some(name), _) => known(name) == Some(true),
        (None, Some(name)) => known(name).unwrap_or(name == class),
        (None, None) => classes.values().any(|class| class.ours && class.default),
    }
}

struct Planner<'a> {
    objects: &'a Objects,
    plan: Plan,
    slices: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
    upstreams: HashMap<(Key, PortRef), Arc<Upstream>>,
    /// Which Ingress gave a host its certificate.
    certificate_owners: HashMap<Box<str>, &'a Key>,
}

impl<'a> Planner<'a> {
    fn ingress(&mut self, key: &'a Key, ingress: &'a Ingress) {
        let ours = Ours {
            uid: ingress.uid.clone(),
            published: ingress.published.clone(),
        };
        self.plan.ours.insert(key.clone(), ours);
        for complaint in &ingress.complaints {
            self.problem(key, "InvalidAnnotation", complaint.clone());
        }
        for tls in &ingress.tls {
            self.certificate(key, ingress, tls);
        }
        for rule in &ingress.rules {
            let host = rule.host.as_str();
            for path in &rule.paths {
                let target = self.target(key, ingress, host, &path.backend);
                if !self.routes(host).add(&path.path, path.exact, target) {
                    let host = if host.is_empty() { "any host" } else { host };
                    let message = format!(
                        "{host}: the path {:?} is taken by an older Ingress, which has it",
                        path.path
                    );
                    self.problem(key, "PathTaken", message);
                }
            }
            if let Some(backend) = ingress.default_backend.as_ref().filter(|_| !host.is_empty()) {
                let target = self.target(key, ingress, host, backend);
                self.routes(host).fallback.get_or_insert(target);
            }
        }
    }

    fn fallback(&mut self, key: &'a Key, ingress: &'a Ingress) {
        if let Some(backend) = &ingress.default_backend
            && self.plan.table.any.fallback.is_none()
        {
            self.plan.table.any.fallback = Some(self.target(key, ingress, "", backend));
        }
    }

    fn routes(&mut self, host: &str) -> &mut Routes {
        let table = &mut self.plan.table;
        match host.strip_prefix("*.") {
            _ if host.is_empty() => &mut table.any,
            Some(suffix) => table.wildcard.entry(suffix.into()).or_default(),
            None => table.exact.entry(host.into()).or_default(),
        }
    }

    fn target(&mut self, key: &Key, ingress: &Ingress, host: &str, backend: &Backend) -> Arc<Target> {
        Arc::new(Target {
            ingress: key.clone(),
            host: host.into(),
            redirect: ingress.options.ssl_redirect && ingress.tls.iter().any(|tls| covers(tls, host)),
            options: ingress.options,
            upstream: self.upstream(key, backend),
        })
    }

    fn upstream(&mut self, ingress: &Key, backend: &Backend) -> Arc<Upstream> {
        let (name, port) = match backend {
            Backend::Service { name, port } => (name, port),
            Backend::Other(what) => {
                self.problem(
                    ingress,
                    "UnsupportedBackend",
                    format!("{what} cannot be sent to: only Services can"),
                );
                return Arc::default();
            }
        };
        let service = Key::new(&ingress.namespace, name);
        self.plan.services.insert(service.clone());
        let found = self.objects.services.get(&service);
        let (reason, message) = match resolve(&service, found, port) {
            Ok((port_name, protocol)) => {
                let known = self.upstreams.entry((service.clone(), port.clone()));
                let slices = self.slices.get(&(&ingress.namespace, name));
                let made = known.or_insert_with(|| {
                    let endpoints = endpoints(slices.into_iter().flatten().copied(), port_name);
                    // Not all Services begin with their first endpoint at every change.
                    let first = self.plan.services.len();
                    Arc::new(Upstream::new(format!("{service}:{port}"), protocol, endpoints, first))
                });
                return Arc::clone(made);
            }
            Err(problem) => problem,
        };
        self.problem(ingress, reason, message);
        let nowhere = Upstream::new(format!("{service}:{port}"), Protocol::Http1, Vec::new(), 0);
        Arc::new(nowhere)
    }

    fn certificate(&mut self, key: &'a Key, ingress: &'a Ingress, tls: &Tls) {
        let Some(name) = &tls.secret else { return };
        let secret = Key::new(&key.namespace, name);
        self.plan.secrets.insert(secret.clone());
        let found = self.objects.secrets.get(&secret).map(Secret::certified_key);
        let (reason, message) = match found {
            Some(Ok(certificate)) => {
                for host in hosts(ingress, tls) {
                    self.show(key, host, Arc::clone(certificate));
                }
                return;
            }
            Some(Err(error)) => ("InvalidCertificate", format!("Secret {secret}: {error}")),
            None => (
                "SecretNotFound",
                format!("Secret {secret} is not there, or is not of type kubernetes.io/tls"),
            ),
        };
        let hosts = hosts(ingress, tls).collect::<Vec<_>>().join(", ");
        let message = format!("{message}; the default certificate is shown for {hosts}");
        self.problem(key, reason, message);
    }

    fn show(&mut self, key: &'a Key, host: &str, certificate: Arc<rustls::sign::CertifiedKey>) {
        let shown = &mut self.plan.table.certificates;
        match shown.get(host) {
            None => {
                shown.insert(host.into(), certificate);
                self.certificate_owners.insert(host.into(), key);
            }
            // Two Ingresses of one host commonly name the same Secret, or copies of it.
            Some(other) if other.cert == certificate.cert => {}
            Some(_) => {
                let owner = self.certificate_owners.get(host).map(|owner| format!(" of {owner}"));
                let message = format!(
                    "{host}: another certificate is shown, that{}",
                    owner.unwrap_or_default()
                );
                self.problem(key, "CertificateTaken", message);
            }
        }
    }

    fn problem(&mut self, ingress: &Key, reason: &'static str, message: String) {
        self.plan.problems.insert(Problem {
            ingress: ingress.clone(),
            reason,
            message,
        });
    }

    fn finish(mut self) -> Plan {
        let table = &mut self.plan.table;
        let hosts = table.exact.values_mut().chain(table.wildcard.values_mut());
        hosts.chain([&mut table.any]).for_each(Routes::sort);
        table.synced = true;
        self.plan
    }
}

/// The hosts that a certificate is for.
fn hosts<'a>(ingress: &'a Ingress, tls: &'a Tls) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    if tls.hosts.is_empty() {
        let rules = ingress.rules.iter().map(|rule| rule.host.as_str());
        Box::new(rules.filter(|host| !host.is_empty()))
    } else {
        Box::new(tls.hosts.iter().map(String::as_str))
    }
}

/// Whether TLS is meant for the host of a rule.
fn covers(tls: &Tls, host: &str) -> bool {
    let by_wildcard = |pattern: &String| {
        let suffix = pattern.strip_prefix("*.");
        suffix.is_some() && suffix == host.split_once('.').map(|(_, rest)| rest)
    };
    tls.hosts.is_empty() || tls.hosts.iter().any(|pattern| pattern == host || by_wildcard(pattern))
}

/// The name and protocol of the Service's port, or why there is none to be used.
fn resolve<'a>(
    key: &Key,
    service: Option<&'a Service>,
    port: &PortRef,
) -> Result<(&'a str, Protocol), (&'static str, String)> {
    let Some(service) = service else {
        return Err(("ServiceNotFound", format!("Service {key} is not there")));
    };
    if service.external {
        let message = format!("Service {key} is of type ExternalName: it has no endpoints to send to");
        return Err(("UnsupportedBackend", message));
    }
    let wanted = |have: &&crate::model::ServicePort| match port {
        PortRef::Name(name) => have.name == *name,
        PortRef::Number(number) => have.number == *number,
    };
    match service.ports.iter().find(wanted) {
        None => Err(("PortNotFound", format!("Service {key} has no TCP port {port}"))),
        Some(found) if found.protocol == Protocol::Unknown => {
            let message = format!(
                "Service {key}: appProtocol {:?} of port {port} is not spoken here; http, kubernetes.io/h2c, grpc and kubernetes.io/ws are",
                found.app_protocol
            );
            Err(("UnsupportedProtocol", message))
        }
        Some(found) => Ok((&found.name, found.protocol)),
    }
}

/// The endpoints that want requests; if there are none, those that serve while they end.
fn endpoints<'a>(slices: impl Iterator<Item = &'a Slice>, port: &str) -> Vec<SocketAddr> {
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        for (_, number) in slice.ports.iter().filter(|(name, _)| name == port) {
            for endpoint in &slice.endpoints {
                let set = if endpoint.ready { &mut ready } else { &mut ending };
                set.insert(SocketAddr::new(endpoint.ip, *number));
            }
        }
    }
    let chosen = if ready.is_empty() { ending } else { ready };
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests;
