//! The one place where errors become `metav1.Status`, and a `Status` becomes a response.
//!
//! Internal text stays here: the client learns what it can act on, the log has the chain.

use http::{HeaderValue, Response, StatusCode, header};
use skiff_api::status::Status;

use crate::body::{Body, ReadError};
use crate::cache;

/// Outcome of whatever a request asks for.
pub type Result<T> = std::result::Result<T, Status>;

impl From<cache::Error> for Status {
    fn from(error: cache::Error) -> Self {
        match error {
            cache::Error::Store(error) => store(&error),
            cache::Error::TooLarge { wanted, current } => Status::too_large_resource_version(wanted, current),
            cache::Error::TooOld { wanted, oldest } => Status::too_old_resource_version(wanted, oldest),
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooLarge => {
                Status::request_entity_too_large(format_args!("limit is {}", crate::body::REQUEST_LIMIT))
            }
            ReadError::Broken(_) => Status::bad_request("the request body ended before it was complete"),
        }
    }
}

/// A failure of the store that is no matter of the request. Conflicts are handled where they are expected.
pub fn store(error: &skiff_store::Error) -> Status {
    match error {
        skiff_store::Error::Compacted { .. } => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        skiff_store::Error::TooLarge { size, .. } => Status::request_entity_too_large(format_args!(
            "the object would have {size} bytes, limit is {}",
            skiff_store::MAX_SIZE
        )),
        skiff_store::Error::DiskFull { .. } => {
            tracing::error!(error = skiff_daemon::error_chain(error), "the store has no room");
            Status::internal(
                "no space left on the server's disk: free some; nothing stored is lost, and writes go on by themselves",
            )
        }
        other => {
            tracing::error!(error = skiff_daemon::error_chain(other), "the store failed");
            Status::internal("the store failed, see the server's log")
        }
    }
}

/// Something that cannot happen did; the log says what.
pub fn internal(step: &'static str, error: &dyn std::error::Error) -> Status {
    tracing::error!(error = skiff_daemon::error_chain(error), step, "internal error");
    Status::internal(format!("{step} failed, see the server's log"))
}

/// The response that tells a client of a failure.
pub fn response(status: &Status) -> Response<Body> {
    let body = serde_json::to_vec(&status.to_value()).unwrap_or_default();
    let mut response = Response::new(Body::from(bytes::Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = status.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if status.code == 401 {
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"kubernetes-master\""),
        );
    }
    response
}
