//! Steps of the wall clock. What a worker remembers is in wall-clock time, as what the runtime and the API tell it; when somebody
//! sets the clock, the memory is moved along, so that no delay grows by an hour or ends early.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Less is a clock that runs a little fast or slow.
const STEP: Duration = Duration::from_secs(1);

/// Both clocks as they were last read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    wall: Timestamp,
    steady: Instant,
}

impl Clock {
    /// Reads both clocks.
    pub(crate) fn read() -> Self {
        Self {
            wall: Timestamp::now(),
            steady: Instant::now(),
        }
    }

    /// By how much somebody has set the wall clock since the last reading, if by much.
    pub(crate) fn step(&mut self, now: Self) -> Option<SignedDuration> {
        let before = std::mem::replace(self, now);
        let passed = now.steady.saturating_duration_since(before.steady);
        let passed = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
        let step = now.wall.duration_since(before.wall).saturating_sub(passed);
        (step.unsigned_abs() > STEP).then_some(step)
    }
}

/// A remembered time after a step; at the end of time it stays there.
pub(crate) fn moved(at: Timestamp, step: SignedDuration) -> Timestamp {
    at.checked_add(step).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_set_is_a_step() {
        let wall = Timestamp::from_second(1_000_000).unwrap();
        let start = Clock {
            wall,
            steady: Instant::now(),
        };
        let later = |wall_seconds: i64, steady_millis: u64| Clock {
            wall: moved(wall, SignedDuration::from_secs(wall_seconds)),
            steady: start.steady + Duration::from_millis(steady_millis),
        };
        let step = |now| { start }.step(now).map(|step| step.as_secs());
        assert_eq!(step(later(60, 60_000)), None);
        assert_eq!(step(later(60, 60_400)), None, "a clock that is being slewed");
        assert_eq!(step(later(3660, 60_000)), Some(3600));
        assert_eq!(step(later(-3540, 60_000)), Some(-3600));
        let mut clock = start;
        assert!(clock.step(later(3600, 0)).is_some());
        assert_eq!(clock.step(later(3601, 1000)), None, "a step is told once");
    }
}
