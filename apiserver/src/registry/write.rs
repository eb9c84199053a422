//! Creating and updating.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use skiff_api::status::Status;
use skiff_api::{defaults, field, meta, names};
use skiff_store::{Entry, Revision, Write};

use super::{Options, Registry, Scope, Written, encode};
use crate::admission::{Operation, Review};
use crate::allocate::Allocation;
use crate::cache::with_revision;
use crate::errors::{self, Result};
use crate::strategy::Context;

/// Generated names are tried this often.
const NAMES: usize = 8;
/// A change is made again on what others wrote in between, this often at most.
const ATTEMPTS: usize = 50;

/// An object as it is stored, at the revision that a change is made on.
#[derive(Debug, Clone)]
pub struct Current {
    /// The object with its resourceVersion, as it is served.
    pub bytes: Bytes,
    /// Its revision.
    pub revision: u64,
}

impl Current {
    /// Of an entry that the store returned.
    pub fn of(entry: &Entry) -> Self {
        Self {
            bytes: with_revision(&entry.value, entry.mod_revision.0),
            revision: entry.mod_revision.0,
        }
    }

    /// The object, parsed.
    pub fn value(&self) -> Result<Value> {
        serde_json::from_slice(&self.bytes).map_err(|error| errors::internal("parse a stored object", &error))
    }
}

/// What an update is made of.
pub struct Update<'a> {
    /// Name of the object.
    pub name: &'a str,
    /// The subresource that it comes through.
    pub subresource: Option<&'a str>,
    /// Makes the wanted object of the current one (as this resource's version has it).
    pub change: &'a mut (dyn FnMut(&Value) -> Result<Value> + Send),
    /// Whether the kind demands a resourceVersion in the wanted object (a PUT) or the change is made on what is there (a patch).
    pub whole: bool,
}

impl std::fmt::Debug for Update<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Update")
            .field("name", &self.name)
            .field("subresource", &self.subresource)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Creates an object.
    pub async fn create(&self, scope: Scope<'_>, mut object: Value, options: Options) -> Result<Written> {
        let served = scope.served;
        let resource = served.resource;
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::failure(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        settle_namespace(&mut object, scope.namespace)?;
        if !scope.namespace.is_empty() {
            // Admission looks at the namespace (and a pod's service account), which may have been created just now.
            self.caches.fresh().await?;
        }
        let base = meta::generate_name(&object).to_owned();
        let generated = meta::name(&object).is_empty() && !base.is_empty();
        for key in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            meta::remove(&mut object, key);
        }
        meta::set(&mut object, "uid", meta::new_uid());
        meta::set(&mut object, "creationTimestamp", meta::now());
        for attempt in 1.. {
            let mut object = object.clone();
            if generated {
                meta::set(&mut object, "name", names::generate_name(&base));
            }
            match self.create_once(scope, object, options).await {
                Err(status) if generated && status.reason == "AlreadyExists" => {
                    if attempt == NAMES {
                        let name = status.details.map(|details| details.name).unwrap_or_default();
                        return Err(Status::generate_name_conflict(resource.qualified(), &name));
                    }
                }
                other => return other,
            }
        }
        unreachable!("the loop above ends by returning")
    }

    async fn create_once(&self, scope: Scope<'_>, mut object: Value, options: Options) -> Result<Written> {
        let served = scope.served;
        let resource = served.resource;
        defaults::apply(resource.group, resource.version, resource.kind, &mut object);
        let review = Review {
            operation: Operation::Create,
            scope,
            subresource: None,
            old: None,
            dry_run: options.dry_run,
        };
        self.admission.mutate(&review, &mut object)?;
        served.strategy.prepare_create(&mut object, &context(scope));
        let assigned = self.allocator.assign(served, &mut object, None, options.dry_run);
        let mut allocation = assigned.await?;
        served.strategy.canonicalize(&mut object);
        let name = meta::name(&object).to_owned();
        let faults = served.strategy.validate_create(&object);
        if !faults.is_empty() {
            return Err(Status::invalid(resource.qualified_kind(), &name, &faults));
        }
        self.admission.validate(&review, &object)?;
        let warnings = served.strategy.warnings(&object);
        if let Some(conversion) = &served.conversion {
            (conversion.store)(&mut object);
        }
        let key = served.cache.key(scope.namespace, &name);
        let value = encode(&object);
        if options.dry_run {
            if served.cache.get(scope.namespace, &name).is_some() {
                return Err(Status::already_exists(resource.qualified(), &name));
            }
            return Ok(Written {
                bytes: value,
                created: true,
                warnings,
            });
        }
        allocation.writing();
        let written = self
            .store
            .write(Write::Create {
                key: Arc::from(key),
                value: value.clone(),
            })
            .await;
        match written {
            Ok(Revision(revision)) => {
                allocation.keep(revision);
                Ok(Written {
                    bytes: with_revision(&value, revision),
                    created: true,
                    warnings,
                })
            }
            Err(skiff_store::Error::Conflict { .. }) => {
                allocation.refused();
                Err(Status::already_exists(resource.qualified(), &name))
            }
            Err(error) => Err(errors::store(&error)),
        }
    }

    /// Reads what a change is to be made on.
    pub async fn current(&self, scope: Scope<'_>, name: &str) -> Result<Current> {
        self.caches.fresh().await?;
        match scope.served.cache.get(scope.namespace, name) {
            Some(object) => Ok(Current {
                bytes: object.bytes.clone(),
                revision: object.revision,
            }),
            None => Err(Status::not_found(scope.served.resource.qualified(), name)),
        }
    }

    /// Changes an object.
    pub async fn update(&self, scope: Scope<'_>, mut update: Update<'_>, options: Options) -> Result<Written> {
        let resource = scope.served.resource;
        let mut current = self.current(scope, update.name).await?;
        for _ in 0..ATTEMPTS {
            match self.update_once(scope, &mut update, &current, options).await? {
                Attempt::Done(written) => return Ok(written),
                Attempt::Again(newer) => current = newer,
                Attempt::Gone => return Err(Status::not_found(resource.qualified(), update.name)),
            }
        }
        Err(Status::stale(resource.qualified(), update.name))
    }

    /// The wanted object, made whole and found good.
    async fn change(
        &self,
        scope: Scope<'_>,
        update: &mut Update<'_>,
        current: &Current,
        options: Options,
    ) -> Result<Change<'_>> {
        let served = scope.served;
        let resource = served.resource;
        let mut old = current.value()?;
        if let Some(conversion) = &served.conversion {
            (conversion.serve)(&mut old);
        }
        let mut new = (update.change)(&old)?;
        check_identity(scope, update, &new, &old, current.revision)?;
        settle_namespace(&mut new, scope.namespace)?;
        defaults::apply(resource.group, resource.version, resource.kind, &mut new);
        keep_server_fields(&mut new, &old);
        let review = Review {
            operation: Operation::Update,
            scope,
            subresource: update.subresource,
            old: Some(&old),
            dry_run: options.dry_run,
        };
        self.admission.mutate(&review, &mut new)?;
        served.strategy.prepare_update(&mut new, &old, update.subresource);
        let assigned = self.allocator.assign(served, &mut new, Some(&old), options.dry_run);
        let allocation = assigned.await?;
        served.strategy.canonicalize(&mut new);
        let faults = served.strategy.validate_update(&new, &old, update.subresource);
        if !faults.is_empty() {
            return Err(Status::invalid(resource.qualified_kind(), update.name, &faults));
        }
        self.admission.validate(&review, &new)?;
        let warnings = served.strategy.warnings(&new);
        meta::remove(&mut new, "resourceVersion");
        meta::remove(&mut old, "resourceVersion");
        Ok(Change {
            old,
            new,
            warnings,
            allocation,
        })
    }

    async fn update_once(
        &self,
        scope: Scope<'_>,
        update: &mut Update<'_>,
        current: &Current,
        options: Options,
    ) -> Result<Attempt> {
        let Change {
            old,
            new,
            warnings,
            mut allocation,
        } = self.change(scope, update, current, options).await?;
        let served = scope.served;
        let done = |bytes| {
            Attempt::Done(Written {
                bytes,
                created: false,
                warnings,
            })
        };
        let ends = is_deletion_complete(&new, &old, served.strategy.has_own_finalizers(&new));
        if !ends && new == old {
            return Ok(done(current.bytes.clone()));
        }
        let value = encode(&stored(served, new));
        if options.dry_run {
            return Ok(done(with_revision(&value, current.revision)));
        }
        let key: Arc<str> = Arc::from(served.cache.key(scope.namespace, update.name));
        let expected = Revision(current.revision);
        let write = if ends {
            let expected = Some(expected);
            Write::Delete { key, expected }
        } else {
            allocation.writing();
            let value = value.clone();
            Write::Update { key, value, expected }
        };
        match self.store.write(write).await {
            Ok(Revision(revision)) => {
                if !ends {
                    allocation.keep(revision);
                }
                Ok(done(with_revision(&value, revision)))
            }
            Err(error) => {
                if matches!(error, skiff_store::Error::Conflict { .. }) {
                    allocation.refused();
                }
                again(error)
            }
        }
    }
}

/// An update before it is written.
struct Change<'a> {
    old: Value,
    new: Value,
    warnings: Vec<String>,
    allocation: Allocation<'a>,
}

enum Attempt {
    Done(Written),
    Again(Current),
    Gone,
}

fn again(error: skiff_store::Error) -> Result<Attempt> {
    match error {
        skiff_store::Error::Conflict { current: Some(entry) } => Ok(Attempt::Again(Current::of(&entry))),
        skiff_store::Error::Conflict { current: None } => Ok(Attempt::Gone),
        error => Err(errors::store(&error)),
    }
}

fn stored(served: &crate::resources::Served, mut object: Value) -> Value {
    if let Some(conversion) = &served.conversion {
        (conversion.store)(&mut object);
    }
    object
}

/// What a strategy may know of the request.
pub fn context(scope: Scope<'_>) -> Context<'_> {
    Context {
        user: &scope.user.name,
        uid: &scope.user.uid,
        groups: &scope.user.groups,
        extra: Some(&scope.user.extra),
    }
}

/// The namespace of the object is that of the path.
fn settle_namespace(object: &mut Value, namespace: &str) -> Result<()> {
    let own = meta::namespace(object);
    if own == namespace {
        return Ok(());
    }
    if namespace.is_empty() {
        meta::remove(object, "namespace");
        return Ok(());
    }
    if !own.is_empty() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta::set(object, "namespace", namespace);
    Ok(())
}

/// Refuses an update that means another object, or another version of it.
fn check_identity(scope: Scope<'_>, update: &Update<'_>, new: &Value, old: &Value, revision: u64) -> Result<()> {
    let resource = scope.served.resource;
    let Update { name, whole, .. } = *update;
    match meta::name(new) {
        "" if whole => {
            return Err(Status::bad_request(
                "the name of the object was undeterminable: name must be provided",
            ));
        }
        "" => {}
        own if own == name => {}
        own => {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
    }
    let (wanted, uid) = (meta::uid(new), meta::uid(old));
    if !wanted.is_empty() && wanted != uid {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Status::conflict(resource.qualified(), name, &why));
    }
    match meta::resource_version(new) {
        "" | "0" if whole && !scope.served.strategy.allow_unconditional_update() => Err(Status::invalid(
            resource.qualified_kind(),
            name,
            &[field::Error::invalid(
                &field::Path::root("metadata.resourceVersion"),
                0,
                "must be specified for an update",
            )],
        )),
        "" | "0" => Ok(()),
        version if version.parse() == Ok(revision) => Ok(()),
        _ => Err(Status::stale(resource.qualified(), name)),
    }
}

/// What only the server sets comes back from the object as it was.
fn keep_server_fields(new: &mut Value, old: &Value) {
    for key in [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        match old["metadata"].get(key) {
            Some(value) => meta::set(new, key, value.clone()),
            None => {
                meta::remove(new, key);
            }
        }
    }
    for key in ["selfLink", "managedFields"] {
        meta::remove(new, key);
    }
}

/// Whether an update took away the last that held a deletion back.
fn is_deletion_complete(new: &Value, old: &Value, has_own_finalizers: bool) -> bool {
    meta::deletion_timestamp(old).is_some()
        && meta::deletion_grace_period_seconds(old).unwrap_or(0) == 0
        && meta::finalizers(new).next().is_none()
        && !has_own_finalizers
}
