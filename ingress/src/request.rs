//! What a request asks for: its host and path as routes know them; and refusals of what could mean two things.

use std::str::FromStr as _;

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode, Version};

/// Where a request wants to go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    /// In small letters, without port; empty when the request (HTTP/1.0) names none.
    pub(crate) host: String,
    /// As it came, with its port.
    pub(crate) authority: String,
}

/// A request that is not sent on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("400 Bad Request: exactly one valid Host is needed")]
    Host,
    #[error("400 Bad Request: the path must be absolute and without dot segments")]
    Path,
    #[error("404 Not Found: default backend")]
    NoRoute,
    #[error("405 Method Not Allowed: CONNECT is not served")]
    Method,
    #[error("408 Request Timeout: the body did not come in time")]
    SlowBody,
    #[error("413 Content Too Large")]
    LargeBody,
    #[error("431 Request Header Fields Too Large")]
    Headers,
    #[error("502 Bad Gateway: the endpoint did not answer as it should")]
    BadGateway,
    #[error("503 Service Unavailable: no endpoint is ready")]
    NoEndpoint,
    #[error("503 Service Unavailable: routes are not known yet")]
    NotSynced,
    #[error("504 Gateway Timeout: the endpoint did not answer in time")]
    Timeout,
}

impl Refusal {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Path => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::LargeBody => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Headers => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::NoEndpoint | Self::NotSynced => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Reads where a request wants to go.
pub(crate) fn read(parts: &Parts) -> Result<Asked, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::Method);
    }
    let authority = authority(parts)?;
    let path = parts.uri.path();
    let absolute = path.starts_with('/') || (path == "*" && parts.method == Method::OPTIONS);
    if !absolute || has_dot_segments(path) {
        return Err(Refusal::Path);
    }
    let host = match &authority {
        Some(authority) => authority.host().trim_end_matches('.').to_ascii_lowercase(),
        None => String::new(),
    };
    Ok(Asked {
        host,
        authority: authority.map(|authority| authority.to_string()).unwrap_or_default(),
    })
}

/// The target's own authority goes before the header, and must agree with it where HTTP/2 has both.
fn authority(parts: &Parts) -> Result<Option<Authority>, Refusal> {
    let mut headers = parts.headers.get_all(HOST).iter();
    let header = match (headers.next(), headers.next()) {
        (None, _) => None,
        (Some(value), None) if !value.is_empty() => {
            let text = value.to_str().map_err(|_| Refusal::Host)?;
            Some(Authority::from_str(text).map_err(|_| Refusal::Host)?)
        }
        _ => return Err(Refusal::Host),
    };
    let target = parts.uri.authority().cloned();
    if let (Some(target), Some(header)) = (&target, &header)
        && parts.version >= Version::HTTP_2
        && target != header
    {
        return Err(Refusal::Host);
    }
    let found = match parts.version {
        Version::HTTP_11 if header.is_none() => return Err(Refusal::Host),
        _ => target.or(header),
    };
    match found {
        Some(found) if found.as_str().contains('@') || found.host().is_empty() => Err(Refusal::Host),
        None if parts.version > Version::HTTP_10 => Err(Refusal::Host),
        found => Ok(found),
    }
}

/// Whether an endpoint could take the path for another one than the route was chosen by. Clients resolve such segments
/// themselves (RFC 3986 section 5.2.4).
fn has_dot_segments(path: &str) -> bool {
    path.split(['/', '\\']).any(|segment| {
        // Some servers cut off what follows a semicolon.
        let name = segment.split(';').next().unwrap_or_default();
        if name.len() > "%2e%2e".len() {
            return false;
        }
        let plain = name.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn ask(version: Version, method: &str, uri: &str, hosts: &[&str]) -> Result<(String, String), Refusal> {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        read(&parts).map(|asked| (asked.host, asked.authority))
    }

    #[test]
    fn hosts() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let is = |host: &str, authority: &str| Ok((host.to_owned(), authority.to_owned()));
        for (version, uri, hosts, wanted) in [
            (one, "/", &["A.Test:80"][..], is("a.test", "A.Test:80")),
            (one, "/", &["a.test."], is("a.test", "a.test.")),
            (one, "/", &["[::1]:80"], is("[::1]", "[::1]:80")),
            (one, "/", &[], Err(Refusal::Host)),
            (one, "/", &[""], Err(Refusal::Host)),
            (one, "/", &["a.test", "b.test"], Err(Refusal::Host)),
            (one, "/", &["a.test", "a.test"], Err(Refusal::Host)),
            (one, "/", &["a test"], Err(Refusal::Host)),
            (one, "/", &["user@a.test"], Err(Refusal::Host)),
            (one, "http://b.test/", &["a.test"], is("b.test", "b.test")),
            (Version::HTTP_10, "/", &[], is("", "")),
            (two, "http://a.test/", &[], is("a.test", "a.test")),
            (two, "http://a.test/", &["a.test"], is("a.test", "a.test")),
            (two, "http://a.test/", &["b.test"], Err(Refusal::Host)),
            (two, "/", &[], Err(Refusal::Host)),
        ] {
            assert_eq!(ask(version, "GET", uri, hosts), wanted, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn paths_that_could_mean_two_things_are_refused() {
        for (path, fine) in [
            ("/", true),
            ("/a//b", true),
            ("/a.b/..c/...", true),
            ("/a/../b", false),
            ("/a/.", false),
            ("/a/%2e%2E/b", false),
            ("/a/.%2e", false),
            ("/a/..;x=1/b", false),
        ] {
            let result = ask(Version::HTTP_11, "GET", path, &["a.test"]);
            assert_eq!(result.is_ok(), fine, "{path}");
        }
        assert!(ask(Version::HTTP_11, "OPTIONS", "*", &["a.test"]).is_ok());
        assert_eq!(ask(Version::HTTP_11, "GET", "*", &["a.test"]), Err(Refusal::Path));
        assert_eq!(
            ask(Version::HTTP_11, "CONNECT", "a.test:1", &["a.test:1"]),
            Err(Refusal::Method)
        );
    }
}
