//! Processes that are measured: started, waited for, pinned to a core, and what the kernel says of their processor time and memory.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// A process of the bench's own; it ends with this.
pub struct Process(Child);

/// Longest wait for a process to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

impl Process {
    /// Starts `command` and waits until somebody listens on `address`.
    pub fn listening(command: Command, address: SocketAddr) -> Result<Self> {
        Self::listening_within(command, address, LISTENS_WITHIN)
    }

    /// The same of one that takes its time.
    pub fn listening_within(mut command: Command, address: SocketAddr, longest: Duration) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut process = Self(child.with_context(|| format!("{name} cannot be started"))?);
        let until = Instant::now() + longest;
        while std::net::TcpStream::connect(address).is_err() {
            if let Some(status) = process.0.try_wait()? {
                anyhow::bail!("{name} ended with {status} before it listened");
            }
            ensure!(Instant::now() < until, "{name} does not listen on {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that nobody listens on.
pub fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// On-CPU time of all threads of a process, from the scheduler, in seconds; the kernel's work in their context included.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    for task in tasks(pid)? {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat"))?;
        nanos += text.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

/// Memory that a process has resident, in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Has every thread of a process run on one core only; 0 is ourselves.
pub fn pin(pid: u32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    let pid = if pid == 0 { std::process::id() } else { pid };
    for task in tasks(pid)? {
        sched_setaffinity(Pid::from_raw(task), &set)
            .with_context(|| format!("thread {task} cannot be pinned to core {core}"))?;
    }
    Ok(())
}

fn tasks(pid: u32) -> Result<Vec<i32>> {
    let listed =
        std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
    listed.map(|task| Ok(task?.file_name().to_string_lossy().parse()?)).collect()
}
