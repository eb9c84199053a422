//! Removes a directory that pods have filled: never through a symbolic link or into another file system, however deep it
//! is and whatever the names are.

use std::ffi::{CStr, CString};
use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory that was gone into: its name in the one above, and which one that is.
struct Above {
    name: CString,
    id: (u64, u64),
}

/// Removes `name` in `parent` and all below it. One descriptor is open at a time, whatever the depth.
pub(crate) fn remove(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let mut current = enter(parent.as_fd(), &name)?;
    let mut above: Vec<Above> = Vec::new();
    loop {
        if let Some(name) = empty(&current)? {
            let inner = enter(current.as_fd(), &name)?;
            above.push(Above {
                name,
                id: id(&current)?,
            });
            current = inner;
            continue;
        }
        let Some(Above { name, id: expected }) = above.pop() else {
            break;
        };
        current = leave(&current)?;
        if id(&current)? != expected {
            return Err(io::Error::other("a directory was moved while it was being removed"));
        }
        rustix::fs::unlinkat(&current, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?)
}

/// Removes what can be removed at once; the name of a directory that has to be emptied first.
fn empty(directory: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
                Err(errno) => return Err(told(errno)),
            },
            Err(errno) => return Err(told(errno)),
        }
    }
    Ok(None)
}

/// What an operator should look for.
fn told(errno: Errno) -> io::Error {
    match errno {
        Errno::BUSY | Errno::XDEV => io::Error::other("something is mounted in it; unmount that first"),
        other => other.into(),
    }
}

fn enter(at: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open(at, name, resolve)
}

fn leave(directory: &OwnedFd) -> io::Result<OwnedFd> {
    open(
        directory.as_fd(),
        c"..",
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

fn open(at: BorrowedFd<'_>, name: &CStr, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), resolve).map_err(told)
}

fn id(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn open_path(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn everything_inside_goes_and_nothing_outside() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::create_dir_all(victim.join("a/b/c")).unwrap();
        fs::create_dir_all(victim.join("a/empty")).unwrap();
        fs::create_dir(place.path().join("kept")).unwrap();
        fs::write(place.path().join("kept/file"), "x").unwrap();
        for file in ["a/one", "a/b/two", "a/b/c/three"] {
            fs::write(victim.join(file), "x").unwrap();
        }
        symlink("/", victim.join("a/root")).unwrap();
        symlink("../kept", victim.join("kept")).unwrap();
        fs::write(victim.join(std::ffi::OsStr::from_bytes(b"\xff\n")), "x").unwrap();
        remove(&open_path(place.path()), "victim").unwrap();
        assert!(!victim.exists());
        assert!(place.path().join("kept/file").exists());
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let place = tempfile::tempdir().unwrap();
        // Deeper than any path can be long.
        let mut at = open_path(place.path());
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = open(at.as_fd(), c"d", ResolveFlags::empty()).unwrap();
        }
        drop(at);
        remove(&open_path(place.path()), "d").unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
