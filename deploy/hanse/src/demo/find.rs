//! Which demo a command means, and cleaning up after one whose supervisor was killed.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::cli::Which;
use super::process::{DemoFile, Identity, STATUS_FILE};
use crate::errors::{Exit, Failure};

/// Every demo's directory starts so.
pub const PREFIX: &str = "hanse-demo-";

/// Where the supervisor of a demo listens.
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("supervisor.sock")
}

/// What `demo.json` in that directory says.
pub fn read(directory: &Path) -> Result<DemoFile, Failure> {
    let path = directory.join(STATUS_FILE);
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(Exit::NotFound, "E1004", format!("there is no demo in {}", directory.display()))
        }
        _ => Failure::unreadable(&path, e),
    })?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::unreadable(&path, e))
}

/// The demo that is meant: named, or the only one that runs.
pub fn find(which: &Which) -> Result<DemoFile, Failure> {
    if let Some(directory) = &which.dir {
        let file = read(directory)?;
        return if file.supervisor.is_alive() {
            Ok(file)
        } else {
            Err(Failure::new(Exit::NotFound, "E1004", "that demo's supervisor does not run any more")
                .fix("hanse demo down removes what is left of it"))
        };
    }
    let mut demos: Vec<DemoFile> = all().into_iter().filter(|d| d.supervisor.is_alive()).collect();
    match demos.len() {
        0 => Err(Failure::new(Exit::NotFound, "E1004", "no demo runs").fix("hanse demo up -d")),
        1 => Ok(demos.remove(0)),
        _ => {
            let list: Vec<String> = demos.iter().map(|d| d.data_dir.display().to_string()).collect();
            Err(Failure::usage("several demos run")
                .what(list.join("\n"))
                .fix("--dir DIR, or HANSE_DEMO_DIR=DIR"))
        }
    }
}

/// Every demo of this user, running or not.
pub fn all() -> Vec<DemoFile> {
    let uid = nix::unistd::Uid::current().as_raw();
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return Vec::new() };
    let named = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX));
    let mut demos: Vec<DemoFile> =
        named.filter_map(|e| read(&e.path()).ok()).filter(|d| d.uid == uid).collect();
    demos.sort_by(|a, b| a.data_dir.cmp(&b.data_dir));
    demos
}

/// Ends what is left of a demo whose supervisor is gone, and removes its directory.
pub fn sweep(file: &DemoFile) -> Result<(), Failure> {
    for process in &file.processes {
        if let (Some(pid), Some(start_time)) = (process.pid, process.start_time) {
            Identity { pid, start_time }.signal(Signal::SIGKILL);
        }
    }
    remove(&file.data_dir)
}

/// Removes a demo's directory; nothing but a demo's directory.
pub fn remove(directory: &Path) -> Result<(), Failure> {
    let is_demo = directory.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
    if !is_demo {
        return Err(Failure::usage(format!("{} is not the directory of a demo", directory.display())));
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::No, "E1005", format!("cannot remove {}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}
