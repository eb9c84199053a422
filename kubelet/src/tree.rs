//! Removes a directory that pods have filled, or looks at all that is in it: never through a symbolic link or into another file
//! system, however deep it is, whatever the names are and whatever a pod does to it meanwhile.

use std::ffi::{CStr, CString};
use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A directory that was gone into: its name in the one above, and which one that is.
struct Above {
    name: CString,
    id: (u64, u64),
}

/// Removes `name` in `parent` and all below it, also while somebody else does the same: it is gone when this returns. One descriptor is
/// open at a time, whatever the depth.
pub(crate) fn remove(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let is_there = || rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    loop {
        match remove_all(parent, &name) {
            // Something below it went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_there() => {}
            done => return done,
        }
    }
}

fn remove_all(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    let mut current = enter(parent.as_fd(), name)?;
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
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Opens a directory; a symbolic link in its place is refused.
pub(crate) fn open_directory<F: AsFd, P: rustix::path::Arg>(at: F, name: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Shows `visit` everything below `root`, a directory after what is in it, and `root` itself last: each by a descriptor, so that what
/// is put in its place meanwhile is not meant. What is gone meanwhile is left out. One directory is open at a time.
pub(crate) fn visit(root: OwnedFd, visit: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut current = root;
    let mut left = files(&current, visit)?;
    let mut above: Vec<((u64, u64), Vec<CString>)> = Vec::new();
    loop {
        if let Some(name) = left.pop() {
            let inner = match enter_now(current.as_fd(), &name) {
                // Something else is there by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                inner => inner.map_err(told)?,
            };
            above.push((id(&current)?, left));
            current = inner;
            left = files(&current, visit)?;
            continue;
        }
        visit(current.as_fd())?;
        let Some((expected, names)) = above.pop() else {
            return Ok(());
        };
        current = leave(&current)?;
        if id(&current)? != expected {
            return Err(io::Error::other("a directory was moved while it was being looked at"));
        }
        left = names;
    }
}

/// Shows `visit` what is no directory; the names of the directories.
fn files(directory: &OwnedFd, visit: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<Vec<CString>> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // A path descriptor: opening a device or a pipe would do something.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            file => file?,
        };
        let mode = rustix::fs::fstat(&file)?.st_mode;
        if FileType::from_raw_mode(mode) == FileType::Directory {
            directories.push(name.to_owned());
        } else {
            visit(file.as_fd())?;
        }
    }
    Ok(directories)
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
    enter_now(at, name).map_err(told)
}

fn enter_now(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open(at, name, resolve)
}

fn leave(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open(directory.as_fd(), c"..", resolve).map_err(told)
}

fn open(at: BorrowedFd<'_>, name: &CStr, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), resolve)
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
    fn two_who_remove_the_same_both_see_it_gone() {
        let place = tempfile::tempdir().unwrap();
        let (parent, victim) = (open_path(place.path()), place.path().join("victim"));
        for round in 0..20 {
            for inner in 0..50 {
                fs::create_dir_all(victim.join(format!("{inner}/a/b"))).unwrap();
            }
            let begin = std::sync::Barrier::new(2);
            let gone = || {
                begin.wait();
                let removed = remove(&parent, "victim");
                let done = removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
                done && !victim.exists()
            };
            let both =
                std::thread::scope(|scope| [scope.spawn(gone), scope.spawn(gone)].map(|one| one.join().unwrap()));
            assert_eq!(both, [true, true], "round {round}");
        }
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
