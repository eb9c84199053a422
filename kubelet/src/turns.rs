//! Who may make a sandbox now. Each takes the runtime a dozen processes; of forty begun at once all are ready at the very end. Made a
//! few at a time, those that are there start their containers meanwhile, and the last is ready no later.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Who takes longer no longer counts: a network that is not there holds up nobody else.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sandboxes at once for each processor: with fewer the processors idle while disks are waited for.
const EACH: i64 = 3;

/// So many turns at once, in the order of asking.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Semaphore,
}

impl Turns {
    /// As many as a machine with so many processors does best with.
    pub(crate) fn of(processors: i64) -> Self {
        Self::new(usize::try_from(processors.saturating_mul(EACH)).unwrap_or(1).max(1))
    }

    fn new(count: usize) -> Self {
        Self {
            free: Semaphore::new(count),
        }
    }

    /// Does the work in its turn, or not at all when it is no longer wanted by then.
    pub(crate) async fn take<T>(&self, wanted: impl FnOnce() -> bool, work: impl Future<Output = T>) -> Option<T> {
        // It is never closed.
        let turn = self.free.acquire().await.ok();
        if !wanted() {
            return None;
        }
        let mut work = std::pin::pin!(work);
        let late = Instant::now() + PATIENCE;
        if let Ok(done) = tokio::time::timeout_at(late, &mut work).await {
            return Some(done);
        }
        drop(turn);
        Some(work.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_holds_up_nobody_for_long() {
        let turns = Turns::new(2);
        let begin = Instant::now();
        let work = async |seconds: u64| {
            let sleep = async { tokio::time::sleep(Duration::from_secs(seconds)).await };
            turns.take(|| true, sleep).await;
            begin.elapsed().as_secs()
        };
        let ends = tokio::join!(work(60), work(1), work(1), work(60), work(1), work(1));
        // The first holds its turn for three seconds, the fourth from the second on.
        assert_eq!(ends, (60, 1, 2, 62, 4, 5));
        let never = turns.take(|| false, std::future::pending::<()>()).await;
        assert_eq!(never, None, "nobody wants it any more");
    }
}
