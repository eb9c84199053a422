//! An API server of a few lines: it lists and watches what the test sets, does bindings, and remembers every write.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Clones share one server.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// By list path, then by name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watchers: Vec<(String, mpsc::UnboundedSender<Value>)>,
    /// Method, path, body; taken out by [`FakeApi::written`].
    writes: VecDeque<(String, String, Value)>,
    refusals: BTreeMap<(String, String), u16>,
    /// Pods on each node.
    bound: BTreeMap<String, usize>,
    version: u64,
}

/// A node with this much CPU.
pub(crate) fn node(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "110"}},
    })
}

/// A pod `default/<name>` that asks for this much CPU; its UID is its name.
pub(crate) fn pod(name: &str, cpu: &str, more: Value) -> Value {
    let mut spec = json!({
        "schedulerName": "default-scheduler",
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
    })
}

/// The same pod on a node.
pub(crate) fn running(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// Adds an object, or replaces it.
    pub(crate) fn set(&self, object: Value) {
        self.state.lock().set(object);
    }

    /// Deletes an object.
    pub(crate) fn remove(&self, mut object: Value) {
        let mut state = self.state.lock();
        let (path, name) = (list_path(&object), name(&object));
        state.objects.entry(path.clone()).or_default().remove(&name);
        state.stamp(&mut object);
        state.announce(&path, "DELETED", &object);
    }

    /// Answers the next such request with an error.
    pub(crate) fn refuse(&self, method: &str, path: &str, code: u16) {
        self.state
            .lock()
            .refusals
            .insert((method.to_owned(), path.to_owned()), code);
    }

    /// Waits for a write, and takes it out of the record.
    pub(crate) async fn written(&self, method: &str, path: &str) -> Value {
        let found = self.until(|state| {
            let at = state.writes.iter().position(|(m, p, _)| m == method && p == path)?;
            state.writes.remove(at).map(|(_, _, body)| body)
        });
        found
            .await
            .unwrap_or_else(|| panic!("no {method} {path}: {:#?}", self.state.lock().writes))
    }

    pub(crate) fn was_written(&self, method: &str, path: &str) -> bool {
        self.state
            .lock()
            .writes
            .iter()
            .any(|(m, p, _)| m == method && p == path)
    }

    /// Waits for so many writes of a kind.
    pub(crate) async fn writes(&self, method: &str, count: usize) {
        let count_of = |state: &State| state.writes.iter().filter(|(m, _, _)| m == method).count();
        let found = self.until(|state| (count_of(state) >= count).then_some(()));
        found
            .await
            .unwrap_or_else(|| panic!("only {} of {method}", count_of(&self.state.lock())));
    }

    /// Waits for so many bindings; how many pods each node got.
    pub(crate) async fn bindings(&self, count: usize) -> BTreeMap<String, usize> {
        let found = self.until(|state| (state.bound.values().sum::<usize>() >= count).then(|| state.bound.clone()));
        found
            .await
            .unwrap_or_else(|| panic!("only {:?}", self.state.lock().bound))
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = look(&mut self.state.lock()) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.ok()
    }

    async fn serve(&self, request: Request<Body>) -> Reply {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        if head.method == Method::GET {
            let watch = head.uri.query().unwrap_or_default().contains("watch=true");
            return if watch {
                self.state.lock().watch(path)
            } else {
                self.state.lock().list(&path)
            };
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let reply = self.state.lock().write(&head.method, &path, body);
        self.changed.notify_waiters();
        reply
    }
}

impl State {
    fn set(&mut self, mut object: Value) {
        self.stamp(&mut object);
        let path = list_path(&object);
        let known = self
            .objects
            .entry(path.clone())
            .or_default()
            .insert(name(&object), object.clone());
        self.announce(&path, if known.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn stamp(&mut self, object: &mut Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }

    fn announce(&mut self, path: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.watchers
            .retain(|(watched, sender)| watched != path || sender.send(event.clone()).is_ok());
    }

    fn list(&self, path: &str) -> Reply {
        let items: Vec<&Value> = self.objects.get(path).into_iter().flat_map(BTreeMap::values).collect();
        // The newest version of the list, not of the whole server: what comes between a list and its watch is announced
        // by the watch below.
        reply(
            StatusCode::OK,
            &json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": items}),
        )
    }

    fn watch(&mut self, path: String) -> Reply {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Everything once more: a scheduler must not mind being told twice.
        for object in self.objects.get(&path).into_iter().flat_map(BTreeMap::values) {
            sender.send(json!({"type": "MODIFIED", "object": object})).unwrap();
        }
        self.watchers.push((path, sender));
        let lines = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let frames = lines.map(|event| Ok(http_body::Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn write(&mut self, method: &Method, path: &str, body: Value) -> Reply {
        self.writes
            .push_back((method.to_string(), path.to_owned(), body.clone()));
        if let Some(code) = self.refusals.remove(&(method.to_string(), path.to_owned())) {
            let status =
                json!({"kind": "Status", "status": "Failure", "message": "refused", "reason": "Test", "code": code});
            return reply(StatusCode::from_u16(code).unwrap(), &status);
        }
        if let Some(pod) = path.strip_suffix("/binding").and_then(|path| path.rsplit('/').next()) {
            let node = body["target"]["name"].as_str().unwrap().to_owned();
            let object = self.objects["/api/v1/pods"][pod].clone();
            self.set(running(object, &node));
            *self.bound.entry(node).or_default() += 1;
        }
        // Objects that are posted come back, as the client's event recorder wants.
        let code = if method == Method::POST {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        reply(code, &body)
    }
}

fn reply(code: StatusCode, body: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *reply.status_mut() = code;
    reply
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

fn list_path(object: &Value) -> String {
    let plural = match object["kind"].as_str().unwrap() {
        "Node" => "nodes",
        "Pod" => "pods",
        other => panic!("no path for {other}"),
    };
    format!("/api/v1/{plural}")
}
