//! Makes OCI image archives from files: no registry, no daemon, the same bytes every time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tar::{EntryType, Header};

use crate::oci::{
    CONFIG, Configuration, Descriptor, Execution, IMAGE_NAME, INDEX, Index, LAYER, MANIFEST, Manifest, REF_NAME,
    RootFs, architecture, full_name,
};

/// A failed step of making an archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that belongs into the image cannot be read.
    #[error("cannot read {}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path cannot stand in a tar archive.
    #[error("{path} cannot be put into an image")]
    Entry {
        /// Path inside the image.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive of image {name}")]
    Write {
        /// Image.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// An image in the making: one layer of files, and how to run it.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    entries: BTreeMap<String, Entry>,
    execution: Execution,
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    owner: (u64, u64),
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Directory,
    Bytes(Vec<u8>),
    File(PathBuf),
    Link(PathBuf),
}

impl Builder {
    /// An empty image; a name without registry or tag is completed as everywhere (`docker.io/library/`, `latest`).
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: full_name(name),
            entries: BTreeMap::new(),
            execution: Execution::default(),
        }
    }

    /// The full name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How to run it.
    #[must_use]
    pub fn execution(mut self, execution: Execution) -> Self {
        self.execution = execution;
        self
    }

    /// A directory.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.insert(
            path,
            Entry {
                mode,
                owner: (0, 0),
                content: Content::Directory,
            },
        );
        self
    }

    /// A file with this content.
    #[must_use]
    pub fn bytes(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.insert(
            path,
            Entry {
                mode,
                owner: (0, 0),
                content: Content::Bytes(content.into()),
            },
        );
        self
    }

    /// A file of this machine.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, source: impl Into<PathBuf>) -> Self {
        self.insert(
            path,
            Entry {
                mode,
                owner: (0, 0),
                content: Content::File(source.into()),
            },
        );
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: impl Into<PathBuf>) -> Self {
        self.insert(
            path,
            Entry {
                mode: 0o777,
                owner: (0, 0),
                content: Content::Link(target.into()),
            },
        );
        self
    }

    /// Everything below a directory of this machine (an unpacked package, say), with modes and owners. Devices, sockets and
    /// pipes are left out: no package brings them, and a container gets its own.
    ///
    /// # Errors
    /// When something below `source` cannot be read.
    pub fn tree(mut self, path: &str, source: &Path) -> Result<Self, Error> {
        self.add_tree(path, source)?;
        Ok(self)
    }

    fn add_tree(&mut self, path: &str, source: &Path) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Source { path, source }
        };
        for item in fs::read_dir(source).map_err(failed(source))? {
            let item = item.map_err(failed(source))?;
            let from = item.path();
            let metadata = item.metadata().map_err(failed(&from))?;
            let inside = format!("{}/{}", path.trim_end_matches('/'), item.file_name().to_string_lossy());
            let kind = metadata.file_type();
            let content = if kind.is_dir() {
                Content::Directory
            } else if kind.is_symlink() {
                Content::Link(fs::read_link(&from).map_err(failed(&from))?)
            } else if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket() {
                continue;
            } else {
                Content::File(from.clone())
            };
            let owner = (metadata.uid().into(), metadata.gid().into());
            self.insert(
                &inside,
                Entry {
                    mode: metadata.permissions().mode() & 0o7777,
                    owner,
                    content,
                },
            );
            if kind.is_dir() {
                self.add_tree(&inside, &from)?;
            }
        }
        Ok(())
    }

    /// Adds parents, too, so that a runtime never has to guess their modes.
    fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        for parent in parents {
            let directory = Entry {
                mode: 0o755,
                owner: (0, 0),
                content: Content::Directory,
            };
            self.entries.entry(parent).or_insert(directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes an OCI layout as a tar archive; returns the digest of the image's manifest.
    ///
    /// # Errors
    /// When a source file cannot be read or `to` cannot be written.
    pub fn write(&self, to: impl Write) -> Result<String, Error> {
        let layer = self.layer()?;
        let layer_descriptor = Descriptor::of(LAYER, &layer);
        let configuration = json(&Configuration {
            architecture: architecture().into(),
            os: "linux".into(),
            config: self.execution.clone(),
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: vec![layer_descriptor.digest.clone()],
            },
        });
        let manifest = json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            config: Descriptor::of(CONFIG, &configuration),
            layers: vec![layer_descriptor],
        });
        let mut descriptor = Descriptor::of(MANIFEST, &manifest);
        let digest = descriptor.digest.clone();
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor.annotations.insert(IMAGE_NAME.into(), self.name.clone());
        descriptor.annotations.insert(REF_NAME.into(), tag.into());
        let index = json(&Index {
            schema_version: 2,
            media_type: INDEX.into(),
            manifests: vec![descriptor],
        });

        let blob = |content: &[u8]| format!("blobs/{}", crate::oci::digest(content).replace(':', "/"));
        let files = [
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index),
            (blob(&manifest), manifest),
            (blob(&configuration), configuration),
            (blob(&layer), layer),
        ];
        let mut archive = tar::Builder::new(to);
        for (path, content) in files {
            append(&mut archive, &path, 0o644, (0, 0), &content)?;
        }
        let failed = |source| Error::Write {
            name: self.name.clone(),
            source,
        };
        archive.into_inner().and_then(|mut to| to.flush()).map_err(failed)?;
        Ok(digest)
    }

    fn layer(&self) -> Result<Vec<u8>, Error> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match &entry.content {
                Content::Bytes(bytes) => append(&mut layer, path, entry.mode, entry.owner, bytes)?,
                Content::File(source) => append(&mut layer, path, entry.mode, entry.owner, &read(source)?)?,
                Content::Directory => {
                    let mut header = header(EntryType::Directory, entry.mode, entry.owner, 0);
                    let written = layer.append_data(&mut header, format!("{path}/"), io::empty());
                    written.map_err(|source| Error::Entry {
                        path: path.clone(),
                        source,
                    })?;
                }
                Content::Link(target) => {
                    let mut header = header(EntryType::Symlink, entry.mode, entry.owner, 0);
                    let written = layer.append_link(&mut header, path, target);
                    written.map_err(|source| Error::Entry {
                        path: path.clone(),
                        source,
                    })?;
                }
            }
        }
        layer.into_inner().map_err(|source| Error::Write {
            name: self.name.clone(),
            source,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let result = File::open(path).and_then(|mut file| file.read_to_end(&mut content));
    result.map(|_| content).map_err(|source| Error::Source {
        path: path.to_owned(),
        source,
    })
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    mode: u32,
    owner: (u64, u64),
    content: &[u8],
) -> Result<(), Error> {
    let mut header = header(EntryType::Regular, mode, owner, content.len() as u64);
    archive
        .append_data(&mut header, path, content)
        .map_err(|source| Error::Entry {
            path: path.to_owned(),
            source,
        })
}

/// No times and no user names: only what is in the image decides its digest.
fn header(kind: EntryType, mode: u32, owner: (u64, u64), size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("structs of strings and numbers always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Builder {
        Builder::new("hello:1")
            .bytes("/bin/hello", 0o755, *b"#!")
            .link("/bin/hi", "hello")
            .execution(Execution {
                entrypoint: vec!["/bin/hello".into()],
                ..Default::default()
            })
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let digest = hello().write(&mut first).unwrap();
        assert_eq!(hello().write(&mut second).unwrap(), digest);
        assert_eq!(first, second);
    }

    #[test]
    fn parents_are_added_and_entries_sorted() {
        let layer = hello().layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let paths = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(paths.collect::<Vec<_>>(), ["bin/", "bin/hello", "bin/hi"]);
    }

    #[test]
    fn a_missing_source_names_its_path() {
        let error = Builder::new("x")
            .file("/a", 0o644, "/nonexistent/a")
            .write(io::sink())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/a");
    }
}
