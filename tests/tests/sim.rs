//! The simulation: storms by seed, scenarios in operators' words, and the proof that both can find something.
//!
//! `HANSE_SIM_SEEDS=20000 cargo test -p hanse-tests --test sim storms` runs more seeds, from `HANSE_SIM_FIRST` on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hanse_tests::world::storm::{Report, storm};
use hanse_tests::world::{Bug, scenario};

const SEEDS: u64 = 500;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs `work` for every seed on all processors; in the order of the seeds.
fn for_every_seed<T: Send>(first: u64, count: u64, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(first);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let one = work(seed);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((seed, one));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(seed, _)| *seed);
    done.into_iter().map(|(_, one)| one).collect()
}

fn describe(report: &Report) -> Option<String> {
    let violation = report.outcome.as_ref().err()?;
    let seed = report.seed;
    Some(format!("seed {seed}: {violation}\n    replay: cargo run -p hanse-tests --bin replay -- {seed}"))
}

#[test]
fn storms_break_nothing() {
    let first = from_environment("HANSE_SIM_FIRST", 1);
    let count = from_environment("HANSE_SIM_SEEDS", SEEDS);
    let began = Instant::now();
    let reports = for_every_seed(first, count, |seed| storm(seed, None, false));
    let took = began.elapsed().as_secs_f64();
    let sum = |number: fn(&Report) -> u64| reports.iter().map(number).sum::<u64>();
    println!(
        "{count} storms in {took:.1} s ({:.1} per s): {} events, {} virtual s, {} writes acknowledged, {} requests \
         served, {} refused, {} joins",
        count as f64 / took,
        sum(|r| r.events),
        sum(|r| r.lasted_ms) / 1000,
        sum(|r| r.acknowledged as u64),
        sum(|r| r.served as u64),
        sum(|r| r.refused as u64),
        sum(|r| r.joined as u64),
    );
    let failures: Vec<String> = reports.iter().filter_map(describe).collect();
    assert!(failures.is_empty(), "{} of {count} storms:\n{}", failures.len(), failures.join("\n"));
    // Storms in which nothing happens would prove nothing.
    assert!(sum(|r| r.acknowledged as u64) > 10 * count && sum(|r| r.served as u64) > 5 * count);
}

#[test]
fn a_seed_is_a_run() {
    for seed in [1, 7, 42, 1234, 987_654_321] {
        let (once, again) = (storm(seed, None, true), storm(seed, None, true));
        assert!(once.events > 1000, "seed {seed} has {} events", once.events);
        let differs = once.lines.iter().zip(&again.lines).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((once.digest, once.events, once.lasted_ms), (again.digest, again.events, again.lasted_ms));
        assert_eq!(storm(seed, None, false).digest, once.digest, "seed {seed}: watching changes it");
    }
    assert_ne!(storm(1, None, false).digest, storm(2, None, false).digest);
}

/// Puts a bug into the World's shell and says which seed found it first, and as what.
fn found(bug: Bug, within: u64, words: &[&str]) {
    const AT_A_TIME: u64 = 10;
    let mut others = Vec::new();
    for first in (1..=within).step_by(AT_A_TIME as usize) {
        let reports = for_every_seed(first, AT_A_TIME, |seed| storm(seed, Some(bug), false));
        let mut violations =
            reports.iter().filter_map(|r| Some((r.seed, r.outcome.as_ref().err()?.to_string())));
        if let Some((seed, what)) = violations.find(|(_, what)| words.iter().any(|w| what.contains(w))) {
            println!("{bug:?}: seed {seed}: {what}");
            return;
        }
        others.extend(reports.iter().filter_map(describe));
    }
    panic!("{bug:?} was not found in {within} storms; found was: {others:?}");
}

#[test]
fn speaking_before_storing_is_found() {
    found(Bug::SpeakBeforeStore, 60, &["held proposals", "is lost", "panic", "agreed on", "cannot start"]);
}

#[test]
fn a_missing_import_filter_is_found() {
    found(Bug::NoImportFilter, 40, &["told and the log took", "goes back"]);
}

#[test]
fn revocations_forgotten_on_resume_are_found() {
    found(Bug::ResumeWithoutRevocations, 60, &["revoked by", "another View", "has not the View"]);
}

#[test]
fn an_exporter_that_lags_is_found() {
    found(Bug::ExporterLags, 300, &["goes back"]);
}

#[test]
fn fresh_ids_for_retries_are_found() {
    found(Bug::FreshProposalIds, 40, &["and again at"]);
}

#[test]
fn signing_before_publication_is_found() {
    found(Bug::SignUnpublished, 200, &["before its authority was published", "with an authority that is"]);
}

#[test]
fn a_rotation_that_measures_nothing_is_found() {
    found(Bug::GatesUnmeasured, 200, &["cannot verify the SVID"]);
}

#[test]
fn certificates_of_before_the_watermark_are_found() {
    found(Bug::WatermarkIgnored, 200, &["though it is revoked by"]);
}

#[test]
fn t29_a_clock_that_is_believed_though_the_others_contradict_it_is_found() {
    found(Bug::OwnClockBelieved, 60, &["by a clock that is off by"]);
}

#[test]
fn stale_reads_are_found() {
    found(Bug::StaleReads, 40, &["had been seen before it began"]);
}

#[test]
fn snapshots_that_go_back_are_found() {
    found(Bug::SnapshotsGoBack, 60, &["went back"]);
}

#[test]
fn connections_kept_after_a_revocation_are_found() {
    found(Bug::ConnectionsKept, 40, &["keeps a connection"]);
}

/// `UPDATE=1` writes what is answered now into the files.
#[test]
fn scenarios_read_as_written() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = std::fs::read_dir(&folder).expect("the scenarios are there");
    let mut files: Vec<_> = files.map(|f| f.expect("the folder can be listed").path()).collect();
    files.sort();
    assert!(files.len() >= 15, "there are {} scenarios", files.len());
    let mut differing = Vec::new();
    for file in files {
        let written = std::fs::read_to_string(&file).expect("a scenario can be read");
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let played = scenario::play(&written).unwrap_or_else(|violation| panic!("{name}: {violation}"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &played).expect("a scenario can be written");
        } else if played != written {
            let first = played.lines().zip(written.lines()).position(|(a, b)| a != b).unwrap_or_default();
            let line = |text: &str| text.lines().nth(first).unwrap_or("(the end)").to_owned();
            differing.push(format!(
                "{name}:{}\n  is      {}\n  written {}",
                first + 1,
                line(&played),
                line(&written)
            ));
        }
    }
    assert!(
        differing.is_empty(),
        "UPDATE=1 rewrites them, if they are as they should be:\n{}",
        differing.join("\n")
    );
}
