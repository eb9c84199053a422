//! Waiting for a condition, with a deadline and the last thing that was seen.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a machine is asked for what it cannot tell by itself. An answer costs it a tenth of a second of work.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks until `wanted` holds for what `look` returns, and returns that.
///
/// # Errors
/// When `limit` passes first; the error shows what was seen last.
pub(crate) fn until<T: Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
    wanted: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(seen) if wanted(&seen) => return Ok(seen),
            Ok(seen) if begin.elapsed() > limit => anyhow::bail!("{what}: not so after {limit:?}; last seen: {seen:?}"),
            Err(error) if begin.elapsed() > limit => {
                return Err(error.context(format!("{what}: not so after {limit:?}")));
            }
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_looked_past_until_the_time_is_over() {
        let mut seen = 0;
        let found = until(
            "three",
            Duration::from_secs(60),
            || {
                seen += 1;
                anyhow::ensure!(seen > 1, "no");
                Ok(seen)
            },
            |seen| *seen == 3,
        );
        assert_eq!(found.ok(), Some(3));
        let told = until("never", Duration::ZERO, || Ok(1), |_| false)
            .unwrap_err()
            .to_string();
        assert!(told.contains("never") && told.contains("seen: 1"), "{told}");
    }
}
