//! What must be right with the machine before pods run on it: swap, the cgroup driver, what is reserved.

use std::path::Path;
use std::sync::Arc;

use skiff_cri::{CgroupDriver, Runtime};
use skiff_daemon::error_chain;

use super::Error;
use crate::cgroups::{self, Cgroups, Driver};
use crate::config::Config;
use crate::node::facts::Facts;

const CGROUP_MOUNT: &str = "/sys/fs/cgroup";
/// There where systemd is the first process.
const SYSTEMD: &str = "/run/systemd/system";

/// Refuses a machine with swap, unless the configuration allows it.
pub(super) fn check_swap(config: &Config) -> Result<(), Error> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    match swaps.lines().nth(1) {
        Some(line) if config.kubelet.fail_swap_on => {
            let device = line.split_whitespace().next().unwrap_or_default();
            Err(Error::Swap(device.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Asks the kernel to spare this process when memory runs out.
pub(super) fn protect_from_oom(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(
            %error,
            score,
            "cannot set the kubelet's oom_score_adj: when memory runs out, the kernel may choose it; give it CAP_SYS_RESOURCE, or set \
             oomScoreAdj to what is permitted"
        );
    }
}

/// Finds out who makes cgroups, makes those above the pods', and gives them what the node does not keep for itself.
pub(super) async fn open_cgroups(config: &Config, facts: &Facts, runtime: &Arc<dyn Runtime>) -> Result<Cgroups, Error> {
    let told = match runtime.settings().await {
        Ok(settings) => settings.cgroup_driver,
        Err(error) => {
            tracing::warn!(
                error = error_chain(&error),
                "the container runtime does not tell its cgroup driver; the configured one is used"
            );
            None
        }
    };
    let driver = driver(&config.kubelet.cgroup_driver, told);
    if driver != Driver::Cgroupfs && !Path::new(SYSTEMD).exists() {
        return Err(Error::NoSystemd);
    }
    let failed = |error: cgroups::Error| Error::Cgroups(Box::new(error));
    let cgroups = Cgroups::open(Path::new(CGROUP_MOUNT), &config.kubelet.cgroup_root, driver)
        .await
        .map_err(failed)?;
    cgroups.reserve(&config.kubelet, facts).await.map_err(failed)?;
    Ok(cgroups)
}

/// The runtime's driver: pods' containers lie below the pods' cgroups only when both go by the same.
fn driver(configured: &str, told: Option<CgroupDriver>) -> Driver {
    let systemd = Driver::Systemd { bus: None };
    let configured = if configured == "systemd" {
        systemd.clone()
    } else {
        Driver::Cgroupfs
    };
    let told = match told {
        None => return configured,
        Some(CgroupDriver::Systemd) => systemd,
        Some(CgroupDriver::Cgroupfs) => Driver::Cgroupfs,
    };
    if told != configured {
        tracing::warn!(
            ?configured,
            runtime = ?told,
            "cgroupDriver is not the container runtime's: the runtime's is used; correct cgroupDriver, or SystemdCgroup in \
             containerd's configuration"
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_driver_wins() {
        let systemd = Driver::Systemd { bus: None };
        assert_eq!(driver("systemd", None), systemd);
        assert_eq!(driver("systemd", Some(CgroupDriver::Cgroupfs)), Driver::Cgroupfs);
        assert_eq!(driver("cgroupfs", Some(CgroupDriver::Systemd)), systemd);
    }
}
