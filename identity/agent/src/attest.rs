//! Attestation: what the kernel says about the process at the other end of a Unix socket.
//!
//! Owns `Caller` (user, groups, process, executable, unit) and the way from a peer's credentials to it. The caller
//! itself is never asked anything. Everything here blocks; `io::socket` and `io::hashing` run it off the runtime. What is
//! read where: `executables` (digests), `names` (the host's tables of users and groups), `process` (`/proc`, pidfd).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hanse_identity::Selector;
use serde::Serialize;

mod executables;
mod names;
mod process;

pub use executables::{
    Executable, Executables, MAX_EXECUTABLE_BYTES, MAX_HASH_TIME, MAX_REMEMBERED_EXECUTABLES,
};
pub use names::{MAX_TABLE_BYTES, NameTable};

/// Supplementary groups that are looked at, lowest first; a process in more of them shows only these.
pub const MAX_GROUPS: usize = 256;

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
    /// Effective user and group, as they were when it connected and are now.
    pub uid: u32,
    pub gid: u32,
    /// At most `MAX_GROUPS`.
    pub supplementary_gids: BTreeSet<u32>,
    /// Names in the host's own tables; `None` if those have none.
    pub user: Option<String>,
    pub group: Option<String>,
    pub supplementary_groups: BTreeSet<String>,
    /// Absolute path of the executable; `None` if it cannot be read, if the file has been deleted or replaced, or if
    /// this agent sees another file under that path.
    pub path: Option<String>,
    /// What it runs; `None` if that cannot be looked at.
    pub executable: Option<Arc<Executable>>,
    /// `NAME.service` or `NAME.scope`; `None` where systemd does not run the host, or runs it outside of any.
    pub unit: Option<String>,
}

/// A process as the socket's peer credentials name it.
#[derive(Debug)]
pub struct Peer {
    /// `SO_PEERCRED`: as it was when it connected.
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
    /// `SO_PEERPIDFD` (Linux 6.5): keeps pointing at the process that connected, whoever has its number now.
    pub pidfd: Option<OwnedFd>,
    /// Clock ticks after boot at which the connection was accepted: the caller had started by then.
    pub accepted: Option<u64>,
}

/// Why a caller is not attested.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    #[error("the kernel does not say which process is calling (another pid namespace?)")]
    NoPid,
    #[error("process {pid} cannot be looked at: {reason}")]
    Unreadable { pid: u32, reason: String },
    #[error("process {0} has ended since it connected; its number may be another's by now")]
    Replaced(u32),
    #[error("process {pid} changed its user or group since it connected")]
    UserChanged { pid: u32 },
    #[error("process {0} changed its executable while it was being attested")]
    ExecutableChanged(u32),
    #[error("attestation took too long")]
    Timeout,
}

/// What attesting many callers has in common.
#[derive(Debug)]
pub struct Attestor {
    pub executables: Executables,
    pub users: NameTable,
    pub groups: NameTable,
}

impl Default for Attestor {
    /// With the host's own tables, not a directory service's: what one of those says could be slow, or somebody else's.
    fn default() -> Self {
        Self {
            executables: Executables::default(),
            users: NameTable::new("/etc/passwd"),
            groups: NameTable::new("/etc/group"),
        }
    }
}

impl Caller {
    /// Lower-case hex of the executable's SHA-256; `None` until `hash_executable` has found it.
    pub fn sha256(&self) -> Option<&str> {
        self.executable.as_ref()?.digest()
    }

    /// Reads the executable for its digest. What the process has become since it was attested is not taken for it.
    pub fn hash_executable(&self) {
        if let Some(executable) = &self.executable {
            executable.hash(&executable_path(self.process.pid));
        }
    }

    /// Everything that is known of the caller by now, in the form that registrations ask for.
    pub fn selectors(&self) -> BTreeSet<Selector> {
        let mut all = BTreeSet::from([Selector::Uid(self.uid), Selector::Gid(self.gid)]);
        all.extend(self.supplementary_gids.iter().copied().map(Selector::SupplementaryGid));
        all.extend(self.user.clone().map(Selector::User));
        all.extend(self.group.clone().map(Selector::Group));
        all.extend(self.supplementary_groups.iter().cloned().map(Selector::SupplementaryGroup));
        all.extend(self.path.clone().map(Selector::Path));
        all.extend(self.sha256().map(|digest| Selector::Sha256(digest.to_owned())));
        all.extend(self.unit.clone().map(Selector::SystemdUnit));
        all
    }
}

impl Attestor {
    /// Attests the process behind a peer's credentials.
    ///
    /// That it is the process that connected, and no later one with its number, is what the pidfd says before and
    /// after everything else has been read. A kernel without pidfds leaves the start time: the same before and after,
    /// and not later than the connection. The process must still run as the user and group that connected.
    pub fn attest(&self, peer: &Peer) -> Result<Caller, AttestError> {
        let pid =
            peer.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p != 0).ok_or(AttestError::NoPid)?;
        process::still_is(peer.pidfd.as_ref(), pid)?;
        let started = process::start_time(pid)?;
        if peer.pidfd.is_none() && peer.accepted.is_some_and(|accepted| started > accepted) {
            return Err(AttestError::Replaced(pid));
        }
        let credentials = process::Credentials::of(pid)?;
        if (credentials.uid, credentials.gid) != (peer.uid, peer.gid) {
            return Err(AttestError::UserChanged { pid });
        }
        let link = process::executable_link(pid);
        let executable = self.executables.at(&executable_path(pid));
        let path = link.clone().filter(|path| process::is_executable_of(pid, path));
        let unit = process::unit(pid);
        if process::executable_link(pid) != link {
            return Err(AttestError::ExecutableChanged(pid));
        }
        if process::Credentials::of(pid)? != credentials {
            return Err(AttestError::UserChanged { pid });
        }
        if process::start_time(pid).ok() != Some(started) {
            return Err(AttestError::Replaced(pid));
        }
        process::still_is(peer.pidfd.as_ref(), pid)?;
        let groups = &credentials.supplementary;
        Ok(Caller {
            process: Process { pid, started },
            uid: peer.uid,
            gid: peer.gid,
            user: self.users.name(peer.uid),
            group: self.groups.name(peer.gid),
            supplementary_groups: groups.iter().filter_map(|gid| self.groups.name(*gid)).collect(),
            supplementary_gids: credentials.supplementary,
            path,
            executable,
            unit,
        })
    }
}

/// The executable itself, whatever there is under its name by now.
fn executable_path(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("exe")
}

#[cfg(test)]
mod tests;
