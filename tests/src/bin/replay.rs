//! Replays one storm: `cargo run -p hanse-tests --bin replay -- SEED` prints everything that happened in it.

use clap::Parser;
use hanse_tests::world::storm::storm;

/// Prints the event log of the storm with this seed, and how it ended.
#[derive(Parser)]
struct Arguments {
    seed: u64,
    /// Only lines that contain this.
    #[arg(long)]
    grep: Option<String>,
    /// Only the last lines.
    #[arg(long)]
    last: Option<usize>,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let report = storm(arguments.seed, None, true);
    let wanted = |line: &&String| arguments.grep.as_ref().is_none_or(|text| line.contains(text));
    let lines: Vec<&String> = report.lines.iter().filter(wanted).collect();
    let first = arguments.last.map_or(0, |last| lines.len().saturating_sub(last));
    for line in &lines[first..] {
        println!("{line}");
    }
    println!(
        "seed {} digest {:016x}: {} events in {} ms, {} writes acknowledged, {} requests served, {} refused, {} joins",
        report.seed,
        report.digest,
        report.events,
        report.lasted_ms,
        report.acknowledged,
        report.served,
        report.refused,
        report.joined
    );
    match report.outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(violation) => {
            println!("VIOLATION {violation}");
            std::process::ExitCode::FAILURE
        }
    }
}
