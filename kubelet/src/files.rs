//! Files that a container holds open, writes, or in whose place it may have put something else: never waits, never reads without end.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// For a path descriptor: opening a pipe waits for who writes, and opening a device may do something.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Opens a regular file; a link, a pipe or a device in its place is refused.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let found = rustix::fs::open(path, LOOK | OFlags::NOFOLLOW, Mode::empty())?;
    open_if_regular(&found)
}

/// Opens a regular file in a directory that containers write to; what leads out of it, a pipe or a device is refused.
pub(crate) fn open_regular_beneath(directory: &Path, path: &str) -> io::Result<File> {
    let root = File::open(directory)?;
    let found = rustix::fs::openat2(&root, path, LOOK, Mode::empty(), ResolveFlags::BENEATH)?;
    open_if_regular(&found)
}

fn open_if_regular(found: &OwnedFd) -> io::Result<File> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    // A container may have a lease on its file: it would be waited for.
    Ok(rustix::fs::open(
        again,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?
    .into())
}

/// The first bytes of a regular file, `limit` at most.
pub(crate) fn read_head(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last bytes of a regular file, `limit` at most: it may grow meanwhile, as fast as it is read.
pub(crate) fn read_tail(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit as u64)))?;
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives a regular file another content; whoever has it open sees that.
pub(crate) fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(content)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_no_file_is_not_opened_and_what_is_long_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "0123456789").unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        assert_eq!(read_head(&at("file"), 4).unwrap(), b"0123");
        assert_eq!(read_head(&at("file"), 40).unwrap(), b"0123456789");
        assert_eq!(read_tail(&at("file"), 4).unwrap(), b"6789");
        assert_eq!(read_tail(&at("file"), 40).unwrap(), b"0123456789");
        for name in ["pipe", "link", "directory"] {
            let error = read_head(&at(name), 4).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(read_head(&at("absent"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(read_head(Path::new("/dev/zero"), 4).is_err());
    }

    #[test]
    fn a_lease_on_a_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let lease = r#"$SIG{IO} = "IGNORE"; open my $file, ">", $ARGV[0] or die;
            fcntl($file, F_SETLEASE, F_WRLCK) or die $!; $| = 1; print "held\n"; <STDIN>"#;
        let mut owner = Command::new("perl")
            .args(["-MFcntl=F_SETLEASE,F_WRLCK", "-e", lease])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut held = [0; 5];
        owner.stdout.take().unwrap().read_exact(&mut held).unwrap();
        for tried in [read_head(&path, 4).map(drop), write_in_place(&path, b"new")] {
            assert_eq!(tried.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        // Its input ends, and so does the lease.
        drop(owner.stdin.take());
        assert!(owner.wait().unwrap().success());
        write_in_place(&path, b"new").unwrap();
        assert_eq!(read_head(&path, 4).unwrap(), b"new");
    }
}
