//! The routing table: from a host and a path to the endpoints that answer. Never changed; a new one takes its place.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::sign::CertifiedKey;

use crate::model::{Key, Options, Protocol};

/// All routes of one moment.
#[derive(Debug, Default)]
pub struct Table {
    /// False before the API's objects are known: a route that is missing then may still come.
    pub(crate) synced: bool,
    pub(crate) exact: HashMap<Box<str>, Routes>,
    /// By what follows `*.`.
    pub(crate) wildcard: HashMap<Box<str>, Routes>,
    pub(crate) any: Routes,
    pub(crate) certificates: HashMap<Box<str>, Arc<CertifiedKey>>,
}

/// The routes of one host.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// In the order in which they are tried.
    paths: Vec<PathRoute>,
    /// Where requests go that no path matches.
    pub(crate) fallback: Option<Arc<Target>>,
}

#[derive(Debug)]
struct PathRoute {
    path: Box<str>,
    exact: bool,
    target: Arc<Target>,
}

/// Where a route leads, and what holds on the way.
#[derive(Debug)]
pub struct Target {
    /// The Ingress that the route comes from.
    pub ingress: Key,
    /// The host of its rule; empty for any.
    pub host: Box<str>,
    /// Plain requests are sent to HTTPS first.
    pub redirect: bool,
    /// What the Ingress's annotations say.
    pub options: Options,
    /// The endpoints.
    pub upstream: Arc<Upstream>,
}

/// The endpoints of one Service port.
#[derive(Debug, Default)]
pub struct Upstream {
    /// `namespace/name:port`
    pub service: String,
    /// How they are spoken to.
    pub protocol: Protocol,
    /// Where they are.
    pub endpoints: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Routes {
    /// Adds a path; false when it is there already.
    pub(crate) fn add(&mut self, path: &str, exact: bool, target: Arc<Target>) -> bool {
        // By elements, a slash at the end says nothing.
        let path = if exact { path } else { path.trim_end_matches('/') };
        if self.paths.iter().any(|have| have.exact == exact && &*have.path == path) {
            return false;
        }
        let path = path.into();
        self.paths.push(PathRoute { path, exact, target });
        true
    }

    /// The longest path first, an exact one before an equally long prefix.
    pub(crate) fn sort(&mut self) {
        self.paths.sort_by_key(|route| Reverse((route.path.len(), route.exact)));
        self.paths.shrink_to_fit();
    }

    fn find(&self, path: &str) -> Option<&Arc<Target>> {
        let found = self.paths.iter().find(|route| route.matches(path));
        found.map(|route| &route.target)
    }
}

impl PathRoute {
    fn matches(&self, path: &str) -> bool {
        match path.strip_prefix(&*self.path) {
            Some("") => true,
            Some(rest) => !self.exact && rest.starts_with('/'),
            None => false,
        }
    }
}

impl Table {
    /// The route of a request: `host` in small letters and without a port, `path` without a query.
    ///
    /// An exact host is preferred to a wildcard, and that to rules for every host; in each, the longest path wins. Only
    /// when no path matches anywhere, default backends answer, in the same order.
    pub fn route(&self, host: &str, path: &str) -> Option<&Arc<Target>> {
        let wildcard = host.split_once('.').and_then(|(_, rest)| self.wildcard.get(rest));
        let candidates = [self.exact.get(host), wildcard, Some(&self.any)];
        let mut found = candidates.iter().flatten();
        found
            .clone()
            .find_map(|routes| routes.find(path))
            .or_else(|| found.find_map(|routes| routes.fallback.as_ref()))
    }

    /// The certificate for a name: its own before its wildcard's.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let own = self.certificates.get(name);
        let found = own.or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.certificates.get(format!("*.{rest}").as_str())
        });
        found.cloned()
    }

    fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        let hosts = self.exact.values().chain(self.wildcard.values()).chain([&self.any]);
        hosts.flat_map(|routes| routes.paths.iter().map(|route| &route.target).chain(&routes.fallback))
    }

    /// All endpoints of all routes.
    pub(crate) fn endpoints(&self) -> BTreeSet<(SocketAddr, bool)> {
        self.targets()
            .flat_map(|target| {
                let h2c = target.upstream.protocol == Protocol::H2c;
                target.upstream.endpoints.iter().map(move |endpoint| (*endpoint, h2c))
            })
            .collect()
    }

    /// What routes are counted under.
    pub(crate) fn labels(&self) -> BTreeSet<(Key, Box<str>)> {
        self.targets()
            .map(|target| (target.ingress.clone(), target.host.clone()))
            .collect()
    }

    /// How many paths lead somewhere.
    pub(crate) fn len(&self) -> usize {
        self.targets().count()
    }
}

impl Upstream {
    /// Endpoints that take turns.
    pub fn new(service: String, protocol: Protocol, endpoints: Vec<SocketAddr>, first: usize) -> Self {
        Self {
            service,
            protocol,
            endpoints,
            next: AtomicUsize::new(first),
        }
    }

    /// The endpoint whose turn it is among those not in `tried`; one that `avoid` names only when no other is left.
    pub fn choose(&self, tried: &[SocketAddr], avoid: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        let count = self.endpoints.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let turns = (0..count).map(|step| self.endpoints[first.wrapping_add(step) % count]);
        let mut left = turns.filter(|endpoint| !tried.contains(endpoint));
        let last_resort = left.clone().next();
        left.find(|endpoint| !avoid(*endpoint)).or(last_resort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Arc<Target> {
        Arc::new(Target {
            ingress: Key::new("", name),
            host: "".into(),
            redirect: false,
            options: Options::default(),
            upstream: Arc::default(),
        })
    }

    fn routes(paths: &[(&str, bool)]) -> Routes {
        let mut routes = Routes::default();
        for (path, exact) in paths {
            let name = format!("{}{path}", if *exact { "=" } else { "" });
            assert!(routes.add(path, *exact, target(&name)));
        }
        routes.sort();
        routes
    }

    /// The table of the Ingress documentation, and what follows from it.
    #[test]
    fn paths_match_by_element_and_the_longest_wins() {
        for (paths, request, wanted) in [
            (&[("/", false)][..], "/any/thing", Some("/")),
            (&[("/foo", true)], "/foo", Some("=/foo")),
            (&[("/foo", true)], "/bar", None),
            (&[("/foo", true)], "/foo/", None),
            (&[("/foo/", true)], "/foo", None),
            (&[("/foo", false)], "/foo", Some("/foo")),
            (&[("/foo", false)], "/foo/", Some("/foo")),
            (&[("/foo/", false)], "/foo", Some("/foo/")),
            (&[("/foo/", false)], "/foo/", Some("/foo/")),
            (&[("/aaa/bb", false)], "/aaa/bbb", None),
            (&[("/aaa/bbb", false)], "/aaa/bbb", Some("/aaa/bbb")),
            (&[("/aaa/bbb/", false)], "/aaa/bbb", Some("/aaa/bbb/")),
            (&[("/aaa/bbb", false)], "/aaa/bbb/", Some("/aaa/bbb")),
            (&[("/aaa/bbb", false)], "/aaa/bbb/ccc", Some("/aaa/bbb")),
            (&[("/aaa/bbb", false)], "/aaa/bbbxyz", None),
            (&[("/", false), ("/aaa", false)], "/aaa/ccc", Some("/aaa")),
            (
                &[("/", false), ("/aaa", false), ("/aaa/bbb", false)],
                "/aaa/bbb",
                Some("/aaa/bbb"),
            ),
            (&[("/", false), ("/aaa", false), ("/aaa/bbb", false)], "/ccc", Some("/")),
            (&[("/aaa", false)], "/ccc", None),
            (&[("/foo", false), ("/foo", true)], "/foo", Some("=/foo")),
            (&[("/foo/", false), ("/foo", true)], "/foo", Some("=/foo")),
            (&[("/foo", false), ("/foo", true)], "/foo/bar", Some("/foo")),
            (&[("/Foo", false)], "/foo", None),
        ] {
            let routes = routes(paths);
            let found = routes.find(request).map(|target| target.ingress.name.as_str());
            assert_eq!(found, wanted, "{paths:?} asked for {request}");
        }
    }

    #[test]
    fn the_same_path_twice_is_refused() {
        let mut routes = routes(&[("/a", false), ("/a", true)]);
        assert!(!routes.add("/a", true, target("x")));
        assert!(!routes.add("/a/", false, target("x")));
    }

    #[test]
    fn an_exact_host_is_preferred_to_a_wildcard_and_that_to_none() {
        let mut table = Table::default();
        table
            .exact
            .insert("a.test".into(), routes(&[("/exact", false), ("/both", false)]));
        table
            .wildcard
            .insert("test".into(), routes(&[("/wild", false), ("/both/longer", false)]));
        table.any = routes(&[("/any", false), ("/both/longer/still", false)]);
        table.any.fallback = Some(target("default"));
        let route = |host: &str, path: &str| table.route(host, path).map(|target| target.ingress.name.clone());
        for (host, path, wanted) in [
            ("a.test", "/exact", "/exact"),
            ("a.test", "/both/longer/still", "/both"),
            ("a.test", "/wild", "/wild"),
            ("b.test", "/both/longer/still", "/both/longer"),
            ("b.test", "/exact", "default"),
            ("b.test", "/any/x", "/any"),
            ("c.b.test", "/wild", "default"),
            ("test", "/wild", "default"),
            ("", "/any", "/any"),
        ] {
            assert_eq!(route(host, path).as_deref(), Some(wanted), "{host}{path}");
        }
    }

    #[test]
    fn endpoints_take_turns_and_tried_ones_are_left_out() {
        let [a, b, c]: [SocketAddr; 3] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|text| text.parse().unwrap());
        let upstream = Upstream::new(String::new(), Protocol::Http1, vec![a, b, c], 2);
        let none = |_| false;
        let turns: Vec<_> = (0..4).filter_map(|_| upstream.choose(&[], none)).collect();
        assert_eq!(turns, [c, a, b, c]);
        assert_eq!(upstream.choose(&[a, b], none), Some(c));
        assert_eq!(upstream.choose(&[a, b, c], none), None);
        assert_eq!(Upstream::default().choose(&[], none), None);
        assert_eq!(upstream.choose(&[a], |endpoint| endpoint != b), Some(b));
        assert_eq!(upstream.choose(&[a, b], |_| true), Some(c), "better than nothing");
    }
}
