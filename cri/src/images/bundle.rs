//! Reads an image archive (OCI layout, or what `docker save` writes) and says what it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::oci::{
    Configuration, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Descriptor, IMAGE_NAME, Index,
    Manifest, REF_NAME, digest, full_name, named,
};

/// Indexes, manifests and configurations are small; what is larger is not one.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Indexes in indexes: one level is usual.
const MAX_DEPTH: usize = 4;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the image archive")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error(
        "this is no image archive: it must be a tar file (or a gzipped one) as `docker save` or `skiff image build` write it"
    )]
    NotATar,
    /// It ends in the middle of a part.
    #[error("the image archive is cut short: copy or download it again")]
    CutShort,
    /// Neither kind of index is in it.
    #[error("the archive is no image: it has neither index.json (OCI layout) nor manifest.json (docker save)")]
    NotAnImage,
    /// A part is missing or too large.
    #[error("the image archive is incomplete: {0} is missing")]
    Missing(String),
    /// A document is garbled.
    #[error("{document} in the image archive is garbled")]
    Garbled {
        /// Which one.
        document: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A document is too large or nested too deep.
    #[error("{0} in the image archive is larger or deeper than any image needs")]
    Excessive(String),
    /// No name is given.
    #[error(
        "the image archive names no image: it needs an annotation {IMAGE_NAME} (or a full name in {REF_NAME}) in index.json"
    )]
    Unnamed,
}

/// Where the bytes of a blob are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Range { offset: u64, size: u64 },
    Bytes(Vec<u8>),
}

/// A blob to store. Blobs that refer to others come after them.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) source: Source,
}

/// An image that can be unpacked here: its layers, and the digests of their content.
#[derive(Clone, Debug)]
pub(super) struct Unpackable {
    pub(super) config: String,
    pub(super) layers: Vec<Descriptor>,
    pub(super) diff_ids: Vec<String>,
}

/// All that an archive holds.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) blobs: Vec<Blob>,
    pub(super) images: Vec<(String, Descriptor)>,
    pub(super) unpack: Vec<Unpackable>,
}

/// An archive with a table of its contents.
#[derive(Debug)]
pub(super) struct Bundle {
    file: File,
    entries: BTreeMap<String, (u64, u64)>,
}

impl Bundle {
    pub(super) fn open(file: File) -> Result<Self, Error> {
        let mut file = plain(file).map_err(unreadable)?;
        file.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let entries = table(&file).map_err(unreadable)?;
        let length = file.metadata().map_err(Error::Read)?.len();
        if entries
            .values()
            .any(|(offset, size)| offset.saturating_add(*size) > length)
        {
            return Err(Error::CutShort);
        }
        Ok(Self { file, entries })
    }

    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        if self.entries.contains_key("index.json") {
            self.plan_oci(&mut plan)?;
        } else if self.entries.contains_key("manifest.json") {
            self.plan_docker(&mut plan)?;
        } else {
            return Err(Error::NotAnImage);
        }
        if plan.images.is_empty() {
            Err(Error::Unnamed)
        } else {
            Ok(plan)
        }
    }

    /// Reads a part of a blob; shorter than `limit` only at its end.
    pub(super) fn read(&self, source: &Source, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
        match source {
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
                Ok(bytes[start..bytes.len().min(start + limit)].to_vec())
            }
            Source::Range { offset: start, size } => {
                let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut buffer = vec![0; left.min(limit)];
                self.file.read_exact_at(&mut buffer, start + offset)?;
                Ok(buffer)
            }
        }
    }

    fn plan_oci(&self, plan: &mut Plan) -> Result<(), Error> {
        let index: Index = self.document("index.json")?;
        for descriptor in index.manifests {
            if !self.add(&descriptor, plan, 0)? {
                return Err(Error::Missing(descriptor.digest));
            }
            if let Some(name) = image_name(&descriptor.annotations) {
                plan.images.push((name, descriptor));
            }
        }
        Ok(())
    }

    /// Adds an index or a manifest with all below it; `false` when it is not in the archive (another platform's, say).
    fn add(&self, descriptor: &Descriptor, plan: &mut Plan, depth: usize) -> Result<bool, Error> {
        let path = blob_path(&descriptor.digest);
        if !self.entries.contains_key(&path) {
            return Ok(false);
        }
        if depth > MAX_DEPTH {
            return Err(Error::Excessive(descriptor.digest.clone()));
        }
        let mut labels = BTreeMap::new();
        if descriptor.is_index() {
            let index: Index = self.document(&path)?;
            for (number, child) in index.manifests.iter().enumerate() {
                if self.add(child, plan, depth + 1)? {
                    labels.insert(format!("containerd.io/gc.ref.content.m.{number}"), child.digest.clone());
                }
            }
        } else {
            let manifest: Manifest = self.document(&path)?;
            for child in manifest.layers.iter().chain([&manifest.config]) {
                let source = self.range(&blob_path(&child.digest))?;
                plan.blobs.push(Blob {
                    descriptor: child.clone(),
                    labels: BTreeMap::new(),
                    source,
                });
            }
            let configuration: Configuration = self.document(&blob_path(&manifest.config.digest))?;
            labels = manifest_labels(&manifest);
            plan.unpack.push(Unpackable {
                config: manifest.config.digest,
                layers: manifest.layers,
                diff_ids: configuration.rootfs.diff_ids,
            });
        }
        plan.blobs.push(Blob {
            descriptor: descriptor.clone(),
            labels,
            source: self.range(&path)?,
        });
        Ok(true)
    }

    /// `docker save` keeps no manifest with digests, so one is made.
    fn plan_docker(&self, plan: &mut Plan) -> Result<(), Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let saved: Vec<Saved> = self.document("manifest.json")?;
        for image in saved {
            let configuration: Configuration = self.document(&image.config)?;
            let mut layers = Vec::new();
            for path in &image.layers {
                layers.push(self.push_range(path, DOCKER_LAYER, plan)?);
            }
            let config = self.push_range(&image.config, DOCKER_CONFIG, plan)?;
            let manifest = Manifest {
                schema_version: 2,
                media_type: DOCKER_MANIFEST.into(),
                config,
                layers,
            };
            let content = serde_json::to_vec(&manifest).map_err(|source| Error::Garbled {
                document: "manifest.json".into(),
                source,
            })?;
            let descriptor = Descriptor::of(DOCKER_MANIFEST, &content);
            let labels = manifest_labels(&manifest);
            plan.blobs.push(Blob {
                descriptor: descriptor.clone(),
                labels,
                source: Source::Bytes(content),
            });
            plan.unpack.push(Unpackable {
                config: manifest.config.digest,
                layers: manifest.layers,
                diff_ids: configuration.rootfs.diff_ids,
            });
            let names = image.repo_tags.unwrap_or_default();
            plan.images
                .extend(names.iter().map(|name| (full_name(name), descriptor.clone())));
        }
        Ok(())
    }

    fn push_range(&self, path: &str, media_type: &str, plan: &mut Plan) -> Result<Descriptor, Error> {
        let source = self.range(path)?;
        let (digest, size, gzip) = self.hash(&source).map_err(Error::Read)?;
        let media_type = if gzip && media_type == DOCKER_LAYER {
            DOCKER_LAYER_GZIP
        } else {
            media_type
        };
        let descriptor = Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            ..Default::default()
        };
        plan.blobs.push(Blob {
            descriptor: descriptor.clone(),
            labels: BTreeMap::new(),
            source,
        });
        Ok(descriptor)
    }

    fn hash(&self, source: &Source) -> io::Result<(String, u64, bool)> {
        const CHUNK: usize = 1 << 20;
        let (mut hash, mut size, mut gzip) = (Sha256::new(), 0, false);
        loop {
            let chunk = self.read(source, size, CHUNK)?;
            gzip |= size == 0 && chunk.starts_with(&GZIP);
            hash.update(&chunk);
            size += chunk.len() as u64;
            if chunk.len() < CHUNK {
                return Ok((named(&hash.finalize()), size, gzip));
            }
        }
    }

    fn range(&self, path: &str) -> Result<Source, Error> {
        let (offset, size) = *self.entries.get(path).ok_or_else(|| Error::Missing(path.to_owned()))?;
        Ok(Source::Range { offset, size })
    }

    fn document<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, Error> {
        let (offset, size) = *self.entries.get(path).ok_or_else(|| Error::Missing(path.to_owned()))?;
        if size > MAX_DOCUMENT {
            return Err(Error::Excessive(path.to_owned()));
        }
        let content = self
            .read(&Source::Range { offset, size }, 0, usize::MAX)
            .map_err(Error::Read)?;
        serde_json::from_slice(&content).map_err(|source| Error::Garbled {
            document: path.to_owned(),
            source,
        })
    }
}

/// The tar and gzip readers report what they cannot make sense of with these kinds (and with words that quote the file).
fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Error::NotATar,
        io::ErrorKind::UnexpectedEof => Error::CutShort,
        _ => Error::Read(error),
    }
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The archive itself, or an unpacked copy without a name: the table needs seeking.
fn plain(mut file: File) -> io::Result<File> {
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(0))?;
    let read = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    if read < 2 || magic != GZIP {
        return Ok(file);
    }
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut copy)?;
    Ok(copy)
}

/// Paths to offsets and sizes. Old `docker save` archives link equal layers to each other.
fn table(file: &File) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut entries = BTreeMap::new();
    let mut links = Vec::new();
    for entry in tar::Archive::new(file).entries_with_seek()? {
        let entry = entry?;
        let path = normal(&entry.path()?);
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                entries.insert(path, (entry.raw_file_position(), entry.size()));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.unwrap_or_default();
                links.push((
                    normal(&Path::new(&path).parent().unwrap_or(Path::new("")).join(target)),
                    path,
                ));
            }
            tar::EntryType::Link => links.push((normal(&entry.link_name()?.unwrap_or_default()), path)),
            _ => {}
        }
    }
    for (target, path) in links {
        if let Some(place) = entries.get(&target).copied() {
            entries.insert(path, place);
        }
    }
    Ok(entries)
}

/// `./a/../b` becomes `b`.
fn normal(path: &Path) -> String {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// containerd's garbage collector follows labels, not documents.
fn manifest_labels(manifest: &Manifest) -> BTreeMap<String, String> {
    let config = (
        "containerd.io/gc.ref.content.config".to_owned(),
        manifest.config.digest.clone(),
    );
    let layer = |(number, layer): (usize, &Descriptor)| {
        (format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.clone())
    };
    manifest.layers.iter().enumerate().map(layer).chain([config]).collect()
}

/// A bare tag names nothing; a name has a registry, a path or a tag of its own.
fn image_name(annotations: &BTreeMap<String, String>) -> Option<String> {
    let name = annotations
        .get(IMAGE_NAME)
        .or_else(|| annotations.get(REF_NAME).filter(|n| n.contains([':', '/'])))?;
    Some(full_name(name))
}

/// Digest of a chain of layers, which is the name of its snapshot.
pub(super) fn chain(parent: Option<&str>, diff_id: &str) -> String {
    match parent {
        None => diff_id.to_owned(),
        Some(parent) => digest(format!("{parent} {diff_id}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::archive::Builder;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn hello() -> Vec<u8> {
        let mut archive = Vec::new();
        Builder::new("hello:1")
            .bytes("/hello", 0o755, *b"hi")
            .write(&mut archive)
            .unwrap();
        archive
    }

    #[test]
    fn what_we_build_can_be_read() {
        let bundle = Bundle::open(file(&hello())).unwrap();
        let plan = bundle.plan().unwrap();
        assert_eq!(plan.images.len(), 1);
        assert_eq!(plan.images[0].0, "docker.io/library/hello:1");
        assert_eq!(plan.blobs.len(), 3);
        let last = plan.blobs.last().unwrap();
        assert_eq!(last.descriptor, plan.images[0].1);
        assert_eq!(
            last.labels["containerd.io/gc.ref.content.config"],
            plan.unpack[0].config
        );
        for blob in &plan.blobs {
            let content = bundle.read(&blob.source, 0, usize::MAX).unwrap();
            assert_eq!(digest(&content), blob.descriptor.digest);
        }
    }

    #[test]
    fn gzipped_archives_too() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&hello()).unwrap();
        let bundle = Bundle::open(file(&packed.finish().unwrap())).unwrap();
        assert_eq!(bundle.plan().unwrap().images.len(), 1);
    }

    #[test]
    fn docker_archives_get_a_manifest() {
        let manifest = br#"[{"Config":"c.json","RepoTags":["web:2"],"Layers":["l/layer.tar"]}]"#;
        let config = br#"{"rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}"#;
        let archive = tar_of(&[
            ("manifest.json", manifest),
            ("c.json", config),
            ("l/layer.tar", b"layer"),
        ]);
        let plan = Bundle::open(file(&archive)).unwrap().plan().unwrap();
        assert_eq!(plan.images[0].0, "docker.io/library/web:2");
        assert_eq!(plan.unpack[0].diff_ids, ["sha256:aa"]);
        assert_eq!(plan.blobs[0].descriptor.digest, digest(b"layer"));
    }

    #[test]
    fn refusals() {
        let refusal = |content: &[u8]| {
            Bundle::open(file(content))
                .and_then(|bundle| bundle.plan())
                .unwrap_err()
        };
        assert!(matches!(refusal(&tar_of(&[("a", b"b")])), Error::NotAnImage));
        assert!(matches!(
            refusal(&tar_of(&[("index.json", b"{")])),
            Error::Garbled { .. }
        ));
        assert!(matches!(
            refusal(&tar_of(&[("index.json", br#"{"manifests":[]}"#)])),
            Error::Unnamed
        ));
        let missing = br#"{"manifests":[{"digest":"sha256:00","mediaType":"x"}]}"#;
        assert!(matches!(
            refusal(&tar_of(&[("index.json", missing)])),
            Error::Missing(_)
        ));
        assert!(matches!(refusal(&[7; 2000]), Error::NotATar));
        let whole = hello();
        // In the content of the first file, after its header.
        assert!(matches!(refusal(&whole[..520]), Error::CutShort));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&whole).unwrap();
        let packed = packed.finish().unwrap();
        assert!(matches!(refusal(&packed[..packed.len() / 2]), Error::CutShort));
    }

    #[test]
    fn chains() {
        assert_eq!(chain(None, "sha256:a"), "sha256:a");
        assert_eq!(chain(Some("sha256:a"), "sha256:b"), digest(b"sha256:a sha256:b"));
    }
}
