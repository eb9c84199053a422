//! A small API server in memory: collections with watches, strategic merge by the real schema, tokens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::patch::{json_merge, strategic_merge};
use skiff_api::schema::schema;
use tokio::sync::watch;

/// How long a condition may take to come true, on a machine that compiles beside it.
const PATIENCE: Duration = Duration::from_secs(30);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The server; clones share one state.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    version: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    /// (version, type, path, object)
    log: Vec<(u64, &'static str, String, Value)>,
    away: bool,
    tokens: u32,
    /// How long they live, in seconds, whatever is asked for.
    token_life: Option<u32>,
    /// Whether requests for tokens are not answered, and how many wait.
    tokens_held: Option<u32>,
    old: bool,
    steps: usize,
    freeze_at: Option<usize>,
    frozen: bool,
}

impl Api {
    pub(crate) fn new() -> Self {
        let api = Self {
            state: Arc::default(),
            version: Arc::new(watch::Sender::new(1)),
        };
        api.put(
            "/api/v1/namespaces/ns/serviceaccounts/default",
            json!({"metadata": {"name": "default"}}),
        );
        api
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<kube::client::Body>| {
                let api = api.clone();
                async move { api.serve(request).await }
            }),
            "default",
        )
    }

    /// While away, every request fails.
    pub(crate) fn set_away(&self, away: bool) {
        self.state.lock().away = away;
    }

    /// From now on tokens live so many seconds, whatever is asked for.
    pub(crate) fn set_token_life(&self, seconds: u32) {
        self.state.lock().token_life = Some(seconds);
    }

    /// From now on requests for tokens are not answered.
    pub(crate) fn hold_tokens(&self) {
        self.state.lock().tokens_held = Some(0);
    }

    /// Requests for tokens that were not answered.
    pub(crate) fn held_tokens(&self) -> u32 {
        self.state.lock().tokens_held.unwrap_or_default()
    }

    /// From now on drops what an API server of years ago did not know.
    pub(crate) fn set_old(&self) {
        self.state.lock().old = true;
    }

    /// Writes to pods so far, counted twice.
    pub(crate) fn steps(&self) -> usize {
        self.state.lock().steps
    }

    /// Answers no write to a pod after the next `steps` steps: each write is two, one before its effect and one after.
    pub(crate) fn freeze_after(&self, steps: Option<usize>) {
        let mut state = self.state.lock();
        state.freeze_at = steps.map(|steps| state.steps + steps);
        state.frozen = false;
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.state.lock().frozen
    }

    async fn step(&self) {
        let frozen = {
            let mut state = self.state.lock();
            state.steps += 1;
            let frozen = state.freeze_at.is_some_and(|at| state.steps > at);
            state.frozen |= frozen;
            frozen
        };
        if frozen {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// All objects of a collection, by the ending of its path.
    pub(crate) fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.state.lock();
        let found = state
            .objects
            .iter()
            .filter(|(path, _)| path.split('/').nth_back(1) == Some(plural));
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.state.lock();
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let kind = if state.objects.contains_key(path) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        state.objects.insert(path.to_owned(), object.clone());
        state.log.push((version, kind, path.to_owned(), object.clone()));
        drop(state);
        self.version.send_replace(version);
        object
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut state = self.state.lock();
        let Some(mut object) = state.objects.remove(path) else {
            return;
        };
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.log.push((version, "DELETED", path.to_owned(), object));
        drop(state);
        self.version.send_replace(version);
    }

    pub(crate) fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut object = self.get(path).expect("an object to edit");
        edit(&mut object);
        self.put(path, object);
    }

    /// Waits until something holds.
    pub(crate) async fn until<T>(&self, what: &str, holds: impl Fn(&Self) -> Option<T>) -> T {
        let mut version = self.version.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = holds(self) {
                    return found;
                }
                // The runtime's side has no version: look at it now and then.
                tokio::time::timeout(Duration::from_millis(20), version.changed())
                    .await
                    .ok();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!(
                "no {what}; pods: {:#?}\nevents: {:#?}",
                self.list("pods"),
                self.events()
            ),
        }
    }

    /// Reasons and messages of all events.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        self.list("events")
            .iter()
            .map(|event| format!("{}: {}", text(event, "reason"), text(event, "message")))
            .collect()
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Result<Response<Body>, std::io::Error> {
        if self.state.lock().away {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let steps = request.method() != Method::GET && request.uri().path().contains("/pods/");
        if steps {
            self.step().await;
        }
        let response = self.answered(request).await;
        if steps {
            self.step().await;
        }
        response
    }

    fn holds_token(&self) -> bool {
        let mut state = self.state.lock();
        let held = state.tokens_held.as_mut();
        held.map(|held| *held += 1).is_some()
    }

    async fn answered(&self, request: Request<kube::client::Body>) -> Result<Response<Body>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let path = parts.uri.path().trim_end_matches('/').to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_item = self.get(&path).is_some();
        if segments.last() == Some(&"token") && self.holds_token() {
            std::future::pending::<()>().await;
        }
        Ok(match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET if is_item => answer(StatusCode::OK, &self.get(&path).unwrap_or_default()),
            Method::GET if is_collection(&path) => self.page(&path, &query),
            Method::POST if segments.last() == Some(&"token") => {
                let mut state = self.state.lock();
                state.tokens += 1;
                let token = format!("token-{}", state.tokens);
                let status = json!({"token": token, "expirationTimestamp": "2999-01-01T00:00:00Z"});
                let mut spec = json!({"audiences": []});
                if let Some(life) = state.token_life {
                    spec["expirationSeconds"] = life.into();
                }
                answer(
                    StatusCode::CREATED,
                    &json!({"metadata": {}, "spec": spec, "status": status}),
                )
            }
            Method::POST if segments.last() == Some(&"subjectaccessreviews") => {
                let (user, asked) = (
                    &value["spec"]["user"],
                    &value["spec"]["resourceAttributes"]["subresource"],
                );
                // `metrics-reader` may read that subresource, and whoever has a scope of that name.
                let may_read = |reader: &str| reader.strip_suffix("-reader") == asked.as_str();
                let scope = value["spec"]["extra"]["scope"][0].as_str();
                let allowed = user == "admin" || user.as_str().is_some_and(may_read) || scope.is_some_and(may_read);
                answer(
                    StatusCode::CREATED,
                    &json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}}),
                )
            }
            Method::POST if segments.last() == Some(&"tokenreviews") => {
                let status = match value["spec"]["token"].as_str() {
                    Some("good") => json!({"authenticated": true, "user": {"username": "admin"}}),
                    Some("scoped") => {
                        json!({"authenticated": true, "user": {"username": "u", "extra": {"scope": ["stats-reader"]}}})
                    }
                    _ => json!({"authenticated": false, "user": {"username": ""}}),
                };
                answer(
                    StatusCode::CREATED,
                    &json!({"metadata": {}, "spec": {}, "status": status}),
                )
            }
            Method::POST => {
                let name = value["metadata"]["name"].as_str().unwrap_or("review");
                let item = format!("{path}/{name}");
                if self.get(&item).is_some() {
                    return Ok(refuse(StatusCode::CONFLICT, "AlreadyExists"));
                }
                let mut value = value;
                if value["metadata"]["uid"].is_null() {
                    value["metadata"]["uid"] = format!("made-{}", *self.version.borrow()).into();
                }
                answer(StatusCode::CREATED, &self.put(&item, value))
            }
            Method::PATCH => self.patch(&path, &parts.headers, &value),
            Method::DELETE => match self.get(&path) {
                Some(object)
                    if value["preconditions"]["uid"]
                        .as_str()
                        .is_none_or(|uid| object["metadata"]["uid"] == uid) =>
                {
                    self.remove(&path);
                    answer(StatusCode::OK, &object)
                }
                Some(_) => refuse(StatusCode::CONFLICT, "Conflict"),
                None => refuse(StatusCode::NOT_FOUND, "NotFound"),
            },
            _ => refuse(StatusCode::NOT_FOUND, "NotFound"),
        })
    }

    fn patch(&self, path: &str, headers: &http::HeaderMap, patch: &Value) -> Response<Body> {
        let item = path.trim_end_matches("/status");
        let Some(mut object) = self.get(item) else {
            return refuse(StatusCode::NOT_FOUND, "NotFound");
        };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && object["metadata"]["uid"] != *uid {
            return refuse(StatusCode::CONFLICT, "Conflict");
        }
        let kind = match item.split('/').nth_back(1) {
            Some("pods") => ("", "v1", "Pod"),
            Some("nodes") => ("", "v1", "Node"),
            Some("leases") => ("coordination.k8s.io", "v1", "Lease"),
            _ => ("", "v1", "Event"),
        };
        if headers["content-type"]
            .to_str()
            .unwrap_or_default()
            .contains("strategic")
        {
            let kind = schema().kind(kind.0, kind.1, kind.2).expect("a kind");
            object = strategic_merge(kind, &object, patch).expect("a patch that applies");
        } else {
            json_merge(&mut object, patch);
        }
        if self.state.lock().old {
            forget_new_fields(&mut object["status"]);
        }
        if self.get(item).is_some_and(|known| known == object) {
            return answer(StatusCode::OK, &object);
        }
        answer(StatusCode::OK, &self.put(item, object))
    }

    fn page(&self, path: &str, query: &str) -> Response<Body> {
        let state = self.state.lock();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(item, object)| matches(path, query, item, object))
            .map(|(_, o)| o.clone())
            .collect();
        let version = self.version.borrow().to_string();
        answer(
            StatusCode::OK,
            &json!({"metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn watch(&self, path: &str, query: &str) -> Response<Body> {
        let from: u64 = parameter(query, "resourceVersion")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let (api, path, query) = (self.clone(), path.to_owned(), query.to_owned());
        let changes = self.version.subscribe();
        let stream = futures::stream::unfold((from, changes), move |(mut from, mut changes)| {
            let (api, path, query) = (api.clone(), path.clone(), query.clone());
            async move {
                loop {
                    if api.state.lock().away {
                        return None;
                    }
                    let next = api
                        .state
                        .lock()
                        .log
                        .iter()
                        .find(|(version, ..)| *version > from)
                        .cloned();
                    if let Some((version, kind, item, object)) = next {
                        from = version;
                        if matches(&path, &query, &item, &object) {
                            let line = json!({"type": kind, "object": object}).to_string() + "\n";
                            return Some((Ok(Frame::data(Bytes::from(line))), (from, changes)));
                        }
                    } else {
                        tokio::time::timeout(Duration::from_millis(50), changes.changed())
                            .await
                            .ok();
                    }
                }
            }
        });
        Response::new(StreamBody::new(stream.boxed()).boxed_unsync())
    }
}

fn forget_new_fields(status: &mut Value) {
    let Some(fields) = status.as_object_mut() else { return };
    fields.remove("observedGeneration");
    fields.remove("hostIPs");
    for condition in fields
        .get_mut("conditions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        condition
            .as_object_mut()
            .map(|condition| condition.remove("observedGeneration"));
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    ["pods", "services", "configmaps", "secrets", "nodes"].contains(&last)
}

/// Whether an item is in a collection, with the field selector of the query.
fn matches(collection: &str, query: &str, item: &str, object: &Value) -> bool {
    let plural = collection.rsplit('/').next().unwrap_or_default();
    let namespace = collection
        .split("/namespaces/")
        .nth(1)
        .and_then(|rest| rest.split('/').next());
    let inside = item.split('/').nth_back(1) == Some(plural)
        && namespace.is_none_or(|namespace| item.contains(&format!("/namespaces/{namespace}/")));
    let selector = parameter(query, "fieldSelector")
        .unwrap_or_default()
        .replace("%3D", "=");
    inside
        && match selector.split_once('=') {
            Some(("metadata.name", name)) => object["metadata"]["name"] == name,
            Some(("spec.nodeName", name)) => object["spec"]["nodeName"] == name,
            _ => true,
        }
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn refuse(status: StatusCode, reason: &str) -> Response<Body> {
    let value =
        json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": status.as_u16()});
    answer(status, &value)
}
