//! Finds the last lines of a file from its end, however long it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = 64 << 10;

/// Where the last `lines` lines begin. A last line without its end counts as one.
pub(super) fn start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut block = vec![0; BLOCK];
    let (mut end, mut seen) = (length, 0);
    while end > 0 {
        let size = usize::try_from(end).map_or(BLOCK, |end| end.min(BLOCK));
        let begin = end - size as u64;
        file.read_exact_at(&mut block[..size], begin)?;
        for at in (0..size).rev().filter(|at| block[*at] == b'\n') {
            let after = begin + at as u64 + 1;
            // The newline at the very end closes the last line, it does not begin another.
            if after == length {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(after);
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn last(content: &[u8], lines: u64) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let start = usize::try_from(start(&mut file, lines).unwrap()).unwrap();
        content[start..].to_vec()
    }

    #[test]
    fn last_lines() {
        assert_eq!(last(b"a\nb\nc\n", 0), b"");
        assert_eq!(last(b"a\nb\nc\n", 1), b"c\n");
        assert_eq!(last(b"a\nb\nc", 2), b"b\nc");
        assert_eq!(last(b"a\nb\nc\n", 3), b"a\nb\nc\n");
        assert_eq!(last(b"a\nb\nc\n", 9), b"a\nb\nc\n");
        assert_eq!(last(b"", 9), b"");
        assert_eq!(last(b"\n\n", 1), b"\n");
    }

    #[test]
    fn across_blocks() {
        let line = [b'x'; 1000];
        let content: Vec<u8> = (0..200).flat_map(|_| line.iter().copied().chain(*b"\n")).collect();
        assert_eq!(last(&content, 150).len(), 150 * 1001);
    }
}
