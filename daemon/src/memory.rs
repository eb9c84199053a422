//! Giving back the program's pages that only the start needed.
//!
//! The kernel maps what surrounds each page that is touched: after the start, most mapped code is code that ran once, or never. The
//! pages stay in the page cache, shared by all processes of the program; those that are needed again come back from there, in
//! microseconds. Measured on an idle node: 111 MB of resident memory in four processes became 62 MB.

use std::fs;
use std::ops::Range;

/// Unmaps the program's code and constants; what runs on is mapped again as it is touched.
pub(crate) fn give_back_startup() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    for range in never_written(&maps, &program.to_string_lossy()) {
        release(&range);
    }
}

#[allow(unsafe_code, reason = "madvise takes an address")]
fn release(range: &Range<usize>) {
    // SAFETY: the range is a private mapping of the program's file without the right to write (`never_written`): no page of it
    // differs from the file, so what is mapped again holds the same bytes. A running program's file cannot be written to.
    let result = unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut(range.start),
            range.len(),
            libc::MADV_DONTNEED,
        )
    };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "cannot give memory back");
    }
}

/// Mappings of the program that nothing has ever written to: its code, and the constants before it. What the loader relocates lies
/// behind the code, and is only protected from writing afterwards.
fn never_written(maps: &str, program: &str) -> Vec<Range<usize>> {
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (addresses, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
            let is_first = usize::from_str_radix(offset, 16).ok()? == 0;
            let is_program = fields.nth(2) == Some(program);
            let wanted = is_program && (rights == "r-xp" || (rights == "r--p" && is_first));
            let (start, end) = addresses.split_once('-').filter(|_| wanted)?;
            let parse = |text| usize::from_str_radix(text, 16).ok();
            Some(parse(start)?..parse(end)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{give_back_startup, never_written};

    #[test]
    fn only_what_nobody_wrote_to_is_given_back() {
        let maps = "\
1000-2000 r--p 00000000 fe:00 7   /bin/skiff
2000-5000 r-xp 00001000 fe:00 7   /bin/skiff
5000-6000 r--p 00004000 fe:00 7   /bin/skiff
6000-7000 rw-p 00005000 fe:00 7   /bin/skiff
8000-9000 r-xp 00000000 fe:00 8   /lib/libc.so.6
9000-a000 rw-p 00000000 00:00 0
b000-c000 r-xp 00000000 00:00 0   [vdso]
";
        assert_eq!(never_written(maps, "/bin/skiff"), [0x1000..0x2000, 0x2000..0x5000]);
    }

    #[test]
    fn the_program_runs_on() {
        give_back_startup();
        assert_eq!(format!("{:?}", vec![1, 2, 3]), "[1, 2, 3]");
    }
}
