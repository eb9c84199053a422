//! Kills for want of memory, as the kernel's log has them. On cgroup v1 it is the only witness of one that comes so soon after a
//! container's start that the runtime does not watch yet, and whose cgroup is gone when we look.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::OFlag;

/// Each read gives one record, the oldest first.
const LOG: &str = "/dev/kmsg";
/// The kernel refuses to read into less than its longest record.
const RECORD: usize = 8192;
/// More than the log of any kernel holds.
const RECORDS: usize = 1 << 17;

/// Whether the log, as far as it reaches back, has a kill in the cgroup of this name. The kernel leaves some out when there are many.
pub(super) fn tells_of_kill(cgroup: &str) -> bool {
    let options = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(LOG);
    let Ok(mut log) = options else { return false };
    let mut record = [0; RECORD];
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(length) if is_kill(&String::from_utf8_lossy(&record[..length]), cgroup) => return true,
            Ok(length) if length > 0 => {}
            // What was to be read next has been overwritten meanwhile.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
    false
}

fn is_kill(record: &str, cgroup: &str) -> bool {
    let Some((_, kill)) = record.split_once(";oom-kill:") else {
        return false;
    };
    let fields = kill.split([',', '\n']);
    let mut killed = fields.filter_map(|field| field.strip_prefix("task_memcg="));
    killed.any(|path| path.rsplit('/').next() == Some(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let kill = "6,1217,65679026660,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,\
                    oom_memcg=/kubepods/burstable/podu,task_memcg=/kubepods/burstable/podu/c1,task=dd,pid=7,uid=0\n";
        assert!(is_kill(kill, "c1"));
        // Another container of the pod, whose cgroup only was full; one that only looks alike; what a program has written.
        assert!(!is_kill(kill, "podu") && !is_kill(kill, "c") && !is_kill(kill, "1"));
        assert!(!is_kill("4,1,1,-;said: oom-kill:task_memcg=/c1\n", "c1"));
        assert!(!is_kill(
            "6,1,1,-;Memory cgroup out of memory: Killed process 7 (dd)\n",
            "c1"
        ));
    }

    #[test]
    fn the_log_has_an_end() {
        assert!(!tells_of_kill("no-such-cgroup"));
    }
}
