//! Values of a configuration that cannot work, refused in upstream's words.

use skiff_api::quantity::Quantity;

use super::{Error, KubeletConfiguration};
use crate::admission::is_namespaced;
use crate::certificates::least_tls;
use crate::eviction::{Amount, Signal};

type Checked = Result<(), Error>;

fn invalid(field: &'static str, detail: impl Into<String>) -> Checked {
    Err(Error::Invalid {
        field,
        detail: detail.into(),
    })
}

/// Refuses what cannot work together, beyond single fields.
pub(super) fn check(config: &KubeletConfiguration) -> Checked {
    if least_tls(&config.tls_min_version).is_none() {
        let detail = format!("unknown tls version {:?}", config.tls_min_version);
        return invalid("tlsMinVersion (--tls-min-version)", detail);
    }
    if let Some(pattern) = config.allowed_unsafe_sysctls.iter().find(|it| !is_namespaced(it)) {
        let detail = format!("the sysctls {pattern:?} are not known to be namespaced");
        return invalid("allowedUnsafeSysctls (--allowed-unsafe-sysctls)", detail);
    }
    images(config)?;
    evictions(config)?;
    reservations(config)?;
    swap(config)?;
    logs(config)
}

fn swap(config: &KubeletConfiguration) -> Checked {
    match config.memory_swap.swap_behavior.as_str() {
        "" | "NoSwap" | "LimitedSwap" => Ok(()),
        other => invalid(
            "memorySwap.swapBehavior",
            format!("{other:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""),
        ),
    }
}

fn images(config: &KubeletConfiguration) -> Checked {
    let (low, high) = (
        config.image_gc_low_threshold_percent,
        config.image_gc_high_threshold_percent,
    );
    for (field, percent) in [
        ("imageGCHighThresholdPercent (--image-gc-high-threshold)", high),
        ("imageGCLowThresholdPercent (--image-gc-low-threshold)", low),
    ] {
        if !(0..=100).contains(&percent) {
            return invalid(field, format!("{percent} must be between 0 and 100, inclusive"));
        }
    }
    if low >= high {
        return invalid(
            "imageGCLowThresholdPercent (--image-gc-low-threshold)",
            format!("{low} must be less than imageGCHighThresholdPercent {high}"),
        );
    }
    let (least, most) = (config.image_minimum_gc_age.0, config.image_maximum_gc_age.0);
    if !most.is_zero() && most < least {
        return invalid(
            "imageMaximumGCAge",
            format!("{most:?} must not be less than imageMinimumGCAge {least:?}"),
        );
    }
    for (field, value) in [
        ("registryPullQPS (--registry-qps)", config.registry_pull_qps),
        ("registryBurst (--registry-burst)", config.registry_burst),
    ] {
        if value < 0 {
            return invalid(field, format!("{value} must not be a negative number"));
        }
    }
    match config.max_parallel_image_pulls {
        Some(limit) if limit < 1 => invalid("maxParallelImagePulls", format!("{limit} must be a positive number")),
        Some(limit) if config.serialize_image_pulls && limit > 1 => invalid(
            "maxParallelImagePulls",
            format!("{limit} cannot be larger than 1 unless serializeImagePulls is false"),
        ),
        _ => Ok(()),
    }
}

fn evictions(config: &KubeletConfiguration) -> Checked {
    for (field, thresholds) in [
        ("evictionHard (--eviction-hard)", &config.eviction_hard),
        ("evictionSoft (--eviction-soft)", &config.eviction_soft),
        (
            "evictionMinimumReclaim (--eviction-minimum-reclaim)",
            &config.eviction_minimum_reclaim,
        ),
    ] {
        for (name, value) in thresholds {
            if Signal::parse(name).is_none() {
                return invalid(field, format!("unsupported eviction signal {name}"));
            }
            if Amount::parse(value).is_none() {
                return invalid(
                    field,
                    format!("{name}: {value:?} is neither a quantity nor a percentage between 0% and 100%"),
                );
            }
        }
    }
    for name in config.eviction_soft.keys() {
        let grace = config.eviction_soft_grace_period.get(name);
        if grace.is_none_or(|grace| grace.0.is_zero()) {
            return invalid(
                "evictionSoftGracePeriod (--eviction-soft-grace-period)",
                format!("grace period must be specified for the soft eviction threshold {name}"),
            );
        }
    }
    Ok(())
}

fn reservations(config: &KubeletConfiguration) -> Checked {
    for (field, reserved) in [
        ("kubeReserved (--kube-reserved)", &config.kube_reserved),
        ("systemReserved (--system-reserved)", &config.system_reserved),
    ] {
        for (name, value) in reserved {
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pid") {
                return invalid(field, format!("cannot reserve {name:?} resource"));
            }
            if value
                .parse::<Quantity>()
                .map_or(true, |quantity| quantity.is_negative())
            {
                return invalid(field, format!("{name}: {value:?} is not a quantity, or a negative one"));
            }
        }
    }
    const FIELD: &str = "enforceNodeAllocatable (--enforce-node-allocatable)";
    for what in &config.enforce_node_allocatable {
        let (cgroup, name) = match what.as_str() {
            "pods" => continue,
            "none" if config.enforce_node_allocatable.len() == 1 => continue,
            "none" => {
                return invalid(
                    FIELD,
                    "may not contain additional enforcements when \"none\" is specified",
                );
            }
            "kube-reserved" | "kube-reserved-compressible" => (&config.kube_reserved_cgroup, "kubeReservedCgroup"),
            "system-reserved" | "system-reserved-compressible" => {
                (&config.system_reserved_cgroup, "systemReservedCgroup")
            }
            other => {
                return invalid(
                    FIELD,
                    format!(
                        "option {other:?} must be one of pods, system-reserved, kube-reserved, \
                             system-reserved-compressible, kube-reserved-compressible, none"
                    ),
                );
            }
        };
        if cgroup.is_empty() {
            return invalid(FIELD, format!("{name} must be specified when {what:?} is enforced"));
        }
    }
    Ok(())
}

fn logs(config: &KubeletConfiguration) -> Checked {
    if config.container_log_max_files < 2 {
        return invalid(
            "containerLogMaxFiles",
            format!("{} must be greater than 1", config.container_log_max_files),
        );
    }
    let size = config.container_log_max_size.parse::<Quantity>();
    if size.is_err() {
        return invalid(
            "containerLogMaxSize",
            format!("{:?} is not a quantity", config.container_log_max_size),
        );
    }
    if config.container_log_max_workers < 1 {
        return invalid("containerLogMaxWorkers", "must be a positive number");
    }
    if config.container_log_monitor_interval.0 < std::time::Duration::from_secs(3) {
        return invalid("containerLogMonitorInterval", "must be greater than or equal to 3s");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn what_cannot_work_is_refused_and_named() {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        for (body, field) in [
            ("imageGCHighThresholdPercent: 101", "imageGCHighThresholdPercent"),
            ("imageGCLowThresholdPercent: 90", "imageGCLowThresholdPercent"),
            (
                "serializeImagePulls: true\nmaxParallelImagePulls: 3",
                "maxParallelImagePulls",
            ),
            ("evictionHard: {memory.free: 1Gi}", "evictionHard"),
            ("evictionSoft: {memory.available: 1Gi}", "evictionSoftGracePeriod"),
            ("kubeReserved: {pods: \"1\"}", "kubeReserved"),
            ("kubeReserved: {memory: \"-1\"}", "kubeReserved"),
            ("enforceNodeAllocatable: [kube-reserved]", "enforceNodeAllocatable"),
            ("enforceNodeAllocatable: [none, pods]", "enforceNodeAllocatable"),
            ("enforceNodeAllocatable: [all]", "enforceNodeAllocatable"),
            ("memorySwap: {swapBehavior: UnlimitedSwap}", "memorySwap.swapBehavior"),
            ("containerLogMaxFiles: 1", "containerLogMaxFiles"),
            ("containerLogMaxSize: much", "containerLogMaxSize"),
            ("containerLogMonitorInterval: 1s", "containerLogMonitorInterval"),
            ("podsPerCore: -1", "podsPerCore"),
            ("tlsMinVersion: TLSv1.3", "tlsMinVersion"),
            (
                "allowedUnsafeSysctls: [net.core.somaxconn, \"vm.*\"]",
                "allowedUnsafeSysctls",
            ),
        ] {
            let config = super::super::read(Path::new("c"), &format!("{head}{body}\n"), "").unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{body}: {error}");
        }
        let good = "evictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 90s}\n\
                    serializeImagePulls: false\nmaxParallelImagePulls: 3\nkubeReserved: {cpu: 100m, pid: \"100\"}\n\
                    tlsMinVersion: VersionTLS13\nallowedUnsafeSysctls: [net/core/*, kernel.sem, \"kernel.msg*\"]\n";
        let config = super::super::read(Path::new("c"), &format!("{head}{good}"), "").unwrap();
        config.validate().unwrap();
    }
}
