//! hostPath volumes: a path of the node, checked or made as its type says.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::{Error, make_dir, set_mode};

/// Checks the path, or makes it.
pub(super) fn prepare(source: &HostPathVolumeSource) -> Result<(), Error> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let metadata = std::fs::metadata(path).ok();
    let file_type = metadata.as_ref().map(std::fs::Metadata::file_type);
    let refuse = |what: &str| Err(Error::HostPath(format!("{} is not {what}", source.path)));
    match (kind, file_type) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => make_dir(path, 0o755),
        ("FileOrCreate", None) => {
            std::fs::File::create(path).map_err(|source| Error::file("create", path, source))?;
            set_mode(path, 0o644)
        }
        ("Directory" | "DirectoryOrCreate", Some(found)) if found.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(found)) if found.is_file() => Ok(()),
        ("Socket", Some(found)) if found.is_socket() => Ok(()),
        ("CharDevice", Some(found)) if found.is_char_device() => Ok(()),
        ("BlockDevice", Some(found)) if found.is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => refuse("a directory"),
        ("File" | "FileOrCreate", _) => refuse("a file"),
        ("Socket", _) => refuse("a socket file"),
        ("CharDevice", _) => refuse("a character device"),
        ("BlockDevice", _) => refuse("a block device"),
        (other, _) => Err(Error::HostPath(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::{Mode, SFlag};

    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let (kind, any) = (SFlag::S_IFBLK, Mode::S_IRWXU);
        nix::sys::stat::mknod(&dir.path().join("device"), kind, any, nix::sys::stat::makedev(7, 0)).unwrap();
        let cases = [
            ("", "absent", true),
            ("Directory", "", true),
            ("Directory", "file", false),
            ("Directory", "absent", false),
            ("File", "file", true),
            ("File", "", false),
            ("Socket", "file", false),
            ("Socket", "socket", true),
            ("Socket", "absent", false),
            ("BlockDevice", "device", true),
            ("BlockDevice", "socket", false),
            ("CharDevice", "device", false),
            ("DirectoryOrCreate", "new/dir", true),
            ("FileOrCreate", "newfile", true),
            ("CharDevice", "file", false),
            ("Nonsense", "file", false),
        ];
        for (kind, path, fine) in cases {
            let path = dir.path().join(path).to_string_lossy().into_owned();
            let result = prepare(&HostPathVolumeSource {
                path: path.clone(),
                type_: Some(kind.into()),
            });
            assert_eq!(result.is_ok(), fine, "{kind} {path}");
        }
        assert!(dir.path().join("new/dir").is_dir() && dir.path().join("newfile").is_file());
        assert!(
            prepare(&HostPathVolumeSource {
                path: "/dev/null".into(),
                type_: Some("CharDevice".into())
            })
            .is_ok()
        );
    }
}
