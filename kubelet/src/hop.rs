//! The hops of a pod's start, from the watch event to Ready, as debug lines with their times: `-v 4`, or
//! `RUST_LOG=skiff_kubelet::hop=debug`. See docs/decisions for a table made of them.

use skiff_api::k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// Tells that a pod has come so far. A line that nobody asked for costs a comparison.
pub(crate) fn hop(pod: &Pod, hop: &'static str) {
    tracing::debug!(uid = pod::uid(pod), pod = pod::name(pod), hop);
}

/// The same of a container.
pub(crate) fn container(pod: &Pod, container: &str, hop: &'static str) {
    tracing::debug!(uid = pod::uid(pod), pod = pod::name(pod), container, hop);
}
