//! Events go an hour after they were written last.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use skiff_api::meta;
use skiff_daemon::{Shutdown, error_chain};
use skiff_store::{Revision, Write};

use crate::registry::Registry;

const LIFE: Duration = Duration::from_secs(3600);
const PERIOD: Duration = Duration::from_secs(60);

/// The times that an event has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    metadata: Metadata,
    last_timestamp: Option<String>,
    event_time: Option<String>,
    series: Option<Series>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    creation_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    last_observed_time: Option<String>,
}

impl Times {
    /// The latest of them, in seconds.
    fn latest(&self) -> Option<i64> {
        let series = self
            .series
            .as_ref()
            .and_then(|series| series.last_observed_time.as_deref());
        [
            self.metadata.creation_timestamp.as_deref(),
            self.last_timestamp.as_deref(),
            self.event_time.as_deref(),
            series,
        ]
        .into_iter()
        .flatten()
        .filter_map(meta::parse_time)
        .map(|time| time.as_second())
        .max()
    }
}

/// Removes old events until shutdown.
pub(crate) async fn run(registry: Arc<Registry>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => sweep(&registry, Timestamp::now().as_second()).await,
        }
    }
}

async fn sweep(registry: &Registry, now: i64) {
    let Some(events) = registry.resources.any_version("", "events") else {
        return;
    };
    let life = i64::try_from(LIFE.as_secs()).unwrap_or(i64::MAX);
    for object in events.cache.all("") {
        let times: Times = serde_json::from_slice(&object.bytes).unwrap_or_default();
        if times.latest().is_none_or(|latest| latest + life > now) {
            continue;
        }
        // Only this version of it: an event that is written again lives on.
        let delete = Write::Delete {
            key: Arc::clone(object.key()),
            expected: Some(Revision(object.revision)),
        };
        match registry.store.write(delete).await {
            Ok(_) | Err(skiff_store::Error::Conflict { .. }) => {}
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot remove an old event");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Times;

    #[test]
    fn the_latest_time_counts() {
        let event = br#"{"metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"},"series":{"lastObservedTime":"2026-01-01T00:00:10.000000Z"},"lastTimestamp":null}"#;
        let times: Times = serde_json::from_slice(event).unwrap();
        assert_eq!(times.latest(), Some(1_767_225_610));
    }
}
