//! Signs ConfigMap `cluster-info` with every bootstrap token, so that a machine that joins knows the right cluster by its token.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_api::bootstrap_tokens::{
    BootstrapSecret, CLUSTER_INFO, CLUSTER_INFO_NAMESPACE, KUBECONFIG, SIGNATURE_PREFIX,
};
use skiff_pki::BootstrapToken;

use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{ConfigMap, Key, View};
use crate::write::{Error, Merge};

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let tokens = shared.informers.bootstrap_tokens.want();
    let maps = shared.informers.cluster_info.want();
    let queue: Arc<Queue<Key>> = shared.queue("bootstrap_signer_queue");
    let key = Key::new(CLUSTER_INFO_NAMESPACE, CLUSTER_INFO);
    let (waiting, all) = (Arc::clone(&queue), key.clone());
    tokens.on_change(move |_| waiting.add(all.clone()));
    let waiting = Arc::clone(&queue);
    maps.on_change(move |_| waiting.add(key.clone()));
    let writer = shared.writer("bootstrap-signer");
    shared.work(&queue, 1, [tokens.synced(), maps.synced()], move |key: Key| {
        let (tokens, maps, writer) = (Arc::clone(&tokens), Arc::clone(&maps), writer.clone());
        async move {
            let Some(map) = maps.get(&key) else {
                return Ok::<(), Error>(());
            };
            let secrets = tokens.list();
            let tokens = secrets.iter().filter_map(|secret| secret.token.as_ref());
            let Some(data) = plan(&map.data, tokens, Timestamp::now()) else {
                return Ok(());
            };
            let version = json!({"uid": map.uid(), "resourceVersion": map.resource_version()});
            let patch = json!({"metadata": version, "data": data});
            writer.patch::<ConfigMap>(&key, Merge::Json, &patch).await.map(drop)
        }
    })
}

/// What to merge into the map's data, so that each token that signs has a right signature there and no other has one; `None` when it
/// is so.
fn plan<'a>(
    data: &BTreeMap<String, String>,
    tokens: impl Iterator<Item = &'a BootstrapSecret>,
    now: Timestamp,
) -> Option<Map<String, Value>> {
    let mut wanted = BTreeMap::new();
    if let Some(kubeconfig) = data.get(KUBECONFIG) {
        for token in tokens.filter(|token| token.signing && !token.has_expired(now)) {
            if let Some(signer) = BootstrapToken::of_parts(&token.id, &token.secret) {
                wanted.insert(
                    format!("{SIGNATURE_PREFIX}{}", token.id),
                    signer.sign_detached(kubeconfig),
                );
            }
        }
    }
    let mut patch = Map::new();
    for (key, _) in data.iter().filter(|(key, _)| key.starts_with(SIGNATURE_PREFIX)) {
        if !wanted.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    for (key, signature) in wanted {
        if data.get(&key) != Some(&signature) {
            patch.insert(key, signature.into());
        }
    }
    (!patch.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str, signing: bool, expiration: Option<&str>) -> BootstrapSecret {
        BootstrapSecret {
            id: id.to_owned(),
            secret: "0123456789abcdef".to_owned(),
            expiration: expiration.map(|text| text.parse().unwrap()),
            authentication: true,
            signing,
            groups: Some(Vec::new()),
            description: String::new(),
        }
    }

    #[test]
    fn tokens_that_sign_have_signed_and_others_have_not() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let tokens = [
            token("aaaaaa", true, None),
            token("bbbbbb", false, None),
            token("cccccc", true, Some("2025-12-31T00:00:00Z")),
            token("dddddd", true, Some("2026-01-02T00:00:00Z")),
        ];
        let mut data: BTreeMap<String, String> = [
            (KUBECONFIG, "config"),
            ("jws-kubeconfig-cccccc", "old"),
            ("jws-kubeconfig-eeeeee", "gone"),
            ("other", "stays"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let patch = plan(&data, tokens.iter(), now).unwrap();
        assert_eq!(patch.len(), 4);
        assert!(patch["jws-kubeconfig-cccccc"].is_null() && patch["jws-kubeconfig-eeeeee"].is_null());
        for (key, value) in patch {
            match value.as_str() {
                Some(signature) => data.insert(key, signature.to_owned()),
                None => data.remove(&key),
            };
        }
        let known = BootstrapToken::of_parts("dddddd", "0123456789abcdef").unwrap();
        assert!(known.verifies("config", &data["jws-kubeconfig-dddddd"]));
        assert_eq!(plan(&data, tokens.iter(), now), None, "nothing is left to do");
        data.insert(KUBECONFIG.to_owned(), "another".to_owned());
        assert_eq!(plan(&data, tokens.iter(), now).unwrap().len(), 2);
        data.remove(KUBECONFIG);
        assert!(plan(&data, tokens.iter(), now).unwrap().values().all(Value::is_null));
    }
}
