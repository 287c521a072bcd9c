//! Executables, known by what identifies a file's content without reading it. The content is read, for its digest, only
//! when that decides what a caller may have: a large one takes a while, and most registrations ask for no digest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use hanse_identity::wire::to_hex;

/// Executables that are remembered; the one that was looked at longest ago is forgotten first.
pub const MAX_REMEMBERED_EXECUTABLES: usize = 256;
/// Largest executable that is hashed, in bytes; a larger one has no `sha256` selector.
pub const MAX_EXECUTABLE_BYTES: u64 = 4 << 30;
/// Longest time that hashing one executable may take; one that takes longer has no `sha256` selector this time.
pub const MAX_HASH_TIME: Duration = Duration::from_secs(15);

/// Executables that somebody runs, or ran a while ago.
#[derive(Debug, Default)]
pub struct Executables {
    pub(super) known: Mutex<VecDeque<Arc<Executable>>>,
}

/// One content of an executable, shared by all who run it.
#[derive(Debug)]
pub struct Executable {
    stamp: FileStamp,
    digest: OnceLock<String>,
    /// Held while the file is read, so that it is read once.
    reading: Mutex<()>,
}

/// Changes whenever the content of a file may have (ctime cannot be set by the file's owner, mtime can).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Executables {
    /// What is behind that path now. Nothing is read.
    pub fn at(&self, path: &Path) -> Option<Arc<Executable>> {
        let stamp = FileStamp::of(&File::open(path).ok()?)?;
        let mut known = self.known.lock().expect("no holder of this lock panics");
        let position = known.iter().position(|executable| executable.stamp == stamp);
        let executable = match position.and_then(|at| known.remove(at)) {
            Some(executable) => executable,
            None => Arc::new(Executable { stamp, digest: OnceLock::new(), reading: Mutex::default() }),
        };
        if known.len() >= MAX_REMEMBERED_EXECUTABLES {
            known.pop_front();
        }
        known.push_back(Arc::clone(&executable));
        Some(executable)
    }
}

impl Executable {
    /// Lower-case hex of the SHA-256 of its content, if it has been read.
    pub fn digest(&self) -> Option<&str> {
        self.digest.get().map(String::as_str)
    }

    /// Reads it, unless somebody has, from a path behind which it was found. Whatever else is there by now is not taken
    /// for it.
    pub fn hash(&self, path: &Path) -> Option<&str> {
        self.hash_within(path, MAX_EXECUTABLE_BYTES, MAX_HASH_TIME)
    }

    /// As `hash`, of a file of at most `max_bytes`, if it can be read within `time`.
    pub(super) fn hash_within(&self, path: &Path, max_bytes: u64, time: Duration) -> Option<&str> {
        let _reading = self.reading.lock().expect("no holder of this lock panics");
        if self.digest.get().is_none() {
            let digest = self.read(path, max_bytes, time)?;
            return Some(self.digest.get_or_init(|| digest));
        }
        self.digest()
    }

    fn read(&self, path: &Path, max_bytes: u64, time: Duration) -> Option<String> {
        let began = Instant::now();
        let bytes = self.stamp.size;
        if bytes > max_bytes {
            tracing::warn!(bytes, "an executable is too large to be hashed");
            return None;
        }
        let mut file = File::open(path).ok()?;
        let unchanged = |file: &File| (FileStamp::of(file)? == self.stamp).then_some(());
        unchanged(&file)?;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 1 << 16];
        loop {
            if began.elapsed() >= time {
                tracing::warn!(bytes, "hashing an executable took too long");
                return None;
            }
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => context.update(&buffer[..n]),
            }
        }
        // A file that changed while it was read has no digest worth remembering, or worth vouching for.
        unchanged(&file)?;
        Some(to_hex(context.finish().as_ref()))
    }
}

/// The same content.
impl PartialEq for Executable {
    fn eq(&self, other: &Self) -> bool {
        self.stamp == other.stamp
    }
}

impl Eq for Executable {}

impl FileStamp {
    pub(super) fn of(file: &File) -> Option<Self> {
        let meta = file.metadata().ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}
