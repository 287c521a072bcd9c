//! Digests of executables, remembered by what identifies a file's content without reading it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use hanse_identity::wire::to_hex;

/// Executables whose digest is remembered; the one that was looked at longest ago is forgotten first.
pub const MAX_REMEMBERED_EXECUTABLES: usize = 256;
/// Largest executable that is hashed, in bytes; a larger one has no `sha256` selector.
pub const MAX_EXECUTABLE_BYTES: u64 = 4 << 30;
/// Longest time that hashing one executable may take; one that takes longer has no `sha256` selector this time.
pub const MAX_HASH_TIME: Duration = Duration::from_secs(15);

/// Digests of executables by what identifies their content without reading it.
#[derive(Debug, Default)]
pub struct Executables {
    pub(super) known: Mutex<VecDeque<(FileStamp, String)>>,
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
    /// SHA-256 of the file, from memory if it has not changed since it was read.
    pub fn digest(&self, path: &Path) -> Option<String> {
        self.digest_within(path, MAX_EXECUTABLE_BYTES, MAX_HASH_TIME)
    }

    /// As `digest`, of a file of at most `max_bytes`, if it can be read within `time`.
    pub(super) fn digest_within(&self, path: &Path, max_bytes: u64, time: Duration) -> Option<String> {
        let began = Instant::now();
        let mut file = File::open(path).ok()?;
        let stamp = FileStamp::of(&file)?;
        if stamp.size > max_bytes {
            tracing::warn!(bytes = stamp.size, "an executable is too large to be hashed");
            return None;
        }
        if let Some(known) = self.recall(&stamp) {
            return Some(known);
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 1 << 16];
        loop {
            if began.elapsed() >= time {
                tracing::warn!(bytes = stamp.size, "hashing an executable took too long");
                return None;
            }
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => context.update(&buffer[..n]),
            }
        }
        let hex = to_hex(context.finish().as_ref());
        // A file that changed while it was read has no digest worth remembering, or worth vouching for.
        if FileStamp::of(&file)? != stamp {
            return None;
        }
        self.remember(stamp, hex.clone());
        Some(hex)
    }

    fn recall(&self, stamp: &FileStamp) -> Option<String> {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        let position = known.iter().position(|(s, _)| s == stamp)?;
        let entry = known.remove(position)?;
        known.push_back(entry.clone());
        Some(entry.1)
    }

    fn remember(&self, stamp: FileStamp, hex: String) {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.retain(|(s, _)| *s != stamp);
        if known.len() >= MAX_REMEMBERED_EXECUTABLES {
            known.pop_front();
        }
        known.push_back((stamp, hex));
    }
}

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
