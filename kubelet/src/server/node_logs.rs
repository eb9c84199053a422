//! `/logs/`: the node's own log files, below the directory that holds the pods' logs (`/var/log` unless configured otherwise).

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use futures::TryStreamExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio_util::io::ReaderStream;

use super::{Body, Refusal, decode, full};

/// Names shown of one directory at most.
const NAMES: usize = 10_000;

/// Serves a file, or a directory as a list of links. `path` is what follows `/logs`, as the client wrote it.
pub(super) fn serve(root: &Path, path: &str) -> Result<Response<Body>, Refusal> {
    let wanted = decode(path);
    let wanted = wanted.trim_matches('/');
    let file = open(root, if wanted.is_empty() { "." } else { wanted }).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Refusal::not_found("404 page not found\n"),
        _ => Refusal::new(StatusCode::FORBIDDEN, "403 Forbidden\n"),
    })?;
    let metadata = file.metadata().map_err(|error| Refusal::internal(error.to_string()))?;
    if metadata.is_dir() {
        return Ok(html(list(&file).map_err(|error| Refusal::internal(error.to_string()))?));
    }
    if !metadata.is_file() {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "403 Forbidden\n"));
    }
    let chunks = ReaderStream::new(tokio::fs::File::from_std(file)).map_ok(Frame::data);
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Opens what lies beneath the directory: neither `..` nor a link leads out of it, whoever changes it meanwhile.
fn open(root: &Path, path: &str) -> io::Result<File> {
    let root = File::open(root)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH)?;
    Ok(File::from(file))
}

fn list(directory: &File) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)?.take(NAMES) {
        let entry = entry?;
        let name = entry.file_name();
        let text = String::from_utf8_lossy(name.to_bytes()).into_owned();
        let directory = entry.file_type() == rustix::fs::FileType::Directory;
        if text != "." && text != ".." {
            names.push(if directory { format!("{text}/") } else { text });
        }
    }
    names.sort();
    let lines = names.iter().map(|name| {
        let link: String = std::ffi::OsStr::new(name)
            .as_bytes()
            .iter()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(*byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        format!("<a href=\"{link}\">{}</a>\n", escaped(name))
    });
    Ok(format!("<pre>\n{}</pre>\n", lines.collect::<String>()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
}

fn html(text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_and_lists_but_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods/a b")).unwrap();
        std::fs::write(root.join("kern.log"), "text").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        let body = async |path: &str| {
            let response = serve(&root, path).map_err(|refusal| refusal.status)?;
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, StatusCode>(String::from_utf8(bytes.to_vec()).unwrap())
        };
        assert_eq!(body("/kern.log").await.unwrap(), "text");
        let list = body("/").await.unwrap();
        assert!(
            list.contains("<a href=\"kern.log\">kern.log</a>") && list.contains("<a href=\"pods/\">"),
            "{list}"
        );
        assert!(body("/pods/").await.unwrap().contains("<a href=\"a%20b/\">a b/</a>"));
        for absent in ["/absent", "/absent/below", "/kern.log/below"] {
            assert_eq!(body(absent).await, Err(StatusCode::NOT_FOUND), "{absent}");
        }
        for outside in ["/../secret", "/link", "/%2e%2e/secret", "//etc/passwd/../../secret"] {
            assert!(body(outside).await.is_err(), "{outside}");
        }
    }
}
