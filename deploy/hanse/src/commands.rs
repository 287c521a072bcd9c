//! What the verbs do: one file per noun. They ask control nodes through `Connection` and print what they say.

pub mod agent;
pub mod audit;
pub mod bundle;
pub mod capture;
pub mod cluster;
pub mod context;
pub mod downstream;
pub mod federation;
pub mod identity;
pub mod node;
pub mod policy;
pub mod proxy;
pub mod revoke;
pub mod role;
pub mod service;
pub mod tap;
pub mod traffic;
pub mod trust;
pub mod workload;

use std::io::{BufRead, IsTerminal, Write};

use hanse_identity::ServiceName;

use crate::cli::Global;
use crate::errors::{Exit, Failure};

/// How a command that could be carried out ended.
pub type Outcome = Result<Exit, Failure>;

/// A service or policy name: `NAMESPACE/NAME`, or `NAME` in the namespace of `-n`.
pub fn qualified(global: &Global, name: &str) -> Result<ServiceName, Failure> {
    let name = match name.split_once('/') {
        Some((namespace, name)) => ServiceName::new(namespace, name),
        None => ServiceName::new(&global.namespace, name),
    };
    name.map_err(|e| Failure::usage(e.to_string()))
}

/// Reads a file, or standard input for `-`.
pub fn read(path: &std::path::Path) -> Result<String, Failure> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).map_err(|e| Failure::unreadable(path, e));
    }
    std::fs::read_to_string(path).map_err(|e| Failure::unreadable(path, e))
}

/// Asks a person to type `word`; with --yes it is taken as typed, and where nobody can be asked it fails.
pub fn confirm(global: &Global, word: &str) -> Result<(), Failure> {
    if global.yes {
        return Ok(());
    }
    if global.no_input || !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage("this needs confirmation, and nobody can be asked here").fix("--yes confirms")
        );
    }
    eprint!("  type {word} to continue: ");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let _ = std::io::stdin().lock().read_line(&mut line);
    if line.trim() == word {
        Ok(())
    } else {
        Err(Failure::new(Exit::No, "E1009", "not confirmed; nothing was changed"))
    }
}

/// Says something on stderr, unless told to be quiet.
pub fn talk(global: &Global, line: &str) {
    if !global.quiet {
        eprintln!("{line}");
    }
}
