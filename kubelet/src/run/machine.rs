//! What must be right with the machine before pods run on it: swap, the cgroup driver, what is reserved.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::{CgroupDriver, Runtime};
use skiff_daemon::{Shutdown, error_chain};

use super::Error;
use crate::agent::Agent;
use crate::cgroups::{self, Cgroups, Driver};
use crate::config::Config;
use crate::events::Severity;

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

/// Finds out who makes cgroups, makes those above the pods', and gives the daemons what is kept for them.
pub(super) async fn open_cgroups(config: &Config, runtime: &Arc<dyn Runtime>) -> Result<Cgroups, Error> {
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
    cgroups.limit_daemons(&config.kubelet).await.map_err(failed)?;
    Ok(cgroups)
}

/// Gives all pods together what the node does not keep for itself; false when that fails, which is told. With cgroups of version 1 a
/// limit cannot go below what is used: pods go on, and by and by they may use less.
pub(super) async fn limit_pods(agent: &Agent) -> bool {
    match agent.cgroups.limit_pods(&agent.config.kubelet, &agent.machine).await {
        Ok(()) => {
            let text = "Updated Node Allocatable limit across pods".into();
            agent.events.node(Severity::Normal, "NodeAllocatableEnforced", text);
            true
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(error, "cannot limit what all pods together may have; it is tried again");
            let text = format!("Failed to update Node Allocatable Limits: {error}");
            agent
                .events
                .node(Severity::Warning, "FailedNodeAllocatableEnforcement", text);
            false
        }
    }
}

/// Tries each minute until it succeeds.
pub(super) async fn each_minute<F: Future<Output = bool>>(shutdown: Shutdown, mut attempt: impl FnMut() -> F) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        if attempt().await {
            return;
        }
    }
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

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_each_minute_until_it_succeeds() {
        let (mut attempts, begun) = (0, tokio::time::Instant::now());
        each_minute(Shutdown::new(), || {
            attempts += 1;
            std::future::ready(attempts == 3)
        })
        .await;
        assert_eq!((attempts, begun.elapsed().as_secs()), (3, 180));
    }

    #[test]
    fn the_runtimes_driver_wins() {
        let systemd = Driver::Systemd { bus: None };
        assert_eq!(driver("systemd", None), systemd);
        assert_eq!(driver("systemd", Some(CgroupDriver::Cgroupfs)), Driver::Cgroupfs);
        assert_eq!(driver("cgroupfs", Some(CgroupDriver::Systemd)), systemd);
    }
}
