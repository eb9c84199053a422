//! emptyDir: a directory, or memory, or huge pages, as long as the pod lives.

use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use skiff_api::pods;
use skiff_api::quantity::Quantity;

use super::mounts::{is_mounted, mount_huge_pages, mount_tmpfs};
use super::{Error, make_dir, set_group, set_mode};
use crate::env::Facts;
use crate::pod;

/// Makes the directory, and mounts what it is to lie on. Whose it is, is said as it is made, by whichever kubelet and after whatever
/// reboot: later that is the pod's own affair.
pub(super) fn prepare(pod: &Pod, path: &Path, source: &EmptyDirVolumeSource, facts: &Facts) -> Result<(), Error> {
    let group = super::fs_group(pod);
    make(path, group)?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(()),
        _ if is_mounted(path)? => Ok(()),
        "Memory" => {
            let size = size(pod, source, facts).map_or(String::new(), |size| format!(",size={}", size.value()));
            mount_tmpfs(path, &format!("{}{size}", ownership(group)))
        }
        medium => {
            mount_huge_pages(path, &page_size(pod, medium)?, &ownership(group))?;
            // Its mount option takes no set-group-ID bit.
            set_mode(path, mode(group))
        }
    }
}

/// The directory gets its name last: what has the name is whole.
fn make(path: &Path, group: Option<u32>) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    // No volume may be called so.
    let unnamed = path.with_extension("new~");
    make_dir(&unnamed, 0o700)?;
    set_group(&unnamed, group)?;
    // umask must not narrow what every user of the pod may write.
    set_mode(&unnamed, mode(group))?;
    std::fs::rename(&unnamed, path).map_err(|source| Error::file("name", path, source))
}

fn mode(group: Option<u32>) -> u32 {
    group.map_or(0o777, |_| 0o2777)
}

/// The same as options of a mount, so that nothing stands between making and giving.
fn ownership(group: Option<u32>) -> String {
    let group_option = group.map_or(String::new(), |group| format!(",gid={group}"));
    format!("mode={:o}{group_option}", mode(group))
}

/// How much memory it may take: what it says itself, and never more than the pod, or all pods, may use.
fn size(pod: &Pod, source: &EmptyDirVolumeSource, facts: &Facts) -> Option<Quantity> {
    let own = source
        .size_limit
        .as_ref()
        .and_then(|limit| limit.0.parse::<Quantity>().ok());
    let mains = pod::main_containers(pod).iter();
    let limited = mains.clone().all(|container| pod::limit(container, "memory").is_some());
    let of_pod = pods::limits(pod::spec(pod)).get("memory").copied().filter(|_| limited);
    let of_node = facts.allocatable.get("memory").copied();
    let known = own.into_iter().chain(of_pod).chain(of_node);
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
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn memory_is_bounded_by_the_volume_the_pod_and_the_node() {
        let source = |size: Value| serde_json::from_value(json!({"medium": "Memory", "sizeLimit": size})).unwrap();
        let limited = pod(&json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]}));
        let node = |memory: &str| Facts {
            allocatable: [("memory".to_owned(), memory.parse().unwrap())].into(),
            ..Facts::default()
        };
        let free = pod(&json!({}));
        let cases = [
            (&free, "2Gi", Value::Null, Some(2 << 30)),
            (&free, "2Gi", "1Gi".into(), Some(1 << 30)),
            (&free, "2Gi", "3Gi".into(), Some(2 << 30)),
            (&free, "0", Value::Null, None),
            (&limited, "2Gi", "1Gi".into(), Some(64 << 20)),
            (&limited, "2Gi", "1Mi".into(), Some(1 << 20)),
            (&limited, "2Gi", Value::Null, Some(64 << 20)),
            (&limited, "32Mi", Value::Null, Some(32 << 20)),
        ];
        for (p, memory, text, bytes) in cases {
            let size = size(p, &source(text.clone()), &node(memory)).map(|size| size.value());
            assert_eq!(size, bytes, "{memory} {text}");
        }
    }

    fn found(path: &Path) -> (u32, u32) {
        let found = std::fs::metadata(path).unwrap();
        (found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn a_set_up_that_was_cut_off_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let disk = EmptyDirVolumeSource::default();
        std::fs::create_dir(dir.path().join("v.new~")).unwrap();
        prepare(
            &pod(&json!({"securityContext": {"fsGroup": 4321}})),
            &path,
            &disk,
            &Facts::default(),
        )
        .unwrap();
        assert_eq!(found(&path), (4321, 0o2777));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // What the pod makes of it stays so.
        set_mode(&path, 0o700).unwrap();
        prepare(
            &pod(&json!({"securityContext": {"fsGroup": 4321}})),
            &path,
            &disk,
            &Facts::default(),
        )
        .unwrap();
        assert_eq!(found(&path), (4321, 0o700));
        prepare(&pod(&json!({})), &dir.path().join("w"), &disk, &Facts::default()).unwrap();
        assert_eq!(found(&dir.path().join("w")), (0, 0o777));
    }

    /// The directory outlives the reboot, the memory does not.
    #[test]
    fn memory_that_is_made_again_after_a_reboot_is_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let memory = serde_json::from_value(json!({"medium": "Memory", "sizeLimit": "1Mi"})).unwrap();
        let p = pod(&json!({"securityContext": {"fsGroup": 4321}}));
        for _ in 0..2 {
            prepare(&p, &path, &memory, &Facts::default()).unwrap();
            assert!(is_mounted(&path).unwrap());
            assert_eq!(found(&path), (4321, 0o2777));
            nix::mount::umount(&path).unwrap();
        }
        prepare(&pod(&json!({})), &path, &memory, &Facts::default()).unwrap();
        let mounted = found(&path);
        nix::mount::umount(&path).unwrap();
        assert_eq!(mounted, (0, 0o777));
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
