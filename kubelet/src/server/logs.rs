//! `/containerLogs`: what `kubectl logs` shows.

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use skiff_cri::logs::{Options, Source, read};

use super::{Body, Query, Refusal, flag};
use crate::observed::{Container, State};
use crate::pod;
use crate::pods::Entry;

/// Streams a container's log.
pub(super) fn serve(entry: &Entry, name: &str, query: &Query) -> Result<Response<Body>, Refusal> {
    let options = options(query)?;
    let previous = flag(query, &["previous"]);
    let container = choose(entry, name, previous)?;
    let (path, id) = (PathBuf::from(&container.log_path), container.id.clone());
    let running = entry.observed.has_ended(&id) == Some(false);
    let mut view = entry.view.clone();
    let ended = async move {
        if !running {
            return;
        }
        // The runtime records an end when it has read all that the container wrote; then, or when the record is gone.
        let over = view.wait_for(|observed| observed.has_ended(&id).unwrap_or(true));
        over.await.ok();
        // The runtime may still be writing the last lines.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let chunks = read(path, options, ended).map(|chunk| chunk.map(Frame::data));
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    let kind = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The run of the container whose log is wanted.
fn choose<'a>(entry: &'a Entry, name: &str, previous: bool) -> Result<&'a Container, Refusal> {
    let pod_name = pod::name(&entry.pod);
    if pod::container(&entry.pod, name).is_none() {
        let text = format!("container {name} is not valid for pod {pod_name}");
        return Err(Refusal::bad_request(text));
    }
    let latest = entry.observed.latest(name);
    if previous {
        // A container that waits for its next start has its last run as the newest.
        let waits = waiting(entry, name).is_some();
        let ended = match latest {
            Some(latest) if waits && latest.exit().is_some() => Some(latest),
            _ => entry.observed.previous(name),
        };
        let text = || format!("previous terminated container {name:?} in pod {pod_name:?} not found");
        return ended.ok_or_else(|| Refusal::bad_request(text()));
    }
    match latest {
        Some(latest) if latest.state != State::Created => Ok(latest),
        _ => {
            let reason = waiting(entry, name).unwrap_or_else(|| "ContainerCreating".into());
            let failing = matches!(
                reason.as_str(),
                "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
            );
            let text = if failing {
                format!("container {name:?} in pod {pod_name:?} is waiting to start: trying and failing to pull image")
            } else {
                format!("container {name:?} in pod {pod_name:?} is waiting to start: {reason}")
            };
            Err(Refusal::bad_request(text))
        }
    }
}

/// Why the API says that the container waits.
fn waiting(entry: &Entry, name: &str) -> Option<String> {
    let status = pod::status(&entry.pod);
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let found = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == name)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

fn options(query: &Query) -> Result<Options, Refusal> {
    let text = |key: &str| {
        query
            .get(key)
            .and_then(|values| values.first())
            .filter(|value| !value.is_empty())
    };
    let number = |key: &str| {
        text(key)
            .map(|value| {
                let invalid = || Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("invalid {key}: {value:?}"));
                value.parse::<u64>().map_err(|_| invalid())
            })
            .transpose()
    };
    let since = match (number("sinceSeconds")?, text("sinceTime")) {
        (Some(_), Some(_)) => {
            let text = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
        (Some(seconds), None) => {
            let back = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Some(Timestamp::now().checked_sub(back).unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => Some(
            time.parse::<Timestamp>()
                .map_err(|_| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("invalid sinceTime: {time:?}")))?,
        ),
        (None, None) => None,
    };
    Ok(Options {
        follow: flag(query, &["follow"]),
        tail: number("tailLines")?,
        since,
        timestamps: flag(query, &["timestamps"]),
        limit_bytes: number("limitBytes")?,
        source: match text("stream").map(String::as_str) {
            Some("Stdout") => Some(Source::Stdout),
            Some("Stderr") => Some(Source::Stderr),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::query;
    use super::*;

    #[test]
    fn options_of_a_query() {
        let options = options(&query(
            "follow=true&tailLines=5&limitBytes=10&timestamps=1&sinceTime=2026-01-01T00:00:00Z",
        ))
        .unwrap();
        assert!(options.follow && options.timestamps);
        assert_eq!((options.tail, options.limit_bytes), (Some(5), Some(10)));
        assert_eq!(options.since.unwrap().to_string(), "2026-01-01T00:00:00Z");
        for bad in [
            "tailLines=x",
            "sinceTime=x",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "tailLines=-1",
        ] {
            assert!(super::options(&query(bad)).is_err(), "{bad}");
        }
    }
}
