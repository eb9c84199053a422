//! What is open on a connection, and since when nothing is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    open: usize,
    /// When the last of them ended, or the connection began.
    quiet_since: Instant,
}

/// A request that has begun; it ends with this.
#[derive(Debug)]
pub(super) struct Open(Arc<Activity>);

/// A response's body, until the end of which its request is open.
#[derive(Debug)]
pub(super) struct Counted<B> {
    body: B,
    _open: Open,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(State {
            open: 0,
            quiet_since: Instant::now(),
        }))
    }
}

impl Activity {
    pub(super) fn begin(activity: &Arc<Self>) -> Open {
        activity.0.lock().open += 1;
        Open(Arc::clone(activity))
    }

    /// Waits until nothing has been open for as long as `patience`, from now on at the earliest.
    pub(super) async fn silence(&self, patience: Duration) {
        let begin = Instant::now();
        loop {
            let now = Instant::now();
            let until = {
                let state = self.0.lock();
                let since = if state.open > 0 {
                    now
                } else {
                    state.quiet_since.max(begin)
                };
                since + patience
            };
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.open -= 1;
        if state.open == 0 {
            state.quiet_since = Instant::now();
        }
    }
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, open: Open) -> Self {
        Self { body, _open: open }
    }
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
