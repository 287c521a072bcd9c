//! A process's memory: what of it may leave, and in what pages it comes.
//!
//! What may leave it: every role holds private keys, so none leaves a core dump, and those that
//! nobody has to look into cannot be looked into.
//!
//! | | RLIMIT_CORE = 1 | coredump_filter = 0 | not dumpable |
//! |---|---|---|---|
//! | control node, agent | yes | yes | yes |
//! | proxy, gateway, commands | yes | yes | no |
//!
//! A limit of one byte, because the kernel takes it for "no dump at all": for a file it is too little, and with it a
//! dump helper (`core_pattern` with a pipe), which a limit of zero does not stop, is not started. The filter is the
//! second lock: a dump that were made all the same would hold no memory. A process that is not dumpable cannot be
//! attached to, and its `/proc` files belong to root. Proxies and gateways must stay dumpable: an agent without
//! privileges attests them by `/proc/<pid>/exe`, which the kernel shows to the same user only while they are.

use nix::sys::resource::{Resource, setrlimit};

use crate::cli::Command;
use crate::errors::{Exit, Failure};

/// Bytes: too few for a core file, and the value at which the kernel starts no dump helper either (core(5), and
/// `fs/coredump.c`).
const CORE_LIMIT: u64 = 1;

/// Shuts this process's memory, as far as its role allows. Before any key is read.
pub fn keep(command: &Command) -> Result<(), Failure> {
    let failed = |what: &str, why: String| {
        Failure::new(Exit::Bug, "E9003", format!("core dumps cannot be turned off: {what}: {why}"))
    };
    setrlimit(Resource::RLIMIT_CORE, CORE_LIMIT, CORE_LIMIT)
        .or_else(|_| setrlimit(Resource::RLIMIT_CORE, 0, 0))
        .map_err(|e| failed("RLIMIT_CORE", e.to_string()))?;
    keep_on_this_system(command, failed)
}

#[cfg(target_os = "linux")]
use linux::keep_on_this_system;

/// Core files are all that a limit stops.
#[cfg(not(target_os = "linux"))]
fn keep_on_this_system(_: &Command, _: impl Fn(&str, String) -> Failure) -> Result<(), Failure> {
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::sys::prctl;

    use crate::cli::Command;
    use crate::errors::Failure;

    pub fn keep_on_this_system(
        command: &Command,
        failed: impl Fn(&str, String) -> Failure,
    ) -> Result<(), Failure> {
        // A kernel without core dumps has no such file, and a process that makes none may not write it.
        if let Err(e) = std::fs::write("/proc/self/coredump_filter", "0")
            && e.kind() != std::io::ErrorKind::NotFound
            && prctl::get_dumpable().unwrap_or(true)
        {
            return Err(failed("coredump_filter", e.to_string()));
        }
        if never_looked_into(command) {
            prctl::set_dumpable(false).map_err(|e| failed("PR_SET_DUMPABLE", e.to_string()))?;
        }
        if is_sidecar(command) {
            // The allocator asks for huge pages, and the first byte of each is 2 MiB resident: of a sidecar at rest that is
            // most of its memory, and there are many on a host. A kernel that cannot is as good without.
            let _ = prctl::set_thp_disable(true);
        }
        Ok(())
    }

    fn is_sidecar(command: &Command) -> bool {
        matches!(command, Command::Proxy(proxy) if proxy.verb.is_none())
    }

    /// The roles that hold the keys of others, and that nobody attests.
    fn never_looked_into(command: &Command) -> bool {
        match command {
            Command::Control(_) => true,
            Command::Agent(agent) => agent.verb.is_none(),
            _ => false,
        }
    }
}
