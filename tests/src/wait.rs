//! Waiting for a condition, with a deadline and the last thing that was seen.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a condition is looked at that cannot be awaited as an event (a file, a container, another process).
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks until `wanted` holds for what `look` returns, and returns that.
///
/// # Errors
/// When `limit` passes first; the error shows what was seen last.
pub async fn until<T: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
    wanted: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        let seen = look().await;
        match seen {
            Ok(seen) if wanted(&seen) => return Ok(seen),
            seen if begin.elapsed() > limit => anyhow::bail!("{what}: not so after {limit:?}; last seen: {seen:?}"),
            _ => sleep(LOOK_EVERY).await,
        }
    }
}
