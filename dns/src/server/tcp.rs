//! Connections: questions may follow each other without waiting, and are answered as the answers come (RFC 7766).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, SinkExt as _};
use skiff_daemon::serve::{Bounds, Room, Yield};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::message::{MAX_QUESTION, Transport};
use crate::resolver::{Outcome, Pending, Resolver};

/// Nobody keeps the others out by holding all places: who has most makes room when all are taken.
const CONNECTIONS: Bounds = Bounds { each: 100, all: 1000 };
/// Questions of one connection that wait for others; the next is read when one of them is answered.
const MAX_WAITING: usize = 16;
/// CoreDNS's: nothing heard for so long, and the connection ends.
const IDLE: Duration = Duration::from_secs(10);
/// Who takes no answer for so long does not want it.
const SEND: Duration = Duration::from_secs(5);

/// Accepts for ever.
pub(super) async fn serve(listener: TcpListener, resolver: Arc<Resolver>) {
    let room = Arc::new(Room::new(
        "connections with DNS questions",
        CONNECTIONS,
        Yield::ToSmaller,
    ));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of files, mostly: nothing tells when there are some again.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Who comes too many is sent away at once, not left to wait.
        let Some(place) = Room::enter(&room, from.ip()) else {
            continue;
        };
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            tokio::select! {
                ended = converse(stream, from, &resolver) => if let Err(error) = ended {
                    tracing::debug!(%error, %from, "a connection ended early");
                },
                () = place.lost() => tracing::debug!(%from, "a connection makes room for another client's"),
            }
        });
    }
}

async fn converse(stream: TcpStream, from: SocketAddr, resolver: &Arc<Resolver>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    // A longer question ends the connection before there is memory for it.
    let mut questions = FramedRead::new(reader, codec(MAX_QUESTION));
    let mut answers = FramedWrite::new(writer, codec(usize::from(u16::MAX)));
    let mut waiting = FuturesUnordered::new();
    loop {
        // Both arms may be dropped between messages: a half-read question stays in its buffer.
        tokio::select! {
            answer = waiting.next(), if !waiting.is_empty() => {
                if let Some(answer) = answer {
                    send(&mut answers, answer).await?;
                }
            }
            packet = timeout(IDLE, questions.next()), if waiting.len() < MAX_WAITING => {
                let packet = match packet {
                    Ok(Some(packet)) => packet?,
                    Ok(None) => break,
                    Err(_) if waiting.is_empty() => return Ok(()),
                    Err(_) => continue,
                };
                match resolver.handle(&packet, Transport::Tcp, from) {
                    Outcome::Nothing => {}
                    Outcome::Answer(bytes) => send(&mut answers, bytes).await?,
                    Outcome::Later(pending) => waiting.push(Pending::answer(pending).boxed()),
                }
            }
        }
    }
    // The client may have shut its half only: what it asked for is still answered.
    while let Some(answer) = waiting.next().await {
        send(&mut answers, answer).await?;
    }
    Ok(())
}

fn codec(longest: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .length_field_length(2)
        .max_frame_length(longest)
        .new_codec()
}

async fn send(answers: &mut FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>, answer: Vec<u8>) -> std::io::Result<()> {
    timeout(SEND, answers.send(Bytes::from(answer)))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
