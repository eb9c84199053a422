//! One line of a log file, and what is shown of it.

use jiff::Timestamp;

use super::Options;

/// Which of a container's two streams wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line as the runtime wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When, in the runtime's own words (RFC 3339 with fractions).
    pub time: &'a str,
    /// Which stream.
    pub source: Source,
    /// The container wrote more before it ended its line; the rest follows.
    pub partial: bool,
    /// What it wrote, without the line's end.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses a line, with or without its end; `None` when it is none, as when the disk was full while it was written.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let source = match parts.next()? {
            b"stdout" => Source::Stdout,
            b"stderr" => Source::Stderr,
            _ => return None,
        };
        // Further tags may follow the first, after colons.
        let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self {
            time,
            source,
            partial,
            text: parts.next().unwrap_or_default(),
        })
    }
}

/// Turns lines of the file into what the reader asked for.
#[derive(Debug)]
pub(super) struct Formatter {
    since: Option<Timestamp>,
    timestamps: bool,
    source: Option<Source>,
    /// Bytes that may still be shown.
    left: Option<u64>,
    /// The last line shown was partial, so the next continues it.
    continues: bool,
}

impl Formatter {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            source: options.source,
            left: options.limit_bytes,
            continues: false,
        }
    }

    pub(super) fn finished(&self) -> bool {
        self.left == Some(0)
    }

    pub(super) fn push(&mut self, line: &[u8], output: &mut Vec<u8>) {
        let Some(line) = Line::parse(line) else { return };
        if self.source.is_some_and(|source| source != line.source) || self.is_too_old(line.time) {
            return;
        }
        let start = output.len();
        if self.timestamps && !self.continues {
            output.extend_from_slice(line.time.as_bytes());
            output.push(b' ');
        }
        output.extend_from_slice(line.text);
        if !line.partial {
            output.push(b'\n');
        }
        self.continues = line.partial;
        if let Some(left) = &mut self.left {
            let shown = (output.len() - start) as u64;
            // What exceeds the limit is less than what was just pushed, so it fits.
            let excess = usize::try_from(shown.saturating_sub(*left)).unwrap_or(0);
            output.truncate(output.len() - excess);
            *left = left.saturating_sub(shown);
        }
    }

    fn is_too_old(&mut self, time: &str) -> bool {
        let Some(since) = self.since else { return false };
        let too_old = time.parse::<Timestamp>().is_ok_and(|time| time < since);
        if !too_old {
            // Time goes on, so there is nothing to compare from here.
            self.since = None;
        }
        too_old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = Line::parse(b"2026-01-01T00:00:00Z stdout F a b  c\n").unwrap();
        assert_eq!(
            (line.source, line.partial, line.text),
            (Source::Stdout, false, b"a b  c".as_slice())
        );
        let line = Line::parse(b"2026-01-01T00:00:00Z stderr P:x y").unwrap();
        assert_eq!(
            (line.source, line.partial, line.text),
            (Source::Stderr, true, b"y".as_slice())
        );
        assert_eq!(Line::parse(b"2026-01-01T00:00:00Z stdout F\n").unwrap().text, b"");
        for garbled in [
            b"".as_slice(),
            b"\0\0\0",
            b"t stdout",
            b"t stdin F x",
            b"t stdout X x",
            b"\xff stdout F x",
        ] {
            assert_eq!(Line::parse(garbled), None, "{garbled:?}");
        }
    }
}
