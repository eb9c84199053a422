//! Who can read and write files: owners and modes of everything below a directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// What must not be read by everybody: a key, that of a kubeconfig's user, a service account's token.
const SECRETS: [&str; 3] = ["PRIVATE KEY", "client-key-data", "eyJhbGciOi"];

/// A file or directory.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its type and permissions.
    pub mode: u32,
    /// Who owns it: user and group.
    pub owner: (u32, u32),
    /// Whether everybody can read it: it says so, and so do all directories on the way.
    pub open: bool,
    /// Whether something in it must stay secret.
    pub secret: bool,
}

impl Found {
    /// Whether its group or others may change it.
    pub fn is_writable_by_others(&self) -> bool {
        self.mode & 0o022 != 0
    }
}

/// Everything below a directory, which itself counts as open; but for what `skip` says, and what is below that. What of `secrets` is
/// in a file makes it a secret one, and so does a private key or a token.
///
/// # Errors
/// When something cannot be read.
pub fn walk(root: &Path, secrets: &[String], skip: &dyn Fn(&Path) -> bool) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut directories = vec![(root.to_owned(), true)];
    while let Some((directory, open)) = directories.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            // Of a cluster that runs: what has gone since it was listed has no mode.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_symlink() || skip(&path) {
                continue;
            }
            let mode = metadata.mode() & 0o7777;
            if metadata.is_dir() {
                directories.push((path.clone(), open && mode & 0o001 != 0));
            }
            found.push(Found {
                open: open && mode & 0o004 != 0,
                secret: metadata.is_file() && holds(&path, secrets),
                owner: (metadata.uid(), metadata.gid()),
                path,
                mode,
            });
        }
    }
    Ok(found)
}

fn holds(path: &Path, secrets: &[String]) -> bool {
    let content = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let mut wanted = SECRETS.into_iter().chain(secrets.iter().map(String::as_str));
    wanted.any(|secret| text.contains(secret))
}
