//! Leases: one file an address, with its owner in it, in upstream's layout. A file lock orders all callers.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::range::RangeSet;
use crate::config::Attachment;
use crate::error::{Code, Error};
use crate::outcome::Ip;

/// A lease is written here, then linked to its name: no lease is ever seen half-written, none overwrites another.
const DRAFT: &str = "draft";
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";
/// What upstream puts between the container and its interface.
const SEPARATOR: &str = "\r\n";

/// The leases of one network, locked for this process.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    _lock: Flock<File>,
}

/// One address and whose it is.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) ip: IpAddr,
    owner: String,
}

impl Lease {
    /// Old leases name the container only: they belong to each of its interfaces.
    pub(super) fn belongs_to(&self, attachment: &Attachment) -> bool {
        match self.owner.split_once(SEPARATOR) {
            Some((container, interface)) => container == attachment.container && interface == attachment.interface,
            None => self.owner == attachment.container,
        }
    }
}

impl Store {
    /// Opens the leases of a network, made when new. Waits for whoever holds them.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(|source| failed("failed to create", folder, &source))?;
        Self::lock(folder)
    }

    /// Opens the leases of a network that has some.
    pub(super) fn open_existing(folder: &Path) -> Result<Option<Self>, Error> {
        if folder.is_dir() {
            Self::lock(folder).map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOCK);
        let broken = |source: &dyn std::error::Error| failed("failed to lock", &path, source);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| broken(&e))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => {
                    return Ok(Self {
                        folder: folder.to_owned(),
                        _lock: lock,
                    });
                }
                Err((same, Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(broken(&errno)),
            }
        }
    }

    /// Leases one address of a set: the one asked for, or the next that is free.
    pub(super) fn lease(
        &self,
        index: usize,
        set: &RangeSet,
        asked: Option<IpAddr>,
        owner: &Attachment,
    ) -> Result<Ip, Error> {
        let refused = |message: String| Error::new(Code::Internal, message);
        let leases = self.leases()?;
        if let Some(lease) = leases
            .iter()
            .find(|lease| set.contains(lease.ip) && lease.belongs_to(owner))
        {
            let (ip, container) = (lease.ip, &owner.container);
            return Err(refused(format!(
                "{ip} has been allocated to {container}, duplicate allocation is not allowed"
            )));
        }
        let taken: HashSet<IpAddr> = leases.iter().map(|lease| lease.ip).collect();
        let candidate = match asked {
            Some(ip) if taken.contains(&ip) => {
                return Err(refused(format!(
                    "requested IP address {ip} is not available in range set {set}"
                )));
            }
            Some(ip) => set.candidate(ip).map_err(refused)?,
            None => set
                .after(self.last(index))
                .find(|candidate| !taken.contains(&candidate.ip))
                .ok_or_else(|| refused(format!("no IP addresses available in range set: {set}")))?,
        };
        self.write(candidate.ip, owner)?;
        if asked.is_none() {
            self.set_last(index, candidate.ip)?;
        }
        let address = IpNet::new(candidate.ip, candidate.subnet.prefix_len())
            .map_err(|source| Error::internal("impossible prefix length", &source))?;
        Ok(Ip {
            interface: None,
            address,
            gateway: Some(candidate.gateway),
        })
    }

    /// All leases of the network.
    pub(super) fn leases(&self) -> Result<Vec<Lease>, Error> {
        let broken = |source: io::Error| failed("failed to read leases in", &self.folder, &source);
        let mut leases = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let owner = fs::read_to_string(entry.path()).map_err(broken)?;
            leases.push(Lease {
                ip,
                owner: owner.trim().to_owned(),
            });
        }
        Ok(leases)
    }

    /// Lets go of every address of an attachment.
    pub(super) fn release(&self, owner: &Attachment) -> Result<(), Error> {
        for lease in self.leases()?.into_iter().filter(|lease| lease.belongs_to(owner)) {
            let path = self.folder.join(lease.ip.to_string());
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("failed to release", &path, &source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets go of one address, as far as that is possible.
    pub(super) fn remove(&self, ip: IpAddr) {
        fs::remove_file(self.folder.join(ip.to_string())).ok();
    }

    fn write(&self, ip: IpAddr, owner: &Attachment) -> Result<(), Error> {
        let draft = self.draft(&format!("{}{SEPARATOR}{}", owner.container, owner.interface))?;
        let path = self.folder.join(ip.to_string());
        let linked = fs::hard_link(&draft, &path).map_err(|source| failed("failed to lease", &path, &source));
        fs::remove_file(&draft).ok();
        linked
    }

    fn last(&self, index: usize) -> Option<IpAddr> {
        fs::read_to_string(self.folder.join(format!("{LAST}{index}")))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn set_last(&self, index: usize, ip: IpAddr) -> Result<(), Error> {
        let path = self.folder.join(format!("{LAST}{index}"));
        let draft = self.draft(&ip.to_string())?;
        fs::rename(draft, &path).map_err(|source| failed("failed to write", &path, &source))
    }

    fn draft(&self, text: &str) -> Result<PathBuf, Error> {
        let path = self.folder.join(DRAFT);
        let written = (|| {
            fs::remove_file(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            let mut file = OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())
        })();
        written.map_err(|source| failed("failed to write", &path, &source))?;
        Ok(path)
    }
}

fn failed(step: &str, path: &Path, source: &dyn std::error::Error) -> Error {
    Error::internal(format_args!("{step} {}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use super::super::range::RangeConfig;
    use super::*;

    fn set() -> RangeSet {
        let subnet = "10.1.0.0/29".parse().ok();
        RangeSet::new(&[RangeConfig {
            subnet,
            ..RangeConfig::default()
        }])
        .unwrap()
    }

    fn owner(name: &str) -> Attachment {
        Attachment {
            container: name.into(),
            interface: "eth0".into(),
        }
    }

    fn lease(folder: &Path, name: &str) -> Result<String, String> {
        let store = Store::open(folder).unwrap();
        store
            .lease(0, &set(), None, &owner(name))
            .map(|ip| ip.address.to_string())
            .map_err(|error| error.message)
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(lease(folder.path(), "a").unwrap(), "10.1.0.2/29");
        assert_eq!(lease(folder.path(), "b").unwrap(), "10.1.0.3/29");
        Store::open(folder.path()).unwrap().release(&owner("a")).unwrap();
        assert_eq!(lease(folder.path(), "c").unwrap(), "10.1.0.4/29");
        let content = fs::read_to_string(folder.path().join("10.1.0.4")).unwrap();
        assert_eq!(content, "c\r\neth0");
        assert_eq!(
            fs::read_to_string(folder.path().join("last_reserved_ip.0")).unwrap(),
            "10.1.0.4"
        );
    }

    #[test]
    fn a_full_range_and_a_second_add_are_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            lease(folder.path(), name).unwrap();
        }
        let full = "no IP addresses available in range set: 10.1.0.1-10.1.0.6";
        assert_eq!(lease(folder.path(), "f").unwrap_err(), full);
        let twice = "10.1.0.3 has been allocated to b, duplicate allocation is not allowed";
        assert_eq!(lease(folder.path(), "b").unwrap_err(), twice);
    }

    #[test]
    fn an_old_lease_belongs_to_its_container() {
        let lease = Lease {
            ip: "10.1.0.2".parse().unwrap(),
            owner: "a".into(),
        };
        assert!(lease.belongs_to(&owner("a")));
        assert!(!lease.belongs_to(&owner("ab")));
    }
}
