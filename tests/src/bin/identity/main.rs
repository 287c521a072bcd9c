//! Benchmarks of identity: what an issuance costs, how soon a workload has its first SVID, what a fleet costs, what
//! rotation and revocation do to live traffic. Prints figures and asserts none of them, but for what must be zero.
//!
//! `cargo run --release -p hanse-tests --bin identity -- issue|workload-api|fleet|rotation|revoke [--help]`
//! Everything runs on loopback, load included: read the figures as "at least this good there".

use anyhow::Result;
use clap::{Parser, Subcommand};

mod authorities;
mod fleet;
mod issue;
mod revoke;
mod rotation;
mod scene;
mod workload_api;

/// As in the binary itself: what an issuance costs is measured in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Issuances per second on one core, against what P-256 itself allows (openssl's speed in the same run)
    Issue(issue::Arguments),
    /// Time from connecting to the Workload API to the first SVID of an identity that nobody has asked for yet
    WorkloadApi(workload_api::Arguments),
    /// Many workloads in one cluster: registration, first issue, a full re-issue, memory of the control nodes
    Fleet(fleet::Arguments),
    /// Short-lived SVIDs under load, then every authority replaced three times: rotations, and requests that failed
    Rotation(rotation::Arguments),
    /// Revocations with live connections in two clusters: when refused, when cut, and who else was dropped
    Revoke(revoke::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Issue(arguments) => issue::run(&arguments),
        What::WorkloadApi(arguments) => scene::block_on(workload_api::run(arguments)),
        What::Fleet(arguments) => scene::block_on(fleet::run(arguments)),
        What::Rotation(arguments) => scene::block_on(rotation::run(arguments)),
        What::Revoke(arguments) => scene::block_on(revoke::run(arguments)),
    }
}
