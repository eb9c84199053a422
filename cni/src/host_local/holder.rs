//! Who holds an address: a network namespace. With it written down beside the lease, the address of one that is no more
//! can be given again although nobody ever asked for its release.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Attachment;

/// The kernel's name of a namespace: device and inode. A later namespace may get the same one.
pub(super) type Id = (u64, u64);

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A namespace, as it was when the address was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    owner: Attachment,
    /// Which run of the kernel it was in.
    boot: String,
    id: Id,
    /// The file that it was known by.
    path: PathBuf,
}

impl Holder {
    /// What a file stands for now; `None` when that is no namespace: then nobody will ever know that it is gone.
    pub(super) fn of(owner: &Attachment, path: &Path) -> Option<Self> {
        Some(Self {
            owner: owner.clone(),
            boot: boot()?,
            id: namespace_at(path)?,
            path: path.to_owned(),
        })
    }

    /// The text of its file.
    pub(super) fn text(&self) -> String {
        let (container, interface) = (&self.owner.container, &self.owner.interface);
        let (device, inode) = self.id;
        format!(
            "{container}\n{interface}\n{}\n{device} {inode}\n{}",
            self.boot,
            self.path.display()
        )
    }

    /// Reads what [`Self::text`] wrote. Anything else is `None`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '\n');
        let mut next = || parts.next().map(str::to_owned);
        let owner = Attachment {
            container: next()?,
            interface: next()?,
        };
        let (boot, id, path) = (next()?, next()?, next()?);
        let (device, inode) = id.split_once(' ')?;
        let id = (device.parse().ok()?, inode.parse().ok()?);
        let path = PathBuf::from(path);
        (!path.as_os_str().is_empty()).then_some(Self { owner, boot, id, path })
    }

    /// Whose address it was written down for.
    pub(super) fn owner(&self) -> &Attachment {
        &self.owner
    }
}

/// What there is now, asked for as far as needed.
#[derive(Debug)]
pub(super) struct Present {
    boot: Option<String>,
    processes: OnceCell<HashSet<Id>>,
    /// Namespaces that are known to be somebody else's, however they are named.
    taken: HashSet<Id>,
}

impl Present {
    /// `others`: the holders of this network's addresses; `asking`: the namespace that an address is wanted for.
    pub(super) fn new<'a>(others: impl Iterator<Item = &'a Holder>, asking: &Path) -> Self {
        let boot = boot();
        let here = others.filter(|holder| boot.as_ref() == Some(&holder.boot));
        let here = here.filter(|holder| namespace_at(&holder.path) == Some(holder.id));
        let taken = here.map(|holder| holder.id).chain(namespace_at(asking)).collect();
        Self {
            boot,
            processes: OnceCell::new(),
            taken,
        }
    }

    /// Whether a namespace is certainly gone: it was before the machine started anew, or its file stands for it no
    /// more and no process is in it.
    pub(super) fn lacks(&self, holder: &Holder) -> bool {
        let Some(boot) = &self.boot else { return false };
        is_gone(holder, boot, namespace_at(&holder.path), |id| {
            // A name that came to another namespace says nothing of the first.
            !self.taken.contains(&id) && self.processes.get_or_init(namespaces_of_processes).contains(&id)
        })
    }
}

fn is_gone(holder: &Holder, boot: &str, at_path: Option<Id>, inhabited: impl FnOnce(Id) -> bool) -> bool {
    holder.boot != boot || (at_path != Some(holder.id) && !inhabited(holder.id))
}

fn boot() -> Option<String> {
    let text = fs::read_to_string(BOOT_ID).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The namespace that a file stands for. One whose mount is gone is an ordinary file on another device.
fn namespace_at(path: &Path) -> Option<Id> {
    let own = fs::metadata(OWN_NAMESPACE).ok()?;
    let found = fs::metadata(path).ok()?;
    (found.dev() == own.dev()).then_some((found.dev(), found.ino()))
}

fn namespaces_of_processes() -> HashSet<Id> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(|c: char| c.is_ascii_digit())
        })
        .filter_map(|entry| namespace_at(&entry.path().join("ns/net")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder {
            owner: Attachment {
                container: "abc".into(),
                interface: "eth0".into(),
            },
            boot: "b1".into(),
            id: (4, 4_026_532_000),
            path: "/run/netns/cni-1".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Holder::parse(&holder().text()), Some(holder()));
        for bad in [
            "",
            "abc\neth0",
            "abc\neth0\nb1\n4\n/x",
            "abc\neth0\nb1\n4 x\n/x",
            "abc\neth0\nb1\n4 5\n",
        ] {
            assert_eq!(Holder::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_certainly_gone_is_gone() {
        let id = holder().id;
        for (boot, at_path, inhabited, wanted) in [
            ("b1", Some(id), false, false),
            ("b1", None, false, true),
            // Its file is gone, but its processes are not.
            ("b1", None, true, false),
            ("b1", Some((4, 1)), false, true),
            ("b2", Some(id), true, true),
        ] {
            let gone = is_gone(&holder(), boot, at_path, |_| inhabited);
            assert_eq!(gone, wanted, "{boot} {at_path:?} {inhabited}");
        }
    }

    #[test]
    fn a_process_holds_its_namespace_and_a_file_is_none() {
        let owner = holder().owner;
        let own = Holder::of(&owner, Path::new(OWN_NAMESPACE)).unwrap();
        assert!(!Present::new([].iter(), Path::new("/nowhere")).lacks(&own));
        let moved = Holder {
            path: "/nowhere".into(),
            ..own.clone()
        };
        assert!(!Present::new([].iter(), Path::new("/nowhere")).lacks(&moved));
        // Unless it is known whose the namespace of that name is now.
        assert!(Present::new([own].iter(), Path::new("/nowhere")).lacks(&moved));
        assert_eq!(Holder::of(&owner, Path::new("/etc/hostname")), None);
    }
}
