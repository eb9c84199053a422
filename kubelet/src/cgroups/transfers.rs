//! What containers have read from and written to disks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::Pod;

use super::Cgroups;

/// Between a container and one disk, since the container was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfers {
    /// `/dev/sda`; the device's numbers where it has no name here.
    pub(crate) device: String,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

impl Cgroups {
    /// By device; nothing where the kernel does not count it.
    pub(crate) fn transfers_of_container(&self, pod: &Pod, id: &str) -> Vec<Transfers> {
        let Some(dir) = self.dir("blkio", &self.container_path(pod, id)) else {
            return Vec::new();
        };
        let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let devices = if self.is_unified() {
            v2(&text("io.stat"))
        } else {
            v1(
                &text("blkio.throttle.io_serviced"),
                &text("blkio.throttle.io_service_bytes"),
            )
        };
        let named = devices.into_iter().map(|(numbers, transfers)| Transfers {
            device: name(&numbers),
            ..transfers
        });
        named.collect()
    }
}

/// The name of a device of which the kernel tells the numbers.
fn name(numbers: &str) -> String {
    let link = fs::read_link(Path::new("/sys/dev/block").join(numbers)).ok();
    let name = link.as_deref().and_then(Path::file_name);
    name.map_or_else(|| numbers.to_owned(), |name| format!("/dev/{}", name.to_string_lossy()))
}

/// Lines as `8:0 Read 4096` of the two files of version 1.
fn v1(operations: &str, bytes: &str) -> BTreeMap<String, Transfers> {
    let mut devices: BTreeMap<String, Transfers> = BTreeMap::new();
    for (text, counts_bytes) in [(operations, false), (bytes, true)] {
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let (Some(numbers), Some(kind), Some(count)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let of = devices.entry(numbers.to_owned()).or_default();
            let field = match (kind, counts_bytes) {
                ("Read", false) => &mut of.reads,
                ("Write", false) => &mut of.writes,
                ("Read", true) => &mut of.read_bytes,
                ("Write", true) => &mut of.written_bytes,
                _ => continue,
            };
            *field = count.parse().unwrap_or(0);
        }
    }
    devices
}

/// Lines as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0` of version 2.
fn v2(stat: &str) -> BTreeMap<String, Transfers> {
    let device = |line: &str| {
        let (numbers, fields) = line.split_once(' ')?;
        let field = |name: &str| {
            let mut fields = fields.split_whitespace();
            let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let transfers = Transfers {
            device: String::new(),
            reads: field("rios"),
            writes: field("wios"),
            read_bytes: field("rbytes"),
            written_bytes: field("wbytes"),
        };
        Some((numbers.to_owned(), transfers))
    };
    stat.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let operations = "8:0 Read 3\n8:0 Write 5\n8:0 Sync 8\n8:0 Total 8\n8:16 Read 1\nTotal 9\n";
        let bytes = "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\n8:16 Read 512\nTotal 12800\n";
        let found = v1(operations, bytes);
        let wanted = Transfers {
            device: String::new(),
            reads: 3,
            writes: 5,
            read_bytes: 4096,
            written_bytes: 8192,
        };
        assert_eq!(found["8:0"], wanted);
        assert_eq!((found["8:16"].reads, found["8:16"].read_bytes), (1, 512));
        assert_eq!(found.len(), 2);
        let stat = "8:0 rbytes=4096 wbytes=8192 rios=3 wios=5 dbytes=0 dios=0\n\
                    8:16 rbytes=512 wbytes=0 rios=1 wios=0\n";
        assert_eq!(v2(stat), found);
        assert_eq!(name("no:device"), "no:device");
    }
}
