//! containerd's content, snapshots and image names, under one lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use prost_types::FieldMask;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use super::bundle::{Blob, Bundle, Unpackable, chain};
use super::on_a_thread;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::events::NAMESPACE;
use crate::oci::Descriptor;
use crate::protocols::containerd::services::content::v1 as content;
use crate::protocols::containerd::services::diff::v1 as diff;
use crate::protocols::containerd::services::images::v1 as images;
use crate::protocols::containerd::services::leases::v1 as leases;
use crate::protocols::containerd::services::snapshots::v1 as snapshots;
use crate::protocols::containerd::types;
use content::content_client::ContentClient;
use diff::diff_client::DiffClient;
use images::images_client::ImagesClient;
use leases::leases_client::LeasesClient;
use snapshots::snapshots_client::SnapshotsClient;

/// containerd's CRI plugin unpacks into this one unless told otherwise.
const SNAPSHOTTER: &str = "overlayfs";
/// An abandoned import is cleaned up after this.
const LEASE_LIFETIME: Duration = Duration::from_secs(3600);
/// Below containerd's limit of 16 MiB for a message.
const CHUNK: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Store<'a> {
    client: &'a Client,
    lease: String,
}

impl<'a> Store<'a> {
    pub(super) async fn lease(client: &'a Client) -> Result<Self> {
        let store = Self {
            client,
            lease: unique(),
        };
        let expires = SystemTime::now() + LEASE_LIFETIME;
        let expires = Timestamp::try_from(expires).unwrap_or_default().to_string();
        let labels = BTreeMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let request = leases::CreateRequest {
            id: store.lease.clone(),
            labels,
        };
        let mut leases = LeasesClient::new(client.channel());
        let call = leases.create(store.request(request));
        client.caller().call("Leases.Create", &store.lease, None, call).await?;
        Ok(store)
    }

    pub(super) async fn release(self) -> Result<()> {
        self.give_up(false).await
    }

    /// With `sync` it returns when what nobody holds any longer is gone.
    async fn give_up(self, sync: bool) -> Result<()> {
        let request = leases::DeleteRequest {
            id: self.lease.clone(),
            sync,
        };
        let mut leases = LeasesClient::new(self.client.channel());
        let call = leases.delete(self.request(request));
        self.client
            .caller()
            .call("Leases.Delete", &self.lease, None, call)
            .await
            .map(drop)
    }

    /// Stores a blob unless it is there.
    pub(super) async fn put(&self, bundle: &Arc<Bundle>, blob: &Blob) -> Result<()> {
        if !self.has(&blob.descriptor.digest).await? {
            match self.write(bundle, blob).await {
                // Another import was faster.
                Err(Error::AlreadyExists { .. }) => {}
                result => return result,
            }
        }
        // It may have come here by another way, without the labels that keep what it refers to.
        self.label(&blob.descriptor.digest, &blob.labels).await
    }

    async fn has(&self, digest: &str) -> Result<bool> {
        let request = content::InfoRequest {
            digest: digest.to_owned(),
        };
        let mut client = ContentClient::new(self.client.channel());
        match self
            .client
            .caller()
            .call("Content.Info", digest, None, client.info(self.request(request)))
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, bundle: &Arc<Bundle>, blob: &Blob) -> Result<()> {
        let digest = &blob.descriptor.digest;
        let first = content::WriteContentRequest {
            action: content::WriteAction::Write.into(),
            r#ref: format!("{}-{digest}", self.lease),
            total: i64::try_from(blob.descriptor.size).unwrap_or_default(),
            expected: digest.clone(),
            labels: blob.labels.clone(),
            ..Default::default()
        };
        let messages = messages(bundle.clone(), blob.clone(), first);
        let mut client = ContentClient::new(self.client.channel());
        let call = client.write(self.request(messages));
        let mut answers = self.client.caller().call("Content.Write", digest, None, call).await?;
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(self.client.caller().error("Content.Write", digest, &status)),
            }
        }
    }

    async fn label(&self, digest: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = content::Info {
            digest: digest.to_owned(),
            labels: labels.clone(),
            ..Default::default()
        };
        let request = content::UpdateRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        let mut client = ContentClient::new(self.client.channel());
        let call = client.update(self.request(request));
        self.client
            .caller()
            .call("Content.Update", digest, None, call)
            .await
            .map(drop)
    }

    /// Makes the snapshots of an image's layers, so that its first container need not wait for them.
    pub(super) async fn unpack(&self, image: &Unpackable) -> Result<()> {
        let mut parent: Option<String> = None;
        for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
            let name = chain(parent.as_deref(), diff_id);
            if !self.has_snapshot(&name).await? {
                self.unpack_layer(layer, &name, parent.as_deref()).await?;
            }
            parent = Some(name);
        }
        let Some(top) = parent else { return Ok(()) };
        let label = (format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), top);
        self.label(&image.config, &BTreeMap::from([label])).await
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool> {
        let request = snapshots::StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: name.to_owned(),
        };
        let mut client = SnapshotsClient::new(self.client.channel());
        match self
            .client
            .caller()
            .call("Snapshots.Stat", name, None, client.stat(self.request(request)))
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn unpack_layer(&self, layer: &Descriptor, name: &str, parent: Option<&str>) -> Result<()> {
        let (caller, channel) = (self.client.caller(), self.client.channel());
        let (snapshotter, key) = (SNAPSHOTTER.to_owned(), format!("{}-{name}", self.lease));
        let mut client = SnapshotsClient::new(channel.clone());
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let prepared = caller
            .call("Snapshots.Prepare", name, None, client.prepare(self.request(request)))
            .await?;

        let request = diff::ApplyRequest {
            diff: Some(descriptor(layer)),
            mounts: prepared.mounts,
        };
        let mut differ = DiffClient::new(channel);
        let applied = caller
            .call("Diff.Apply", &layer.digest, None, differ.apply(self.request(request)))
            .await;
        if let Err(error) = applied {
            let request = snapshots::RemoveSnapshotRequest { snapshotter, key };
            // The first failure is the one to report; the lease cleans up what stays.
            client.remove(self.request(request)).await.ok();
            return Err(error);
        }
        let request = snapshots::CommitSnapshotRequest {
            snapshotter,
            name: name.to_owned(),
            key,
            ..Default::default()
        };
        match caller
            .call("Snapshots.Commit", name, None, client.commit(self.request(request)))
            .await
        {
            Ok(()) | Err(Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives an image its name; a name that is taken moves to the new image.
    pub(super) async fn name(&self, name: &str, target: &Descriptor, pinned: bool) -> Result<()> {
        let label = ("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
        let labels = BTreeMap::from_iter(pinned.then_some(label));
        let image = images::Image {
            name: name.to_owned(),
            labels,
            target: Some(descriptor(target)),
        };
        let caller = self.client.caller();
        let mut client = ImagesClient::new(self.client.channel());
        let request = images::CreateImageRequest {
            image: Some(image.clone()),
        };
        match caller
            .call("Images.Create", name, None, client.create(self.request(request)))
            .await
        {
            Ok(_) => return Ok(()),
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let request = images::GetImageRequest { name: name.to_owned() };
        let present = caller
            .call("Images.Get", name, None, client.get(self.request(request)))
            .await?
            .image;
        if present.is_some_and(|present| says_the_same(&present, &image)) {
            return Ok(());
        }
        // All labels are replaced: without its own label, the CRI plugin looks at the image anew and indexes its id.
        let paths = vec!["target".to_owned(), "labels".to_owned()];
        let request = images::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
        };
        caller
            .call("Images.Update", name, None, client.update(self.request(request)))
            .await
            .map(drop)
    }

    /// Every call names containerd's namespace and our lease.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
        if let Ok(lease) = MetadataValue::<Ascii>::try_from(self.lease.as_str()) {
            metadata.insert("containerd-lease", lease);
        }
        request
    }
}

/// A lease that holds nothing, given up: the one call that has the garbage collector run and waits for it.
pub(super) async fn collect(client: &Client) -> Result<()> {
    Store::lease(client).await?.give_up(true).await
}

/// Names of images that carry the mark of [`Store::name`], or that containerd itself gave it.
pub(super) async fn pinned(client: &Client) -> Result<Vec<String>> {
    let mut request = Request::new(images::ListImagesRequest {
        filters: vec!["labels.\"io.cri-containerd.pinned\"==pinned".to_owned()],
    });
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    let mut images = ImagesClient::new(client.channel());
    let call = client.caller().call("Images.List", "", None, images.list(request));
    Ok(call.await?.images.into_iter().map(|image| image.name).collect())
}

/// Whether an image that is there needs no change; it may have further labels.
fn says_the_same(present: &images::Image, wanted: &images::Image) -> bool {
    let digest = |image: &images::Image| image.target.as_ref().map(|target| target.digest.clone());
    digest(present) == digest(wanted)
        && wanted
            .labels
            .iter()
            .all(|(key, value)| present.labels.get(key) == Some(value))
}

fn descriptor(from: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: from.media_type.clone(),
        digest: from.digest.clone(),
        size: i64::try_from(from.size).unwrap_or_default(),
        // Those of an archive's index (names) belong to the archive, not to the image.
        annotations: BTreeMap::new(),
    }
}

/// The blob in chunks, then the request to commit. A file that cannot be read any more ends the stream early, and containerd
/// then refuses the incomplete blob.
fn messages(
    bundle: Arc<Bundle>,
    blob: Blob,
    first: content::WriteContentRequest,
) -> impl futures::Stream<Item = content::WriteContentRequest> + Send {
    let total = blob.descriptor.size;
    futures::stream::unfold(Some(0_u64), move |offset| {
        let (bundle, source, first) = (bundle.clone(), blob.source.clone(), first.clone());
        async move {
            let offset = offset?;
            let place = i64::try_from(offset).unwrap_or_default();
            if offset >= total {
                let action = content::WriteAction::Commit.into();
                return Some((
                    content::WriteContentRequest {
                        action,
                        offset: place,
                        ..first
                    },
                    None,
                ));
            }
            let chunk = on_a_thread(move || bundle.read(&source, offset, CHUNK)).await;
            let chunk = chunk
                .inspect_err(|error| tracing::warn!(%error, "cannot read the image archive"))
                .ok()?;
            if chunk.is_empty() {
                return None;
            }
            let next = offset + chunk.len() as u64;
            let labels = BTreeMap::new();
            Some((
                content::WriteContentRequest {
                    offset: place,
                    data: Bytes::from(chunk),
                    labels,
                    ..first
                },
                Some(next),
            ))
        }
    })
}

/// Unique among processes and imports of this machine.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = Timestamp::now().as_nanosecond();
    format!("skiff-import-{}-{now}-{count}", std::process::id())
}
