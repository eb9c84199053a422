//! Bodies: boxed ones in, shared bytes or streams out.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

/// Any error of a body's transport.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Body of a request, whatever it came through.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// The most that a request body may hold; upstream's number.
pub const REQUEST_LIMIT: usize = 3 * 1024 * 1024;

/// Why a request body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is longer than [`REQUEST_LIMIT`].
    #[error("Request entity too large: limit is {REQUEST_LIMIT}")]
    TooLarge,
    /// The connection failed under it.
    #[error("cannot read the request body")]
    Broken(#[source] BoxError),
}

/// Boxes a transport's body.
pub fn request<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Reads a request body whole.
pub async fn read(mut body: RequestBody) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > REQUEST_LIMIT {
            return Err(ReadError::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            // The usual case: one piece, taken as it is.
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Body of a response.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// One shared piece.
    Full(Bytes),
    /// Several shared pieces, of a length known in advance.
    Chunks {
        /// What is left to send.
        pieces: VecDeque<Bytes>,
        /// Length of all that is left.
        remaining: u64,
    },
    /// Pieces that come as they happen.
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>),
}

impl Body {
    /// A body of pieces that are sent one after the other.
    pub fn chunks(pieces: VecDeque<Bytes>) -> Self {
        let remaining = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self::Chunks { pieces, remaining }
    }

    /// A body of pieces that come as they happen.
    pub fn stream(stream: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Self {
        Self::Stream(Box::pin(stream))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Full(bytes)
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => f.debug_tuple("Full").field(&bytes.len()).finish(),
            Self::Chunks { remaining, .. } => f.debug_tuple("Chunks").field(remaining).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Chunks { pieces, remaining } => Poll::Ready(pieces.pop_front().map(|piece| {
                *remaining -= piece.len() as u64;
                Ok(Frame::data(piece))
            })),
            Self::Stream(stream) => stream
                .as_mut()
                .poll_next(context)
                .map(|item| item.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Chunks { pieces, .. } => pieces.is_empty(),
            Self::Full(_) | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Chunks { remaining, .. } => SizeHint::with_exact(*remaining),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
