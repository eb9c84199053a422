//! Certificate signing requests: approves those that are what they claim, signs what was approved, and removes what is done.

mod approve;
mod clean;
mod recognize;
mod serving;
mod sign;

pub(crate) use approve::start as start_approving;
pub(crate) use clean::start as start_cleaning;
pub(crate) use sign::start as start_signing;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::{defaults, meta};

use crate::view::{SigningRequest, View};

/// Certificates of API clients.
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Certificates of kubelets as API clients.
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Certificates that kubelets serve with.
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Whatever was asked for before there were signers; the API takes no new ones.
const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// What the request holds.
fn parse(request: &SigningRequest) -> Result<skiff_pki::SigningRequest, skiff_pki::Error> {
    let pem = defaults::from_base64(&request.spec.request).unwrap_or_default();
    skiff_pki::SigningRequest::parse(&pem)
}

/// A patch that adds a condition, on condition that the request is still as it was seen.
fn with_condition(request: &SigningRequest, type_: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut conditions = request.status.conditions.clone();
    conditions.push(json!({
        "type": type_, "status": "True", "reason": reason, "message": message, "lastUpdateTime": meta::time(now),
    }));
    json!({
        "metadata": {"uid": request.uid(), "resourceVersion": request.resource_version()},
        "status": {"conditions": conditions},
    })
}
