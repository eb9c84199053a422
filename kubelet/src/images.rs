//! Getting an image onto the node, as the pull policy says, with upstream's reasons and messages.

use std::sync::Arc;

use base64::Engine as _;
use serde_json::Value;
use skiff_api::k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::{Image, PullAuth, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::events::{Recorder, Severity};
use crate::objects::{Kind, Objects};
use crate::pod::{self, Role};

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
    slots: Arc<Semaphore>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Images {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, events: Recorder, serialize: bool, parallel: Option<i32>) -> Self {
        let slots = match (serialize, parallel.and_then(|n| usize::try_from(n).ok())) {
            (true, _) => 1,
            (false, Some(limit)) => limit.max(1),
            (false, None) => Semaphore::MAX_PERMITS,
        };
        Self {
            runtime,
            events,
            slots: Arc::new(Semaphore::new(slots)),
        }
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
                let message = format!("Container image {wanted:?} already present on machine");
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
        let begun = Instant::now();
        self.events.container(
            pod,
            who,
            Severity::Normal,
            "Pulling",
            format!("Pulling image {wanted:?}"),
        );
        let auth = credentials(pod, image, objects).await;
        let pulled = match self.runtime.pull_image(image, auth.as_ref(), None).await {
            Ok(reference) => self.runtime.image_status(&reference).await.map(|found| {
                found.unwrap_or_else(|| Image {
                    id: reference,
                    ..Image::default()
                })
            }),
            Err(error) => Err(error),
        };
        drop(slot);
        match pulled {
            Ok(found) => {
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

    fn warn(&self, pod: &Pod, who: (Role, &str), reason: &'static str, message: &str) {
        self.events
            .container(pod, who, Severity::Warning, reason, message.to_owned());
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

/// The credentials of the first pull secret that knows the image's registry.
async fn credentials(pod: &Pod, image: &str, objects: &Objects) -> Option<PullAuth> {
    let registry = registry(image);
    for secret in pod::spec(pod).image_pull_secrets.iter().flatten() {
        let Ok(Some(object)) = objects.get(pod, Kind::Secret, &secret.name).await else {
            continue;
        };
        for key in [".dockerconfigjson", ".dockercfg"] {
            let found = object
                .data
                .get(key)
                .and_then(|bytes| from_docker_config(bytes, &registry, key));
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

/// The host that an image is pulled from.
fn registry(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

fn from_docker_config(bytes: &[u8], registry: &str, key: &str) -> Option<PullAuth> {
    let config: Value = serde_json::from_slice(bytes).ok()?;
    let auths = if key == ".dockerconfigjson" {
        &config["auths"]
    } else {
        &config
    };
    for (server, entry) in auths.as_object()? {
        let host = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        if host != registry && !(registry == "docker.io" && host == "index.docker.io") {
            continue;
        }
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let mut auth = PullAuth {
            username: text("username"),
            password: text("password"),
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            server_address: server.clone(),
            ..PullAuth::default()
        };
        if auth.username.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok()?;
            let decoded = String::from_utf8(decoded).ok()?;
            let (user, password) = decoded.split_once(':')?;
            (auth.username, auth.password) = (user.into(), password.into());
        }
        return Some(auth);
    }
    None
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
    fn pull_secrets() {
        let auth = base64::engine::general_purpose::STANDARD.encode("user:pass:word");
        let config = format!(r#"{{"auths": {{"https://registry.test:5000/v2/": {{"auth": "{auth}"}}}}}}"#);
        let found = from_docker_config(config.as_bytes(), "registry.test:5000", ".dockerconfigjson").unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("user", "pass:word")
        );
        assert_eq!(
            from_docker_config(config.as_bytes(), "docker.io", ".dockerconfigjson"),
            None
        );
        assert_eq!(registry("registry.test:5000/a:1"), "registry.test:5000");
        assert_eq!(registry("library/a"), "docker.io");
    }
}
