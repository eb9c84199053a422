//! The node's own resolvers, from a resolv.conf; read again when the file changes.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// How often the file is looked at, at most, and only while somebody asks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A resolv.conf that is followed.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    looked: Option<Instant>,
    seen: Option<(SystemTime, u64)>,
}

impl ResolvConf {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            looked: None,
            seen: None,
        }
    }

    /// The resolvers, when the file is another than the last time.
    pub(crate) fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return None;
        }
        self.looked = Some(Instant::now());
        let metadata = std::fs::metadata(&self.path).ok();
        let version = metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        // An absent file says nothing new: what it said before still holds.
        if version.is_none() || version == self.seen {
            return None;
        }
        let servers = read(&self.path)?;
        self.seen = version;
        Some(servers)
    }
}

fn read(path: &Path) -> Option<Vec<SocketAddr>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(parse(&text)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the node's resolvers: former ones stay in use");
            None
        }
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(server)
            && !servers.contains(&server)
        {
            servers.push(server);
        }
    }
    servers
}

/// `address`, `address:port` or `[address]:port`.
pub(crate) fn server(text: &str) -> Option<SocketAddr> {
    let address = text.parse().ok();
    address.or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.2\n nameserver\t10.0.0.3 # second\nnameserver 10.0.0.2\n\
                    nameserver nonsense\nnameserver\noptions ndots:5\n";
        let servers: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "10.0.0.3:53"]);
        assert_eq!(server("10.0.0.2:5353"), Some(([10, 0, 0, 2], 5353).into()));
        assert_eq!(server("[fd00::1]:5353").unwrap().port(), 5353);
        assert_eq!(server("dns.example"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_a_moment_later_and_an_absent_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut file = ResolvConf::new(path.clone());
        assert_eq!(file.changed(), None);
        std::fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        assert_eq!(file.changed(), None, "not looked at again so soon");
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.changed().unwrap().len(), 1);
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.changed(), None, "nothing new");
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(file.changed(), None);
    }
}
