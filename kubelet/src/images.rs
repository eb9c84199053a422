//! Getting an image onto the node, as the pull policy says, with upstream's reasons and messages.

mod credentials;
mod pace;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::{Image, PullAuth, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::{Config, GoDuration};
use crate::events::{Recorder, Severity};
use crate::metrics::Measures;
use crate::objects::Objects;
use crate::pod::{self, Role};
use pace::Pace;

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(crate) struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `ImageInspectError`.
    pub(crate) reason: &'static str,
    /// Its message.
    pub(crate) message: String,
    /// The image, when it was pulled in vain.
    pub(crate) pull: Option<String>,
}

/// Pulls images, a limited number at once.
pub(crate) struct Images {
    runtime: Arc<dyn Runtime>,
    events: Recorder,
    measures: Arc<Measures>,
    slots: Arc<Semaphore>,
    pace: Option<Pace>,
    /// The kubelet's directory: the first where the node's own credentials are looked for.
    root: PathBuf,
    /// Pull secrets that could not be had, by the pod's UID, as they were told last.
    missing: Mutex<HashMap<String, Vec<String>>>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Images {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, events: Recorder, measures: Arc<Measures>, config: &Config) -> Self {
        let kubelet = &config.kubelet;
        Self {
            runtime,
            events,
            measures,
            slots: Arc::new(Semaphore::new(slots(
                kubelet.serialize_image_pulls,
                kubelet.max_parallel_image_pulls,
            ))),
            pace: Pace::new(kubelet.registry_pull_qps, kubelet.registry_burst),
            root: config.flags.root_dir.clone(),
            missing: Mutex::default(),
        }
    }

    /// Nothing is left of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.missing.lock().remove(uid);
    }

    /// Makes the container's image present and returns it.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        (role, container): (Role, &Container),
        objects: &Objects,
    ) -> Result<Image, ImageError> {
        let wanted = container.image.as_deref().unwrap_or_default();
        let who = (role, container.name.as_str());
        let image = with_tag(wanted).ok_or_else(|| ImageError {
            reason: "InvalidImageName",
            message: format!(
                "Failed to apply default image tag {wanted:?}: couldn't parse image name {wanted:?}: invalid reference format"
            ),
            pull: None,
        });
        let image = image.inspect_err(|error| self.warn(pod, who, "InspectFailed", &error.message))?;
        let policy = container
            .image_pull_policy
            .as_deref()
            .unwrap_or_else(|| default_policy(&image));
        if policy != "Always" {
            let present = self.runtime.image_status(&image).await.map_err(|error| {
                let message = format!("Failed to inspect image {image:?}: {}", error.rpc_text());
                self.warn(pod, who, "InspectFailed", &message);
                ImageError {
                    reason: "ImageInspectError",
                    message,
                    pull: None,
                }
            })?;
            if let Some(found) = present {
                let message =
                    format!("Container image {wanted:?} already present on machine and can be accessed by the pod");
                self.events.container(pod, who, Severity::Normal, "Pulled", message);
                return Ok(found);
            }
            if policy == "Never" {
                let message = format!("Container image {wanted:?} is not present with pull policy of Never");
                self.warn(pod, who, "ErrImageNeverPull", &message);
                return Err(ImageError {
                    reason: "ErrImageNeverPull",
                    message,
                    pull: None,
                });
            }
        }
        self.pull(pod, who, wanted, &image, objects).await
    }

    async fn pull(
        &self,
        pod: &Pod,
        who: (Role, &str),
        wanted: &str,
        image: &str,
        objects: &Objects,
    ) -> Result<Image, ImageError> {
        let asked = Instant::now();
        let slot = self.slots.acquire().await;
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        let begun = Instant::now();
        self.events.container(
            pod,
            who,
            Severity::Normal,
            "Pulling",
            format!("Pulling image {wanted:?}"),
        );
        let (mut credentials, missing) = credentials::of_pod(pod, image, objects).await;
        credentials.extend(credentials::of_node(&self.root, image));
        self.tell_missing(pod, missing);
        let pulled = self.pull_with_any(image, credentials).await;
        drop(slot);
        match pulled {
            Ok(found) => {
                self.measures.lives.pulled(pod::uid(pod), begun, found.size);
                let message = format!(
                    "Successfully pulled image {wanted:?} in {} ({} including waiting). Image size: {} bytes.",
                    millis(begun.elapsed()),
                    millis(asked.elapsed()),
                    found.size
                );
                self.events.container(pod, who, Severity::Normal, "Pulled", message);
                Ok(found)
            }
            Err(error) => {
                let message = error.rpc_text();
                self.warn(
                    pod,
                    who,
                    "Failed",
                    &format!("Failed to pull image {wanted:?}: {message}"),
                );
                Err(ImageError {
                    reason: "ErrImagePull",
                    message,
                    pull: Some(wanted.into()),
                })
            }
        }
    }

    /// Tells of pull secrets that cannot be had, once for each change of which they are.
    fn tell_missing(&self, pod: &Pod, missing: Vec<String>) {
        if missing.is_empty() {
            return self.forget(pod::uid(pod));
        }
        let list = missing.join(", ");
        let before = self.missing.lock().insert(pod::uid(pod).to_owned(), missing.clone());
        if before == Some(missing) {
            return;
        }
        let message = format!(
            "Unable to retrieve some image pull secrets ({list}); attempting to pull the image may not succeed."
        );
        let reason = "FailedToRetrieveImagePullSecret";
        self.events.pod(pod, Severity::Warning, reason, message);
    }

    /// Pulls with one credential after another until one is let in; without any, as nobody.
    async fn pull_with_any(&self, image: &str, credentials: Vec<PullAuth>) -> skiff_cri::Result<Image> {
        let mut credentials: Vec<Option<PullAuth>> = credentials.into_iter().map(Some).collect();
        let last = credentials.pop().flatten();
        for auth in &credentials {
            // Which of them is right is the registry's to say; the last one's error is the one to show.
            if let Ok(reference) = self.runtime.pull_image(image, auth.as_ref(), None).await {
                return self.pulled(reference).await;
            }
        }
        let reference = self.runtime.pull_image(image, last.as_ref(), None).await?;
        self.pulled(reference).await
    }

    async fn pulled(&self, reference: String) -> skiff_cri::Result<Image> {
        let found = self.runtime.image_status(&reference).await?;
        Ok(found.unwrap_or_else(|| Image {
            id: reference,
            ..Image::default()
        }))
    }

    fn warn(&self, pod: &Pod, who: (Role, &str), reason: &'static str, message: &str) {
        self.events
            .container(pod, who, Severity::Warning, reason, message.to_owned());
    }
}

/// How many pulls may be under way at once.
fn slots(serialize: bool, parallel: Option<i32>) -> usize {
    match (serialize, parallel.and_then(|n| usize::try_from(n).ok())) {
        (true, _) => 1,
        (false, Some(limit)) => limit.max(1),
        (false, None) => Semaphore::MAX_PERMITS,
    }
}

/// Whole milliseconds, as Go writes them.
fn millis(duration: Duration) -> GoDuration {
    let fraction = Duration::from_millis(duration.subsec_millis().into());
    GoDuration(Duration::from_secs(duration.as_secs()) + fraction)
}

fn default_policy(image: &str) -> &'static str {
    if image.ends_with(":latest") {
        "Always"
    } else {
        "IfNotPresent"
    }
}

/// The image with `:latest` when it names neither tag nor digest; `None` when it is not an image reference.
fn with_tag(image: &str) -> Option<String> {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next()?;
    let (path, tag) = match last.rsplit_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let mut parts = path.split('/');
    let first = parts.clone().next()?;
    let is_host = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if is_host {
        parts.next();
        let valid = first.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c));
        if !valid {
            return None;
        }
    }
    let component = |part: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().next_back())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    if !parts.all(component) {
        return None;
    }
    if tag.is_some_and(|tag| {
        tag.is_empty()
            || tag.len() > 128
            || tag.starts_with(['.', '-'])
            || !tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    }) {
        return None;
    }
    match (tag, digest) {
        (_, Some(digest)) if digest.split_once(':').is_none_or(|(_, hex)| hex.len() < 32) => None,
        (None, None) => Some(format!("{image}:latest")),
        _ => Some(image.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names() {
        let digest = format!("a/b@sha256:{}", "0".repeat(64));
        let cases = [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.27", Some("nginx:1.27")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            (digest.as_str(), Some(digest.as_str())),
            ("", None),
            ("Nginx", None),
            ("a b", None),
            ("nginx:", None),
            ("a//b", None),
            ("nginx@sha256:1", None),
        ];
        for (image, tagged) in cases {
            assert_eq!(with_tag(image).as_deref(), tagged, "{image}");
        }
    }

    #[test]
    fn times_of_pulls_are_written_as_go_does() {
        for (micros, text) in [
            (65_123_999, "1m5.123s"),
            (1_500_000, "1.5s"),
            (87_999, "87ms"),
            (999, "0s"),
        ] {
            assert_eq!(millis(Duration::from_micros(micros)).to_string(), text);
        }
    }

    #[test]
    fn pulls_at_once() {
        assert_eq!(slots(true, None), 1);
        assert_eq!(slots(true, Some(5)), 1);
        assert_eq!(slots(false, Some(5)), 5);
        assert_eq!(slots(false, None), Semaphore::MAX_PERMITS);
    }
}
