//! Volumes that are images: on the node before the container that mounts them is made, and mounted by the runtime.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use skiff_cri::RuntimeVersion;

use super::StartError;
use crate::agent::Agent;
use crate::pod::{self, Role};

/// The runtime's names of images, by the volumes' names.
pub(super) type ImageVolumes = BTreeMap<String, String>;

/// Makes the images present that the container mounts.
pub(super) async fn ensure(
    agent: &Agent,
    pod: &Pod,
    (role, container): (Role, &Container),
) -> Result<ImageVolumes, StartError> {
    let mut images = ImageVolumes::new();
    let mounted = mounted(pod, container);
    if mounted.is_empty() {
        return Ok(images);
    }
    let failed = |message: String| StartError::new("CreateContainerConfigError", message);
    let version = agent.runtime.version().await;
    let version = version.map_err(|error| failed(error.rpc_text()))?;
    for (volume, mount) in mounted {
        check(&version, mount).map_err(failed)?;
        let source = volume.image.clone().unwrap_or_default();
        let wanted = Container {
            name: container.name.clone(),
            image: source.reference,
            image_pull_policy: source.pull_policy,
            ..Container::default()
        };
        let image = agent.images.ensure(pod, (role, &wanted), &agent.objects).await?;
        images.insert(volume.name.clone(), image.id);
    }
    Ok(images)
}

/// The image volumes that a container mounts.
fn mounted<'a>(pod: &'a Pod, container: &'a Container) -> Vec<(&'a Volume, &'a VolumeMount)> {
    let volumes = || pod::spec(pod).volumes.iter().flatten();
    let mounts = container.volume_mounts.iter().flatten();
    let mounted = mounts.filter_map(|mount| {
        let volume = volumes().find(|volume| volume.name == mount.name)?;
        volume.image.is_some().then_some((volume, mount))
    });
    mounted.collect()
}

/// A runtime that does not know of images, or of paths in them, would mount something else, or nothing. Those that are no containerd are
/// believed: nothing in CRI tells.
fn check(runtime: &RuntimeVersion, mount: &VolumeMount) -> Result<(), String> {
    let is_path = |path: &Option<String>| path.as_ref().is_some_and(|path| !path.is_empty());
    let (what, since) = if is_path(&mount.sub_path) || is_path(&mount.sub_path_expr) {
        ("a path of an image", (2, 2))
    } else {
        ("an image", (2, 1))
    };
    let version = &runtime.version;
    if runtime.name != "containerd" || numbers(version).is_none_or(|numbers| numbers >= since) {
        return Ok(());
    }
    let (name, (major, minor)) = (&mount.name, since);
    Err(format!(
        "cannot mount volume {name:?}: {what} is mounted by containerd {major}.{minor} and later, and this is {version}"
    ))
}

/// `2.1` of `v2.1.9+unknown`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_that_mount_images() {
        let mount = |sub: &str| VolumeMount {
            name: "v".into(),
            sub_path: Some(sub.into()),
            ..VolumeMount::default()
        };
        let cases = [
            ("containerd", "1.6.20~ds1", false, false),
            ("containerd", "1.7.24", false, false),
            ("containerd", "v2.0.5", false, false),
            ("containerd", "2.1.9+unknown", true, false),
            ("containerd", "v2.2.0", true, true),
            ("containerd", "3.0.0", true, true),
            ("containerd", "main", true, true),
            ("cri-o", "1.30.0", true, true),
        ];
        for (name, version, whole, path) in cases {
            let runtime = RuntimeVersion {
                name: name.into(),
                version: version.into(),
                ..RuntimeVersion::default()
            };
            assert_eq!(check(&runtime, &mount("")).is_ok(), whole, "{name} {version}");
            assert_eq!(check(&runtime, &mount("a")).is_ok(), path, "{name} {version}");
        }
    }
}
