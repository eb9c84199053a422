//! One netlink socket: requests out, answers in, matched by their sequence number.

use std::io;

use netlink_packet_core::NLM_F_DUMP_INTR;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::attribute::{self, i32_at, u16_at, u32_at};
use super::{Error, What};

/// Larger than any single datagram that the kernel sends for these requests (it limits dumps to 32 KiB).
const BUFFER: usize = 64 * 1024;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Where the sequence number stands in the header.
const SEQUENCE: std::ops::Range<usize> = 8..12;

/// One answer of the kernel: its type, and the bytes after the netlink header.
pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    pub(crate) payload: &'a [u8],
}

/// A socket, connected to the kernel.
pub(crate) struct Transport {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Transport")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // Both are niceties (the kernel's own words in errors): a kernel without them answers with numbers alone.
        socket.set_ext_ack(true).ok();
        socket.set_cap_ack(true).ok();
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sends one message, header and all; the sequence number is filled in here.
    pub(crate) fn send(&mut self, what: What<'_>, mut bytes: Vec<u8>) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        if let Some(place) = bytes.get_mut(SEQUENCE) {
            place.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        self.socket.send(&bytes, 0).map_err(|source| what.socket(source))?;
        Ok(())
    }

    /// Sends messages that belong together, in one piece and under one sequence number.
    pub(crate) fn send_all(&mut self, what: What<'_>, mut messages: Vec<Vec<u8>>) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        for place in messages.iter_mut().filter_map(|bytes| bytes.get_mut(SEQUENCE)) {
            place.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        self.socket
            .send(&messages.concat(), 0)
            .map_err(|source| what.socket(source))?;
        Ok(())
    }

    /// Waits for the acknowledgement of the last request.
    pub(crate) fn acknowledged(&mut self, what: What<'_>) -> Result<(), Error> {
        self.answers(what, |_| {}).map(drop)
    }

    /// Hands the answers to the last request over, to their end. Returns whether the list was steady meanwhile.
    pub(crate) fn answers(&mut self, what: What<'_>, mut each: impl FnMut(&Answer<'_>)) -> Result<bool, Error> {
        let mut steady = true;
        let mut done = false;
        while !done {
            steady &= self.receive(what, &mut each, &mut done)?;
        }
        Ok(steady)
    }

    /// Reads one datagram.
    fn receive(&mut self, what: What<'_>, each: &mut dyn FnMut(&Answer<'_>), done: &mut bool) -> Result<bool, Error> {
        let length = loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(what.socket(source)),
            }
        };
        let mut rest = self
            .buffer
            .get(..length)
            .ok_or_else(|| what.answer("it is larger than the buffer"))?;
        let mut steady = true;
        while rest.len() >= HEADER {
            let size = u32_at(rest, 0) as usize;
            let (kind, flags, sequence) = (u16_at(rest, 4), u16_at(rest, 6), u32_at(rest, SEQUENCE.start));
            let payload = rest
                .get(HEADER..size)
                .ok_or_else(|| what.answer("a message is cut short"))?;
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            // An answer to an earlier request, one whose reader gave up half-way.
            if sequence != self.sequence {
                continue;
            }
            steady &= flags & NLM_F_DUMP_INTR == 0;
            match kind {
                NLMSG_NOOP => {}
                NLMSG_DONE | NLMSG_ERROR => {
                    *done = true;
                    let code = i32_at(payload, 0);
                    if code != 0 {
                        let hint = Some(payload).filter(|_| kind == NLMSG_ERROR);
                        let hint = hint.and_then(|payload| attribute::explanation(payload, flags));
                        return Err(what.refused(Errno::from_raw(code.wrapping_neg()), hint));
                    }
                }
                _ => each(&Answer { kind, payload }),
            }
        }
        Ok(steady)
    }
}
