//! Images that nobody uses are removed when their disk fills up, or when they have grown old.
//!
//! One task looks every five minutes; node-pressure eviction asks for it before it evicts a pod. Never removed are images in use,
//! the pause image, and pinned ones (as `skiff image import` marks what it brings).

mod plan;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::{Container, ContainerFilter, Image, Runtime};
use skiff_daemon::{Shutdown, error_chain};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::events::{Recorder, Severity};
use crate::labels;
use crate::metrics::Measures;
use crate::stats::disk;
use plan::{Record, Rules};

/// As often as upstream.
const PERIOD: Duration = Duration::from_secs(300);

type Known = HashMap<String, Record>;

/// Removes images.
pub(crate) struct ImageGc {
    runtime: Arc<dyn Runtime>,
    events: Recorder,
    measures: Arc<Measures>,
    rules: Rules,
    /// What is known of each image, by id; held while images are removed, so that one removes at a time.
    known: Mutex<Known>,
}

impl std::fmt::Debug for ImageGc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageGc")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl ImageGc {
    pub(crate) fn new(agent: &Agent) -> Self {
        let config = &agent.config.kubelet;
        let percent = |value: i32| u64::try_from(value.clamp(0, 100)).unwrap_or(100);
        Self {
            runtime: agent.runtime.clone(),
            events: agent.events.clone(),
            measures: agent.measures.clone(),
            rules: Rules {
                high: percent(config.image_gc_high_threshold_percent),
                low: percent(config.image_gc_low_threshold_percent),
                minimum_age: config.image_minimum_gc_age.0,
                maximum_age: Some(config.image_maximum_gc_age.0).filter(|age| !age.is_zero()),
            },
            known: Mutex::default(),
        }
    }

    /// Looks now and then until shutdown.
    pub(crate) async fn run(self: Arc<Self>, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.collect().await {
                tracing::warn!(error, "cannot look after the images; it is tried again");
            }
        }
    }

    /// Removes what is too old, and what the disk has no room for.
    async fn collect(&self) -> Result<(), String> {
        let mut known = self.known.lock().await;
        let (images, now) = (self.look(&mut known).await?, Instant::now());
        for id in plan::too_old(&known, &self.rules, now) {
            self.remove(&mut known, &images, &id, "age").await;
        }
        let Some(system) = self.file_system().await? else {
            return Ok(());
        };
        if system.capacity == 0 {
            self.warn("InvalidDiskCapacity", "invalid capacity 0 on image filesystem".into());
            return Ok(());
        }
        let Some(wanted) = plan::to_free(system.capacity, system.available, &self.rules) else {
            return Ok(());
        };
        tracing::info!(
            bytes = wanted,
            "the images' disk is nearly full: removing images that nobody uses"
        );
        let freed = self.free(&mut known, &images, wanted).await;
        if freed < wanted {
            self.warn(
                "FreeDiskSpaceFailed",
                format!(
                    "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only \
                     found {freed} bytes eligible to free."
                ),
            );
        }
        Ok(())
    }

    /// Removes every image that nobody uses and that is no longer young; returns the bytes freed.
    pub(crate) async fn remove_unused(&self) -> Result<u64, String> {
        let mut known = self.known.lock().await;
        let images = self.look(&mut known).await?;
        Ok(self.free(&mut known, &images, u64::MAX).await)
    }

    async fn free(&self, known: &mut Known, images: &[Image], wanted: u64) -> u64 {
        let mut freed = 0;
        for (id, size) in plan::least_used(known, wanted, &self.rules, Instant::now()) {
            if self.remove(known, images, &id, "space").await {
                freed += size;
            }
        }
        freed
    }

    /// Asks the runtime for images and containers, and notes which images are in use.
    async fn look(&self, known: &mut Known) -> Result<Vec<Image>, String> {
        let all = ContainerFilter::default();
        let (images, pinned, containers, settings) = tokio::try_join!(
            self.runtime.list_images(),
            self.runtime.pinned_images(),
            self.runtime.list_containers(&all),
            self.runtime.settings(),
        )
        .map_err(|error| error_chain(&error))?;
        let mut kept: BTreeSet<String> = pinned.into_iter().collect();
        kept.extend(settings.sandbox_image);
        kept.insert(skiff_cri::pause::IMAGE.to_owned());
        let used: BTreeSet<String> = containers.into_iter().flat_map(names_of_images).collect();
        plan::note(known, &images, &used, &kept, Instant::now());
        Ok(images)
    }

    async fn remove(&self, known: &mut Known, images: &[Image], id: &str, reason: &'static str) -> bool {
        let names = images.iter().find(|image| image.id == id);
        let names = names.map(|image| image.repo_tags.join(" ")).unwrap_or_default();
        match self.runtime.remove_image(id).await {
            Ok(()) => {
                tracing::info!(id, names, reason, "removed an image that nobody uses");
                known.remove(id);
                self.measures.collected(reason);
                true
            }
            Err(error) => {
                tracing::warn!(id, names, error = error_chain(&error), "cannot remove an image");
                false
            }
        }
    }

    /// The file system of the images.
    async fn file_system(&self) -> Result<Option<disk::FileSystem>, String> {
        let systems = self
            .runtime
            .image_fs_info()
            .await
            .map_err(|error| error_chain(&error))?;
        let first = systems.first().map(|usage| usage.mountpoint.clone());
        Ok(first.and_then(|path| disk::file_system(Path::new(&path))))
    }

    fn warn(&self, reason: &'static str, message: String) {
        self.events.node(Severity::Warning, reason, message);
    }
}

/// The images that a container is made of, and that it has as volumes.
fn names_of_images(container: Container) -> impl Iterator<Item = String> {
    let mounted = container
        .annotations
        .get(labels::IMAGE_VOLUMES)
        .cloned()
        .unwrap_or_default();
    let mounted = mounted.split(',').filter(|name| !name.is_empty());
    let mounted: Vec<String> = mounted.map(str::to_owned).collect();
    [container.image, container.image_ref].into_iter().chain(mounted)
}

#[cfg(test)]
mod tests {
    use skiff_cri::fake::FakeRuntime;
    use skiff_daemon::Metrics;

    use super::*;
    use crate::events;

    /// A pod that is about to start has pulled it.
    #[tokio::test(start_paused = true)]
    async fn a_young_image_survives_a_full_disk() {
        let runtime = FakeRuntime::new();
        runtime.add_image("busybox:1");
        let (events, _writer) = events::recorder("node-1");
        let images = ImageGc {
            runtime: Arc::new(runtime),
            events,
            measures: Measures::new(&Metrics::default(), &Metrics::default(), "node-1"),
            rules: Rules {
                high: 85,
                low: 80,
                minimum_age: Duration::from_secs(120),
                maximum_age: None,
            },
            known: Mutex::default(),
        };
        assert_eq!(images.remove_unused().await, Ok(0));
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_eq!(images.remove_unused().await, Ok(1 << 20));
    }

    #[test]
    fn images_of_a_container() {
        let mut container = Container {
            image: "busybox:1".into(),
            image_ref: "sha256:1".into(),
            ..Container::default()
        };
        let names = |container: &Container| names_of_images(container.clone()).collect::<Vec<_>>();
        assert!(names(&container).contains(&"sha256:1".to_owned()));
        let volumes = (labels::IMAGE_VOLUMES.to_owned(), "sha256:2,sha256:3".to_owned());
        container.annotations = [volumes].into();
        assert_eq!(names(&container), ["busybox:1", "sha256:1", "sha256:2", "sha256:3"]);
    }
}
