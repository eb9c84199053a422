//! What can go wrong between us and the container runtime.

/// Result of a call to the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call; `call` is the CRI (or containerd) method, `object` what it was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers on the socket. Retryable: the runtime may be starting.
    #[error(
        "cannot reach the container runtime at {endpoint}: is containerd running? (apt-get install containerd; systemctl start containerd)"
    )]
    Unreachable {
        /// The socket, as a URL.
        endpoint: String,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime answers, but does not serve this method (too old, or its CRI plugin is disabled).
    #[error(
        "the container runtime does not offer {call}: {message} (is containerd's \"cri\" plugin in disabled_plugins?)"
    )]
    Unimplemented {
        /// Method.
        call: &'static str,
        /// The runtime's words.
        message: String,
    },
    /// The object does not exist.
    #[error("{}: {message}", subject(call, object))]
    NotFound {
        /// Method.
        call: &'static str,
        /// Id or name.
        object: String,
        /// The runtime's words.
        message: String,
    },
    /// The object exists already.
    #[error("{}: {message}", subject(call, object))]
    AlreadyExists {
        /// Method.
        call: &'static str,
        /// Id or name.
        object: String,
        /// The runtime's words.
        message: String,
    },
    /// The time given was not enough.
    #[error("{}: no answer in time: {message}", subject(call, object))]
    DeadlineExceeded {
        /// Method.
        call: &'static str,
        /// Id or name.
        object: String,
        /// The runtime's words.
        message: String,
    },
    /// The runtime tried and failed; its words tell why.
    #[error("{}: {message}", subject(call, object))]
    Failed {
        /// Method.
        call: &'static str,
        /// Id or name.
        object: String,
        /// gRPC code by name, such as `Unknown`.
        code: String,
        /// The runtime's words.
        message: String,
    },
}

impl Error {
    /// Whether the object was absent.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether nobody answered at all.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The text that upstream's kubelet puts in statuses and events: `rpc error: code = NotFound desc = ...`.
    #[must_use]
    pub fn rpc_text(&self) -> String {
        let (code, message) = match self {
            Self::Unreachable { source, .. } => ("Unavailable", source.to_string()),
            Self::Unimplemented { message, .. } => ("Unimplemented", message.clone()),
            Self::NotFound { message, .. } => ("NotFound", message.clone()),
            Self::AlreadyExists { message, .. } => ("AlreadyExists", message.clone()),
            Self::DeadlineExceeded { message, .. } => ("DeadlineExceeded", message.clone()),
            Self::Failed { code, message, .. } => (code.as_str(), message.clone()),
        };
        format!("rpc error: code = {code} desc = {message}")
    }
}

/// Some calls are about no object.
fn subject(call: &str, object: &str) -> String {
    if object.is_empty() {
        call.to_owned()
    } else {
        format!("{call} {object}")
    }
}
