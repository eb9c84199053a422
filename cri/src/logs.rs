//! Container logs as the runtime writes them: `TIME stdout|stderr P|F TEXT`, one file for each run of a container.
//!
//! [`read`] sends what `kubectl logs` shows. Files are read in chunks on the blocking pool; following waits for inotify, through
//! [`Subscription`], one instance for the whole process, and goes on in the new file when the log is rotated.

mod line;
mod tail;

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use skiff_daemon::Subscription;

use line::Formatter;
pub use line::{Line, Source};

/// Read at once; a chunk of output is about as large.
const CHUNK: usize = 64 << 10;

/// What has no end by then is no line: the runtime's are of 16 KiB, unless it is told otherwise.
const LONGEST: usize = 1 << 20;

/// What to show of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only this many lines from the end.
    pub tail: Option<u64>,
    /// Nothing written before this.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
    /// Only standard output or only standard error.
    pub source: Option<Source>,
}

/// Sends a log. `ended` resolves when the container writes no more; following stops then, after the last line.
pub fn read(
    path: PathBuf,
    options: Options,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let reading = Reading {
        path,
        options,
        state: State::Closed,
        ended: Box::pin(ended),
        over: false,
    };
    futures::stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Reading {
    path: PathBuf,
    options: Options,
    state: State,
    ended: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

enum State {
    Closed,
    Open {
        cursor: Box<Cursor>,
        changes: Option<Subscription>,
    },
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let (mut cursor, changes) = match std::mem::replace(&mut self.state, State::Closed) {
                State::Open { cursor, changes } => (cursor, changes),
                State::Closed => self.open().await?,
            };
            let (chunk, cursor) = blocking(move || {
                let chunk = cursor.fill();
                (chunk, cursor)
            })
            .await;
            let finished = cursor.format.finished();
            self.state = State::Open { cursor, changes };
            let chunk = chunk?;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            if finished || !self.options.follow || !self.wait().await? {
                return Ok(None);
            }
        }
    }

    async fn open(&mut self) -> io::Result<(Box<Cursor>, Option<Subscription>)> {
        // Watch first, so that nothing falls between opening and watching.
        let changes = if self.options.follow {
            Some(Subscription::of(self.path.parent().unwrap_or(Path::new("/")))?)
        } else {
            None
        };
        let (path, options) = (self.path.clone(), self.options.clone());
        let cursor = blocking(move || Cursor::open(&path, &options)).await?;
        Ok((Box::new(cursor), changes))
    }

    /// At the end of the file: waits for more; `false` when there will be none.
    async fn wait(&mut self) -> io::Result<bool> {
        let State::Open {
            cursor,
            changes: Some(changes),
        } = &mut self.state
        else {
            return Ok(false);
        };
        if cursor.rotated(&self.path)? {
            // The old file may have grown between our last read and its being renamed.
            if cursor.has_more()? {
                return Ok(true);
            }
            return cursor.reopen(&self.path).map(|()| true);
        }
        if self.over {
            return Ok(false);
        }
        tokio::select! {
            biased;
            // Both arms may be dropped and polled again: neither loses anything.
            () = changes.changed() => {}
            () = &mut self.ended => self.over = true,
        }
        Ok(true)
    }
}

/// A place in an open log.
#[derive(Debug)]
struct Cursor {
    file: File,
    /// Read, but not yet a whole line.
    rest: Vec<u8>,
    format: Formatter,
}

impl Cursor {
    fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let mut file = File::open(path)?;
        if let Some(lines) = options.tail {
            let start = tail::start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(Self {
            file,
            rest: Vec::new(),
            format: Formatter::new(options),
        })
    }

    /// The next chunk of output; empty at the end of the file.
    fn fill(&mut self) -> io::Result<Bytes> {
        let mut output = Vec::new();
        while output.is_empty() && !self.format.finished() {
            let start = self.rest.len();
            self.rest.resize(start + CHUNK, 0);
            let read = self.file.read(&mut self.rest[start..]);
            self.rest.truncate(start + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                break;
            }
            let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in self.rest[..whole].split_inclusive(|byte| *byte == b'\n') {
                self.format.push(line, &mut output);
            }
            self.rest.drain(..whole);
            if self.rest.len() > LONGEST {
                // What a power cut or a full disk leaves: it may be as long as the disk is large.
                self.rest.clear();
            }
        }
        Ok(output.into())
    }

    /// Whether the path now names another file than the open one; not while it names none.
    fn rotated(&self, path: &Path) -> io::Result<bool> {
        let open = self.file.metadata()?;
        match std::fs::metadata(path) {
            Ok(current) => Ok((current.dev(), current.ino()) != (open.dev(), open.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn has_more(&mut self) -> io::Result<bool> {
        Ok(self.file.stream_position()? < self.file.metadata()?.len())
    }

    fn reopen(&mut self, path: &Path) -> io::Result<()> {
        self.file = File::open(path)?;
        self.rest.clear();
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use futures::StreamExt;
    use tokio::sync::oneshot;

    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:01.5Z stdout F one\n\
2026-01-01T00:00:02.5Z stderr F two\n\
2026-01-01T00:00:03.5Z stdout P thr\n\
2026-01-01T00:00:03.6Z stdout F ee\n";

    async fn show(log: &str, options: Options) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, log).unwrap();
        let chunks: Vec<_> = read(path, options, std::future::pending()).collect().await;
        chunks
            .into_iter()
            .map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn options() {
        let all = Options::default();
        assert_eq!(show(LOG, all.clone()).await, "one\ntwo\nthree\n");
        assert_eq!(
            show(
                LOG,
                Options {
                    tail: Some(0),
                    ..all.clone()
                }
            )
            .await,
            ""
        );
        assert_eq!(
            show(
                LOG,
                Options {
                    tail: Some(3),
                    ..all.clone()
                }
            )
            .await,
            "two\nthree\n"
        );
        assert_eq!(
            show(
                LOG,
                Options {
                    tail: Some(99),
                    ..all.clone()
                }
            )
            .await,
            "one\ntwo\nthree\n"
        );
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(show(LOG, Options { since, ..all.clone() }).await, "two\nthree\n");
        assert_eq!(
            show(
                LOG,
                Options {
                    limit_bytes: Some(5),
                    ..all.clone()
                }
            )
            .await,
            "one\nt"
        );
        assert_eq!(
            show(
                LOG,
                Options {
                    source: Some(Source::Stderr),
                    ..all.clone()
                }
            )
            .await,
            "two\n"
        );
        let timed = show(
            LOG,
            Options {
                timestamps: true,
                ..all
            },
        )
        .await;
        assert_eq!(
            timed,
            "2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:02.5Z two\n2026-01-01T00:00:03.5Z three\n"
        );
    }

    #[test]
    fn what_is_no_line_takes_no_more_room_than_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let zeros = "\0".repeat(3 * LONGEST);
        fs::write(&path, format!("{zeros}\n{LOG}")).unwrap();
        let mut cursor = Cursor::open(&path, &Options::default()).unwrap();
        assert_eq!(cursor.fill().unwrap(), "one\ntwo\nthree\n");
        assert!(
            cursor.rest.capacity() < 2 * LONGEST + CHUNK,
            "{}",
            cursor.rest.capacity()
        );
    }

    #[tokio::test]
    async fn a_missing_log_is_an_error() {
        let mut stream = Box::pin(read(
            "/nonexistent/0.log".into(),
            Options::default(),
            std::future::pending(),
        ));
        assert_eq!(
            stream.next().await.unwrap().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, "2026-01-01T00:00:01Z stdout F one\n").unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let options = Options {
            follow: true,
            ..Default::default()
        };
        let mut stream = Box::pin(read(path.clone(), options, async { drop(ended.await) }));
        assert_eq!(stream.next().await.unwrap().unwrap(), "one\n");

        let mut log = fs::OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(b"2026-01-01T00:00:02Z stdout F two\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "two\n");

        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        log.write_all(b"2026-01-01T00:00:03Z stdout F three\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "three\n");
        fs::write(&path, "2026-01-01T00:00:04Z stdout F four\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "four\n");

        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"2026-01-01T00:00:05Z stdout F five\n")
            .unwrap();
        end.send(()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "five\n");
        assert!(stream.next().await.is_none());
    }
}
