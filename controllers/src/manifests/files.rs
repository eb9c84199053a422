//! The files of a directory of manifests.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use skiff_api::{decode, meta};
use skiff_daemon::error_chain;

/// A larger file is no manifest.
const LARGEST: u64 = 10 << 20;
/// More files are a mistake.
const MOST: usize = 1000;
const SUFFIXES: [&str; 3] = ["yaml", "yml", "json"];

/// Why nothing is known of a directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot read the directory of manifests {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the directory of manifests {path} holds more than {MOST} manifests: put several objects into one file")]
    TooMany { path: String },
    #[error("the directory of manifests {path} {why}")]
    Writable { path: String, why: &'static str },
}

/// A manifest's file, by its name in the directory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct File {
    pub(super) name: String,
    /// Tells one content from another.
    pub(super) digest: u64,
    /// What it asks for, or what is wrong with it.
    pub(super) content: Result<Vec<Manifest>, String>,
}

/// One object that is asked for; it has a kind and a name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Manifest {
    pub(super) object: Value,
}

/// Makes the directory, for its owner only, where it is missing.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Reads all manifests of a directory, in the order of their names.
pub(super) async fn read(directory: &Path) -> Result<Vec<File>, Error> {
    let directory = directory.to_owned();
    let path = directory.display().to_string();
    let read = tokio::task::spawn_blocking(move || list(&directory));
    read.await.unwrap_or_else(|error| {
        Err(Error::Read {
            path,
            source: io::Error::other(error),
        })
    })
}

fn list(directory: &Path) -> Result<Vec<File>, Error> {
    let path = || directory.display().to_string();
    let failed = |source| Error::Read { path: path(), source };
    if let Some(why) = mistrust(&fs::metadata(directory).map_err(failed)?) {
        return Err(Error::Writable { path: path(), why });
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if is_manifest(&path) {
            paths.push(path);
        }
    }
    if paths.len() > MOST {
        return Err(Error::TooMany { path: path() });
    }
    paths.sort();
    let file = |path: &PathBuf| {
        let text = read_file(path);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        File {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            digest: hasher.finish(),
            content: text.and_then(|text| parse(&text)),
        }
    };
    Ok(paths.iter().map(file).collect())
}

/// Editors' and hidden files are none.
fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    !hidden && suffix.is_some_and(|suffix| SUFFIXES.contains(&suffix))
}

/// What is applied may do anything in the cluster: it must be ours, or root's, and nobody else's to write.
fn mistrust(metadata: &fs::Metadata) -> Option<&'static str> {
    let owner = metadata.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Some("belongs to somebody else, and what is in it may do anything in the cluster: chown root it");
    }
    (metadata.mode() & 0o022 != 0)
        .then_some("may be written by others, and what is in it may do anything in the cluster: chmod go-w it")
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Result<Vec<u8>, String>> {
        // A pipe would never end.
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Err("it is not a file".to_owned()));
        }
        if let Some(why) = mistrust(&metadata) {
            return Ok(Err(format!("it {why}")));
        }
        let mut text = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut text)?;
        if text.len() as u64 > LARGEST {
            return Ok(Err(format!("it is larger than {LARGEST} bytes")));
        }
        Ok(Ok(text))
    };
    read().unwrap_or_else(|error| Err(format!("cannot read it: {error}")))
}

/// The objects of a file, those of lists one by one.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Manifest>, String> {
    let documents = decode::parse_yaml_documents(text).map_err(|error| error_chain(&error))?;
    let mut manifests = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        let number = number + 1;
        if document.is_null() {
            continue;
        }
        let is_list = meta::kind(&document).ends_with("List") && document["items"].is_array();
        let objects = match document {
            Value::Object(mut list) if is_list => match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
            other => vec![other],
        };
        for mut object in objects {
            if !object.is_object() || meta::api_version(&object).is_empty() || meta::kind(&object).is_empty() {
                return Err(format!(
                    "document {number} is no object of the API: it needs apiVersion and kind"
                ));
            }
            if meta::name(&object).is_empty() {
                return Err(format!(
                    "{} in document {number} has no metadata.name",
                    meta::kind(&object)
                ));
            }
            own_words_only(&mut object);
            manifests.push(Manifest { object });
        }
    }
    Ok(manifests)
}

/// Leaves out what servers say of objects: files are often made from what kubectl printed.
fn own_words_only(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    let metadata = meta::metadata_mut(object);
    for field in [
        "creationTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
    ] {
        metadata.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn manifests_are_read_and_what_is_none_says_why() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("manifests");
        make(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, uid: u, creationTimestamp: null}, status: {}}";
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            path
        };
        write(
            "b.yaml",
            &format!("---\n{map}\n---\n\n---\n{{apiVersion: v1, kind: List, items: [{map}, {map}]}}\n"),
        );
        write("a.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}"#);
        write("c.yml", "a: [b");
        write("d.yaml", "just: this");
        let open = write("e.yaml", map);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
        for (name, text) in [(".hidden.yaml", map), ("notes.txt", "x"), ("b.yaml~", map)] {
            write(name, text);
        }
        nix::unistd::mkfifo(&directory.join("f.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let files = read(&directory).await.unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "c.yml", "d.yaml", "e.yaml", "f.yaml"]);
        let objects = files[1].content.as_ref().unwrap();
        assert_eq!(objects.len(), 3);
        assert_eq!(
            objects[0].object,
            serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        );
        for (file, why) in [
            (0, "ConfigMap in document 1 has no metadata.name"),
            (2, "yaml"),
            (3, "needs apiVersion and kind"),
            (4, "may be written by others"),
            (5, "not a file"),
        ] {
            let refused = files[file].content.as_ref().unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = read(&directory).await.unwrap_err().to_string();
        assert!(refused.contains("chmod go-w"), "{refused}");
        let gone = read(&place.path().join("gone")).await.unwrap_err();
        assert!(matches!(gone, Error::Read { .. }), "{gone}");
    }
}
