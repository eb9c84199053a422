//! The writer thread: many waiting writes, one transaction, one fsync.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Options;
use super::apply::{Outcome, apply};
use super::compaction::Compaction;
use super::connection::Opened;
use super::failure::{copy, explain};
use super::hub::Hub;
use crate::{Entry, Error, Event, Revision, Write};

/// A transaction takes no more than this, so that its callers do not wait long for each other.
const BATCH_WRITES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;

/// What the writer thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Apply one change.
    Write {
        write: Write,
        reply: oneshot::Sender<Result<Revision, Error>>,
    },
    /// Forget history up to a revision.
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// The handle of the writer thread; dropping it lets the thread finish its queue and waits for that.
#[derive(Debug)]
pub(super) struct Writer {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// The thread's own state.
struct Loop {
    connection: Connection,
    path: Arc<Path>,
    hub: Arc<Hub>,
    /// The newest revision given out and committed.
    revision: Revision,
    compaction: Compaction,
}

/// An answer that is due once the transaction is on disk.
struct Due {
    reply: oneshot::Sender<Result<Revision, Error>>,
    answer: Answer,
}

enum Answer {
    Applied(Revision),
    Conflict(Option<Entry>),
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(opened: Opened, path: Arc<Path>, hub: Arc<Hub>, options: &Options) -> Result<Self, Error> {
        let (commands, queue) = mpsc::channel();
        let compaction = Compaction::new(opened.compacted, opened.purged, opened.revision, options);
        let state = Loop {
            connection: opened.connection,
            path: Arc::clone(&path),
            hub,
            revision: opened.revision,
            compaction,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || state.run(&queue))
            .map_err(|source| Error::File {
                step: "start the writer thread for",
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    pub(super) fn send(&self, command: Command) -> Result<(), Error> {
        let Some(commands) = &self.commands else {
            return Err(Error::Closed);
        };
        commands.send(command).map_err(|_| Error::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

// === impl Loop ===

impl Loop {
    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            let first = match self.wait(queue) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(command) = first {
                self.serve(command, queue);
            }
            self.compaction
                .tick(&self.connection, &self.path, &self.hub, self.revision);
        }
        self.hub.close();
        self.compaction.finish();
    }

    fn wait(&self, queue: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        match self.compaction.wake_at() {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => {
                let timeout = at.saturating_duration_since(Instant::now());
                // A compaction under way still lets every waiting command go first.
                queue.recv_timeout(timeout.max(Duration::from_micros(1)))
            }
        }
    }

    /// Takes `first` and what else waits, and commits it together.
    fn serve(&mut self, first: Command, queue: &Receiver<Command>) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Write { write, reply } => {
                    bytes += write.size();
                    batch.push((write, reply));
                }
                Command::Compact { revision, reply } => self.compaction.request(revision, reply),
            }
            if batch.len() < BATCH_WRITES && bytes < BATCH_BYTES {
                next = queue.try_recv().ok();
            }
        }
        if !batch.is_empty() {
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<(Write, oneshot::Sender<Result<Revision, Error>>)>) {
        let mut due = Vec::with_capacity(batch.len());
        let mut events = Vec::with_capacity(batch.len());
        let mut waiting = batch.into_iter();
        let result = self.transaction(&mut waiting, &mut due, &mut events);
        if let Err(error) = result {
            tracing::error!(%error, "cannot commit to the store");
            let answers = due
                .into_iter()
                .map(|due| due.reply)
                .chain(waiting.map(|(_, reply)| reply));
            for reply in answers {
                reply
                    .send(Err(explain(&self.path, "commit a write", copy(&error))))
                    .ok();
            }
            return;
        }
        if let Some(last) = events.last() {
            self.revision = last.revision();
            self.hub.publish(events);
        }
        for Due { reply, answer } in due {
            // A caller that went away does not need its answer.
            reply
                .send(match answer {
                    Answer::Applied(revision) => Ok(revision),
                    Answer::Conflict(current) => Err(Error::Conflict { current }),
                })
                .ok();
        }
    }

    fn transaction(
        &mut self,
        waiting: &mut impl Iterator<Item = (Write, oneshot::Sender<Result<Revision, Error>>)>,
        due: &mut Vec<Due>,
        events: &mut Vec<Event>,
    ) -> rusqlite::Result<()> {
        // Rolled back when dropped without a commit.
        let transaction = self.connection.unchecked_transaction()?;
        let mut revision = self.revision;
        for (write, reply) in waiting {
            let offered = Revision(revision.0 + 1);
            let outcome = apply(&transaction, write, offered);
            let (answer, failure) = match outcome {
                Ok(Outcome::Applied(event)) => {
                    revision = offered;
                    events.push(event);
                    (Answer::Applied(offered), None)
                }
                Ok(Outcome::Conflict(current)) => (Answer::Conflict(current), None),
                Err(error) => (Answer::Conflict(None), Some(error)),
            };
            due.push(Due { reply, answer });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        transaction.commit()
    }
}
