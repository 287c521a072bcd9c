//! Fuzz targets: each takes any bytes, panics where a promise of the parser is broken, and says whether it took them.
//!
//! libFuzzer looks for bytes that break one (`tests/fuzz/run`); `tests/fuzz/tests/seeds.rs` runs each target's seeds and their
//! neighbours in every `cargo test`. What was found once is a seed from then on.

// Tests of what is included below are in its own crate, and would be looked for here.
#![cfg(not(test))]

mod client_hello;
mod dns;
mod documents;
mod edit;
mod facts;
mod frames;
mod http1;
mod jwt;
mod names;
mod path;
mod policy;
mod svid;
mod trace_context;
mod tunnel;
mod user_jwt;

// Files of the data plane that know no socket, by themselves: they are built again with coverage, and all that the data
// plane depends on is not. They are as public here as they are there, used by a target or not.
#[rustfmt::skip]
#[path = "../../../proxy/src/dns.rs"]
pub mod answers;
#[rustfmt::skip]
#[path = "../../../proxy/src/headers.rs"]
pub mod headers;
#[path = "../../../proxy/src/sidecar/tests/readers.rs"]
pub mod readers;
#[rustfmt::skip]
#[path = "../../../gateway/src/route.rs"]
pub mod route;
#[path = "../../../proxy/src/server_name.rs"]
pub mod server_name;
#[rustfmt::skip]
#[path = "../../../proxy/src/trace.rs"]
pub mod trace;

/// One parser and what is promised of it.
pub struct Target {
    pub name: &'static str,
    /// `true`: the parser took it.
    pub run: fn(&[u8]) -> bool,
    /// From where the search starts. Some of them the parser takes.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*]
    };
}

pub const TARGETS: &[Target] = targets![
    client_hello,
    names,
    tunnel,
    dns,
    http1,
    path,
    frames,
    trace_context,
    jwt,
    user_jwt,
    svid,
    documents,
    facts,
    policy,
];

/// Bytes for a message: what broke a promise has to be seen.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
