//! Keeps one object of a fixed name in every namespace: what the publishers of default objects share.

use std::sync::Arc;

use crate::config::Renewable;
use crate::informer::Informer;
use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, Namespace, View};
use crate::write::Error;

/// Calls `ensure` with the object's key and its present state whenever the namespace or the object has changed, and for all namespaces
/// when what it is made of is renewed. The future runs until shutdown.
pub(crate) fn keep<K, F, R>(
    shared: &Shared,
    queue: &'static str,
    (objects, name): (Arc<Informer<K>>, &'static str),
    renewed: Option<Renewable<String>>,
    ensure: F,
) -> impl Future<Output = ()> + Send + use<K, F, R>
where
    K: View,
    F: Fn(Key, Option<Arc<K>>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), Error>> + Send,
{
    let namespaces = shared.informers.namespaces.want();
    let queue: Arc<Queue<Key>> = shared.queue(queue);
    let waiting = Arc::clone(&queue);
    namespaces.on_change(move |change| waiting.add(change.object().key()));
    let waiting = Arc::clone(&queue);
    objects.on_change(move |change| {
        if change.object().name() == name {
            waiting.add(Key::cluster(change.object().namespace()));
        }
    });
    let synced = [namespaces.synced(), objects.synced()];
    let (waiting, all) = (Arc::clone(&queue), Arc::clone(&namespaces));
    let again = async move {
        let Some(mut renewed) = renewed else { return };
        while renewed.changed().await.is_ok() {
            all.list().iter().for_each(|namespace| waiting.add(namespace.key()));
        }
    };
    let shutdown = shared.shutdown.clone();
    let work = shared.work(&queue, 1, synced, move |namespace: Key| {
        let (namespaces, objects, ensure) = (Arc::clone(&namespaces), Arc::clone(&objects), ensure.clone());
        async move {
            let lives = |namespace: Arc<Namespace>| !namespace.is_being_deleted();
            if !namespaces.get(&namespace).is_some_and(lives) {
                return Ok(());
            }
            let key = Key::new(&namespace.name, name);
            let present = objects.get(&key);
            match ensure(key, present).await {
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
                other => other,
            }
        }
    });
    async move {
        tokio::join!(work, shutdown.run_until_cancelled(again));
    }
}
