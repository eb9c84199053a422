//! One object as the cache keeps it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;
use skiff_store::Entry;

use crate::strategy::Strategy;

/// One object: the bytes that clients receive, and the few parsed parts that selectors need.
#[derive(Debug)]
pub struct Object {
    key: Arc<str>,
    /// Length of the part of the key that names the resource.
    prefix: u16,
    /// Revision of the change that made it so.
    pub revision: u64,
    /// Complete JSON, with `metadata.resourceVersion`.
    pub bytes: Bytes,
    /// Labels, by key.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the fields that the kind's selectors may name, in the strategy's order.
    fields: Box<[Box<str>]>,
}

#[derive(Deserialize)]
struct Head {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Object {
    /// Makes the object of a stored entry.
    pub fn new(entry: &Entry, prefix: usize, strategy: &dyn Strategy) -> Self {
        let labels = serde_json::from_slice::<Head>(&entry.value)
            .ok()
            .and_then(|head| head.metadata.labels)
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key.into_boxed_str(), value.into_boxed_str()))
            .collect();
        let fields = match strategy.fields() {
            [] => Box::default(),
            names => {
                let value: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
                names
                    .iter()
                    .map(|name| strategy.field(&value, name).unwrap_or_default().into_boxed_str())
                    .collect()
            }
        };
        Self {
            key: Arc::clone(&entry.key),
            prefix: u16::try_from(prefix).unwrap_or(u16::MAX),
            revision: entry.mod_revision.0,
            bytes: with_revision(&entry.value, entry.mod_revision.0),
            labels,
            fields,
        }
    }

    /// The key under which the store keeps it.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Its namespace; empty for a cluster-scoped object.
    pub fn namespace(&self) -> &str {
        self.path().rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.path().rsplit_once('/').map_or(self.path(), |(_, name)| name)
    }

    fn path(&self) -> &str {
        self.key.get(usize::from(self.prefix)..).unwrap_or_default()
    }

    /// One label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        let index = self.labels.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        Some(&self.labels[index].1)
    }

    /// Value of a selectable field; `None` when the kind does not support it.
    pub fn field(&self, strategy: &dyn Strategy, path: &str) -> Option<Cow<'_, str>> {
        match path {
            "metadata.name" => Some(self.name().into()),
            "metadata.namespace" => Some(self.namespace().into()),
            _ => {
                let index = strategy.fields().iter().position(|name| *name == path)?;
                self.fields.get(index).map(|value| Cow::Borrowed(&**value))
            }
        }
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The object as it was, but under another revision: how a watcher is told of its end.
    pub fn bytes_at(&self, revision: u64) -> Bytes {
        let own = marker(self.revision);
        match find(&self.bytes, own.as_bytes()) {
            Some(at) => {
                let other = marker(revision);
                let mut bytes = BytesMut::with_capacity(self.bytes.len() + other.len());
                bytes.put_slice(&self.bytes[..at]);
                bytes.put_slice(other.as_bytes());
                bytes.put_slice(&self.bytes[at + own.len()..]);
                bytes.freeze()
            }
            None => self.bytes.clone(),
        }
    }
}

/// A stored object's bytes with `metadata.resourceVersion`. Stored bytes begin `{"apiVersion":..,"kind":..,"metadata":{` and have no
/// resourceVersion (see `registry::encode`), so the first such marker is the object's own metadata.
pub fn with_revision(stored: &[u8], revision: u64) -> Bytes {
    const METADATA: &[u8] = br#""metadata":{"#;
    let Some(at) = find(stored, METADATA).map(|at| at + METADATA.len()) else {
        return Bytes::copy_from_slice(stored);
    };
    let mark = marker(revision);
    let mut bytes = BytesMut::with_capacity(stored.len() + mark.len() + 1);
    bytes.put_slice(&stored[..at]);
    bytes.put_slice(mark.as_bytes());
    if stored.get(at) != Some(&b'}') {
        bytes.put_u8(b',');
    }
    bytes.put_slice(&stored[at..]);
    bytes.freeze()
}

fn marker(revision: u64) -> String {
    format!("\"resourceVersion\":\"{revision}\"")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

#[cfg(test)]
mod tests {
    use super::with_revision;

    #[test]
    fn the_revision_is_spliced_into_metadata() {
        let stored = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"metadata":"{}"}}"#;
        assert_eq!(
            with_revision(stored, 7).as_ref(),
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"7","name":"a"},"data":{"metadata":"{}"}}"#
        );
        assert_eq!(
            with_revision(br#"{"metadata":{}}"#, 7).as_ref(),
            br#"{"metadata":{"resourceVersion":"7"}}"#
        );
    }
}
