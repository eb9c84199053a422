//! Which credentials are for an image: those of the pod's pull secrets, then those of the node.

use std::path::{Path, PathBuf};

use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use serde_json::Value;
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_cri::PullAuth;

use crate::objects::{Kind, Objects};
use crate::pod;

/// A secret's key with a Docker configuration of today.
const NEW: &str = ".dockerconfigjson";
/// And with one of Docker's first years; a node's file has the same name.
const OLD: &str = ".dockercfg";

/// The credentials of the pod's pull secrets that are for the image, the most specific first, and the names of secrets that cannot be
/// had.
pub(super) async fn of_pod(pod: &Pod, image: &str, objects: &Objects) -> (Vec<PullAuth>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let secrets = pod::spec(pod).image_pull_secrets.iter().flatten();
    // The API lets in references without a name.
    for secret in secrets.filter(|secret| !secret.name.is_empty()) {
        let Ok(Some(object)) = objects.get(pod, Kind::Secret, &secret.name).await else {
            missing.push(secret.name.clone());
            continue;
        };
        for form in [NEW, OLD] {
            if let Some(config) = object.data.get(form).and_then(|bytes| config(bytes)) {
                found.extend(from_docker_config(&config, image, form));
            }
        }
    }
    (in_order(found), missing)
}

/// The node's own credentials that are for the image: they are tried after the pod's. Read by need, so that a file that is replaced
/// counts from the next pull on.
pub(super) fn of_node(root: &Path, image: &str) -> Vec<PullAuth> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let files = places(root, home.as_deref());
    let read = files
        .iter()
        .find_map(|(file, form)| config(&std::fs::read(file).ok()?).map(|read| (read, *form)));
    in_order(
        read.map(|(config, form)| from_docker_config(&config, image, form))
            .unwrap_or_default(),
    )
}

/// Where a node's credentials may be, in upstream's order: the first file that can be used is the only one.
fn places(root: &Path, home: Option<&Path>) -> Vec<(PathBuf, &'static str)> {
    let here = Path::new("");
    let docker = [home.map(|home| home.join(".docker")), Some("/.docker".into())];
    let new = [root.to_owned(), here.to_owned()]
        .into_iter()
        .chain(docker.into_iter().flatten());
    let new = new.map(|dir| (dir.join("config.json"), NEW));
    let old = [Some(root), Some(here), home, Some(Path::new("/"))];
    let old = old.into_iter().flatten().map(|dir| (dir.join(OLD), OLD));
    new.chain(old).collect()
}

/// The most specific first. Stable: of two for the same place, the earlier secret's is tried first.
fn in_order(mut found: Vec<(String, PullAuth)>) -> Vec<PullAuth> {
    found.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// The host that an image is pulled from, and its path there.
fn location(image: &str) -> (&str, String) {
    match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => ("docker.io", image.to_owned()),
        None => ("docker.io", format!("library/{image}")),
    }
}

/// Whether credentials for `place` (`host[:port][/path]`, parts of the host may have `*`) are for the image.
fn is_for(place: &str, image: &str) -> bool {
    let (host, path) = location(image);
    let (place_host, place_path) = place.split_once('/').unwrap_or((place, ""));
    let place_path = place_path.trim_end_matches('/');
    if place_host == "index.docker.io" {
        // Docker's own name for its registry, with an old version of the API as the path.
        return host == "docker.io";
    }
    let same_path = matches!(place_path, "" | "v1" | "v2")
        || path
            .strip_prefix(place_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    let (place_parts, parts): (Vec<_>, Vec<_>) = (place_host.split('.').collect(), host.split('.').collect());
    same_path
        && place_parts.len() == parts.len()
        && place_parts
            .iter()
            .zip(&parts)
            .all(|(pattern, part)| glob(pattern, part))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| glob(after, &rest[at..]))
        }),
    }
}

/// A Docker configuration; `None` when it is none.
fn config(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok().filter(Value::is_object)
}

/// Places and credentials of a Docker configuration that are for the image.
fn from_docker_config(config: &Value, image: &str, form: &str) -> Vec<(String, PullAuth)> {
    let auths = if form == NEW { &config["auths"] } else { config };
    let mut found = Vec::new();
    for (server, entry) in auths.as_object().into_iter().flatten() {
        let place = server.trim_start_matches("https://").trim_start_matches("http://");
        if is_for(place, image)
            && let Some(auth) = credential(entry)
        {
            found.push((place.to_owned(), auth));
        }
    }
    found
}

/// Without the server's address, as upstream sends them: containerd would not show them to a mirror that `hosts.toml` names.
fn credential(entry: &Value) -> Option<PullAuth> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let mut auth = PullAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..PullAuth::default()
    };
    let has_token = !auth.identity_token.is_empty() || !auth.registry_token.is_empty();
    match text("auth").as_str() {
        "" => return (has_token || !auth.username.is_empty()).then_some(auth),
        both => match user_and_password(both) {
            // It wins over the two fields.
            Some(pair) => (auth.username, auth.password) = pair,
            None if has_token => {}
            None => return None,
        },
    }
    Some(auth)
}

/// Base64 of `user:password`, with padding or without, in one line or several.
fn user_and_password(auth: &str) -> Option<(String, String)> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let decoded = LENIENT.decode(auth.replace(['\r', '\n'], "")).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.into(), password.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_secrets() {
        let auth = base64::engine::general_purpose::STANDARD.encode("user:pass:word");
        let config = format!(
            r#"{{"auths": {{"https://registry.test:5000/v2/": {{"auth": "{auth}"}}, "other": {{"auth": "x"}}}}}}"#
        );
        let read = |image: &str| from_docker_config(&super::config(config.as_bytes()).unwrap(), image, NEW);
        let found = read("registry.test:5000/a:1");
        let [(_, found)] = found.as_slice() else {
            panic!("one credential, not {}", found.len())
        };
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("user", "pass:word")
        );
        assert!(read("docker.io/a").is_empty());
        assert_eq!(super::config(b"no JSON"), None);
    }

    #[test]
    fn what_an_entry_says() {
        let cases = [
            (json!({"auth": "dXNlcjpwYXNz"}), Some("user:pass")),
            (json!({"auth": "dXNlcjpwYXNzdw=="}), Some("user:passw")),
            (json!({"auth": "dXNlcjpwYXNzdw"}), Some("user:passw")),
            (json!({"auth": "dXNlcjpw\r\nYXNzdw==\n"}), Some("user:passw")),
            (
                json!({"auth": "dXNlcjpwYXNz", "username": "other", "password": "x"}),
                Some("user:pass"),
            ),
            (json!({"auth": "no base64", "username": "other", "password": "x"}), None),
            (json!({"auth": "dXNlcg=="}), None),
            (json!({"username": "other", "password": "x"}), Some("other:x")),
            (json!({"auth": "MDAwOg==", "identitytoken": "t"}), Some("000:")),
            (json!({"identitytoken": "t"}), Some(":")),
            (json!({"email": "e"}), None),
        ];
        for (entry, wanted) in cases {
            let found = credential(&entry).map(|auth| format!("{}:{}", auth.username, auth.password));
            assert_eq!(found.as_deref(), wanted, "{entry}");
        }
    }

    #[test]
    fn a_nodes_credentials_are_those_of_the_first_file_that_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, config: Value| std::fs::write(dir.path().join(file), config.to_string()).unwrap();
        let entry = |user: &str| json!({"registry.test": {"username": user, "password": "x"}});
        let found = |image: &str| {
            let users = of_node(dir.path(), image).into_iter().map(|auth| auth.username);
            users.collect::<Vec<_>>()
        };
        write(OLD, entry("old"));
        std::fs::write(dir.path().join("config.json"), "half written").unwrap();
        assert_eq!(found("registry.test/a:1"), ["old"]);
        write("config.json", json!({"auths": entry("new")}));
        assert_eq!(found("registry.test/a:1"), ["new"]);
        assert_eq!(found("other.test/a:1"), [""; 0]);
        let places = places(Path::new("/k"), Some(Path::new("/home/u")));
        let places: Vec<_> = places.iter().map(|(file, _)| file.to_str().unwrap()).collect();
        let wanted = [
            "/k/config.json",
            "config.json",
            "/home/u/.docker/config.json",
            "/.docker/config.json",
            "/k/.dockercfg",
            ".dockercfg",
            "/home/u/.dockercfg",
            "/.dockercfg",
        ];
        assert_eq!(places, wanted);
    }

    #[test]
    fn what_credentials_are_for() {
        let cases = [
            ("registry.test", "registry.test/a/b:1", true),
            ("registry.test", "registry.test:5000/a", false),
            ("registry.test/a", "registry.test/a/b:1", true),
            ("registry.test/a", "registry.test/ab:1", false),
            ("registry.test/a/b", "registry.test/a/b@sha256:0", true),
            ("*.registry.test", "x.registry.test/a", true),
            ("*.registry.test", "x.y.registry.test/a", false),
            ("re*y.test:5*", "registry.test:5000/a", true),
            ("index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox:1", true),
            ("docker.io/other", "busybox", false),
        ];
        for (place, image, wanted) in cases {
            assert_eq!(is_for(place, image), wanted, "{place} for {image}");
        }
    }
}
