//! Puts a file in the format of x509-limbo to our verifier: `cargo run -p hanse-tests --release --bin limbo -- FILE`.
//!
//! Prints how often we agree, wrongly accept and wrongly reject, each difference with its reason, and the slowest
//! case. Exits with 1 if a wrong accept has no reason in `limbo::known`, or with `--cost` if a chain
//! costs more than the bound.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use hanse_identity::Timestamp;
use hanse_tests::limbo::{Comparison, Outcome, cost, read};

/// Puts the certificates of a file to the verifier, and says where it differs from what the file expects.
#[derive(Parser)]
struct Arguments {
    /// In the format of x509-limbo's limbo.json.
    file: PathBuf,
    /// Print every case, also those where there is nothing to say.
    #[arg(long)]
    all: bool,
    /// Also print what verifications cost: good chains, and hostile ones.
    #[arg(long)]
    cost: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.file)
        .with_context(|| format!("{} cannot be read", arguments.file.display()))?;
    let now = Timestamp::from_seconds(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let outcomes: Vec<Outcome> = read(&text, now)?.iter().map(|case| case.run()).collect();
    for outcome in outcomes.iter().filter(|o| arguments.all || o.comparison != Comparison::Agree) {
        let verdict = outcome.refusal.as_deref().unwrap_or("believed");
        println!("{:?} {}: {verdict}", outcome.comparison, outcome.id);
        if outcome.comparison != Comparison::Agree {
            println!("    {}", outcome.known.map_or("NO REASON IS LISTED", |known| known.reason));
        }
    }
    let count = |wanted| outcomes.iter().filter(|o| o.comparison == wanted).count();
    println!(
        "{} cases: {} agree, {} wrong accept, {} wrong reject; {} refused by the SVID rules for want of a SPIFFE ID",
        outcomes.len(),
        count(Comparison::Agree),
        count(Comparison::WrongAccept),
        count(Comparison::WrongReject),
        outcomes.iter().filter(|o| !o.believed_as_svid).count(),
    );
    if let Some(slowest) = outcomes.iter().max_by_key(|o| o.took) {
        println!("slowest: {} in {:.3} ms", slowest.id, slowest.took.as_secs_f64() * 1000.0);
    }
    let within = !arguments.cost || cost::print();
    if !within && !cfg!(debug_assertions) {
        println!("a chain costs more than {} ms", cost::BOUND.as_millis());
        return Ok(ExitCode::FAILURE);
    }
    let unexplained =
        |o: &&Outcome| o.believed_as_svid || (o.comparison == Comparison::WrongAccept && o.known.is_none());
    let unexplained = outcomes.iter().filter(unexplained).count();
    if unexplained > 0 {
        println!("{unexplained} wrong accepts have no reason");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
