//! Deleting: at once, gracefully, or when the last finalizer goes.

use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_api::decode::{self, FieldValidation};
use skiff_api::meta;
use skiff_api::schema::schema;
use skiff_api::status::Status;
use skiff_store::{Revision, Write};

use super::write::Current;
use super::{Registry, Scope, encode};
use crate::admission::{Operation, Review};
use crate::cache::with_revision;
use crate::errors::{self, Result};
use crate::filter::Filter;
use crate::negotiate::Encoding;
use crate::query::Query;
use crate::strategy::{Propagation, Strategy};

/// Finalizer that keeps an owner until the garbage collector has released its dependents.
const ORPHAN: &str = "orphan";
/// Finalizer that keeps an owner until the garbage collector has deleted its dependents.
const FOREGROUND: &str = "foregroundDeletion";
/// A deletion is tried again on what others wrote in between, this often at most.
const ATTEMPTS: usize = 50;

/// How a deletion is wanted.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`.
    pub grace_period: Option<i64>,
    /// `propagationPolicy`.
    pub propagation: Option<Policy>,
    /// `preconditions.uid`.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`.
    pub resource_version: Option<String>,
    /// Go all the way but do not delete.
    pub dry_run: bool,
}

/// `propagationPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Dependents stay.
    Orphan,
    /// Dependents go after it.
    Background,
    /// Dependents go before it.
    Foreground,
}

/// What a deletion came to.
#[derive(Debug)]
pub struct Deleted {
    /// The object, as it was last.
    pub bytes: Bytes,
    /// Its uid.
    pub uid: String,
    /// Whether it is gone; else its deletion has begun.
    pub gone: bool,
}

/// What is to be done to an object that somebody wants deleted.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Its deletion goes on already.
    Nothing,
    /// It is to be stored so; the deletion ends later.
    Mark(Value),
    /// It goes now.
    Remove,
}

impl DeleteOptions {
    /// Reads the body, or the query when there is no body.
    pub fn parse(body: &[u8], encoding: Encoding, query: &Query) -> Result<Self> {
        let value = if body.is_empty() {
            from_query(query)?
        } else {
            let kind = schema()
                .kind("", "v1", "DeleteOptions")
                .ok_or_else(|| Status::internal("DeleteOptions has no schema"))?;
            let decoded = match encoding {
                Encoding::Json => decode::decode(body, kind, FieldValidation::Ignore),
                Encoding::Yaml => decode::decode_yaml(body, kind, FieldValidation::Ignore),
                Encoding::Protobuf => super::decode_protobuf(body, kind, FieldValidation::Ignore),
            };
            decoded
                .map_err(|error| error.to_status("DeleteOptions", "v1", body))?
                .value
        };
        let mut options = Self::of(&value)?;
        options.dry_run |= super::Options::parse(query)?.dry_run;
        Ok(options)
    }

    /// Reads a decoded object.
    pub fn of(value: &Value) -> Result<Self> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let propagation = match (value["propagationPolicy"].as_str(), value["orphanDependents"].as_bool()) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Policy::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Policy::Background),
            (Some("Foreground"), _) => Some(Policy::Foreground),
            (None, None) => None,
            (Some(other), _) => {
                return Err(Status::bad_request(format!(
                    "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                )));
            }
        };
        Ok(Self {
            grace_period: value["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run: value["dryRun"]
                .as_array()
                .is_some_and(|list| list.iter().any(|item| item == "All")),
        })
    }
}

fn from_query(query: &Query) -> Result<Value> {
    let mut value = json!({});
    if let Some(seconds) = query.non_empty("gracePeriodSeconds") {
        let seconds: i64 = seconds
            .parse()
            .map_err(|_| Status::bad_request(format!("gracePeriodSeconds: invalid number {seconds:?}")))?;
        value["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = query.non_empty("propagationPolicy") {
        value["propagationPolicy"] = policy.into();
    }
    if query.get("orphanDependents").is_some() {
        value["orphanDependents"] = query.flag("orphanDependents").into();
    }
    Ok(value)
}

impl Registry {
    /// Deletes an object, or begins to.
    pub async fn delete(&self, scope: Scope<'_>, name: &str, options: &DeleteOptions) -> Result<Deleted> {
        let resource = scope.served.resource;
        let mut current = self.current(scope, name).await?;
        for _ in 0..ATTEMPTS {
            let old = current.value()?;
            check_preconditions(scope, name, &old, options)?;
            self.admission.validate(
                &Review {
                    operation: Operation::Delete,
                    scope,
                    subresource: None,
                    old: Some(&old),
                    dry_run: options.dry_run,
                },
                &old,
            )?;
            let plan = plan(&old, scope.served.strategy, options, Timestamp::now());
            match self
                .carry_out(scope, name, &current, &old, plan, options.dry_run)
                .await?
            {
                Ok(deleted) => return Ok(deleted),
                Err(newer) => current = newer,
            }
        }
        Err(Status::stale(resource.qualified(), name))
    }

    /// Does what the plan says; the inner error is what somebody wrote in between.
    async fn carry_out(
        &self,
        scope: Scope<'_>,
        name: &str,
        current: &Current,
        old: &Value,
        plan: Plan,
        dry_run: bool,
    ) -> Result<std::result::Result<Deleted, Current>> {
        let key: Arc<str> = Arc::from(scope.served.cache.key(scope.namespace, name));
        let expected = Revision(current.revision);
        let deleted = |bytes, gone| Deleted {
            bytes,
            uid: meta::uid(old).to_owned(),
            gone,
        };
        let (write, stored) = match plan {
            Plan::Nothing => return Ok(Ok(deleted(current.bytes.clone(), false))),
            Plan::Mark(mut marked) => {
                meta::remove(&mut marked, "resourceVersion");
                let stored = encode(&marked);
                let value = stored.clone();
                (Write::Update { key, value, expected }, Some(stored))
            }
            Plan::Remove => {
                let expected = Some(expected);
                (Write::Delete { key, expected }, None)
            }
        };
        let written = match dry_run {
            true => Ok(expected),
            false => self.store.write(write).await,
        };
        match written {
            Ok(Revision(revision)) => Ok(Ok(match stored {
                Some(value) => deleted(with_revision(&value, revision), false),
                None => deleted(current.bytes.clone(), true),
            })),
            Err(skiff_store::Error::Conflict { current: Some(entry) }) => Ok(Err(Current::of(&entry))),
            Err(skiff_store::Error::Conflict { current: None }) => {
                Err(Status::not_found(scope.served.resource.qualified(), name))
            }
            Err(error) => Err(errors::store(&error)),
        }
    }

    /// Deletes every object that the filter lets through; returns them as they were.
    pub async fn delete_collection(
        &self,
        scope: Scope<'_>,
        filter: &Filter,
        options: &DeleteOptions,
    ) -> Result<Vec<Bytes>> {
        self.caches.fresh().await?;
        let listing = scope
            .served
            .cache
            .list(filter.namespace(), None, 0, 0, |object| filter.selected(object));
        let mut deleted = Vec::with_capacity(listing.objects.len());
        for object in listing.objects {
            let scope = Scope {
                namespace: object.namespace(),
                ..scope
            };
            match self.delete(scope, object.name(), options).await {
                Ok(done) => deleted.push(done.bytes),
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Ok(deleted)
    }
}

fn check_preconditions(scope: Scope<'_>, name: &str, old: &Value, options: &DeleteOptions) -> Result<()> {
    let conflict = |what: &str, wanted: &str, actual: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}");
        Err(Status::conflict(scope.served.resource.qualified(), name, &why))
    };
    match &options.uid {
        Some(wanted) if wanted != meta::uid(old) => return conflict("UID", wanted, meta::uid(old)),
        _ => {}
    }
    match &options.resource_version {
        Some(wanted) if wanted != meta::resource_version(old) => {
            conflict("ResourceVersion", wanted, meta::resource_version(old))
        }
        _ => Ok(()),
    }
}

/// What is to be done to `old`, which somebody wants deleted at `now`.
fn plan(old: &Value, strategy: &dyn Strategy, options: &DeleteOptions, now: Timestamp) -> Plan {
    let requested = options
        .grace_period
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    let mut new = old.clone();
    let mut grace = 0;
    let mut marked = false;
    match (meta::deletion_timestamp(old), meta::deletion_grace_period_seconds(old)) {
        (Some(due), Some(pending)) if pending > 0 => {
            // It goes on already; only a shorter period changes anything.
            let Some(shorter) = requested.filter(|seconds| *seconds < pending) else {
                return Plan::Nothing;
            };
            let due = meta::parse_time(due).unwrap_or(now) - SignedDuration::from_secs(pending - shorter);
            meta::set(&mut new, "deletionTimestamp", meta::time(due));
            meta::set(&mut new, "deletionGracePeriodSeconds", shorter);
            grace = shorter;
            marked = true;
        }
        (Some(_), _) => {}
        (None, _) => {
            if let Some(seconds) = strategy.grace_period(old, requested) {
                mark(&mut new, now, seconds);
                grace = seconds;
                marked = true;
            }
        }
    }
    set_finalizers(&mut new, strategy.default_propagation(), options.propagation);
    let held = meta::finalizers(&new).next().is_some() || strategy.has_own_finalizers(&new);
    if !held && grace == 0 {
        return Plan::Remove;
    }
    if !marked {
        if meta::deletion_timestamp(&new).is_none() {
            mark(&mut new, now, 0);
        } else if new == *old {
            return Plan::Nothing;
        }
    }
    strategy.begin_deletion(&mut new);
    if new == *old { Plan::Nothing } else { Plan::Mark(new) }
}

fn mark(object: &mut Value, now: Timestamp, seconds: i64) {
    meta::set(
        object,
        "deletionTimestamp",
        meta::time(now + SignedDuration::from_secs(seconds)),
    );
    meta::set(object, "deletionGracePeriodSeconds", seconds);
    let generation = meta::generation(object);
    if generation > 0 {
        meta::set(object, "generation", generation + 1);
    }
}

/// Sets the finalizers that tell the garbage collector what to do with dependents.
fn set_finalizers(object: &mut Value, default: Propagation, policy: Option<Policy>) {
    let current: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    let has = |name: &str| current.iter().any(|finalizer| finalizer == name);
    let orphan = match policy {
        Some(policy) => policy == Policy::Orphan,
        None => has(ORPHAN) || (default == Propagation::Orphan && !has(FOREGROUND)),
    };
    let foreground = match policy {
        Some(policy) => policy == Policy::Foreground,
        None => has(FOREGROUND),
    };
    let mut wanted: Vec<String> = current
        .iter()
        .filter(|finalizer| !matches!(finalizer.as_str(), ORPHAN | FOREGROUND))
        .cloned()
        .collect();
    if orphan {
        wanted.push(ORPHAN.to_owned());
    }
    if foreground {
        wanted.push(FOREGROUND.to_owned());
    }
    if wanted.len() == current.len() && wanted.iter().all(|finalizer| has(finalizer)) {
        return;
    }
    if wanted.is_empty() {
        meta::remove(object, "finalizers");
    } else {
        meta::set(object, "finalizers", wanted);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{DeleteOptions, Plan, Policy, plan};
    use crate::strategy;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn marked(plan: Plan) -> Value {
        match plan {
            Plan::Mark(value) => value["metadata"].clone(),
            other => panic!("not marked: {other:?}"),
        }
    }

    #[test]
    fn a_plain_object_goes_at_once() {
        let object = json!({"metadata": {"name": "a"}});
        let strategy = strategy::lookup("", "configmaps");
        assert_eq!(plan(&object, strategy, &DeleteOptions::default(), now()), Plan::Remove);
    }

    #[test]
    fn finalizers_hold_it_back() {
        let object = json!({"metadata": {"name": "a", "finalizers": ["x/y"]}});
        let strategy = strategy::lookup("", "configmaps");
        let metadata = marked(plan(&object, strategy, &DeleteOptions::default(), now()));
        assert_eq!(metadata["deletionTimestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(metadata["deletionGracePeriodSeconds"], 0);
        let again = json!({"metadata": metadata});
        assert_eq!(plan(&again, strategy, &DeleteOptions::default(), now()), Plan::Nothing);
    }

    #[test]
    fn propagation_becomes_a_finalizer() {
        let object = json!({"metadata": {"name": "a", "generation": 1}});
        let strategy = strategy::lookup("apps", "deployments");
        for (policy, finalizer) in [(Policy::Foreground, "foregroundDeletion"), (Policy::Orphan, "orphan")] {
            let options = DeleteOptions {
                propagation: Some(policy),
                ..DeleteOptions::default()
            };
            let metadata = marked(plan(&object, strategy, &options, now()));
            assert_eq!(metadata["finalizers"], json!([finalizer]));
            assert_eq!(metadata["generation"], 2);
        }
    }

    #[test]
    fn a_bound_pod_waits_for_its_kubelet() {
        let strategy = strategy::lookup("", "pods");
        let pod = json!({
            "metadata": {"name": "a"},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30},
            "status": {"phase": "Running"},
        });
        let metadata = marked(plan(&pod, strategy, &DeleteOptions::default(), now()));
        assert_eq!(metadata["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert_eq!(metadata["deletionGracePeriodSeconds"], 30);
        let mut pending = pod.clone();
        pending["metadata"] = metadata;
        assert_eq!(
            plan(&pending, strategy, &DeleteOptions::default(), now()),
            Plan::Nothing
        );
        let force = DeleteOptions {
            grace_period: Some(0),
            ..DeleteOptions::default()
        };
        assert_eq!(plan(&pending, strategy, &force, now()), Plan::Remove);
        let sooner = DeleteOptions {
            grace_period: Some(5),
            ..DeleteOptions::default()
        };
        let metadata = marked(plan(&pending, strategy, &sooner, now()));
        assert_eq!(metadata["deletionTimestamp"], "2026-01-01T00:00:05Z");
    }
}
