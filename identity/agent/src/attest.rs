//! Attestation: what the kernel says about the process at the other end of a Unix socket.
//!
//! Owns `Caller` (uid, gid, process, executable) and the way from a peer's credentials to it through `/proc`.
//! The caller itself is never asked anything. Everything here blocks; `io::socket` runs it off the runtime.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use aws_lc_rs::digest;
use hanse_identity::Selector;
use serde::Serialize;

/// Executables whose digest is remembered; the one that was looked at longest ago is forgotten first.
pub const MAX_REMEMBERED_EXECUTABLES: usize = 256;
/// Largest executable that is hashed, in bytes; a larger one has no `sha256` selector.
pub const MAX_EXECUTABLE_BYTES: u64 = 4 << 30;

/// What the kernel appends to the link of an executable that was unlinked.
const DELETED: &str = " (deleted)";

/// One process for as long as it lives: a pid alone is used again after it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks after boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

/// An attested local process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub process: Process,
    pub uid: u32,
    pub gid: u32,
    /// Absolute path of the executable; `None` if it cannot be read or the file is deleted.
    pub path: Option<String>,
    /// Lower-case hex of the executable's SHA-256; `None` if it cannot be read.
    pub sha256: Option<String>,
}

/// A process as the socket's peer credentials (`SO_PEERCRED`) name it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

/// Why a caller is not attested.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    #[error("the kernel does not say which process is calling (another pid namespace?)")]
    NoPid,
    #[error("process {pid} cannot be looked at: {reason}")]
    Unreadable { pid: u32, reason: String },
    #[error("process {0} ended and its number was taken by another while it was being attested")]
    Replaced(u32),
    #[error("process {pid} changed its user or group since it connected")]
    UserChanged { pid: u32 },
    #[error("process {0} changed its executable while it was being attested")]
    ExecutableChanged(u32),
    #[error("attestation took too long")]
    Timeout,
}

/// Digests of executables by what identifies their content without reading it.
#[derive(Debug, Default)]
pub struct Executables {
    known: Mutex<VecDeque<(FileStamp, String)>>,
}

/// Changes whenever the content of a file may have (ctime cannot be set by the file's owner, mtime can).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Caller {
    /// Everything that is known of the caller, in the form that registrations ask for.
    pub fn selectors(&self) -> BTreeSet<Selector> {
        let path = self.path.clone().map(Selector::Path);
        let sha256 = self.sha256.clone().map(Selector::Sha256);
        [Selector::Uid(self.uid), Selector::Gid(self.gid)].into_iter().chain(path).chain(sha256).collect()
    }
}

/// Attests the process behind a peer's credentials.
///
/// The start time is read before and after everything else, and the process must still run as the user that
/// connected, so that a pid that is used again is not taken for the caller.
pub fn attest(peer: Peer, executables: &Executables) -> Result<Caller, AttestError> {
    let pid = peer.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p != 0).ok_or(AttestError::NoPid)?;
    let started = start_time(pid)?;
    let (uid, gid) = effective_ids(pid)?;
    if (uid, gid) != (peer.uid, peer.gid) {
        return Err(AttestError::UserChanged { pid });
    }
    let link = executable_link(pid);
    let sha256 = executables.digest(Path::new(&format!("/proc/{pid}/exe")));
    if executable_link(pid) != link {
        return Err(AttestError::ExecutableChanged(pid));
    }
    if start_time(pid).ok() != Some(started) {
        return Err(AttestError::Replaced(pid));
    }
    let path = link.filter(|path| path.starts_with('/') && !path.ends_with(DELETED));
    Ok(Caller { process: Process { pid, started }, uid: peer.uid, gid: peer.gid, path, sha256 })
}

/// Where the executable is; `None` if this agent may not know or the path is not text.
fn executable_link(pid: u32) -> Option<String> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()?.into_os_string().into_string().ok()
}

fn start_time(pid: u32) -> Result<u64, AttestError> {
    let unreadable = |reason: String| AttestError::Unreadable { pid, reason };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| unreadable(e.to_string()))?;
    parse_start_time(&stat).ok_or_else(|| unreadable("its stat file has no start time".to_owned()))
}

/// Field 22 of `/proc/<pid>/stat`. The second field is the command in parentheses and may hold anything, so
/// fields are counted from the last closing parenthesis.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn effective_ids(pid: u32) -> Result<(u32, u32), AttestError> {
    let unreadable = |reason: String| AttestError::Unreadable { pid, reason };
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| unreadable(e.to_string()))?;
    let ids = parse_effective_id(&status, "Uid:").zip(parse_effective_id(&status, "Gid:"));
    ids.ok_or_else(|| unreadable("its status file has no user".to_owned()))
}

/// The second number (real, effective, saved, file system) of a line of `/proc/<pid>/status`.
fn parse_effective_id(status: &str, label: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl Executables {
    /// SHA-256 of the file, from memory if it has not changed since it was read.
    pub fn digest(&self, path: &Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        let stamp = FileStamp::of(&file)?;
        if stamp.size > MAX_EXECUTABLE_BYTES {
            return None;
        }
        if let Some(known) = self.recall(&stamp) {
            return Some(known);
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => context.update(&buffer[..n]),
            }
        }
        let hex: String = context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
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
    fn of(file: &File) -> Option<Self> {
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

#[cfg(test)]
mod tests;
