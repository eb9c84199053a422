//! Doing what a plan says. Nothing else in the kubelet changes the runtime, the volumes or the cgroups of a pod.

mod container;
mod end;
mod hooks;
mod image_volumes;
mod mounts;
mod sandbox;
mod security;

use std::sync::Arc;
use std::time::Duration;

use skiff_api::k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::observed::{Observed, Sandbox};
use crate::plan::Action;

/// What an action needs to know beside the action.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) agent: Arc<Agent>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) sandbox: Option<Sandbox>,
    /// What the runtime held when the action was planned.
    pub(crate) observed: Arc<Observed>,
    /// Whether containers of the pod ran that the runtime has forgotten.
    pub(crate) ran_before: bool,
    /// Whether the pod was told to go, or fails.
    pub(crate) is_ending: bool,
    /// Cancelled when a start is no longer wanted; each step looks at it.
    pub(crate) cancel: CancellationToken,
}

/// How an action ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// All went well.
    Done,
    /// The volumes or the sandbox could not be made, or the pod could not be cleaned up.
    Failed { reason: &'static str, message: String },
    /// What the volumes need is not there yet; it is asked for again soon.
    NotYet { reason: &'static str, message: String },
    /// A container could not be started.
    NotStarted(StartError),
    /// A container runs, but must be killed: its postStart hook failed or was given up.
    HookFailed,
    /// A start was given up because it was no longer wanted.
    Cancelled,
}

/// Why a container does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Set when a pull failed.
    pub(crate) pull: Option<String>,
}

impl StartError {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            pull: None,
        }
    }
}

/// A grace period.
pub(crate) fn seconds(grace: i64) -> Duration {
    Duration::from_secs(grace.max(0).unsigned_abs())
}

/// Executes one action.
pub(crate) async fn execute(context: &Context, action: &Action) -> Outcome {
    match action {
        Action::PrepareVolumes => sandbox::prepare_volumes(context).await,
        Action::CreateSandbox { attempt } => sandbox::create(context, *attempt).await,
        Action::StopSandbox { id } => sandbox::stop(context, id).await,
        Action::StartContainer { name, attempt, .. } => container::start(context, name, *attempt).await,
        Action::PreStop {
            id,
            name,
            grace,
            message,
            ..
        } => end::pre_stop(context, (id, name), *grace, message).await,
        Action::KillContainer {
            id,
            name,
            grace,
            message,
            ..
        } => end::kill(context, (id, name), *grace, message.as_deref()).await,
        Action::Prune { containers, sandboxes } => end::prune(context, containers, sandboxes).await,
        Action::Release => end::release(context).await,
        Action::Cleanup => end::cleanup(context).await,
    }
}
