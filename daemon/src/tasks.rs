//! Tasks that end together, and can be waited for: nothing of a part goes on when the part has ended.

use tokio_util::task::TaskTracker;

use crate::Shutdown;

/// The tasks of one part of a process; clones share them.
#[derive(Clone, Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    tracker: TaskTracker,
}

impl Tasks {
    /// None yet; those to come end at `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            tracker: TaskTracker::new(),
        }
    }

    /// When they all end.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Begins one; it is dropped at the shutdown, wherever it waits.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.shutdown.clone().run_until_cancelled_owned(task);
        self.tracker.spawn(task);
    }

    /// Waits until all have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::Tasks;
    use crate::Shutdown;

    #[tokio::test]
    async fn all_end_at_the_shutdown() {
        let tasks = Tasks::new(Shutdown::new());
        let (held, mut released) = tokio::sync::mpsc::channel::<()>(1);
        for _ in 0..3 {
            let held = held.clone();
            tasks.spawn(async move { held.closed().await });
        }
        drop(held);
        tasks.shutdown().cancel();
        tasks.ended().await;
        assert!(
            released
                .try_recv()
                .is_err_and(|error| error == tokio::sync::mpsc::error::TryRecvError::Disconnected)
        );
    }
}
