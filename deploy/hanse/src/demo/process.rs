//! Processes of the demo: started, reaped, signalled, ended, and written down in `demo.json`.
//!
//! Every child holds the read end of a pipe as its standard input and ends when the supervisor's end closes, so
//! nothing outlives a supervisor that dies in whatever way. A pid is signalled only while the process with its
//! start time is still ours.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{ChildStdin, Command};
use tokio::sync::watch;

use super::spec::{Key, ProcessPlan, Role, Spec};

/// Set for children: end when standard input ends.
pub const DIE_WITH_STDIN: &str = "HANSE_DIE_WITH_STDIN";
/// How long a process may take to end by itself.
pub const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Name of the file that says what runs.
pub const STATUS_FILE: &str = "demo.json";

/// What runs, as written to `demo.json`, and as `demo status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DemoFile {
    pub supervisor: Identity,
    pub uid: u32,
    pub spec: Spec,
    pub data_dir: PathBuf,
    pub processes: Vec<ProcessStatus>,
}

/// A process that cannot be confused with a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    pub name: String,
    pub role: Role,
    pub cluster: String,
    /// Of the life that runs, or ran last.
    pub pid: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    pub state: ProcessState,
    /// How the last life ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
    /// Lives so far.
    pub starts: u32,
    pub addresses: BTreeMap<String, String>,
    pub log: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    Running,
    /// Paused by SIGSTOP.
    Stopped,
    Exited,
}

/// Starts and ends the demo's processes. Clones are the same supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    inner: Arc<Mutex<Inner>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    spec: Spec,
    entries: BTreeMap<Key, Entry>,
    /// Nothing is started any more.
    closing: bool,
}

#[derive(Debug)]
struct Entry {
    plan: ProcessPlan,
    life: Option<Life>,
    last_pid: Option<i32>,
    exit: Option<String>,
    starts: u32,
}

#[derive(Debug)]
struct Life {
    identity: Identity,
    /// Closing it ends the child.
    _stdin: Option<ChildStdin>,
}

impl Identity {
    /// That pid as it is now; `None` if there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: stat(pid)?.1 })
    }

    /// Whether the very process still exists (a zombie counts as gone).
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start_time && state != 'Z')
    }

    fn is_stopped(self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start_time && state == 'T')
    }

    /// Sends a signal, if the very process still exists.
    pub fn signal(self, signal: Signal) -> bool {
        self.is_alive() && nix::sys::signal::kill(Pid::from_raw(self.pid), signal).is_ok()
    }
}

/// State letter and start time from `/proc/<pid>/stat`.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; what follows the last one is fields 3 and on.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Supervisor {
    pub fn new(directory: &Path, spec: Spec) -> Self {
        let inner = Inner { directory: directory.to_owned(), spec, entries: BTreeMap::new(), closing: false };
        Self { inner: Arc::new(Mutex::new(inner)), changes: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process; it must not be running.
    pub fn start(&self, plan: &ProcessPlan) -> anyhow::Result<()> {
        let mut inner = self.lock();
        anyhow::ensure!(!inner.closing, "the demo is ending");
        if inner.entries.get(&plan.key).is_some_and(|e| e.life.is_some()) {
            return Ok(());
        }
        let log = open_log(&plan.log)?;
        let mut child = Command::new(&plan.executable)
            .args(&plan.arguments)
            .env(DIE_WITH_STDIN, "1")
            .env_remove("HANSE_CONFIG")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {} ({})", plan.key, plan.executable.display()))?;
        let pid = child.id().context("a child that was just started has a pid")? as i32;
        let identity = Identity::of(pid).context("a child that is not reaped is in /proc")?;
        let entry = inner.entries.entry(plan.key.clone()).or_insert_with(|| Entry {
            plan: plan.clone(),
            life: None,
            last_pid: None,
            exit: None,
            starts: 0,
        });
        entry.life = Some(Life { identity, _stdin: child.stdin.take() });
        entry.last_pid = Some(pid);
        entry.starts += 1;
        inner.write();
        drop(inner);
        let (supervisor, key) = (self.clone(), plan.key.clone());
        tokio::spawn(async move {
            let exit = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("unknown: {error}"),
            };
            supervisor.ended(&key, pid, exit);
        });
        Ok(())
    }

    fn ended(&self, key: &Key, pid: i32, exit: String) {
        let mut inner = self.lock();
        if !inner.closing {
            tracing::debug!(%key, pid, exit, "process ended");
        }
        if let Some(entry) = inner.entries.get_mut(key)
            && entry.life.as_ref().is_some_and(|l| l.identity.pid == pid)
        {
            entry.life = None;
            entry.exit = Some(exit);
        }
        inner.write();
        drop(inner);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Sends a signal to a running process; `false` if it does not run.
    pub fn signal(&self, key: &Key, signal: Signal) -> bool {
        let inner = self.lock();
        let life = inner.entries.get(key).and_then(|e| e.life.as_ref());
        let sent = life.is_some_and(|l| l.identity.signal(signal));
        inner.write();
        sent
    }

    /// Starts again whatever was planned under that key and does not run.
    pub fn restart(&self, key: &Key) -> anyhow::Result<bool> {
        let plan = {
            let inner = self.lock();
            let entry = inner.entries.get(key).with_context(|| format!("{key} was never started"))?;
            if entry.life.is_some() {
                return Ok(false);
            }
            entry.plan.clone()
        };
        self.start(&plan).map(|()| true)
    }

    /// Everything there is, by key.
    pub fn plans(&self) -> Vec<ProcessPlan> {
        self.lock().entries.values().map(|e| e.plan.clone()).collect()
    }

    /// The plan of one process.
    pub fn plan(&self, cluster: &str, role: Role, name: &str) -> Option<ProcessPlan> {
        let key = Key { cluster: cluster.to_owned(), role, name: name.to_owned() };
        self.lock().entries.get(&key).map(|e| e.plan.clone())
    }

    /// How everything is at this moment.
    pub fn status(&self) -> DemoFile {
        self.lock().status()
    }

    /// How one process is.
    pub fn state(&self, key: &Key) -> Option<ProcessStatus> {
        self.lock().entries.get(key).map(Entry::status)
    }

    /// Waits until none of these runs.
    pub async fn gone(&self, keys: &[Key], timeout: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let all_gone = async {
            loop {
                let gone = {
                    let inner = self.lock();
                    keys.iter().all(|k| inner.entries.get(k).is_none_or(|e| e.life.is_none()))
                };
                if gone || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(timeout, all_gone).await.is_ok()
    }

    /// Ends everything: SIGTERM, and SIGKILL for what is still there. Returns what had to be killed.
    pub async fn end_all(&self) -> Vec<Key> {
        let keys: Vec<Key> = {
            let mut inner = self.lock();
            inner.closing = true;
            inner.entries.iter().filter(|(_, e)| e.life.is_some()).map(|(k, _)| k.clone()).collect()
        };
        for key in &keys {
            // A paused process takes SIGTERM only when it goes on; the demo's data is not needed any more.
            let stopped = self.state(key).is_some_and(|s| s.state == ProcessState::Stopped);
            self.signal(key, if stopped { Signal::SIGKILL } else { Signal::SIGTERM });
        }
        if self.gone(&keys, END_TIMEOUT).await {
            return Vec::new();
        }
        let stubborn: Vec<Key> = keys.into_iter().filter(|k| self.signal(k, Signal::SIGKILL)).collect();
        self.gone(&stubborn, END_TIMEOUT).await;
        stubborn
    }
}

impl Inner {
    fn status(&self) -> DemoFile {
        let pid = std::process::id() as i32;
        DemoFile {
            supervisor: Identity::of(pid).unwrap_or(Identity { pid, start_time: 0 }),
            uid: nix::unistd::Uid::current().as_raw(),
            spec: self.spec.clone(),
            data_dir: self.directory.clone(),
            processes: self.entries.values().map(Entry::status).collect(),
        }
    }

    /// Writes `demo.json`; a reader sees the old one or the new one, whole.
    fn write(&self) {
        if let Err(error) = write_status(&self.directory, &self.status()) {
            tracing::warn!(%error, "cannot write {STATUS_FILE}");
        }
    }
}

impl Entry {
    fn status(&self) -> ProcessStatus {
        let state = match &self.life {
            None => ProcessState::Exited,
            Some(life) if !life.identity.is_alive() => ProcessState::Exited,
            Some(life) if life.identity.is_stopped() => ProcessState::Stopped,
            Some(_) => ProcessState::Running,
        };
        ProcessStatus {
            name: self.plan.key.name.clone(),
            role: self.plan.key.role,
            cluster: self.plan.key.cluster.clone(),
            pid: self.last_pid,
            start_time: self.life.as_ref().map(|l| l.identity.start_time),
            state,
            exit: self.exit.clone(),
            starts: self.starts,
            addresses: self.plan.addresses.clone(),
            log: self.plan.log.clone(),
        }
    }
}

fn write_status(directory: &Path, status: &DemoFile) -> anyhow::Result<()> {
    let path = directory.join(STATUS_FILE);
    let temporary = directory.join("demo.json.new");
    std::fs::write(&temporary, serde_json::to_vec_pretty(status)?)?;
    std::fs::rename(&temporary, &path)?;
    Ok(())
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open the log {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Path, name: &str, script: &str) -> ProcessPlan {
        ProcessPlan {
            key: Key { cluster: "east".into(), role: Role::App, name: name.into() },
            executable: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            addresses: BTreeMap::new(),
            log: directory.join(format!("{name}.log")),
        }
    }

    fn spec() -> Spec {
        Spec {
            clusters: vec!["east".into(), "west".into()],
            nodes: 3,
            wan_latency_ms: 0,
            svid_lifetime_seconds: 0,
            rps: 0,
        }
    }

    #[tokio::test]
    async fn a_killed_process_is_reaped_and_can_be_restarted() {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(directory.path(), spec());
        let plan = sleeper(directory.path(), "a", "exec sleep 600");
        supervisor.start(&plan).unwrap();
        let first = supervisor.state(&plan.key).unwrap();
        assert_eq!(first.state, ProcessState::Running);
        assert!(supervisor.signal(&plan.key, Signal::SIGKILL));
        assert!(supervisor.gone(std::slice::from_ref(&plan.key), END_TIMEOUT).await);
        assert_eq!(supervisor.state(&plan.key).unwrap().state, ProcessState::Exited);
        assert!(supervisor.restart(&plan.key).unwrap());
        let second = supervisor.state(&plan.key).unwrap();
        assert_eq!((second.state, second.starts), (ProcessState::Running, 2));
        assert_ne!(first.pid, second.pid);
        assert!(supervisor.end_all().await.is_empty());
        let file: DemoFile =
            serde_json::from_slice(&std::fs::read(directory.path().join(STATUS_FILE)).unwrap()).unwrap();
        assert_eq!(file.processes.len(), 1);
    }

    #[tokio::test]
    async fn paused_and_deaf_processes_are_ended_too() {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(directory.path(), spec());
        let paused = sleeper(directory.path(), "paused", "exec sleep 600");
        let deaf = sleeper(directory.path(), "deaf", "trap '' TERM; echo ready; while :; do sleep 1; done");
        supervisor.start(&paused).unwrap();
        supervisor.start(&deaf).unwrap();
        assert!(supervisor.signal(&paused.key, Signal::SIGSTOP));
        while supervisor.state(&paused.key).unwrap().state != ProcessState::Stopped
            || !std::fs::read_to_string(&deaf.log).unwrap().contains("ready")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(supervisor.end_all().await, std::slice::from_ref(&deaf.key));
        assert_eq!(supervisor.state(&paused.key).unwrap().state, ProcessState::Exited);
        assert_eq!(supervisor.state(&deaf.key).unwrap().state, ProcessState::Exited);
        assert!(supervisor.start(&paused).is_err(), "nothing is started while the demo ends");
    }

    #[test]
    fn another_life_of_a_pid_is_another_process() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        assert!(!Identity { start_time: me.start_time + 1, ..me }.is_alive());
    }
}
