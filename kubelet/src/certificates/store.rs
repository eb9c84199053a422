//! A certificate with its key on disk, as upstream keeps it: `<name>-<time>.pem`, and `<name>-current.pem` that leads to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use skiff_pki::{Identity, SigningRequest, files};

use super::Error;

/// Former certificates that stay beside the current one, for whoever looks what happened.
const FORMER: usize = 1;

/// Where one certificate and its successors are kept.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
    name: &'static str,
}

/// A certificate and since when it is here.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) identity: Identity,
    pub(super) since: Timestamp,
}

impl Store {
    pub(super) fn new(directory: &Path, name: &'static str) -> Self {
        Self {
            // Kubeconfigs name it: it must not depend on where this process was started.
            directory: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()),
            name,
        }
    }

    /// The link that always leads to the newest.
    pub(super) fn current(&self) -> PathBuf {
        self.directory.join(format!("{}-current.pem", self.name))
    }

    /// The newest, if there is one.
    pub(super) fn load(&self) -> Result<Option<Kept>, Error> {
        let current = self.current();
        if !current.exists() {
            return Ok(None);
        }
        let pem = files::read(&current)?;
        let written = fs::metadata(&current).and_then(|metadata| metadata.modified()).ok();
        let since = written.and_then(|time: SystemTime| Timestamp::try_from(time).ok());
        Ok(Some(Kept {
            identity: Identity::from_combined_pem(&pem)?,
            since: since.unwrap_or_else(Timestamp::now),
        }))
    }

    /// Writes another one, which is the newest from then on.
    pub(super) fn keep(&self, identity: &Identity) -> Result<(), Error> {
        let now = Timestamp::now();
        // To the nanosecond: two within a second are two.
        let file = format!(
            "{}-{}-{:09}.pem",
            self.name,
            now.strftime("%Y-%m-%d-%H-%M-%S"),
            now.subsec_nanosecond()
        );
        let path = self.directory.join(&file);
        let mut pem = identity.certificate_pem().trim_end().to_owned();
        pem.push('\n');
        pem.push_str(identity.key_pem());
        files::write_private(&path, pem.as_bytes())?;
        let link = self.directory.join(format!(".{}-current.tmp", self.name));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Store { path, source }
        };
        if link.is_symlink() {
            fs::remove_file(&link).map_err(failed(&link))?;
        }
        symlink(&file, &link).map_err(failed(&link))?;
        fs::rename(&link, self.current()).map_err(failed(&link))?;
        self.remove_former();
        Ok(())
    }

    /// Removes all but the current one and the one before it.
    fn remove_former(&self) {
        let current = fs::read_link(self.current()).unwrap_or_default();
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut former: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|file| self.is_dated(file) && Path::new(file) != current)
            .map(|file| self.directory.join(file))
            .collect();
        former.sort();
        let surplus = former.len().saturating_sub(FORMER);
        for path in &former[..surplus] {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove a former certificate");
            }
        }
    }

    fn is_dated(&self, file: &str) -> bool {
        let middle = file.strip_prefix(self.name).and_then(|rest| rest.strip_suffix(".pem"));
        middle.is_some_and(|date| date.len() > 1 && date[1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
    }

    fn pending(&self) -> PathBuf {
        self.directory.join(format!("{}.key.tmp", self.name))
    }

    /// The key of a request that was begun, or a fresh one: whoever asks twice asks for the same.
    pub(super) fn pending_key(&self) -> Result<String, Error> {
        let path = self.pending();
        if let Ok(key) = files::read(&path)
            && Identity::is_key(&key)
        {
            return Ok(key);
        }
        let key = SigningRequest::generate_key()?;
        files::write_private(&path, key.as_bytes())?;
        Ok(key)
    }

    /// The request is answered.
    pub(super) fn forget_pending_key(&self) -> Result<(), Error> {
        let path = self.pending();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::Store { path, source: error }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use skiff_pki::{CertificateAuthority, Request};

    use super::*;

    #[test]
    fn the_newest_is_current_private_and_not_alone_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), "kubelet-client");
        assert!(store.load().unwrap().is_none());
        fs::write(directory.path().join("kubelet-client-notes.pem"), "somebody else's").unwrap();
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let mut last = None;
        for number in 0..4 {
            let identity = authority.issue(&Request::client(format!("u{number}"), &[])).unwrap();
            store.keep(&identity).unwrap();
            let kept = store.load().unwrap().unwrap();
            assert_eq!(kept.identity.key_pem(), identity.key_pem());
            last = Some(fs::read_link(store.current()).unwrap());
        }
        let mode = fs::metadata(store.current()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut files: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files.len(), 4, "{files:?}");
        assert!(files.contains(&last.unwrap().display().to_string()));
        assert!(files.contains(&"kubelet-client-notes.pem".to_owned()));
    }

    #[test]
    fn a_request_that_was_begun_goes_on_with_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path(), "kubelet-client");
        let key = store.pending_key().unwrap();
        assert_eq!(store.pending_key().unwrap(), key);
        fs::write(store.pending(), "half a").unwrap();
        let other = store.pending_key().unwrap();
        assert_ne!(other, key);
        store.forget_pending_key().unwrap();
        store.forget_pending_key().unwrap();
        assert_ne!(store.pending_key().unwrap(), other);
    }
}
