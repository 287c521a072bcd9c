//! hanse-control: the replicated control node, its APIs and their client.
//!
//! `command` and `state` say what the log means; `consensus` is raft-rs behind our own types; `node` is the
//! machine (`handle(now, Input) → Vec<Output>`); `io` performs what it decides. `client` is what the CLI uses.

pub mod admin;
pub mod client;
pub mod clock;
pub mod command;
pub mod consensus;
pub mod io;
pub mod node;
pub mod role;
pub mod run;
pub mod signing;
pub mod state;
pub mod wire;

pub use run::{Config, run};
