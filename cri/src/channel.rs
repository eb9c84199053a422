//! The gRPC connection to the runtime's unix socket, and what a failed call means.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::error::{Error, Result};

/// containerd's limit for one CRI message; a node with thousands of containers stays far below it.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// The path in `unix:///run/containerd/containerd.sock`; a bare path is taken as it is.
pub(crate) fn socket_path(endpoint: &str) -> PathBuf {
    PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

/// A channel that connects when first used, and again whenever the connection is lost.
pub(crate) fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    // The host name is only the `:authority` header, which a unix socket does not need.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// Names calls in errors, and limits how long they may take.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) endpoint: String,
}

impl Caller {
    pub(crate) async fn call<T>(
        &self,
        call: &'static str,
        object: &str,
        limit: Option<Duration>,
        future: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<T> {
        let answer = match limit {
            None => future.await,
            Some(limit) => tokio::time::timeout(limit, future).await.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!(
                    "the runtime did not answer within {}s",
                    limit.as_secs()
                )))
            }),
        };
        answer
            .map(Response::into_inner)
            .map_err(|status| self.error(call, object, &status))
    }

    pub(crate) fn error(&self, call: &'static str, object: &str, status: &Status) -> Error {
        let (object, message) = (object.to_owned(), status.message().to_owned());
        // A status that the runtime sent has no source; one that tonic made for a broken connection has.
        if let Some(cause) = std::error::Error::source(status) {
            return Error::Unreachable {
                endpoint: self.endpoint.clone(),
                source: innermost(cause).to_string().into(),
            };
        }
        match status.code() {
            Code::NotFound => Error::NotFound { call, object, message },
            Code::AlreadyExists => Error::AlreadyExists { call, object, message },
            Code::DeadlineExceeded => Error::DeadlineExceeded { call, object, message },
            Code::Unimplemented => Error::Unimplemented { call, message },
            code => Error::Failed {
                call,
                object,
                code: format!("{code:?}"),
                message,
            },
        }
    }
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Turns "it is not there" into success, for calls that want it gone.
pub(crate) fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(socket_path("unix:///run/a.sock"), Path::new("/run/a.sock"));
        assert_eq!(socket_path("/run/a.sock"), Path::new("/run/a.sock"));
    }

    #[test]
    fn statuses_become_typed_errors() {
        let caller = Caller {
            endpoint: "unix:///x".into(),
        };
        let error = |code| caller.error("StopContainer", "c1", &Status::new(code, "words"));
        assert!(matches!(error(Code::NotFound), Error::NotFound { .. }));
        assert!(matches!(error(Code::AlreadyExists), Error::AlreadyExists { .. }));
        assert!(matches!(error(Code::DeadlineExceeded), Error::DeadlineExceeded { .. }));
        assert!(matches!(error(Code::Unimplemented), Error::Unimplemented { .. }));
        let failed = error(Code::Unknown);
        assert_eq!(failed.to_string(), "StopContainer c1: words");
        assert_eq!(failed.rpc_text(), "rpc error: code = Unknown desc = words");
    }

    #[tokio::test]
    async fn a_missing_socket_says_how_to_get_containerd() {
        let caller = Caller {
            endpoint: "unix:///nonexistent/c.sock".into(),
        };
        let mut client = crate::protocols::runtime::v1::runtime_service_client::RuntimeServiceClient::new(connect(
            Path::new("/nonexistent/c.sock"),
        ));
        let request = crate::protocols::runtime::v1::VersionRequest::default();
        let error = caller
            .call("Version", "", None, client.version(request))
            .await
            .unwrap_err();
        assert!(error.is_unreachable(), "{error:?}");
        assert!(error.to_string().contains("is containerd running?"), "{error}");
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("No such file"),
            "{error:?}"
        );
    }
}
