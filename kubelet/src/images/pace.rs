//! How fast images are asked of registries: `registryPullQPS` a second, `registryBurst` at once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A bucket that fills with `rate` permits a second. Upstream fails a pull that comes too early, and tries it again after ten
/// seconds; here it waits for its turn, which keeps the limit and starts the pod sooner.
#[derive(Debug)]
pub(super) struct Pace {
    rate: f64,
    burst: f64,
    state: Mutex<(f64, Instant)>,
}

impl Pace {
    /// No limit when `rate` is not positive.
    pub(super) fn new(rate: i32, burst: i32) -> Option<Self> {
        let burst = f64::from(burst.max(1));
        (rate > 0).then(|| Self {
            rate: f64::from(rate),
            burst,
            state: Mutex::new((burst, Instant::now())),
        })
    }

    /// Waits for a permit; those who asked first get theirs first.
    pub(super) async fn turn(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a permit, if need be one that is not there yet: returns how long until it is.
    fn take(&self, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let (permits, at) = *state;
        let passed = now.saturating_duration_since(at).as_secs_f64();
        let permits = (permits + passed * self.rate).min(self.burst) - 1.0;
        *state = (permits, at.max(now));
        if permits >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-permits / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_steady_rate() {
        assert!(Pace::new(0, 10).is_none(), "0 is no limit");
        let pace = Pace::new(5, 2).expect("a limit");
        let start = Instant::now();
        let at = |millis: u64| pace.take(start + Duration::from_millis(millis)).as_millis();
        let waits: Vec<u128> = [0, 0, 0, 0].into_iter().map(at).collect();
        assert_eq!(waits, [0, 0, 200, 400]);
        // One more after the last one's turn, and nothing is saved up beyond the burst.
        assert_eq!(at(650), 0);
        assert_eq!([at(60_000), at(60_000), at(60_000)], [0, 0, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for() {
        let pace = Pace::new(1, 1).expect("a limit");
        let start = Instant::now();
        pace.turn().await;
        pace.turn().await;
        pace.turn().await;
        assert_eq!(start.elapsed().as_secs(), 2);
    }
}
