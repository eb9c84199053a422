//! Deletes bootstrap tokens whose time is over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::DeleteParams;

use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, TokenSecret, View};
use crate::write::Error;

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let tokens = shared.informers.bootstrap_tokens.want();
    let queue: Arc<Queue<Key>> = shared.queue("token_cleaner");
    let waiting = Arc::clone(&queue);
    tokens.on_change(move |change| waiting.add(change.object().key()));
    let writer = shared.writer("token-cleaner");
    let again = Arc::clone(&queue);
    shared.work(&queue, 1, [tokens.synced()], move |key: Key| {
        let (tokens, writer, again) = (Arc::clone(&tokens), writer.clone(), Arc::clone(&again));
        async move {
            let Some(secret) = tokens.get(&key) else {
                return Ok::<(), Error>(());
            };
            match left(&secret, Timestamp::now()) {
                None => Ok(()),
                Some(left) if !left.is_zero() => {
                    again.add_after(key, left);
                    Ok(())
                }
                Some(_) => {
                    tracing::info!(secret = %key, "a bootstrap token has expired: deleting it");
                    let deleted = writer
                        .delete::<TokenSecret>(&key, secret.uid(), DeleteParams::default())
                        .await;
                    match deleted {
                        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                        other => other,
                    }
                }
            }
        }
    })
}

/// How long a token still lives; `None` for ever.
fn left(secret: &TokenSecret, now: Timestamp) -> Option<Duration> {
    let end = secret.token.as_ref()?.expiration?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::defaults::base64;

    use super::*;

    #[test]
    fn tokens_live_until_their_expiration() {
        let secret = |expiration: &str| -> TokenSecret {
            serde_json::from_value(json!({
                "metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"},
                "type": "bootstrap.kubernetes.io/token",
                "data": {
                    "token-id": base64(b"abcdef"),
                    "token-secret": base64(b"0123456789abcdef"),
                    "expiration": base64(expiration.as_bytes()),
                },
            }))
            .unwrap()
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (expiration, expected) in [
            ("", None),
            ("2026-01-01T00:00:30Z", Some(Duration::from_secs(30))),
            ("2026-01-01T00:00:00Z", Some(Duration::ZERO)),
            ("2025-01-01T00:00:00Z", Some(Duration::ZERO)),
            ("some day", Some(Duration::ZERO)),
        ] {
            assert_eq!(left(&secret(expiration), now), expected, "{expiration:?}");
        }
    }
}
