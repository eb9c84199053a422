//! Static pods: the manifests of a directory (`staticPodPath`), or of one file.
//!
//! The directory is watched, and read again now and then. A manifest that cannot be used keeps what its file last asked
//! for: an editor's half-written file stops nothing.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_api::decode::{self, DecodeError, FieldValidation};
use skiff_api::k8s_openapi::api::core::v1::Pod;
use skiff_api::schema::schema;
use skiff_api::{defaults, validation};
use skiff_daemon::{Shutdown, Subscription, error_chain};
use tokio::sync::mpsc;

use super::{Source, Update};
use crate::pod::{self, CONFIG_HASH, CONFIG_SOURCE};

/// A larger file is no manifest.
const LARGEST: u64 = 10 << 20;
/// How long a file that was just changed is left alone: it may be written in several steps.
const SETTLE: Duration = Duration::from_millis(20);

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("it is not valid YAML or JSON")]
    Syntax(#[source] DecodeError),
    #[error("it holds {0}, not v1 Pod; check apiVersion and kind")]
    Kind(String),
    #[error("the pod is invalid: {0}")]
    Invalid(String),
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
    #[error("the pod cannot be read")]
    Typed(#[source] serde_json::Error),
}

/// A directory of manifests, or one file.
#[derive(Debug)]
pub(crate) struct Manifests {
    pub(crate) path: PathBuf,
    pub(crate) node: String,
    /// How often it is read without a change being seen (`fileCheckFrequency`).
    pub(crate) period: Duration,
}

/// What the files ask for, and what was last said of those that are wrong.
#[derive(Debug, Default)]
struct Known {
    pods: BTreeMap<PathBuf, Arc<Pod>>,
    complaints: BTreeMap<PathBuf, String>,
}

impl Manifests {
    /// Sends all pods of the directory whenever they change, until shutdown.
    pub(crate) async fn run(self, updates: mpsc::Sender<Update>, shutdown: Shutdown) {
        let mut known = Known::default();
        let mut told = false;
        loop {
            // Watch first, so that nothing falls between reading and watching.
            let directory = if self.path.is_file() { self.path.parent() } else { None };
            let mut changes = Subscription::of(directory.unwrap_or(&self.path)).ok();
            if self.read_into(&mut known) || !told {
                told = true;
                let pods = known.pods.values().cloned().collect();
                if updates.send(Update::All(Source::Manifests, pods)).await.is_err() {
                    return;
                }
            }
            let changed = async {
                match &mut changes {
                    Some(changes) => changes.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = changed => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(self.period) => {}
            }
        }
    }

    /// Reads all files; true when what they ask for has changed.
    fn read_into(&self, known: &mut Known) -> bool {
        let files = match files(&self.path) {
            Ok(files) => files,
            Err(error) => {
                complain(known, &self.path, format!("cannot read the manifests: {error}"));
                return false;
            }
        };
        let before: Vec<String> = known.pods.values().map(|pod| pod::uid(pod).to_owned()).collect();
        known.pods.retain(|path, _| files.contains(path));
        known
            .complaints
            .retain(|path, _| files.contains(path) || *path == self.path);
        for path in &files {
            match read(path, &self.node) {
                Ok(pod) => {
                    known.complaints.remove(path);
                    let same = known.pods.get(path).is_some_and(|old| pod::uid(old) == pod::uid(&pod));
                    if !same {
                        known.pods.insert(path.clone(), Arc::new(pod));
                    }
                }
                Err(error) => complain(known, path, error_chain(&error)),
            }
        }
        known.complaints.remove(&self.path);
        !known
            .pods
            .values()
            .map(|pod| pod::uid(pod))
            .eq(before.iter().map(String::as_str))
    }
}

/// Says once what is wrong with a file.
fn complain(known: &mut Known, path: &Path, why: String) {
    if known.complaints.get(path) != Some(&why) {
        tracing::error!(
            path = %path.display(),
            why,
            "cannot use a static pod's manifest; what its file asked for before goes on"
        );
        known.complaints.insert(path.to_owned(), why);
    }
}

/// The manifests: all plain files whose names do not begin with a dot. A directory that is not there holds none.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(vec![path.to_owned()]),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, node: &str) -> Result<Pod, Error> {
    let file = std::fs::File::open(path).map_err(Error::Read)?;
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(Error::Read)?;
    if text.len() as u64 > LARGEST {
        return Err(Error::TooLarge);
    }
    pod_of(&text, path, node)
}

/// The pod of a manifest, as the API server would have made it: defaulted, validated, bound to this node.
fn pod_of(text: &[u8], path: &Path, node: &str) -> Result<Pod, Error> {
    let raw = decode::parse_yaml(text).map_err(Error::Syntax)?;
    let word = |key: &str| raw[key].as_str().unwrap_or_default().to_owned();
    let found = format!("{} {}", word("apiVersion"), word("kind"));
    let kind = schema().kind("", "v1", "Pod").filter(|_| found == "v1 Pod");
    let Some(kind) = kind else {
        return Err(Error::Kind(found));
    };
    let uid = uid(&raw, path, node);
    let mut pod = decode::conform(raw, kind, FieldValidation::Ignore)
        .map_err(Error::Syntax)?
        .value;
    if let Some(fields) = pod.as_object_mut() {
        fields.remove("status");
    }
    complete(&mut pod, &uid, node);
    defaults::apply("", "v1", "Pod", &mut pod);
    let mistakes = validation::validate_create("", "v1", "Pod", &pod);
    if !mistakes.is_empty() {
        let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        return Err(Error::Invalid(texts.join(", ")));
    }
    if let Some(what) = api_reference(&pod["spec"]) {
        return Err(Error::Reference(what));
    }
    serde_json::from_value(pod).map_err(Error::Typed)
}

/// Two manifests are the same pod when they say the same, in the same file, on the same node. It must never change between
/// versions of skiff: an upgrade would end every static pod and start another.
fn uid(raw: &Value, path: &Path, node: &str) -> String {
    let mut hash = Sha256::new();
    for part in [node.as_bytes(), path.as_os_str().as_encoded_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    canonical(raw, &mut hash);
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A JSON value in one form, whatever the order of its keys was.
fn canonical(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<_> = fields.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in keys {
                hash.update(key.as_bytes());
                hash.update([0]);
                canonical(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            items.iter().for_each(|item| canonical(item, hash));
            hash.update(b"]");
        }
        scalar => {
            hash.update(scalar.to_string());
            hash.update([0]);
        }
    }
}

/// What a static pod has that its manifest does not say.
fn complete(pod: &mut Value, uid: &str, node: &str) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let metadata = &mut pod["metadata"];
    metadata["uid"] = uid.into();
    metadata["name"] = format!("{name}-{node}").into();
    if metadata["namespace"].as_str().unwrap_or_default().is_empty() {
        metadata["namespace"] = "default".into();
    }
    metadata["annotations"][CONFIG_HASH] = uid.into();
    metadata["annotations"][CONFIG_SOURCE] = "file".into();
    let spec = &mut pod["spec"];
    spec["nodeName"] = node.into();
    // A node's own pods are not driven off it.
    let everything = json!({"operator": "Exists", "effect": "NoExecute"});
    match spec["tolerations"].as_array_mut() {
        Some(list) if list.contains(&everything) => {}
        Some(list) => list.push(everything),
        None => spec["tolerations"] = json!([everything]),
    }
}

/// An object of the API that the pod needs: a static pod may need none, since it runs without an API server.
fn api_reference(spec: &Value) -> Option<&'static str> {
    let has = |value: &Value, key: &str| !value[key].is_null();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    if !list(spec, "imagePullSecrets").is_empty() {
        return Some("secrets");
    }
    if !list(spec, "resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    let mut sources = list(spec, "volumes");
    let projected: Vec<_> = sources.iter().flat_map(|v| list(&v["projected"], "sources")).collect();
    sources.extend(projected);
    let kinds = [
        ("configMap", "configmaps"),
        ("secret", "secrets"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims"),
        ("serviceAccountToken", "serviceaccounts"),
        ("clusterTrustBundle", "clustertrustbundles"),
    ];
    for source in &sources {
        if let Some((_, what)) = kinds.iter().find(|(key, _)| has(source, key)) {
            return Some(what);
        }
    }
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    for container in lists.iter().flat_map(|key| list(spec, key)) {
        let from: Vec<_> = list(&container, "envFrom")
            .into_iter()
            .chain(list(&container, "env").into_iter().map(|env| env["valueFrom"].clone()))
            .collect();
        for source in from {
            if has(&source, "configMapRef") || has(&source, "configMapKeyRef") {
                return Some("configmaps");
            }
            if has(&source, "secretRef") || has(&source, "secretKeyRef") {
                return Some("secrets");
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: nginx\n";

    fn parse(text: &str) -> Result<Pod, Error> {
        pod_of(text.as_bytes(), Path::new("/m/web.yaml"), "node-1")
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let p = parse(MANIFEST).unwrap();
        assert_eq!((pod::name(&p), pod::namespace(&p)), ("web-node-1", "default"));
        assert_eq!(pod::spec(&p).node_name.as_deref(), Some("node-1"));
        assert_eq!(pod::restart_policy(&p), "Always", "defaults are filled in");
        assert_eq!(
            pod::spec(&p).tolerations.as_ref().unwrap()[0].effect.as_deref(),
            Some("NoExecute")
        );
        assert_eq!(pod::annotation(&p, CONFIG_HASH), Some(pod::uid(&p)));
    }

    /// Golden: a change here ends every static pod at the next upgrade.
    #[test]
    fn the_uid_follows_from_what_the_manifest_says() {
        let first = pod::uid(&parse(MANIFEST).unwrap()).to_owned();
        assert_eq!(first, "3b3e88abaf4f27e9d313c1b24659c6e6");
        let json = r#"{"kind":"Pod","spec":{"containers":[{"image":"nginx","name":"c"}]},"metadata":{"name":"web"},"apiVersion":"v1"}"#;
        assert_eq!(pod::uid(&parse(json).unwrap()), first, "neither form nor order matter");
        assert_ne!(pod::uid(&parse(&MANIFEST.replace("nginx", "nginx:2")).unwrap()), first);
    }

    #[test]
    fn what_the_api_would_refuse_is_refused() {
        let with = |more: &str| format!("{MANIFEST}{more}");
        let cases = [
            ("a: [".to_owned(), "not valid YAML"),
            ("apiVersion: v1\nkind: Service\n".to_owned(), "v1 Service"),
            (MANIFEST.replace("name: c", "name: C_c"), "spec.containers[0].name"),
            (MANIFEST.replace("    image: nginx\n", ""), "spec.containers[0].image"),
            (with("  serviceAccountName: x\n"), "serviceaccounts"),
            (
                with("  volumes:\n  - name: v\n    configMap: {name: m}\n"),
                "configmaps",
            ),
            (with("    envFrom:\n    - secretRef: {name: s}\n"), "secrets"),
        ];
        for (text, wanted) in cases {
            let error = parse(&text).expect_err(&text);
            let why = error_chain(&error);
            assert!(why.contains(wanted), "{wanted}: {why}");
        }
    }

    #[test]
    fn a_broken_file_keeps_its_pod_and_a_removed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let manifests = Manifests {
            path: dir.path().to_owned(),
            node: "n".into(),
            period: Duration::from_secs(20),
        };
        let mut known = Known::default();
        let file = dir.path().join("web.yaml");
        std::fs::write(&file, MANIFEST).unwrap();
        std::fs::write(dir.path().join(".web.yaml.swp"), "x").unwrap();
        assert!(manifests.read_into(&mut known));
        assert!(!manifests.read_into(&mut known), "nothing new");
        std::fs::write(&file, "apiVersion: v1\nkind: Po").unwrap();
        assert!(!manifests.read_into(&mut known));
        assert_eq!((known.pods.len(), known.complaints.len()), (1, 1));
        std::fs::write(&file, MANIFEST.replace("nginx", "other")).unwrap();
        assert!(manifests.read_into(&mut known));
        assert!(known.complaints.is_empty());
        std::fs::remove_file(&file).unwrap();
        assert!(manifests.read_into(&mut known));
        assert!(known.pods.is_empty());
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(!manifests.read_into(&mut known), "no directory, no pods");
    }
}
