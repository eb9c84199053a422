//! Variables from files that another container of the pod has written to an emptyDir (`fileKeyRef`): lines `NAME='value'`, as a POSIX
//! shell reads them. What stands between the quotes is the value, line breaks and all; of two of a name the later one counts.

use std::io::{self, Read as _};
use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::{FileKeySelector, Pod};

use crate::files;
use crate::pod;
use crate::volumes::Volumes;

/// Bytes of a file, as upstream limits them.
const LONGEST: u64 = 64 * 1024;

/// Why a variable has no value. What the file says is nobody's business but the pod's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("volume {0:?} is not an emptyDir of the pod")]
    Volume(String),
    #[error("cannot read environment file {0:?}")]
    Read(String, #[source] io::Error),
    #[error("environment file {path:?}, line {line}: expected NAME='value'")]
    Syntax { path: String, line: usize },
    #[error("couldn't find key {key} in environment file {path:?}")]
    NoKey { key: String, path: String },
}

/// The value; none where it is optional and not there.
pub(super) fn value(pod: &Pod, selector: &FileKeySelector, volumes: &Volumes) -> Result<Option<String>, Error> {
    let mut all = pod::spec(pod).volumes.iter().flatten();
    let named = all.find(|volume| volume.name == selector.volume_name && volume.empty_dir.is_some());
    let directory = named.and_then(|volume| volumes.path(pod, volume));
    let directory = directory.ok_or_else(|| Error::Volume(selector.volume_name.clone()))?;
    look_up(&directory, selector)
}

fn look_up(directory: &Path, selector: &FileKeySelector) -> Result<Option<String>, Error> {
    let FileKeySelector { key, path, .. } = selector;
    let optional = selector.optional.unwrap_or(false);
    let text = match read(directory, path) {
        Err(error) if optional && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| Error::Read(path.clone(), error))?,
    };
    let found = find(&text, key).map_err(|line| Error::Syntax {
        path: path.clone(),
        line,
    })?;
    if found.is_none() && !optional {
        let (key, path) = (key.clone(), path.clone());
        return Err(Error::NoKey { key, path });
    }
    Ok(found)
}

/// Reads what lies beneath the directory: its containers may have put a link or a pipe there.
fn read(directory: &Path, path: &str) -> io::Result<String> {
    let file = files::open_regular_beneath(directory, path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("larger than 64 KiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of a key; an error is the number of a line that cannot be read.
fn find(text: &str, key: &str) -> Result<Option<String>, usize> {
    let (mut rest, mut line, mut found) = (text, 1, None);
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        if rest.is_empty() {
            return Ok(found);
        }
        if rest.starts_with(['#', '\n']) {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
            line += 1;
            continue;
        }
        let (name, after) = rest.split_once("='").ok_or(line)?;
        let (value, after) = after.split_once('\'').ok_or(line)?;
        let (tail, next) = after.split_once('\n').unwrap_or((after, ""));
        let comment = tail.starts_with([' ', '\t']) && tail.trim_start().starts_with('#');
        let named = !name.is_empty() && !name.contains('=') && name.chars().all(|c| c.is_ascii_graphic());
        if !named || !(comment || tail.trim().is_empty()) {
            return Err(line);
        }
        if name == key {
            found = Some(value.to_owned());
        }
        line += value.matches('\n').count() + 1;
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_is_quoted() {
        let cases = [
            ("A='1'\n", Ok(Some("1"))),
            ("# a comment\n\n  A='1'  # why\r\nB='2'", Ok(Some("1"))),
            ("A='1'\nA='2'\n", Ok(Some("2"))),
            ("A=''", Ok(Some(""))),
            ("A=' $B \"x\" \\n\nnext '\nB='2'", Ok(Some(" $B \"x\" \\n\nnext "))),
            ("B='2'\n", Ok(None)),
            ("", Ok(None)),
            ("A=1\n", Err(1)),
            ("A=\"1\"\n", Err(1)),
            ("B='\n\n'\nA = '1'\n", Err(4)),
            ("A='1'2\n", Err(1)),
            ("A='1'#2\n", Err(1)),
            ("\nA='1\n", Err(2)),
            ("B\nA='1'\n", Err(1)),
        ];
        for (text, value) in cases {
            assert_eq!(find(text, "A"), value.map(|value| value.map(Into::into)), "{text:?}");
        }
    }

    #[test]
    fn a_file_is_read_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "A='stolen'").unwrap();
        std::fs::write(volume.join("sub/env"), "A='1'").unwrap();
        std::fs::write(volume.join("large"), vec![b'\n'; 64 * 1024 + 1]).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), volume.join("link")).unwrap();
        let read = |path: &str, key: &str, optional: bool| {
            let selector = json!({"volumeName": "v", "path": path, "key": key, "optional": optional});
            let found = look_up(&volume, &serde_json::from_value(selector).unwrap());
            found.map_err(|error| skiff_daemon::error_chain(&error))
        };
        assert_eq!(read("sub/env", "A", false), Ok(Some("1".into())));
        let lacking = "couldn't find key B in environment file \"sub/env\"";
        assert_eq!(read("sub/env", "B", false), Err(lacking.into()));
        assert_eq!(read("sub/env", "B", true), Ok(None));
        assert_eq!(read("absent", "A", true), Ok(None));
        for path in ["absent", "link", "../secret", "sub", "large"] {
            let error = read(path, "A", false).unwrap_err();
            assert!(error.starts_with("cannot read environment file"), "{path}: {error}");
        }
        assert!(
            read("link", "A", true).is_err(),
            "what cannot be read is not what is not there"
        );
    }
}
