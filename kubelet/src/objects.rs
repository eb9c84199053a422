//! ConfigMaps and Secrets that pods of this node name, each watched by itself, and only while a pod needs it.
//!
//! One task an object; it ends when the last pod that named the object is gone. A change wakes the pods that named it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use skiff_api::k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use tokio::sync::{mpsc, watch};

use crate::pod;
use crate::watching::Failures;

/// How long a first answer may take before the pod is told that there is none yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an object that is refused is asked for in the end.
const LONGEST: Duration = Duration::from_secs(30);

/// What kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// An object's data, text and binary alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Data {
    /// By key.
    pub(crate) data: BTreeMap<String, Bytes>,
    /// The keys of a ConfigMap's `binaryData`, which no environment has.
    pub(crate) binary: BTreeSet<String>,
    /// Whether it never changes.
    pub(crate) immutable: bool,
}

impl Data {
    /// What a container's environment may have of it.
    pub(crate) fn text(&self, key: &str) -> Option<&Bytes> {
        self.data.get(key).filter(|_| !self.binary.contains(key))
    }
}

/// The API server has not answered yet.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {kind} {namespace}/{name} from the API server: {reason}")]
pub(crate) struct Unavailable {
    kind: &'static str,
    namespace: String,
    name: String,
    reason: String,
}

#[derive(Clone, Debug)]
enum State {
    Unknown(String),
    Absent,
    Present(Arc<Data>),
}

type Key = (Kind, String, String);

type Pods = Arc<Mutex<HashSet<String>>>;

struct Entry {
    state: watch::Receiver<State>,
    pods: Pods,
    task: tokio::task::AbortHandle,
}

/// All objects in use.
pub(crate) struct Objects {
    client: kube::Client,
    entries: Mutex<HashMap<Key, Entry>>,
    wake: mpsc::UnboundedSender<String>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects")
            .field("count", &self.entries.lock().len())
            .finish_non_exhaustive()
    }
}

impl Kind {
    /// `configmap`, `secret`: upstream's word in messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

impl Objects {
    /// `wake` gets the UIDs of pods that should look again.
    pub(crate) fn new(client: kube::Client, wake: mpsc::UnboundedSender<String>) -> Arc<Self> {
        Arc::new(Self {
            client,
            entries: Mutex::new(HashMap::new()),
            wake,
        })
    }

    /// The object as it is now, `None` when there is none; from then on its changes wake the pod.
    pub(crate) async fn get(&self, pod: &Pod, kind: Kind, name: &str) -> Result<Option<Arc<Data>>, Unavailable> {
        let namespace = pod::namespace(pod);
        let mut state = self.subscribe(pod::uid(pod), (kind, namespace.to_owned(), name.to_owned()));
        let answered = |state: &State| !matches!(state, State::Unknown(_));
        let known = tokio::time::timeout(PATIENCE, state.wait_for(answered)).await;
        let known = known.map(|known| known.map(|state| state.clone()));
        let unavailable = |reason: String| Unavailable {
            kind: kind.word(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason,
        };
        match known {
            Ok(Ok(state)) => Ok(match state {
                State::Present(data) => Some(data),
                State::Unknown(_) | State::Absent => None,
            }),
            Ok(Err(_)) => Err(unavailable("its watch has ended".into())),
            Err(_) => Err(unavailable(match &*state.borrow() {
                State::Unknown(reason) => reason.clone(),
                _ => String::new(),
            })),
        }
    }

    /// Forgets a pod, and the objects that only it named.
    pub(crate) fn release(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut pods = entry.pods.lock();
            pods.remove(uid);
            if pods.is_empty() {
                entry.task.abort();
            }
            !pods.is_empty()
        });
    }

    fn subscribe(&self, uid: &str, key: Key) -> watch::Receiver<State> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(&key) {
            entry.pods.lock().insert(uid.to_owned());
            return entry.state.clone();
        }
        let (sender, state) = watch::channel(State::Unknown("no answer yet".into()));
        let pods: Pods = Arc::new(Mutex::new(HashSet::from([uid.to_owned()])));
        let follower = Follower {
            state: sender,
            pods: pods.clone(),
            wake: self.wake.clone(),
        };
        let client = self.client.clone();
        let task = match key.0 {
            Kind::ConfigMap => tokio::spawn(follower.run::<ConfigMap>(client, key.1.clone(), key.2.clone())),
            Kind::Secret => tokio::spawn(follower.run::<Secret>(client, key.1.clone(), key.2.clone())),
        };
        entries.insert(
            key,
            Entry {
                state: state.clone(),
                pods,
                task: task.abort_handle(),
            },
        );
        state
    }
}

/// Watches one object.
struct Follower {
    state: watch::Sender<State>,
    pods: Pods,
    wake: mpsc::UnboundedSender<String>,
}

impl Follower {
    async fn run<K>(self, client: kube::Client, namespace: String, name: String)
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope> + Object,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(client, &namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = watcher(api, config).boxed();
        let mut found = false;
        let mut failures = Failures::untold(LONGEST);
        loop {
            let event = stream.try_next().await;
            if matches!(event, Ok(Some(Event::Apply(_) | Event::InitApply(_) | Event::InitDone))) {
                failures.end();
            }
            match event {
                Ok(Some(Event::Init)) => found = false,
                Ok(Some(Event::Apply(object) | Event::InitApply(object))) => {
                    found = true;
                    let data = object.into_data();
                    let immutable = data.immutable;
                    self.set(State::Present(Arc::new(data)));
                    if immutable {
                        return std::future::pending().await;
                    }
                }
                Ok(Some(Event::InitDone)) if found => {}
                Ok(Some(Event::InitDone | Event::Delete(_))) => self.set(State::Absent),
                Ok(None) => return,
                Err(error) => {
                    self.explain(&error);
                    tokio::time::sleep(failures.pause(&error)).await;
                }
            }
        }
    }

    /// Publishes a state and wakes the pods, unless it is the first answer: they wait for that anyway.
    fn set(&self, state: State) {
        let first = matches!(*self.state.borrow(), State::Unknown(_));
        let same = match (&*self.state.borrow(), &state) {
            (State::Present(old), State::Present(new)) => old == new,
            (State::Absent, State::Absent) => true,
            _ => false,
        };
        if same {
            return;
        }
        self.state.send_replace(state);
        if !first {
            for uid in self.pods.lock().iter() {
                self.wake.send(uid.clone()).ok();
            }
        }
    }

    fn explain(&self, error: &watcher::Error) {
        let text = skiff_daemon::error_chain(error);
        self.state.send_if_modified(|state| {
            if let State::Unknown(reason) = state {
                *reason = text;
            }
            false
        });
    }
}

/// ConfigMap and Secret alike.
trait Object: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static {
    fn into_data(self) -> Data;
}

impl Object for ConfigMap {
    fn into_data(self) -> Data {
        let text = self
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, Bytes::from(value)));
        let binary = self.binary_data.unwrap_or_default();
        Data {
            binary: binary.keys().cloned().collect(),
            data: text
                .chain(binary.into_iter().map(|(key, value)| (key, Bytes::from(value.0))))
                .collect(),
            immutable: self.immutable.unwrap_or(false),
        }
    }
}

impl Object for Secret {
    fn into_data(self) -> Data {
        let data = self
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, Bytes::from(value.0)));
        Data {
            data: data.collect(),
            binary: BTreeSet::new(),
            immutable: self.immutable.unwrap_or(false),
        }
    }
}
