//! Datagrams: what memory can answer is answered right here, without a task or a queue between.

use std::io::ErrorKind;
use std::sync::Arc;

use tokio::net::UdpSocket;

use crate::message::{MAX_QUESTION, Transport};
use crate::resolver::{Outcome, Resolver};

/// After so many datagrams others have their turn.
const BATCH: usize = 64;

/// Answers for ever.
pub(super) async fn serve(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    // One byte more than the longest question: what fills it was longer.
    let mut buffer = vec![0; MAX_QUESTION + 1];
    loop {
        if let Err(error) = socket.readable().await {
            tracing::warn!(%error, "cannot wait for questions");
            return;
        }
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((size, from)) => answer(&socket, &resolver, &buffer[..size], from).await,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A former answer has met a closed port: that is its receiver's affair.
                Err(error) => tracing::debug!(%error, "a datagram went wrong"),
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn answer(socket: &Arc<UdpSocket>, resolver: &Arc<Resolver>, packet: &[u8], from: std::net::SocketAddr) {
    match resolver.handle(packet, Transport::Udp, from) {
        Outcome::Nothing => {}
        Outcome::Answer(bytes) => {
            let sent = match socket.try_send_to(&bytes, from) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => socket.send_to(&bytes, from).await,
                sent => sent,
            };
            if let Err(error) = sent {
                tracing::debug!(%error, %from, "an answer cannot be sent");
            }
        }
        Outcome::Later(pending) => {
            let socket = Arc::clone(socket);
            tokio::spawn(async move {
                let bytes = pending.answer().await;
                if let Err(error) = socket.send_to(&bytes, from).await {
                    tracing::debug!(%error, %from, "an answer cannot be sent");
                }
            });
        }
    }
}
