//! Bodies on their way: passed on frame by frame, never gathered; bounded in size and in how long they may pause.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, timeout_at};

use crate::access::Record;
use crate::request::Refusal;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read the body")]
    Read(#[source] hyper::Error),
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the body paused for too long")]
    TooSlow,
}

/// As good as for ever; a clock cannot be read further ahead than it goes.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The time some time later.
fn later(since: Instant, time: Duration) -> Instant {
    since + time.min(LONGEST)
}

/// Fires when nothing came for some time.
#[derive(Debug)]
struct Pause {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: None }
    }

    fn over(&mut self) {
        self.sleep = None;
    }

    fn has_begun(&self) -> bool {
        self.sleep.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(later(Instant::now(), limit))));
        sleep.as_mut().poll(cx)
    }
}

/// What becomes of an upload, for whoever has to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Fate(Arc<Course>);

#[derive(Debug)]
struct Course {
    refusal: AtomicU8,
    /// Since when the endpoint has had everything that there is, or will have: it answers or takes more from then on.
    endpoints_turn: Mutex<Instant>,
}

impl Default for Fate {
    fn default() -> Self {
        Self(Arc::new(Course {
            refusal: AtomicU8::default(),
            endpoints_turn: Mutex::new(Instant::now()),
        }))
    }
}

impl Fate {
    const TOO_LARGE: u8 = 1;
    const TOO_SLOW: u8 = 2;

    /// The answer that the body itself asks for.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.0.refusal.load(Ordering::Relaxed) {
            Self::TOO_LARGE => Some(Refusal::LargeBody),
            Self::TOO_SLOW => Some(Refusal::SlowBody),
            _ => None,
        }
    }

    /// Awaits what the endpoint says: for no longer than `limit` after it got the last piece of the body.
    pub(crate) async fn within<T>(&self, limit: Duration, said: impl Future<Output = T>) -> Option<T> {
        let mut said = std::pin::pin!(said);
        self.endpoints_turn_from(Instant::now());
        loop {
            let end = later(*self.0.endpoints_turn.lock(), limit);
            if end <= Instant::now() {
                return None;
            }
            // Pieces that pass meanwhile give it more time.
            if let Ok(said) = timeout_at(end, said.as_mut()).await {
                return Some(said);
            }
        }
    }

    fn endpoints_turn_from(&self, time: Instant) {
        *self.0.endpoints_turn.lock() = time;
    }

    fn refuse(&self, why: u8) {
        self.0.refusal.store(why, Ordering::Relaxed);
    }
}

/// A request's body.
#[derive(Debug)]
pub(crate) struct Upload {
    inner: Option<Incoming>,
    /// How many bytes may still come.
    left: u64,
    pause: Pause,
    fate: Fate,
}

impl Upload {
    /// `limit` is in bytes.
    pub(crate) fn new(inner: Incoming, limit: u64, pause: Duration, fate: Fate) -> Self {
        Self {
            inner: Some(inner),
            left: limit,
            pause: Pause::new(pause),
            fate,
        }
    }

    /// No body, as often as wanted.
    pub(crate) fn empty() -> Self {
        Self {
            inner: None,
            left: 0,
            pause: Pause::new(Duration::MAX),
            fate: Fate::default(),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = match Pin::new(inner).poll_frame(cx) {
            Poll::Pending => {
                if !this.pause.has_begun() {
                    // The endpoint need not answer while it is the client who is waited for.
                    this.fate.endpoints_turn_from(later(Instant::now(), this.pause.limit));
                }
                ready!(this.pause.poll(cx));
                this.fate.refuse(Fate::TOO_SLOW);
                return Poll::Ready(Some(Err(Error::TooSlow)));
            }
            Poll::Ready(frame) => frame,
        };
        this.pause.over();
        this.fate.endpoints_turn_from(Instant::now());
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = frame.map_err(Error::Read)?;
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match this.left.checked_sub(length) {
            Some(left) => this.left = left,
            None => {
                this.fate.refuse(Fate::TOO_LARGE);
                return Poll::Ready(Some(Err(Error::TooLarge)));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer's body. With its end, the request is accounted for.
#[derive(Debug)]
pub(crate) struct Download {
    inner: Source,
    pause: Option<Pause>,
    record: Record,
}

#[derive(Debug)]
enum Source {
    /// From an endpoint.
    Endpoint(Incoming),
    /// Our own.
    Text(Option<Bytes>),
}

impl Download {
    /// What an endpoint answers.
    pub(crate) fn endpoint(inner: Incoming, pause: Option<Duration>, record: Record) -> Self {
        Self {
            inner: Source::Endpoint(inner),
            pause: pause.map(Pause::new),
            record,
        }
    }

    /// A short text of our own.
    pub(crate) fn text(text: impl Into<Bytes>, record: Record) -> Self {
        let text = text.into();
        Self {
            inner: Source::Text((!text.is_empty()).then_some(text)),
            pause: None,
            record,
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let inner = match &mut self.inner {
            Source::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Endpoint(inner) => inner,
        };
        match Pin::new(inner).poll_frame(cx) {
            Poll::Pending => {
                let Some(pause) = &mut self.pause else {
                    return Poll::Pending;
                };
                ready!(pause.poll(cx));
                Poll::Ready(Some(Err(Error::TooSlow)))
            }
            Poll::Ready(frame) => {
                if let Some(pause) = &mut self.pause {
                    pause.over();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Error::Read)))
            }
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let frame = ready!(this.poll_source(cx));
        match &frame {
            Some(Ok(frame)) => this.record.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => this.record.failed(error),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Source::Endpoint(inner) => inner.is_end_stream(),
            Source::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Source::Endpoint(inner) => inner.size_hint(),
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
