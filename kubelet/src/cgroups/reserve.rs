//! What the node keeps for itself: limits of the cgroup of all pods, and of the daemons' own.

use std::collections::BTreeMap;

use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_api::quantity::Quantity;

use super::{Cgroups, Error, Hierarchy, Limits, Maker, below, parts, shares, systemd, unit};
use crate::config::KubeletConfiguration;
use crate::node::facts::{self, Facts};
use crate::pod::{self, Qos};

impl Cgroups {
    /// Limits what all pods together may have: to what is not reserved or, where `enforceNodeAllocatable` does not name them, to all
    /// there is, which takes an earlier limit back.
    pub(crate) async fn limit_pods(&self, config: &KubeletConfiguration, facts: &Facts) -> Result<(), Error> {
        let enforced = config.enforce_node_allocatable.iter().any(|what| what == "pods");
        let reserved = [&config.kube_reserved, &config.system_reserved];
        let pids = facts::pids().map(|(_, limit)| limit);
        let limits = of_pods(if enforced { &reserved } else { &[] }, facts, pids);
        self.create(&self.class_path(Qos::Guaranteed), limits).await
    }

    /// Enforces what `enforceNodeAllocatable` names of daemons.
    pub(crate) async fn limit_daemons(&self, config: &KubeletConfiguration) -> Result<(), Error> {
        for what in &config.enforce_node_allocatable {
            let (name, reserved) = match what.as_str() {
                "kube-reserved" | "kube-reserved-compressible" => (&config.kube_reserved_cgroup, &config.kube_reserved),
                "system-reserved" | "system-reserved-compressible" => {
                    (&config.system_reserved_cgroup, &config.system_reserved)
                }
                _ => continue,
            };
            let path = self.path_of(parts(name));
            if !self.is_there(&path) {
                return Err(Error::Absent(path));
            }
            let mut limits = of_daemons(reserved);
            if what.ends_with("-compressible") {
                (limits.memory, limits.pids) = (None, None);
            }
            match &self.maker {
                Maker::Directories => self.write_apart(&path, limits).await?,
                Maker::Slices(systemd) => {
                    let properties = systemd::limits(limits, self.is_unified());
                    systemd.set(unit(&path), &properties).await?;
                }
            }
        }
        Ok(())
    }

    fn is_there(&self, path: &str) -> bool {
        match &self.hierarchy {
            Hierarchy::V1 { mounts } => mounts.get("memory").is_some_and(|mount| below(mount, path).is_dir()),
            Hierarchy::V2 { mount } => below(mount, path).is_dir(),
        }
    }

    /// Gives burstable pods together the weight that they asked for; does nothing when that has not changed.
    pub(crate) fn weigh_burstable<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), Error> {
        let milli: i128 = pods
            .filter(|pod| pod::qos(pod) == Qos::Burstable)
            .filter_map(|pod| Some(skiff_api::pods::requests(pod::spec(pod)).get("cpu")?.as_milli()))
            .sum();
        let shares = shares(i64::try_from(milli).unwrap_or(i64::MAX / 1024));
        if self.burstable.lock().replace(shares) == Some(shares) {
            return Ok(());
        }
        let written = match self.maker {
            Maker::Directories => self.write(&self.class_path(Qos::Burstable), weighing(shares)),
            Maker::Slices(_) => {
                let cgroups = self.clone();
                tokio::spawn(async move { cgroups.tell_weight().await });
                Ok(())
            }
        };
        written.inspect_err(|_| *self.burstable.lock() = None)
    }

    /// Tells systemd the weight as it is by then: of several changes at once the last one wins.
    async fn tell_weight(&self) {
        let _turn = self.weighing.lock().await;
        let shares = *self.burstable.lock();
        let (Some(shares), Maker::Slices(systemd)) = (shares, &self.maker) else {
            return;
        };
        let properties = systemd::limits(weighing(shares), self.is_unified());
        if let Err(error) = systemd.set(unit(&self.class_path(Qos::Burstable)), &properties).await {
            *self.burstable.lock() = None;
            tracing::warn!(
                error = skiff_daemon::error_chain(&error),
                "cannot weigh the slice of burstable pods"
            );
        }
    }
}

fn weighing(shares: i64) -> Limits {
    Limits {
        shares: Some(shares),
        ..Limits::default()
    }
}

fn value(reserved: &BTreeMap<String, String>, resource: &str) -> Option<Quantity> {
    reserved.get(resource)?.parse().ok()
}

/// What all pods together may have: the machine less what is reserved. (What eviction keeps free beyond that is not enforced by
/// cgroups: the kernel would kill before eviction could choose.)
fn of_pods(all_reserved: &[&BTreeMap<String, String>], facts: &Facts, pids: Option<i64>) -> Limits {
    let reserved = |resource: &str| -> Vec<Quantity> {
        let reserved = all_reserved.iter();
        reserved.filter_map(|reserved| value(reserved, resource)).collect()
    };
    let less = |capacity: i64, taken: i128| i64::try_from(i128::from(capacity) - taken).unwrap_or(0).max(1);
    let cpu: i128 = reserved("cpu").iter().map(Quantity::as_milli).sum();
    let memory: i128 = reserved("memory").iter().map(Quantity::value).sum();
    let processes: i128 = reserved("pid").iter().map(Quantity::value).sum();
    Limits {
        shares: Some(shares(less(facts.cpus * 1000, cpu))),
        memory: (facts.memory > 0).then(|| less(facts.memory, memory)),
        pids: pids.map(|limit| less(limit, processes)),
        ..Limits::default()
    }
}

/// What daemons may have: what is reserved for them.
fn of_daemons(reserved: &BTreeMap<String, String>) -> Limits {
    let whole = |resource: &str| value(reserved, resource).and_then(|quantity| i64::try_from(quantity.value()).ok());
    Limits {
        shares: value(reserved, "cpu")
            .and_then(|cpu| i64::try_from(cpu.as_milli()).ok())
            .map(shares),
        memory: whole("memory"),
        pids: whole("pid"),
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::super::Driver;
    use super::*;

    fn config(kube: &[(&str, &str)], enforce: &[&str]) -> KubeletConfiguration {
        KubeletConfiguration {
            kube_reserved: kube
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            kube_reserved_cgroup: "/daemons".into(),
            enforce_node_allocatable: enforce.iter().map(|what| (*what).to_owned()).collect(),
            ..KubeletConfiguration::default()
        }
    }

    fn machine() -> Facts {
        Facts {
            cpus: 2,
            memory: 4 << 30,
            ..Facts::default()
        }
    }

    #[test]
    fn pods_get_what_is_not_reserved() {
        let config = config(&[("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000")], &["pods"]);
        let limits = of_pods(
            &[&config.kube_reserved, &config.system_reserved],
            &machine(),
            Some(32_768),
        );
        assert_eq!(
            (limits.shares, limits.memory, limits.pids),
            (Some(1536), Some(3 << 30), Some(31_768))
        );
        let nothing = of_pods(&[], &machine(), Some(32_768));
        assert_eq!(
            (nothing.shares, nothing.memory, nothing.pids),
            (Some(2048), Some(4 << 30), Some(32_768))
        );
    }

    /// A v1 hierarchy of plain files.
    async fn tree(dir: &Path) -> Cgroups {
        for controller in ["cpu", "memory", "pids"] {
            fs::create_dir(dir.join(controller)).unwrap();
            fs::write(dir.join(controller).join("cgroup.procs"), "").unwrap();
        }
        Cgroups::open(dir, "", Driver::Cgroupfs).await.unwrap()
    }

    #[tokio::test]
    async fn daemons_are_limited_where_their_cgroup_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = tree(dir.path()).await;
        let enforced = config(&[("memory", "1Gi")], &["pods", "kube-reserved"]);
        let error = cgroups.limit_daemons(&enforced).await.unwrap_err();
        assert!(error.to_string().contains("/daemons"), "{error}");
        fs::create_dir(dir.path().join("memory/daemons")).unwrap();
        cgroups.limit_daemons(&enforced).await.unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("memory/daemons/memory.limit_in_bytes"), (1_i64 << 30).to_string());
    }

    #[tokio::test]
    async fn pods_are_limited_and_the_limit_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = tree(dir.path()).await;
        for (enforce, gibibytes) in [("pods", 3_i64), ("none", 4)] {
            let config = config(&[("memory", "1Gi")], &[enforce]);
            cgroups.limit_pods(&config, &machine()).await.unwrap();
            let limit = fs::read_to_string(dir.path().join("memory/kubepods/memory.limit_in_bytes")).unwrap();
            assert_eq!(limit, (gibibytes << 30).to_string(), "{enforce}");
        }
    }

    /// As the kernel of version 1 does it while pods are above the limit.
    #[tokio::test]
    async fn a_refused_memory_limit_leaves_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = tree(dir.path()).await;
        fs::create_dir(dir.path().join("memory/kubepods/memory.limit_in_bytes")).unwrap();
        let error = cgroups.limit_pods(&config(&[], &["pods"]), &machine()).await;
        assert!(matches!(error, Err(Error::Write { .. })), "{error:?}");
        assert!(dir.path().join("pids/kubepods/pids.max").exists());
        assert!(dir.path().join("cpu/kubepods/cpu.shares").exists());
    }

    #[tokio::test]
    async fn burstable_pods_weigh_what_they_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = tree(dir.path()).await;
        let burstable =
            crate::pod::tests::pod(&json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}));
        let best_effort = crate::pod::tests::pod(&json!({"containers": [{"name": "c"}]}));
        let read = || fs::read_to_string(dir.path().join("cpu/kubepods/burstable/cpu.shares")).unwrap_or_default();
        cgroups
            .weigh_burstable([&burstable, &burstable, &best_effort].into_iter())
            .unwrap();
        assert_eq!(read(), "1024");
        cgroups.weigh_burstable([&best_effort].into_iter()).unwrap();
        assert_eq!(read(), "2");
    }
}
