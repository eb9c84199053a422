//! emptyDir: a directory, or memory, or huge pages, as long as the pod lives.

use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use skiff_api::pods;
use skiff_api::quantity::Quantity;

use super::mounts::{is_mounted, mount_huge_pages, mount_tmpfs};
use super::{Error, make_dir, set_group, set_mode};
use crate::pod;

/// Makes the directory, and mounts what it is to lie on.
pub(super) fn prepare(pod: &Pod, path: &Path, source: &EmptyDirVolumeSource) -> Result<(), Error> {
    let fresh = !path.exists();
    make_dir(path, 0o777)?;
    let group = super::fs_group(pod);
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        _ if is_mounted(path)? => {}
        "Memory" => {
            mount_tmpfs(
                path,
                &size(pod, source).map_or(String::new(), |size| format!("size={}", size.value())),
            )?;
            set_mode(path, 0o777)?;
        }
        medium => {
            mount_huge_pages(path, &page_size(pod, medium)?)?;
            set_mode(path, 0o777)?;
        }
    }
    if fresh {
        set_group(path, group)?;
        // umask must not narrow what every user of the pod may write.
        set_mode(path, if group.is_some() { 0o2777 } else { 0o777 })?;
    }
    Ok(())
}

/// How much memory it may take: what it says itself, and never more than the pod may use.
fn size(pod: &Pod, source: &EmptyDirVolumeSource) -> Option<Quantity> {
    let own = source
        .size_limit
        .as_ref()
        .and_then(|limit| limit.0.parse::<Quantity>().ok());
    let mains = pod::main_containers(pod).iter();
    let limited = mains.clone().all(|container| pod::limit(container, "memory").is_some());
    let of_pod = pods::limits(pod::spec(pod)).get("memory").copied().filter(|_| limited);
    let known = own.into_iter().chain(of_pod);
    known.filter(|limit| !limit.is_zero()).min()
}

/// The kernel's name of the page size that a medium stands for: what its name says, or the only size that the pod asks for.
fn page_size(pod: &Pod, medium: &str) -> Result<String, Error> {
    let requests = pods::requests(pod::spec(pod));
    let mut asked = requests.keys().filter_map(|name| name.strip_prefix("hugepages-"));
    let size = match (medium.strip_prefix("HugePages-"), asked.next(), asked.next()) {
        (Some(size), ..) => size,
        (None, Some(size), None) if medium == "HugePages" => size,
        (None, Some(_), Some(_)) if medium == "HugePages" => {
            return Err(Error::Medium(
                "medium \"HugePages\" needs one page size, and the pod requests several".into(),
            ));
        }
        _ if medium == "HugePages" => {
            return Err(Error::Medium(
                "medium \"HugePages\" needs a request for huge pages".into(),
            ));
        }
        _ => return Err(Error::Medium(format!("unknown storage medium {medium:?}"))),
    };
    // `2Mi` is `2M` to the kernel.
    Ok(size.trim_end_matches('i').to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn memory_is_bounded_by_the_volume_and_by_the_pod() {
        let source = |size: Value| serde_json::from_value(json!({"medium": "Memory", "sizeLimit": size})).unwrap();
        let limited = pod(&json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]}));
        let cases = [
            (pod(&json!({})), Value::Null, None),
            (pod(&json!({})), "1Gi".into(), Some(1 << 30)),
            (limited.clone(), "1Gi".into(), Some(64 << 20)),
            (limited.clone(), "1Mi".into(), Some(1 << 20)),
            (limited, Value::Null, Some(64 << 20)),
        ];
        for (p, text, bytes) in cases {
            let size = size(&p, &source(text.clone())).map(|size| size.value());
            assert_eq!(size, bytes, "{text}");
        }
    }

    #[test]
    fn page_sizes() {
        let with = |requests: Value| pod(&json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}));
        let cases = [
            ("HugePages-2Mi", json!({}), Some("2M")),
            ("HugePages", json!({"hugepages-1Gi": "1Gi"}), Some("1G")),
            ("HugePages", json!({}), None),
            (
                "HugePages",
                json!({"hugepages-1Gi": "1Gi", "hugepages-2Mi": "2Mi"}),
                None,
            ),
            ("Disk", json!({}), None),
        ];
        for (medium, requests, size) in cases {
            assert_eq!(page_size(&with(requests), medium).ok().as_deref(), size, "{medium}");
        }
    }
}
