//! Leases: one file an address, with its owner in it, in upstream's layout. A file lock orders all callers.
//!
//! Beside them, in a folder that upstream's plugin does not look into, stands which namespace each address went to: when
//! no address is left, those of namespaces that are no more are given again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::holder::{Holder, Present};
use super::range::{Candidate, RangeSet};
use crate::config::Attachment;
use crate::error::{Code, Error};
use crate::outcome::Ip;

/// A lease is written here, then linked to its name: no lease is ever seen half-written, none overwrites another.
const DRAFT: &str = "draft";
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";
/// What upstream puts between the container and its interface.
const SEPARATOR: &str = "\r\n";
/// The folder of the holders.
const HOLDERS: &str = "holders";

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

/// What an address is leased for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applicant<'a> {
    pub(super) owner: &'a Attachment,
    /// The container's namespace.
    pub(super) namespace: &'a Path,
}

impl Lease {
    /// The container, as far as the lease says.
    pub(super) fn container(&self) -> &str {
        self.owner.split(SEPARATOR).next().unwrap_or_default()
    }

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

    /// Leases one address of a set: the one asked for, or the next that is free. Where there is none, one that nobody
    /// holds any more, after `forget` has taken away what else was made for its container.
    pub(super) fn lease(
        &self,
        index: usize,
        set: &RangeSet,
        asked: Option<IpAddr>,
        applicant: Applicant<'_>,
        forget: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Result<Ip, Error> {
        let refused = |message: String| Error::new(Code::Internal, message);
        let owner = applicant.owner;
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
        let mut candidates: Box<dyn Iterator<Item = Candidate>> = match asked {
            Some(ip) => Box::new(std::iter::once(set.candidate(ip).map_err(refused)?)),
            None => Box::new(set.after(self.last(index))),
        };
        let taken: HashMap<IpAddr, &Lease> = leases.iter().map(|lease| (lease.ip, lease)).collect();
        let mut leased = Vec::new();
        let free = candidates.find(|candidate| {
            let lease = taken.get(&candidate.ip);
            leased.extend(lease.map(|lease| (*candidate, *lease)));
            lease.is_none()
        });
        let candidate = match free {
            Some(candidate) => candidate,
            None => {
                let (candidate, lease) = self.abandoned(&leases, &leased, applicant.namespace).ok_or_else(|| {
                    refused(match asked {
                        Some(ip) => format!("requested IP address {ip} is not available in range set {set}"),
                        None => format!("no IP addresses available in range set: {set}"),
                    })
                })?;
                forget(lease.container())?;
                self.remove(lease.ip);
                candidate
            }
        };
        self.write(candidate.ip, applicant)?;
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

    /// The first candidate whose lease nobody holds: its namespace is gone, or it never got to say whose it is.
    fn abandoned<'a>(
        &self,
        leases: &[Lease],
        leased: &[(Candidate, &'a Lease)],
        asking: &Path,
    ) -> Option<(Candidate, &'a Lease)> {
        let holders: HashMap<IpAddr, Holder> = leases
            .iter()
            .filter_map(|lease| Some((lease.ip, self.holder(lease)?)))
            .collect();
        let present = Present::new(holders.values(), asking);
        let held = |lease: &Lease| match holders.get(&lease.ip) {
            Some(holder) => !present.lacks(holder),
            // Written whole, under the lock: an empty one lost its text with the machine's power.
            None => !lease.owner.is_empty(),
        };
        leased.iter().copied().find(|(_, lease)| !held(lease))
    }

    /// Who holds a leased address, where that is known. What was written for a former lease says nothing of this one.
    fn holder(&self, lease: &Lease) -> Option<Holder> {
        let text = fs::read_to_string(self.holder_path(lease.ip)).ok()?;
        Holder::parse(&text).filter(|holder| lease.belongs_to(holder.owner()))
    }

    fn holder_path(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(HOLDERS).join(ip.to_string())
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
                _ => fs::remove_file(self.holder_path(lease.ip)).ok(),
            };
        }
        Ok(())
    }

    /// Lets go of one address, as far as that is possible.
    pub(super) fn remove(&self, ip: IpAddr) {
        fs::remove_file(self.folder.join(ip.to_string())).ok();
        fs::remove_file(self.holder_path(ip)).ok();
    }

    fn write(&self, ip: IpAddr, applicant: Applicant<'_>) -> Result<(), Error> {
        let owner = applicant.owner;
        // Before the lease: a lease is never without its holder.
        self.write_holder(ip, applicant)?;
        let draft = self.draft(&format!("{}{SEPARATOR}{}", owner.container, owner.interface))?;
        let path = self.folder.join(ip.to_string());
        let linked = fs::hard_link(&draft, &path).map_err(|source| failed("failed to lease", &path, &source));
        fs::remove_file(&draft).ok();
        linked
    }

    fn write_holder(&self, ip: IpAddr, applicant: Applicant<'_>) -> Result<(), Error> {
        let path = self.holder_path(ip);
        let Some(holder) = Holder::of(applicant.owner, applicant.namespace) else {
            fs::remove_file(&path).ok();
            return Ok(());
        };
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(holder.text().as_bytes())
        };
        let written = match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.folder.join(HOLDERS)).and_then(|()| write())
            }
            written => written,
        };
        written.map_err(|source| failed("failed to write", &path, &source))
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

    fn lease_for(folder: &Path, name: &str, namespace: &str, asked: &str) -> Result<String, String> {
        let store = Store::open(folder).unwrap();
        let applicant = Applicant {
            owner: &owner(name),
            namespace: Path::new(namespace),
        };
        store
            .lease(0, &set(), asked.parse().ok(), applicant, |_| Ok(()))
            .map(|ip| ip.address.to_string())
            .map_err(|error| error.message)
    }

    fn lease(folder: &Path, name: &str) -> Result<String, String> {
        lease_for(folder, name, "/nowhere", "")
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
    fn an_address_that_nobody_holds_is_given_again() {
        const HERE: &str = "/proc/thread-self/ns/net";
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            lease_for(folder.path(), name, HERE, "").unwrap();
        }
        let full = "no IP addresses available in range set: 10.1.0.1-10.1.0.6";
        assert_eq!(lease(folder.path(), "f").unwrap_err(), full);
        // The machine was started anew since.
        let holder = folder.path().join("holders/10.1.0.4");
        let text = fs::read_to_string(&holder).unwrap();
        let boot = text.lines().nth(2).unwrap();
        fs::write(&holder, text.replace(boot, "another")).unwrap();
        assert_eq!(lease_for(folder.path(), "f", HERE, "").unwrap(), "10.1.0.4/29");
        // The lease went to upstream's plugin meanwhile: what stands beside it is of a former one.
        fs::write(&holder, fs::read_to_string(&holder).unwrap().replace(boot, "another")).unwrap();
        fs::write(folder.path().join("10.1.0.4"), "g\r\neth0").unwrap();
        assert_eq!(lease(folder.path(), "h").unwrap_err(), full);
        // Text lost with the power.
        fs::write(folder.path().join("10.1.0.6"), "").unwrap();
        let other = lease_for(folder.path(), "h", HERE, "10.1.0.2").unwrap_err();
        assert_eq!(
            other,
            "requested IP address 10.1.0.2 is not available in range set 10.1.0.1-10.1.0.6"
        );
        assert_eq!(lease_for(folder.path(), "h", HERE, "10.1.0.6").unwrap(), "10.1.0.6/29");
        Store::open(folder.path()).unwrap().release(&owner("h")).unwrap();
        assert!(!folder.path().join("holders/10.1.0.6").exists());
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
