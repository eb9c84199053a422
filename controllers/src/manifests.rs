//! Applies the manifests of a directory of the server's machine, and removes the objects that no longer stand in them.
//!
//! Every server keeps its own directory, leader or not: what lies on a machine counts while that machine's server runs. What belongs to
//! a directory is one ApplySet (KEP-3659): each object carries the set's label, and a ConfigMap of `kube-system` names the kinds that
//! the set holds, so that nothing is forgotten whatever the process was doing when it died. An object of another set is left to it, and
//! so is what only has the label because a controller copied it.
//!
//! Level-triggered: inotify only wakes; each time all files are read, all objects compared, and what differs is written. A file that
//! cannot be used keeps what it asked for last.

mod apply_set;
mod files;
mod merge;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_daemon::{Shutdown, Subscription, error_chain};
use tokio::time::sleep;

use crate::discovery::{self, Discovered, Kind};
use crate::events::{Broadcaster, Recorder, Regarding};
use apply_set::{ApplySet, GroupKind, PART_OF};
use files::{File, Manifest};
use requests::{Error, Requests};

/// On each object: the file that it stands in.
const FILE: &str = "config.skiff/file";
/// How long a directory is left alone after a change: a file may be written in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// An object is removed when it is still missing after this long: its file may be on its way to another name.
const MISSING: Duration = Duration::from_secs(1);
/// All is looked at again after this long: what people changed by hand, or deleted, is as the files say again.
const AGAIN: Duration = Duration::from_secs(10 * 60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A directory whose manifests are applied.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// Where they lie; made where it is missing.
    pub directory: PathBuf,
    /// Whose they are: the address under which this server is known to the others.
    pub server: IpAddr,
}

/// Group, kind, namespace and name.
type Id = (GroupKind, String, String);

/// An object that a file asks for.
struct Wanted {
    file: String,
    kind: Arc<Kind>,
    object: Value,
}

/// What all files ask for together.
#[derive(Default)]
struct Desired {
    objects: BTreeMap<Id, Wanted>,
    /// Named by some file, whether or not it can be applied: nothing of these is removed.
    named: BTreeSet<Id>,
    /// Files that could not be read: what they asked for before stays.
    unusable: BTreeSet<String>,
    troubles: Troubles,
}

/// What is wrong with each file.
type Troubles = BTreeMap<String, Vec<String>>;

/// How a look at the directory ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All is as the files say.
    Done,
    /// Something is not, and may be later.
    Unfinished,
    /// The files have changed meanwhile.
    Changed,
}

/// What became of an object.
enum Applied {
    /// It is as its file says.
    Done,
    /// Another server's files say the same, and have it; it is ours when they no longer do.
    Elsewhere,
}

struct Keeper {
    directory: PathBuf,
    set: ApplySet,
    requests: Requests,
    recorder: Recorder,
    /// What was told last of each file, and of which content.
    told: BTreeMap<String, (u64, Vec<String>)>,
}

impl Manifests {
    /// Applies what lies there, as `client`, until shutdown.
    pub async fn run(self, client: Client, shutdown: Shutdown) {
        let broadcaster = Broadcaster::new();
        let mut keeper = Keeper {
            directory: self.directory,
            set: ApplySet::of(self.server),
            requests: Requests::new(client.clone()),
            recorder: broadcaster.recorder("manifests"),
            told: BTreeMap::new(),
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = keeper.keep() => {}
            () = broadcaster.run(client, shutdown.clone()) => {}
        }
    }
}

/// How long to wait after so many looks that left something to do.
fn pause(unfinished: u32) -> Duration {
    match unfinished.checked_sub(1) {
        None => AGAIN,
        Some(before) => FIRST_PAUSE.saturating_mul(1 << before.min(16)).min(LAST_PAUSE),
    }
}

// === impl Keeper ===

impl Keeper {
    async fn keep(&mut self) {
        let mut unfinished = 0;
        loop {
            if let Err(error) = files::make(&self.directory) {
                tracing::warn!(directory = %self.directory.display(), %error, "cannot make the directory of manifests");
            }
            // Watch first, so that nothing falls between reading and watching.
            let mut changes = Subscription::of(&self.directory).ok();
            let outcome = match self.sync().await {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::warn!(
                        directory = %self.directory.display(),
                        error = error_chain(&error),
                        "cannot apply manifests; trying again"
                    );
                    Outcome::Unfinished
                }
            };
            unfinished = match outcome {
                Outcome::Done => 0,
                Outcome::Unfinished => unfinished + 1,
                Outcome::Changed => continue,
            };
            let longest = if changes.is_some() { AGAIN } else { LAST_PAUSE };
            tokio::select! {
                () = settled(&mut changes) => unfinished = 0,
                () = sleep(pause(unfinished).min(longest)) => {}
            }
        }
    }

    /// One look: what the files say, what is there, and the difference written.
    async fn sync(&mut self) -> Result<Outcome, Error> {
        let files = match files::read(&self.directory).await {
            Ok(files) => files,
            Err(error) => {
                // Nothing is known of what the files say: nothing is removed.
                let name = self.directory.display().to_string();
                self.tell(None, &name, 0, vec![error_chain(&error)]);
                return Ok(Outcome::Unfinished);
            }
        };
        let parent = self.requests.get(&self.set.path()).await?;
        if files.is_empty() && parent.is_none() {
            return Ok(Outcome::Done);
        }
        let served = discovery::discover(self.requests.client())
            .await
            .map_err(Error::discover)?;
        let mut desired = desired(&files, &served);
        // Before anything is made of these kinds: whoever comes after us knows where to look.
        let held = parent.as_ref().map(apply_set::kinds).unwrap_or_default();
        let kinds: BTreeSet<GroupKind> = desired.named.iter().map(|(kind, ..)| kind.clone()).collect();
        let namespaces = || {
            desired
                .named
                .iter()
                .map(|(_, namespace, _)| namespace.as_str())
                .collect()
        };
        let all = held.union(&kinds).cloned().collect();
        let parent = self.write_set(parent, &all, namespaces()).await?;

        let mut troubles = std::mem::take(&mut desired.troubles);
        let all_there = self.apply_all(&desired, &mut troubles).await;
        let mut finished = all_there && troubles.is_empty();

        let superfluous = self.superfluous(&all, &served, &desired).await?;
        if !superfluous.is_empty() {
            sleep(MISSING).await;
            if files::read(&self.directory).await.ok().as_ref() != Some(&files) {
                return Ok(Outcome::Changed);
            }
        }
        for (kind, object) in &superfluous {
            finished &= self.remove(kind, object, &parent).await;
        }
        // What could not be looked at stays in the list, and kinds of what stays because its file cannot be read.
        let unseen = all.iter().filter(|kind| kind.is_stale(&served));
        let keep = !desired.unusable.is_empty() || !finished;
        let kinds: BTreeSet<GroupKind> = kinds.iter().chain(unseen).cloned().collect();
        if !keep && kinds.is_empty() {
            self.requests.delete(&self.set.path(), &parent).await?;
        } else if !keep && kinds != all {
            self.write_set(Some(parent.clone()), &kinds, namespaces()).await?;
        }
        self.told.retain(|name, _| files.iter().any(|file| file.name == *name));
        for file in &files {
            let troubles = troubles.remove(&file.name).unwrap_or_default();
            self.tell(Some(&parent), &file.name, file.digest, troubles);
        }
        Ok(if finished { Outcome::Done } else { Outcome::Unfinished })
    }

    /// Makes all objects what their files say, and notes why one cannot be; whether none has to wait for somebody else.
    async fn apply_all(&self, desired: &Desired, troubles: &mut Troubles) -> bool {
        let mut all_there = true;
        // Namespaces and definitions first: others need them.
        let mut ordered: Vec<(&Id, &Wanted)> = desired.objects.iter().collect();
        ordered.sort_by_key(|((kind, ..), _)| !kind.is_needed_by_others());
        for ((kind, namespace, name), wanted) in ordered {
            let why = match self.apply(wanted).await {
                Ok(Applied::Done) => continue,
                Ok(Applied::Elsewhere) => {
                    all_there = false;
                    continue;
                }
                Err(why) => why,
            };
            let place = if namespace.is_empty() {
                String::new()
            } else {
                format!("{namespace}/")
            };
            let told = troubles.entry(wanted.file.clone()).or_default();
            told.push(format!("{} {place}{name}: {why}", kind.kind));
        }
        all_there
    }

    /// Makes an object what its file says; the error is for people.
    async fn apply(&self, wanted: &Wanted) -> Result<Applied, String> {
        let Wanted { file, kind, object } = wanted;
        let mut object = object.clone();
        merge::label(&mut object, PART_OF, self.set.id());
        merge::annotate(&mut object, FILE, file);
        let collection = kind.path(meta::namespace(&object));
        let path = format!("{collection}/{}", meta::name(&object));
        let live = self.requests.get(&path).await.map_err(|error| error.message())?;
        let Some(live) = live else {
            let created = self.requests.create(&collection, &object).await;
            return created.map(|_| Applied::Done).map_err(|error| error.message());
        };
        if meta::deletion_timestamp(&live).is_some() {
            return Err("it is being deleted; it is made again when it is gone".to_owned());
        }
        if let Some(other) = meta::label(&live, PART_OF).filter(|other| *other != self.set.id()) {
            let mut theirs = object.clone();
            merge::label(&mut theirs, PART_OF, other);
            if merge::is_noted(&live, &theirs) {
                return Ok(Applied::Elsewhere);
            }
            return Err(format!(
                "it belongs to another set of manifests ({PART_OF}={other}): remove it there, or take that label off"
            ));
        }
        let Some(patch) = merge::patch(&live, &object) else {
            return Ok(Applied::Done);
        };
        let patched = self.requests.patch(&path, &patch).await;
        patched.map(|_| Applied::Done).map_err(|error| error.message())
    }

    /// What is of the set and stands in no file.
    async fn superfluous(
        &self,
        kinds: &BTreeSet<GroupKind>,
        served: &Discovered,
        desired: &Desired,
    ) -> Result<Vec<(Arc<Kind>, Value)>, Error> {
        let mut superfluous = Vec::new();
        for group_kind in kinds {
            let Some(kind) = group_kind.find(served) else { continue };
            for object in self.requests.list(&kind.path(""), self.set.id()).await? {
                let id = id(group_kind.clone(), &object);
                let file = meta::annotation(&object, FILE).unwrap_or_default();
                let stays = desired.named.contains(&id) || desired.unusable.contains(file);
                let is_ours = self.set.made(group_kind, &object);
                if is_ours && !stays && meta::deletion_timestamp(&object).is_none() {
                    superfluous.push((Arc::clone(&kind), object));
                }
            }
        }
        // What is in a namespace goes before it.
        superfluous.sort_by_key(|(kind, _)| GroupKind::of(kind).is_needed_by_others());
        Ok(superfluous)
    }

    async fn remove(&self, kind: &Kind, object: &Value, parent: &Value) -> bool {
        let (namespace, name) = (meta::namespace(object), meta::name(object));
        let file = meta::annotation(object, FILE).unwrap_or("no file");
        let path = format!("{}/{name}", kind.path(namespace));
        let what = format!("{} {namespace}/{name} of {file}", kind.kind);
        match self.requests.delete(&path, object).await {
            Ok(()) => {
                tracing::info!(
                    kind = kind.kind,
                    namespace,
                    name,
                    file,
                    "removed: it stands in no manifest any more"
                );
                let message = format!("Deleted {what}: it stands in no manifest any more");
                self.recorder.normal(regarding(parent), "DeletedManifest", message);
                true
            }
            Err(error) => {
                let message = format!("Cannot delete {what}: {}", error.message());
                tracing::warn!("{message}");
                self.recorder
                    .warning(regarding(parent), "DeleteManifestFailed", message);
                false
            }
        }
    }

    /// Writes which kinds and namespaces the set has, where that is not what is written; returns the set's ConfigMap.
    async fn write_set(
        &self,
        parent: Option<Value>,
        kinds: &BTreeSet<GroupKind>,
        namespaces: BTreeSet<&str>,
    ) -> Result<Value, Error> {
        let wanted = self.set.object(kinds, &namespaces);
        match parent {
            None => self.requests.create(apply_set::COLLECTION, &wanted).await,
            Some(parent) if meta::annotations(&parent) == meta::annotations(&wanted) => Ok(parent),
            Some(_) => {
                let patch = json!({"metadata": wanted["metadata"]});
                self.requests.patch(&self.set.path(), &patch).await
            }
        }
    }

    /// Logs what became of a file, where that is news, and records it on the set.
    fn tell(&mut self, parent: Option<&Value>, file: &str, digest: u64, troubles: Vec<String>) {
        let news = (digest, troubles);
        if self.told.get(file) == Some(&news) {
            return;
        }
        let (_, troubles) = &news;
        if troubles.is_empty() {
            tracing::info!(file, "manifest applied");
            if let Some(parent) = parent {
                let message = format!("Applied manifest {file}");
                self.recorder.normal(regarding(parent), "AppliedManifest", message);
            }
        }
        for why in troubles {
            tracing::error!(file, why, "cannot apply a manifest; what it asked for before stays");
            if let Some(parent) = parent {
                let message = format!("Applying manifest {file} failed: {why}");
                self.recorder.warning(regarding(parent), "ApplyManifestFailed", message);
            }
        }
        self.told.insert(file.to_owned(), news);
    }
}

/// Until a change, and a while without another.
async fn settled(changes: &mut Option<Subscription>) {
    let Some(changes) = changes else {
        return std::future::pending().await;
    };
    changes.changed().await;
    while tokio::time::timeout(SETTLE, changes.changed()).await.is_ok() {}
}

fn id(kind: GroupKind, object: &Value) -> Id {
    (kind, meta::namespace(object).to_owned(), meta::name(object).to_owned())
}

fn regarding(parent: &Value) -> Regarding {
    Regarding::named(
        "v1",
        "ConfigMap",
        meta::namespace(parent),
        meta::name(parent),
        meta::uid(parent),
    )
}

/// Sorts out what the files ask for; the first file that names an object has it.
fn desired(files: &[File], served: &Discovered) -> Desired {
    let mut desired = Desired::default();
    for File {
        name: file, content, ..
    } in files
    {
        let manifests = match content {
            Ok(manifests) => manifests,
            Err(why) => {
                desired.unusable.insert(file.clone());
                desired.troubles.insert(file.clone(), vec![why.clone()]);
                continue;
            }
        };
        for Manifest { object } in manifests {
            let mut object = object.clone();
            let group_kind = GroupKind::of_object(&object);
            let kind = group_kind.find(served);
            let mut trouble = |why: String| desired.troubles.entry(file.clone()).or_default().push(why);
            match &kind {
                Some(kind) if !kind.namespaced => drop(meta::metadata_mut(&mut object).remove("namespace")),
                Some(_) if meta::namespace(&object).is_empty() => {
                    meta::metadata_mut(&mut object).insert("namespace".to_owned(), "default".into());
                }
                _ => {}
            }
            let id = id(group_kind, &object);
            let Some(kind) = kind else {
                let (version, name) = (meta::api_version(&object), meta::name(&object));
                trouble(format!(
                    "{} {name}: the server has no such kind in {version}",
                    meta::kind(&object)
                ));
                desired.named.insert(id);
                continue;
            };
            if let Some(other) = desired.objects.get(&id) {
                trouble(format!("{} {}: it stands in {} already", id.0.kind, id.2, other.file));
                continue;
            }
            // In the version that the file is written in.
            let (_, version) = meta::group_version(meta::api_version(&object));
            let kind = Arc::new(Kind {
                version: version.to_owned(),
                ..Kind::clone(&kind)
            });
            desired.named.insert(id.clone());
            let file = file.clone();
            desired.objects.insert(id, Wanted { file, kind, object });
        }
    }
    desired
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> Discovered {
        let kind = |group: &str, kind: &str, plural: &str, namespaced| {
            Arc::new(Kind {
                group: group.to_owned(),
                version: "v1".to_owned(),
                kind: kind.to_owned(),
                plural: plural.to_owned(),
                namespaced,
                verbs: Vec::new(),
            })
        };
        Discovered {
            kinds: vec![
                kind("", "ConfigMap", "configmaps", true),
                kind("", "Namespace", "namespaces", false),
                kind("apps", "Deployment", "deployments", true),
            ],
            stale: Vec::new(),
        }
    }

    fn file(name: &str, text: &str) -> File {
        File {
            name: name.to_owned(),
            digest: 0,
            content: files::parse(text.as_bytes()),
        }
    }

    #[test]
    fn files_add_up_and_each_mistake_names_its_file() {
        let files = [
            file(
                "a.yaml",
                "{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, namespace: x}}",
            ),
            file(
                "b.yaml",
                "{apiVersion: v1, kind: ConfigMap, metadata: {name: one, namespace: default}}\n---\n{apiVersion: example.com/v1, kind: Thing, metadata: {name: t}}",
            ),
            file("c.yaml", "a: [b"),
        ];
        let desired = desired(&files, &served());
        let ids: Vec<String> = desired
            .objects
            .iter()
            .map(|((kind, namespace, name), wanted)| format!("{kind} {namespace}/{name} {}", wanted.file))
            .collect();
        assert_eq!(ids, ["ConfigMap default/one a.yaml", "Namespace /shop a.yaml"]);
        assert_eq!(desired.named.len(), 3);
        assert_eq!(desired.unusable, BTreeSet::from(["c.yaml".to_owned()]));
        assert_eq!(
            desired.troubles["b.yaml"],
            [
                "ConfigMap one: it stands in a.yaml already",
                "Thing t: the server has no such kind in example.com/v1"
            ]
        );
        assert!(desired.troubles["c.yaml"][0].contains("YAML"), "{:?}", desired.troubles);
        assert!(!desired.troubles.contains_key("a.yaml"));
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let pauses: Vec<u64> = [0, 1, 2, 6, 7, 99].map(|count| pause(count).as_secs()).into();
        assert_eq!(pauses, [600, 1, 2, 32, 60, 60]);
    }
}
