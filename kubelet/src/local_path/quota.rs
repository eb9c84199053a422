//! The size of a volume, kept by the file system: a project of its own for each directory, and a limit for the project.
//!
//! Works on ext4 (`mkfs -O quota,project`, mounted with `prjquota`) and XFS (mounted with `prjquota`), from Linux 5.14 on. Elsewhere
//! nothing is enforced, and whoever asked is told so. Nothing is remembered: which project a directory belongs to is written on it.
//! On ext4 a process with `CAP_SYS_RESOURCE`, as a privileged container has, may write beyond any limit.

#![allow(unsafe_code, reason = "neither rustix nor nix offers fsxattr and quotactl_fd")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;

/// Project ids from here on are ours; below it are those that people choose.
const FIRST: u32 = 1 << 20;
const COUNT: u32 = 1 << 30;
/// How many ids are tried before giving up; each is free unless two names hash alike.
const TRIES: u32 = 64;
/// `FS_XFLAG_PROJINHERIT`: what is made inside belongs to the same project.
const INHERIT: u32 = 0x200;
/// `quotactl_fd(2)` has the same number on every architecture.
const QUOTACTL_FD: libc::c_long = 443;
const Q_GETQUOTA: u32 = 0x0080_0007;
const Q_SETQUOTA: u32 = 0x0080_0008;
const Q_XGETQSTATV: u32 = 0x5808;
const PRJQUOTA: u32 = 2;
/// `FS_QUOTA_PDQ_ENFD`: the limits of projects hold.
const ENFORCED: u16 = 0x20;
/// `QIF_BLIMITS`: only the limits of space are given.
const BLOCK_LIMITS: u32 = 1;
/// Limits are counted in these.
const BLOCK: u64 = 1024;

/// Whether a directory's size is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sized {
    /// Writing beyond it fails.
    Enforced,
    /// The file system does not enforce project quotas.
    Unlimited,
}

/// `struct fs_quota_statv`, of which only the flags matter here.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    count: u32,
    rest: [u64; 19],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

nix::ioctl_read!(get_attributes, b'X', 31, Attributes);
nix::ioctl_write_ptr!(set_attributes, b'X', 32, Attributes);

/// Gives the directory a project of its own with this limit. Only what is written from then on counts, so it should be empty.
pub(super) fn limit(directory: &OwnedFd, name: &str, bytes: u64) -> io::Result<Sized> {
    if !is_enforced(directory)? {
        return Ok(Sized::Unlimited);
    }
    let own = match project(directory) {
        Some(own) => own,
        None => free(directory, name)?,
    };
    let blocks = bytes.div_ceil(BLOCK).max(1);
    // The limit first: a project without one would be taken for free.
    set(directory, own, blocks)?;
    let mut attributes = read(directory)?;
    attributes.project = own;
    attributes.flags |= INHERIT;
    // SAFETY: the descriptor is open, and the pointer is to a whole fsxattr that outlives the call.
    unsafe { set_attributes(directory.as_raw_fd(), &raw const attributes) }?;
    Ok(Sized::Enforced)
}

/// The project of a directory, if it is one of ours.
pub(super) fn project(directory: &OwnedFd) -> Option<u32> {
    let project = read(directory).ok()?.project;
    (FIRST..FIRST + COUNT).contains(&project).then_some(project)
}

/// Forgets a project's limit; `directory` is any on the same file system.
pub(super) fn lift(directory: &OwnedFd, project: u32) -> io::Result<()> {
    set(directory, project, 0)
}

/// Whether the directory's file system holds projects to their limits. It may only count: ext4 that has projects, mounted without
/// `prjquota`; XFS mounted with `pqnoenforce`.
fn is_enforced(directory: &OwnedFd) -> io::Result<bool> {
    let mut state = State {
        version: 1,
        ..State::default()
    };
    match quotactl(directory, Q_XGETQSTATV, 0, &mut state) {
        Ok(()) => Ok(state.flags & ENFORCED != 0),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A project that nobody uses.
fn free(directory: &OwnedFd, name: &str) -> io::Result<u32> {
    let start = name
        .bytes()
        .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    for offset in 0..TRIES {
        let id = FIRST + start.wrapping_add(offset) % COUNT;
        match get(directory, id) {
            Ok(used) if used.dqb_curspace == 0 && used.dqb_bhardlimit == 0 => return Ok(id),
            Ok(_) => {}
            // XFS knows nothing of an id that was never used.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(id),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no free project id was found"))
}

fn is_unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or_default();
    [
        libc::ENOSYS,
        libc::ESRCH,
        libc::EOPNOTSUPP,
        libc::ENOTTY,
        libc::EINVAL,
        libc::ENODEV,
    ]
    .contains(&code)
}

fn read(directory: &OwnedFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the descriptor is open, and the pointer is to a whole fsxattr that outlives the call.
    unsafe { get_attributes(directory.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes)
}

fn get(directory: &OwnedFd, project: u32) -> io::Result<libc::dqblk> {
    // SAFETY: dqblk is plain numbers, for which zero is a value.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    quotactl(directory, Q_GETQUOTA, project, &mut block)?;
    Ok(block)
}

fn set(directory: &OwnedFd, project: u32, blocks: u64) -> io::Result<()> {
    // SAFETY: dqblk is plain numbers, for which zero is a value.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    block.dqb_bhardlimit = blocks;
    block.dqb_valid = BLOCK_LIMITS;
    quotactl(directory, Q_SETQUOTA, project, &mut block)
}

/// `T` is what the command reads or writes.
fn quotactl<T>(directory: &OwnedFd, command: u32, project: u32, data: &mut T) -> io::Result<()> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: the descriptor is open, and the kernel reads or writes one T, which the reference keeps alive.
    let result = unsafe {
        libc::syscall(
            QUOTACTL_FD,
            directory.as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(data),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<State>(), 160);
    }

    /// What the file system of the test can do decides which half is tested; each half can fail.
    #[test]
    fn a_limit_is_kept_or_told_not_to_be() {
        let place = tempfile::tempdir().unwrap();
        let directory: OwnedFd = fs::File::open(place.path()).unwrap().into();
        let file = place.path().join("large");
        // As a container does: with the capability that root has, ext4 lets it write on.
        let write = || {
            let mut command = std::process::Command::new("setpriv");
            command.args([
                "--bounding-set=-sys_resource",
                "dd",
                "if=/dev/zero",
                "bs=1M",
                "count=4",
                "conv=fsync",
            ]);
            command
                .arg(format!("of={}", file.display()))
                .output()
                .unwrap()
                .status
                .success()
        };
        match limit(&directory, "pvc-1", 1 << 20).unwrap() {
            Sized::Enforced => {
                assert!(!write());
                let own = project(&directory).unwrap();
                fs::remove_file(&file).unwrap();
                lift(&directory, own).unwrap();
                assert!(write());
            }
            Sized::Unlimited => {
                assert_eq!(project(&directory), None);
                assert!(write());
            }
        }
    }
}
