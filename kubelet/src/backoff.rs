//! Growing delays between attempts: 10 s, doubling to 300 s, as upstream's.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::clock;

const INITIAL: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(300);

/// The delay that stands before the next restart of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    delay: Duration,
    updated: Timestamp,
}

impl Backoff {
    /// Notes a restart at `now` of something that ended at `ended`: the first delay, or twice the last one. A thing that
    /// ran for ten minutes starts anew.
    pub(crate) fn next(last: Option<Self>, ended: Timestamp, now: Timestamp) -> Self {
        match last {
            Some(last) if !last.expired(ended) => Self {
                delay: (last.delay * 2).min(LIMIT),
                updated: now,
            },
            _ => Self {
                delay: INITIAL,
                updated: now,
            },
        }
    }

    /// When something that ended at `ended` may start again.
    pub(crate) fn until(self, ended: Timestamp) -> Timestamp {
        if self.expired(ended) {
            ended
        } else {
            after(ended, self.delay)
        }
    }

    pub(crate) fn delay(self) -> Duration {
        self.delay
    }

    /// The same after the wall clock was set.
    pub(crate) fn moved(self, step: SignedDuration) -> Self {
        Self {
            updated: clock::moved(self.updated, step),
            ..self
        }
    }

    fn expired(self, at: Timestamp) -> bool {
        at.duration_since(self.updated) > SignedDuration::from_secs(2 * LIMIT.as_secs().cast_signed())
    }
}

/// The delay after one more failed attempt.
pub(crate) fn grow(delay: Option<Duration>) -> Duration {
    delay.map_or(INITIAL, |delay| (delay * 2).min(LIMIT))
}

/// `at` and `delay` later.
pub(crate) fn after(at: Timestamp, delay: Duration) -> Timestamp {
    SignedDuration::try_from(delay)
        .ok()
        .and_then(|delay| at.checked_add(delay).ok())
        .unwrap_or(Timestamp::MAX)
}

/// `delay` as upstream's messages write it: `10s`, `2m40s`.
pub(crate) fn text(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_to_the_limit_and_starts_anew() {
        let mut backoff = None;
        let mut delays = Vec::new();
        let mut now = 0;
        for _ in 0..7 {
            let next = Backoff::next(backoff, at(now), at(now));
            delays.push(text(next.delay()));
            assert_eq!(next.until(at(now)), after(at(now), next.delay()));
            now += next.delay().as_secs().cast_signed();
            backoff = Some(next);
        }
        assert_eq!(delays, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        let ended = at(now + 700);
        assert_eq!(backoff.unwrap().until(ended), ended);
        assert_eq!(Backoff::next(backoff, ended, ended).delay(), INITIAL);
    }
}
