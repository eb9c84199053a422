//! An API that lists what it is given, tells of what changes, and takes what the controller writes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

/// Objects by plural and name; all are in the namespace `n`.
#[derive(Clone)]
pub(crate) struct Api {
    objects: Arc<Mutex<BTreeMap<(String, String), Value>>>,
    changes: broadcast::Sender<(String, Value)>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self {
            objects: Arc::default(),
            changes: broadcast::channel(4096).0,
        }
    }

    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["resourceVersion"] = json!("2");
        let mut objects = self.objects.lock();
        objects.insert((plural.to_owned(), name), object.clone());
        let change = json!({"type": "MODIFIED", "object": object});
        self.changes.send((plural.to_owned(), change)).ok();
    }

    pub(crate) fn delete(&self, plural: &str, name: &str) {
        let mut objects = self.objects.lock();
        let object = objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        let change = json!({"type": "DELETED", "object": object});
        self.changes.send((plural.to_owned(), change)).ok();
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let objects = self.objects.lock();
        let of_kind = objects.iter().filter(|((kind, _), _)| kind == plural);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let segments: Vec<&str> = parts.uri.path().split('/').collect();
        match parts.method {
            Method::GET => self.read(segments[segments.len() - 1], parts.uri.query().unwrap_or_default()),
            Method::POST => {
                let object: Value = serde_json::from_slice(&body).unwrap();
                self.put(segments[segments.len() - 1], object.clone());
                whole(StatusCode::CREATED, &object)
            }
            Method::PATCH => {
                if segments[segments.len() - 2] == "ingressclasses" {
                    return self.annotate(segments[segments.len() - 1], &serde_json::from_slice(&body).unwrap());
                }
                assert_eq!(segments[segments.len() - 1], "status", "only the status is written");
                let (plural, name) = (segments[segments.len() - 3], segments[segments.len() - 2]);
                let patch: Value = serde_json::from_slice(&body).unwrap();
                let found = self.objects.lock().get(&(plural.to_owned(), name.to_owned())).cloned();
                let mut object = found.unwrap();
                object["status"] = patch["status"].clone();
                self.put(plural, object.clone());
                whole(StatusCode::OK, &object)
            }
            other => panic!("the controller has no use for {other}"),
        }
    }

    fn annotate(&self, class: &str, patch: &Value) -> Answer {
        let key = ("ingressclasses".to_owned(), class.to_owned());
        let mut object = self.objects.lock().get(&key).cloned().unwrap();
        for (name, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            object["metadata"]["annotations"][name] = value.clone();
        }
        self.put("ingressclasses", object.clone());
        whole(StatusCode::OK, &object)
    }

    fn read(&self, plural: &str, query: &str) -> Answer {
        if plural == "secrets" {
            assert!(query.contains("fieldSelector=type%3Dkubernetes.io%2Ftls"), "{query}");
        }
        if !query.contains("watch=true") {
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": self.all(plural)});
            return whole(StatusCode::OK, &list);
        }
        let (receiver, plural) = (self.changes.subscribe(), plural.to_owned());
        // What changed between the list and this watch is told again.
        let known = self
            .all(&plural)
            .into_iter()
            .map(|object| json!({"type": "MODIFIED", "object": object}));
        let later = stream::unfold((receiver, plural), |(mut receiver, plural)| async move {
            loop {
                let (kind, change) = receiver.recv().await.ok()?;
                if kind == plural {
                    return Some((change, (receiver, plural)));
                }
            }
        });
        let lines = stream::iter(known.collect::<Vec<_>>()).chain(later);
        Response::new(StreamBody::new(lines.map(frame).boxed()))
    }
}

fn frame(value: Value) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(format!("{value}\n").into()))
}

fn whole(status: StatusCode, value: &Value) -> Answer {
    let once = stream::iter([frame(value.clone())]).boxed();
    let mut answer = Response::new(StreamBody::new(once));
    *answer.status_mut() = status;
    answer
}
