//! A disk that forgets: SQLite's own layer to the file system, with a record of what each file holds for certain (what was synced)
//! and what it may hold besides. From that record a power cut at any moment can be played.

#![allow(unsafe_code, reason = "SQLite takes its file system as tables of C functions")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Once};

use parking_lot::Mutex;
use rand::{Rng, RngExt as _};
use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

/// What a disk writes at once.
const SECTOR: usize = 512;

/// One file.
#[derive(Clone, Debug, Default)]
struct Image {
    /// What is there whatever happens.
    durable: Vec<u8>,
    /// What has been written since the last sync, in order.
    pending: Vec<Operation>,
}

#[derive(Clone, Debug)]
enum Operation {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
struct Disk {
    files: HashMap<PathBuf, Image>,
    /// Open files, by their address, each with the functions that it came with.
    open: HashMap<usize, (PathBuf, &'static sqlite3_io_methods)>,
    /// Our functions in place of those.
    methods: HashMap<usize, &'static sqlite3_io_methods>,
}

static DISK: LazyLock<Mutex<Disk>> = LazyLock::new(Mutex::default);

/// What of the unsynced a power cut leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    /// Nothing.
    Nothing,
    /// Some writes, some in part, in any order.
    Something,
}

/// What was on the disk when the power went.
#[derive(Debug)]
pub(crate) struct Wreck {
    files: HashMap<PathBuf, Image>,
}

/// Makes every connection opened from now on use the disk that forgets.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let real = real();
        let ours = sqlite3_vfs {
            zName: c"forgetful".as_ptr(),
            pNext: std::ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..*real
        };
        let ours = Box::leak(Box::new(ours));
        // SAFETY: the table lives for ever, and is a copy of a good one but for functions of the same types.
        let code = unsafe { ffi::sqlite3_vfs_register(ours, 1) };
        assert_eq!(code, ffi::SQLITE_OK);
    });
}

/// The power goes now: what the files in `directory` hold for certain, and may hold.
pub(crate) fn cut(directory: &Path) -> Wreck {
    let disk = DISK.lock();
    let files = disk.files.iter().filter(|(path, _)| path.parent() == Some(directory));
    Wreck {
        files: files.map(|(path, image)| (path.clone(), image.clone())).collect(),
    }
}

impl Wreck {
    /// Writes what is found when the power comes back into another directory.
    pub(crate) fn restore(&self, directory: &Path, left: Left, random: &mut impl Rng) {
        for (path, image) in &self.files {
            let mut bytes = image.durable.clone();
            for operation in &image.pending {
                if matches!(left, Left::Something) {
                    operation.survive(&mut bytes, random);
                }
            }
            fs::write(directory.join(path.file_name().unwrap()), bytes).unwrap();
        }
    }

    /// How many writes were on their way.
    pub(crate) fn pending(&self) -> usize {
        self.files.values().map(|image| image.pending.len()).sum()
    }
}

impl Operation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: new } => put(bytes, *offset, new),
            Self::Truncate(length) => bytes.truncate(*length),
        }
    }

    /// All of it, nothing of it, or some sectors.
    fn survive(&self, bytes: &mut Vec<u8>, random: &mut impl Rng) {
        match (random.random_range(0..3), self) {
            (0, _) => {}
            (1, _) | (_, Self::Truncate(_)) => self.apply(bytes),
            (_, Self::Write { offset, bytes: new }) => {
                let mut at = 0;
                while at < new.len() {
                    // Up to the end of the sector on the disk.
                    let length = (SECTOR - (offset + at) % SECTOR).min(new.len() - at);
                    if random.random_bool(0.5) {
                        put(bytes, offset + at, &new[at..at + length]);
                    }
                    at += length;
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    let end = offset + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(new);
}

// === In SQLite's hands ===

fn real() -> &'static sqlite3_vfs {
    static REAL: LazyLock<usize> = LazyLock::new(|| {
        // SAFETY: asks for the default, which is built in.
        unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) }.expose_provenance()
    });
    // SAFETY: SQLite's built-in table is never freed, and nobody changes what is read of it.
    unsafe { &*std::ptr::with_exposed_provenance(*REAL) }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let vfs = std::ptr::from_ref(real()).cast_mut();
    // SAFETY: everything is handed on as SQLite gave it, to the function that it is meant for.
    let code = unsafe { real().xOpen.unwrap()(vfs, name, file, flags, out) };
    let wanted = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL;
    if code != ffi::SQLITE_OK || name.is_null() || flags & wanted == 0 {
        return code;
    }
    // SAFETY: SQLite's names end with a zero, and the file has been opened, so that its functions are set, for ever.
    let (path, methods) = unsafe {
        let text = CStr::from_ptr(name).to_str().unwrap();
        let methods: &'static sqlite3_io_methods = &*(*file).pMethods;
        (PathBuf::from(text), methods)
    };
    let mut disk = DISK.lock();
    disk.files.entry(path.clone()).or_insert_with(|| Image {
        durable: fs::read(&path).unwrap_or_default(),
        pending: Vec::new(),
    });
    let ours: &'static sqlite3_io_methods =
        disk.methods
            .entry(std::ptr::from_ref(methods).addr())
            .or_insert_with(|| {
                Box::leak(Box::new(sqlite3_io_methods {
                    xClose: Some(close),
                    xWrite: Some(write),
                    xTruncate: Some(truncate),
                    xSync: Some(sync),
                    ..*methods
                }))
            });
    disk.open.insert(file.addr(), (path, methods));
    // SAFETY: the file is ours to set up until this returns; the other functions find it as they left it.
    unsafe { (*file).pMethods = ours };
    code
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    let vfs = std::ptr::from_ref(real()).cast_mut();
    let mut disk = DISK.lock();
    // SAFETY: handed on as SQLite gave it; its names end with a zero.
    let (code, path) = unsafe {
        let code = real().xDelete.unwrap()(vfs, name, sync_directory);
        (code, PathBuf::from(CStr::from_ptr(name).to_str().unwrap()))
    };
    // For certain at once: what a store deletes is the journal of its creation, and the first sync of the next journal syncs their
    // directory.
    disk.files.remove(&path);
    code
}

/// The functions that a file came with, and a place to note what is done to it.
fn with_file<T>(file: *mut sqlite3_file, act: impl FnOnce(&sqlite3_io_methods, &mut Image) -> T) -> T {
    let mut disk = DISK.lock();
    let (path, methods) = disk.open[&file.addr()].clone();
    act(methods, disk.files.entry(path).or_default())
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let (_, methods) = DISK.lock().open.remove(&file.addr()).unwrap();
    // SAFETY: handed on.
    unsafe { methods.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    with_file(file, |methods, image| {
        // SAFETY: handed on.
        let code = unsafe { methods.xWrite.unwrap()(file, data, amount, offset) };
        if code == ffi::SQLITE_OK {
            // SAFETY: SQLite gives `amount` bytes at `data`.
            let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(amount).unwrap()) };
            image.pending.push(Operation::Write {
                offset: usize::try_from(offset).unwrap(),
                bytes: bytes.to_vec(),
            });
        }
        code
    })
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: i64) -> c_int {
    with_file(file, |methods, image| {
        // SAFETY: handed on.
        let code = unsafe { methods.xTruncate.unwrap()(file, size) };
        if code == ffi::SQLITE_OK {
            image.pending.push(Operation::Truncate(usize::try_from(size).unwrap()));
        }
        code
    })
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    with_file(file, |_, image| {
        // The real disk need not know.
        for operation in std::mem::take(&mut image.pending) {
            operation.apply(&mut image.durable);
        }
        ffi::SQLITE_OK
    })
}
