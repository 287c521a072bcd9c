//! `hanse demo`: clusters on this machine, as real processes, to watch, to break and to verify.
//!
//! `spec` says what there is, `prepare` puts it on disk, `process` starts and ends it, `up` brings it up in
//! order, `keep` answers while it runs, `damage` breaks and heals. `app` and `wire` are processes of the demo
//! itself. `verify` tells the story, `tour` shows what documents do; `thief` is its villain, and an `envoy` its guest.

pub mod app;
pub mod cli;
pub mod damage;
pub mod envoy;
pub mod find;
pub mod keep;
pub mod load;
pub mod ports;
pub mod prepare;
pub mod process;
pub mod signals;
pub mod socket;
pub mod spec;
pub mod thief;
pub mod tour;
pub mod up;
pub mod verbs;
pub mod verify;
pub mod wire;

use crate::client;
