//! Removes requests that are done with: an hour after they were answered, a day after nobody did.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::DeleteParams;
use serde_json::Value;
use skiff_api::defaults::from_base64;
use skiff_api::meta;
use skiff_pki::Validity;

use crate::manager::Shared;
use crate::queue::Queue;
use crate::view::{Key, SigningRequest, View};
use crate::write::Error;

/// Upstream's times.
const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// Registers the handlers; the future runs until shutdown.
pub(crate) fn start(shared: &Shared) -> impl Future<Output = ()> + Send + use<> {
    let requests = shared.informers.signing_requests.want();
    let queue: Arc<Queue<Key>> = shared.queue("certificate_cleaner");
    let waiting = Arc::clone(&queue);
    requests.on_change(move |change| {
        if change.new.is_some() {
            waiting.add(change.object().key());
        }
    });
    let (writer, again) = (shared.writer("certificate-controller"), Arc::clone(&queue));
    shared.work(&queue, 1, [requests.synced()], move |key: Key| {
        let (requests, writer, again) = (Arc::clone(&requests), writer.clone(), Arc::clone(&again));
        async move {
            let Some(request) = requests.get(&key) else {
                return Ok::<(), Error>(());
            };
            let Some(end) = end(&request) else { return Ok(()) };
            let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
            if !left.is_zero() {
                again.add_after(key, left);
                return Ok(());
            }
            tracing::debug!(request = %key, "removing a certificate signing request that is done with");
            match writer
                .delete::<SigningRequest>(&key, request.uid(), DeleteParams::default())
                .await
            {
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                other => other,
            }
        }
    })
}

/// When a request is done with; `None` when something is still to happen.
fn end(request: &SigningRequest) -> Option<Timestamp> {
    let written = |condition: &Value| condition["lastUpdateTime"].as_str().and_then(meta::parse_time);
    let after = |from: Timestamp, time| from.checked_add(time).ok();
    if request.status.conditions.is_empty() {
        let created = request.metadata.creation_timestamp.as_ref()?.0;
        return after(created, PENDING);
    }
    let issued = !request.status.certificate.is_empty();
    let answers = ["Denied", "Failed", if issued { "Approved" } else { "" }];
    let answered = answers
        .iter()
        .filter_map(|answer| after(written(request.condition(answer)?)?, ANSWERED));
    let certificate = from_base64(&request.status.certificate).and_then(|pem| String::from_utf8(pem).ok());
    let expires = certificate
        .and_then(|pem| Validity::of_pem(&pem).ok())
        .map(|validity| validity.not_after);
    answered.chain(expires).min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answered_requests_stay_for_an_hour_and_others_for_a_day() {
        let ends = |status: Value| {
            let request: SigningRequest = serde_json::from_value(
                json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status}),
            )
            .unwrap();
            end(&request).map(|end| end.to_string())
        };
        let condition = |kind: &str| json!([{"type": kind, "lastUpdateTime": "2026-01-01T05:00:00Z"}]);
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(ends(json!({})), at("2026-01-02T00:00:00Z"));
        assert_eq!(
            ends(json!({"conditions": condition("Denied")})),
            at("2026-01-01T06:00:00Z")
        );
        assert_eq!(
            ends(json!({"conditions": condition("Failed")})),
            at("2026-01-01T06:00:00Z")
        );
        assert_eq!(ends(json!({"conditions": condition("Approved")})), None);
        let issued = json!({"conditions": condition("Approved"), "certificate": "eA=="});
        assert_eq!(ends(issued), at("2026-01-01T06:00:00Z"));
    }
}
