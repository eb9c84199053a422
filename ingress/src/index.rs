//! What the watches told: the objects as they are, and whether a change matters to routes.

use std::collections::BTreeMap;

use crate::model::{Class, Ingress, Key, Secret, Service, Slice};
use crate::plan::{Objects, Plan};

/// What a watch tells of one kind.
#[derive(Debug)]
pub(crate) enum Told<T> {
    /// A list begins.
    Begin,
    /// It is complete: what it did not name is gone.
    Done,
    /// An object, in the list or after it.
    Put { key: Key, object: T, listed: bool },
    /// An object is gone.
    Gone(Key),
}

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Change {
    Ingress(Told<Ingress>),
    Class(Told<Class>),
    Service(Told<Service>),
    Slice(Told<Slice>),
    Secret(Told<Secret>),
}

/// All objects, and what is needed to take them in.
#[derive(Debug, Default)]
pub(crate) struct Index {
    objects: Objects,
    ingresses: Listing<Ingress>,
    classes: Listing<Class>,
    services: Listing<Service>,
    slices: Listing<Slice>,
    secrets: Listing<Secret>,
}

/// One kind's list while it is read, and whether there ever was a whole one.
#[derive(Debug)]
struct Listing<T> {
    reading: Option<BTreeMap<Key, T>>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self {
            reading: None,
            complete: false,
        }
    }
}

impl<T> Listing<T> {
    /// Takes in what was told. `matters` is asked with the object as it was and as it is; the answer to whether it changed
    /// anything that matters is returned.
    fn take(
        &mut self,
        current: &mut BTreeMap<Key, T>,
        told: Told<T>,
        matters: impl Fn(&Key, Option<&T>, Option<&T>) -> bool,
    ) -> bool {
        match told {
            Told::Begin => {
                self.reading = Some(BTreeMap::new());
                false
            }
            Told::Put {
                key,
                object,
                listed: true,
            } => {
                self.reading.get_or_insert_default().insert(key, object);
                false
            }
            Told::Done => {
                *current = self.reading.take().unwrap_or_default();
                self.complete = true;
                true
            }
            Told::Put { key, object, .. } => {
                let matters = matters(&key, current.get(&key), Some(&object));
                current.insert(key, object);
                matters
            }
            Told::Gone(key) => {
                let former = current.remove(&key);
                former.is_some() && matters(&key, former.as_ref(), None)
            }
        }
    }
}

impl Index {
    /// Takes in a change. True when the plan that was made last no longer holds.
    pub(crate) fn apply(&mut self, change: Change, last: &Plan) -> bool {
        let objects = &mut self.objects;
        match change {
            Change::Ingress(told) => self
                .ingresses
                .take(&mut objects.ingresses, told, |_, old, new| old != new),
            Change::Class(told) => self.classes.take(&mut objects.classes, told, |_, old, new| old != new),
            Change::Service(told) => self.services.take(&mut objects.services, told, |key, old, new| {
                old != new && last.services.contains(key)
            }),
            Change::Slice(told) => self.slices.take(&mut objects.slices, told, |key, old, new| {
                let used = |slice: &Slice| last.services.contains(&Key::new(&key.namespace, &slice.service));
                old != new && (old.is_some_and(used) || new.is_some_and(used))
            }),
            Change::Secret(told) => self
                .secrets
                .take(&mut objects.secrets, told, |key, _, _| last.secrets.contains(key)),
        }
    }

    /// Whether every kind has been listed once.
    pub(crate) fn is_complete(&self) -> bool {
        self.ingresses.complete
            && self.classes.complete
            && self.services.complete
            && self.slices.complete
            && self.secrets.complete
    }

    /// The objects as they are.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: &str) -> Slice {
        Slice {
            service: service.to_owned(),
            ..Slice::default()
        }
    }

    fn put(name: &str, service: &str, listed: bool) -> Change {
        Change::Slice(Told::Put {
            key: Key::new("n", name),
            object: slice(service),
            listed,
        })
    }

    #[test]
    fn only_changes_of_what_the_plan_looked_at_matter() {
        let mut index = Index::default();
        let mut plan = Plan::default();
        plan.services.insert(Key::new("n", "used"));
        assert!(!index.apply(put("a", "other", false), &plan));
        assert!(index.apply(put("b", "used", false), &plan));
        assert!(!index.apply(put("b", "used", false), &plan), "nothing changed");
        assert!(index.apply(put("b", "other", false), &plan), "it was used");
        assert!(!index.apply(Change::Slice(Told::Gone(Key::new("n", "b"))), &plan));
        assert!(!index.apply(Change::Slice(Told::Gone(Key::new("n", "absent"))), &plan));
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_there_only_when_it_is_complete() {
        let (mut index, plan) = (Index::default(), Plan::default());
        index.apply(put("old", "s", false), &plan);
        assert!(!index.apply(Change::Slice(Told::Begin), &plan));
        assert!(!index.apply(put("new", "s", true), &plan));
        assert!(index.objects().slices.contains_key(&Key::new("n", "old")));
        assert!(index.apply(Change::Slice(Told::Done), &plan));
        let names: Vec<_> = index.objects().slices.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["new"]);
        assert!(!index.is_complete());
    }
}
