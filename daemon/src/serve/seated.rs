//! A stream that has its place for as long as somebody has the stream: also after an upgrade, when no HTTP is spoken on it any more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::room::Place;

/// Fails when its place, if it needs one, is somebody else's.
#[derive(Debug)]
pub(super) struct Seated<S> {
    stream: S,
    seat: Option<Seat>,
}

#[derive(Debug)]
struct Seat {
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Place,
}

impl<S> Seated<S> {
    pub(super) fn new(stream: S, place: Option<Place>) -> Self {
        let seat = place.map(|place| Seat {
            lost: Box::pin(place.told()),
            _place: place,
        });
        Self { stream, seat }
    }

    /// The stream, while it has its place; wakes whoever asked last when that is lost.
    fn poll_seat(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        let lost = self.seat.as_mut().map(|seat| seat.lost.as_mut().poll(cx));
        match lost {
            Some(Poll::Ready(())) => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Poll::Pending) | None => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Seated<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_seat(cx)?.poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Seated<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seat(cx)?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seat(cx)?.poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_seat(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_seat(cx)?.poll_shutdown(cx)
    }
}
