//! What a pod did before this kubelet, or this runtime, knew of it. A node that was rebooted, or whose runtime lost its
//! records, still has the API's word and the names of its log files: a restart is counted, and no log is written over.

use std::collections::BTreeMap;
use std::path::Path;

use skiff_api::k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::observed::Observed;
use crate::pod;

/// The next attempt's number for each container that ran before and that the runtime does not have. `logged` tells the
/// highest attempt that has a log file.
pub(super) fn attempts(pod: &Pod, observed: &Observed, logged: impl Fn(&str) -> Option<u32>) -> BTreeMap<String, u32> {
    if pod::deletion_time(pod).is_some() || pod::is_terminal(pod) {
        return BTreeMap::new();
    }
    let forgotten = pod::containers(pod).filter(|(_, spec)| observed.latest(&spec.name).is_none());
    let next = forgotten.filter_map(|(_, spec)| {
        let told = pod::container_status(pod, &spec.name).map_or(0, counted);
        let logged = logged(&spec.name).map_or(0, |attempt| attempt.saturating_add(1));
        let next = told.max(logged);
        (next > 0).then(|| (spec.name.clone(), next))
    });
    next.collect()
}

/// How often a container has run, by its status: one that has an id counts its current run too.
pub(crate) fn counted(status: &ContainerStatus) -> u32 {
    let restarts = u32::try_from(status.restart_count).unwrap_or(0);
    let ran = status.container_id.as_deref().is_some_and(|id| !id.is_empty());
    restarts.saturating_add(u32::from(ran))
}

/// The highest attempt that has a log file in a container's log directory.
pub(super) fn highest_log(directory: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let attempt = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.split_once(".log")?.0.parse().ok()
    };
    entries.filter_map(attempt).max()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn the_api_and_the_logs_tell_what_ran() {
        let status = |status: Value| json!({"containerStatuses": [status]});
        let base = |more: Value| {
            let mut status = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            for (key, value) in more.as_object().unwrap() {
                status[key] = value.clone();
            }
            status
        };
        let cases = [
            (json!({}), None, 0),
            (status(base(json!({}))), None, 0),
            (status(base(json!({"containerID": "x://1"}))), None, 1),
            (
                status(base(json!({"containerID": "x://1", "restartCount": 3}))),
                None,
                4,
            ),
            // An earlier kubelet has counted the lost run already.
            (status(base(json!({"restartCount": 4}))), None, 4),
            (json!({}), Some(2), 3),
            (
                status(base(json!({"containerID": "x://1", "restartCount": 3}))),
                Some(6),
                7,
            ),
            (json!({"phase": "Failed"}), Some(6), 0),
        ];
        for (status, logged, next) in cases {
            let mut p = pod(&json!({}));
            p.status = Some(serde_json::from_value(status.clone()).unwrap());
            let found = attempts(&p, &Observed::default(), |_| logged);
            assert_eq!(found.get("c").copied().unwrap_or(0), next, "{status} {logged:?}");
        }
    }

    #[test]
    fn logs_count_by_their_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(highest_log(&dir.path().join("absent")), None);
        for name in ["0.log", "10.log.20260101-000000.gz", "9.log", "x.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(highest_log(dir.path()), Some(10));
    }
}
