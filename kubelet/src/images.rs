//! Getting an image onto the node, as the pull policy says, with upstream's reasons and messages.

mod pace;

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::{Image, PullAuth, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::KubeletConfiguration;
use crate::events::{Recorder, Severity};
use crate::metrics::Measures;
use crate::objects::{Kind, Objects};
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
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        events: Recorder,
        measures: Arc<Measures>,
        config: &KubeletConfiguration,
    ) -> Self {
        Self {
            runtime,
            events,
            measures,
            slots: Arc::new(Semaphore::new(slots(
                config.serialize_image_pulls,
                config.max_parallel_image_pulls,
            ))),
            pace: Pace::new(config.registry_pull_qps, config.registry_burst),
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
        let (credentials, missing) = credentials(pod, image, objects).await;
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

fn millis(duration: std::time::Duration) -> String {
    if duration.as_secs() == 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.3}s", duration.as_secs_f64())
    }
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

/// The credentials of the pod's pull secrets that are for the image, the most specific first, and the names of secrets that cannot be
/// had.
async fn credentials(pod: &Pod, image: &str, objects: &Objects) -> (Vec<PullAuth>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let secrets = pod::spec(pod).image_pull_secrets.iter().flatten();
    // The API lets in references without a name.
    for secret in secrets.filter(|secret| !secret.name.is_empty()) {
        let Ok(Some(object)) = objects.get(pod, Kind::Secret, &secret.name).await else {
            missing.push(secret.name.clone());
            continue;
        };
        for key in [".dockerconfigjson", ".dockercfg"] {
            if let Some(bytes) = object.data.get(key) {
                found.extend(from_docker_config(bytes, image, key));
            }
        }
    }
    // Stable: of two for the same place, the earlier secret's is tried first.
    found.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
    (found.into_iter().map(|(_, auth)| auth).collect(), missing)
}

/// The host that an image is pulled from, and its path there.
fn location(image: &str) -> (&str, String) {
    match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => ("docker.io", image.to_owned()),
        None => ("docker.io", format!("library/{image}")),
    }
}

/// Whether credentials for `place` (`host[:port][/path]`, parts of the host may have `*`) are for the image.
fn is_for(place: &str, image: &str) -> bool {
    let (host, path) = location(image);
    let (place_host, place_path) = place.split_once('/').unwrap_or((place, ""));
    let place_path = place_path.trim_end_matches('/');
    if place_host == "index.docker.io" {
        // Docker's own name for its registry, with an old version of the API as the path.
        return host == "docker.io";
    }
    let same_path = matches!(place_path, "" | "v1" | "v2")
        || path
            .strip_prefix(place_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    let (place_parts, parts): (Vec<_>, Vec<_>) = (place_host.split('.').collect(), host.split('.').collect());
    same_path
        && place_parts.len() == parts.len()
        && place_parts
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| glob(pattern, part))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| glob(after, &rest[at..]))
        }),
    }
}

/// Places and credentials of a Docker configuration that are for the image.
fn from_docker_config(bytes: &[u8], image: &str, key: &str) -> Vec<(String, PullAuth)> {
    let config: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let auths = if key == ".dockerconfigjson" {
        &config["auths"]
    } else {
        &config
    };
    let mut found = Vec::new();
    for (server, entry) in auths.as_object().into_iter().flatten() {
        let place = server.trim_start_matches("https://").trim_start_matches("http://");
        if is_for(place, image)
            && let Some(auth) = credential(entry)
        {
            found.push((place.to_owned(), auth));
        }
    }
    found
}

/// Without the server's address, as upstream sends them: containerd would not show them to a mirror that `hosts.toml` names.
fn credential(entry: &Value) -> Option<PullAuth> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let mut auth = PullAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..PullAuth::default()
    };
    if auth.username.is_empty() && auth.identity_token.is_empty() && auth.registry_token.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, password) = decoded.split_once(':')?;
        (auth.username, auth.password) = (user.into(), password.into());
    }
    Some(auth)
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
    fn pulls_at_once() {
        assert_eq!(slots(true, None), 1);
        assert_eq!(slots(true, Some(5)), 1);
        assert_eq!(slots(false, Some(5)), 5);
        assert_eq!(slots(false, None), Semaphore::MAX_PERMITS);
    }

    #[test]
    fn pull_secrets() {
        let auth = base64::engine::general_purpose::STANDARD.encode("user:pass:word");
        let config = format!(
            r#"{{"auths": {{"https://registry.test:5000/v2/": {{"auth": "{auth}"}}, "other": {{"auth": "x"}}}}}}"#
        );
        let read = |image: &str| from_docker_config(config.as_bytes(), image, ".dockerconfigjson");
        let found = read("registry.test:5000/a:1");
        let [(_, found)] = found.as_slice() else {
            panic!("one credential, not {}", found.len())
        };
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("user", "pass:word")
        );
        assert!(read("docker.io/a").is_empty());
        assert!(from_docker_config(b"no JSON", "a", ".dockercfg").is_empty());
    }

    #[test]
    fn what_credentials_are_for() {
        let cases = [
            ("registry.test", "registry.test/a/b:1", true),
            ("registry.test", "registry.test:5000/a", false),
            ("registry.test/a", "registry.test/a/b:1", true),
            ("registry.test/a", "registry.test/ab:1", false),
            ("registry.test/a/b", "registry.test/a/b@sha256:0", true),
            ("*.registry.test", "x.registry.test/a", true),
            ("*.registry.test", "x.y.registry.test/a", false),
            ("re*y.test:5*", "registry.test:5000/a", true),
            ("index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox:1", true),
            ("docker.io/other", "busybox", false),
        ];
        for (place, image, wanted) in cases {
            assert_eq!(is_for(place, image), wanted, "{place} for {image}");
        }
    }
}
