//! Image import through containerd's own API, which CRI has no call for.
//!
//! Blobs go into the content store (those present are skipped), layers are unpacked, then the image gets its name; containerd's
//! CRI plugin sees that by itself, and [`import`] waits until it has. A lease keeps everything from the garbage collector meanwhile.

mod bundle;
mod store;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::runtime::Runtime;

pub use bundle::Error as ArchiveError;

use bundle::Bundle;
use store::Store;

/// How long the CRI plugin may take to notice a new image; it is told by an event, so this is milliseconds.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

/// A failed import.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive is not usable.
    #[error("the image archive cannot be used")]
    Archive(#[from] ArchiveError),
    /// containerd refused.
    #[error("containerd did not take the image")]
    Store(#[from] crate::Error),
    /// It is in the store, but CRI does not show it.
    #[error("image {0} was imported, but the runtime's CRI plugin does not show it: is the plugin enabled?")]
    Unnoticed(String),
}

/// An imported image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Full name.
    pub name: String,
    /// Digest of its manifest or index.
    pub digest: String,
}

/// How to import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Mark it as never to be garbage-collected, by containerd (1.7 and later) and by kubelets.
    pub pinned: bool,
}

/// Imports every named image of an archive (OCI layout or `docker save`, as tar or gzipped tar). Importing again is cheap and
/// repairs a half-done import.
///
/// # Errors
/// When the archive is unusable, containerd cannot be reached, or CRI does not come to know the image.
pub async fn import(client: &Client, archive: File, options: Options) -> Result<Vec<Imported>, Error> {
    let (bundle, plan) = on_a_thread(move || {
        let bundle = Bundle::open(archive)?;
        let plan = bundle.plan()?;
        Ok::<_, ArchiveError>((bundle, plan))
    })
    .await?;
    let bundle = Arc::new(bundle);
    let store = Store::lease(client).await?;
    let result = async {
        for blob in &plan.blobs {
            store.put(&bundle, blob).await?;
        }
        for image in &plan.unpack {
            store.unpack(image).await?;
        }
        for (name, target) in &plan.images {
            store.name(name, target, options.pinned).await?;
        }
        Ok::<_, crate::Error>(())
    }
    .await;
    // The lease would expire by itself; a failure to end it early is not the caller's trouble.
    if let Err(error) = store.release().await {
        tracing::debug!(%error, "the lease of an import stays until it expires");
    }
    result?;
    for (name, _) in &plan.images {
        wait_until_noticed(client, name).await?;
    }
    let imported = |(name, target): (String, crate::oci::Descriptor)| Imported {
        name,
        digest: target.digest,
    };
    Ok(plan.images.into_iter().map(imported).collect())
}

/// Names of images that carry the mark; none where the runtime is not containerd.
pub(crate) async fn pinned(client: &Client) -> crate::Result<Vec<String>> {
    match store::pinned(client).await {
        Err(crate::Error::Unimplemented { .. }) => Ok(Vec::new()),
        answer => answer,
    }
}

/// Has containerd's garbage collector run, and waits for it; nothing is to be done where the runtime is not containerd.
pub(crate) async fn free_removed(client: &Client) -> crate::Result<()> {
    match store::collect(client).await {
        Err(crate::Error::Unimplemented { .. }) => Ok(()),
        answer => answer,
    }
}

async fn wait_until_noticed(client: &Client, name: &str) -> Result<(), Error> {
    let mut pause = Duration::from_millis(1);
    let noticed = async {
        // CRI has no event for images; the pauses grow, and the first look usually suffices.
        loop {
            match client.image_status(name).await {
                Ok(Some(_)) => return Ok(()),
                // Just after its start the plugin refuses everything.
                Ok(None) | Err(crate::Error::Failed { .. }) => tokio::time::sleep(pause).await,
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    };
    match tokio::time::timeout(NOTICE_TIMEOUT, noticed).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::Unnoticed(name.to_owned())),
    }
}

async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
