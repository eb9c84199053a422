//! `/livez`, `/readyz`, `/healthz`: the process's checks, in upstream's text.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use skiff_daemon::Health;

use crate::body::Body;
use crate::query::Query;

/// The answer to a health path; `None` when the path is another, or names a check that does not exist.
pub(crate) fn answer(health: &Health, path: &str, query: &Query) -> Option<Response<Body>> {
    let path = path.trim_matches('/');
    let (endpoint, check) = match path.split_once('/') {
        Some((endpoint, check)) => (endpoint, Some(check)),
        None => (path, None),
    };
    if !matches!(endpoint, "livez" | "readyz" | "healthz") {
        return None;
    }
    let (ok, text) = match check {
        Some(check) => {
            let report = health.one(endpoint, check)?;
            (report.ok, report.text)
        }
        None => {
            let excluded: Vec<String> = query.all("exclude").map(str::to_owned).collect();
            let report = health.report(endpoint, &excluded);
            let verbose = query.get("verbose").is_some();
            (
                report.ok,
                if report.ok && !verbose {
                    "ok".to_owned()
                } else {
                    report.text
                },
            )
        }
    };
    let mut response = text_response(text.into());
    if !ok {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Some(response)
}

/// A response of plain text.
pub(crate) fn text_response(text: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
