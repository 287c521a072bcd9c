//! One process, as the kernel shows it: through its pidfd, and in `/proc/<pid>`.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hanse_identity::grant::selector::is_unit;
use nix::sys::socket::{getsockopt, sockopt};

use super::{AttestError, MAX_GROUPS, Peer};

/// What the kernel appends to the link of an executable that was unlinked.
const DELETED: &str = " (deleted)";
/// Where systemd says that it runs the host (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// Ticks of `/proc/<pid>/stat` per second (`USER_HZ`).
const TICKS: f64 = 100.0;

impl Peer {
    /// The process that connected a Unix socket. Asked at once after `accept`.
    pub fn of(socket: &(impl AsFd + ?Sized)) -> Result<Self, AttestError> {
        let accepted = ticks_now();
        let credentials =
            getsockopt(&socket.as_fd(), sockopt::PeerCredentials).map_err(|_| AttestError::NoPid)?;
        // An older kernel does not know the question.
        let pidfd = getsockopt(&socket.as_fd(), sockopt::PeerPidfd).ok();
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: Some(credentials.pid()),
            pidfd,
            accepted,
        })
    }
}

/// Clock ticks after boot, rounded up.
fn ticks_now() -> Option<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    Some((seconds * TICKS).ceil() as u64 + 1)
}

/// Whether the process behind the pidfd still has this number. As long as it has, no other can: a number is free only
/// after its process has been waited for, and then the pidfd says -1.
pub fn still_is(pidfd: Option<&OwnedFd>, pid: u32) -> Result<(), AttestError> {
    let Some(pidfd) = pidfd else { return Ok(()) };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .map_err(|e| AttestError::Unreadable { pid, reason: format!("its pidfd: {e}") })?;
    let behind = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
    match behind.and_then(|number| number.parse::<i64>().ok()) {
        Some(number) if number == i64::from(pid) => Ok(()),
        _ => Err(AttestError::Replaced(pid)),
    }
}

/// Where the executable is; `None` if this agent may not know or the path is not text.
pub fn executable_link(pid: u32) -> Option<String> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()?.into_os_string().into_string().ok()
}

/// Whether that path leads to the very file that the process executes, seen from here. It does not if the file was
/// replaced since, nor if the process has a mount namespace of its own: anyone may make one and put any file at any
/// path of it.
pub fn is_executable_of(pid: u32, path: &str) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let executed = file(Path::new(&format!("/proc/{pid}/exe")));
    path.starts_with('/')
        && !path.ends_with(DELETED)
        && executed.is_some()
        && executed == file(Path::new(path))
}

pub fn start_time(pid: u32) -> Result<u64, AttestError> {
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

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Effective.
    pub uid: u32,
    pub gid: u32,
    pub supplementary: BTreeSet<u32>,
}

impl Credentials {
    pub fn of(pid: u32) -> Result<Self, AttestError> {
        let unreadable = |reason: String| AttestError::Unreadable { pid, reason };
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| unreadable(e.to_string()))?;
        Self::parse(&status).ok_or_else(|| unreadable("its status file has no user".to_owned()))
    }

    /// From `/proc/<pid>/status`: the second number (real, effective, saved, file system) of `Uid:` and `Gid:`.
    /// The first line is the command, which cannot hold a line break (the kernel escapes it).
    fn parse(status: &str) -> Option<Self> {
        let line = |label: &str| status.lines().find_map(|line| line.strip_prefix(label));
        let effective = |label| line(label)?.split_ascii_whitespace().nth(1)?.parse().ok();
        let groups = line("Groups:").unwrap_or_default();
        let mut supplementary: BTreeSet<u32> =
            groups.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect();
        while supplementary.len() > MAX_GROUPS {
            supplementary.pop_last();
        }
        Some(Self { uid: effective("Uid:")?, gid: effective("Gid:")?, supplementary })
    }
}

/// The unit of the system's service manager that a process runs in.
pub fn unit(pid: u32) -> Option<String> {
    if !Path::new(SYSTEMD_RUNS).is_dir() {
        return None;
    }
    parse_unit(&std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// From `/proc/<pid>/cgroup`: in systemd's own hierarchy, the first part of the path that is no slice, if it is a
/// service or a scope. Only the first: below it, whoever the unit belongs to may make groups with any name (a user's
/// own services are all below `user@UID.service`).
fn parse_unit(cgroup: &str) -> Option<String> {
    let hierarchy = |prefix: &str| cgroup.lines().find_map(|line| line.strip_prefix(prefix)?.split_once(':'));
    let named = cgroup.lines().find_map(|line| line.split_once(":name=systemd:"));
    // Where version 1 is mounted beside, systemd's own hierarchy counts; else there is only the unified one.
    let (_, path) = named.or_else(|| hierarchy("0:"))?;
    let first = path.strip_prefix('/')?.split('/').find(|part| !part.ends_with(".slice"))?;
    // A name that could be taken for a file of the kernel's is escaped with an underscore.
    let unit = first.strip_prefix('_').unwrap_or(first);
    let spelt = format!("systemd:unit:{unit}").parse::<hanse_identity::Selector>().is_ok();
    (spelt && is_unit(unit)).then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_cannot_forge_its_start_time() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_start_time(&format!("7 (a) S 1 1 1) {fields}")), Some(4711));
        assert_eq!(parse_start_time("7 (cut short) S 1"), None);
    }

    #[test]
    fn effective_ids_are_the_second_number() {
        let status = "Name:\tUid: 5 5\nUid:\t1000\t0\t1000\t0\nGid:\t1\t2\t3\t4\nGroups:\t27 4 \n";
        let expected = Credentials { uid: 0, gid: 2, supplementary: BTreeSet::from([4, 27]) };
        assert_eq!(Credentials::parse(status), Some(expected));
        assert_eq!(Credentials::parse("Name: x"), None);
        let many: Vec<String> = (0..70_000).map(|gid| gid.to_string()).collect();
        let status = format!("Uid: 1 1 1 1\nGid: 1 1 1 1\nGroups: {}\n", many.join(" "));
        assert_eq!(Credentials::parse(&status).unwrap().supplementary.len(), MAX_GROUPS);
    }

    #[test]
    fn the_unit_is_the_system_managers_and_not_one_that_a_user_made_up() {
        for (cgroup, unit) in [
            ("0::/system.slice/nginx.service\n", Some("nginx.service")),
            ("0::/system.slice/system-getty.slice/getty@tty1.service\n", Some("getty@tty1.service")),
            ("0::/nginx.service/worker\n", Some("nginx.service")),
            ("0::/system.slice/docker-4f.scope/x/nginx.service\n", Some("docker-4f.scope")),
            ("0::/user.slice/user-7.slice/user@7.service/app.slice/nginx.service\n", Some("user@7.service")),
            ("9:name=systemd:/system.slice/a.service\n4:memory:/b\n0::/c.service\n", Some("a.service")),
            ("0::/system.slice/_cpu.service\n", Some("cpu.service")),
            ("0::/\n", None),
            ("0::/kubepods/pod7/nginx.service\n", None),
            ("0::/../../system.slice/nginx.service\n", None),
            ("0::/system.slice/.service\n", None),
            ("9:name=systemd:/\n0::/system.slice/nginx.service\n", None),
            ("", None),
        ] {
            assert_eq!(parse_unit(cgroup).as_deref(), unit, "{cgroup:?}");
        }
    }
}
