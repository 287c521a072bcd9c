//! The whole story as a user sees it: `hanse demo up --verify` and `hanse demo tour` with real processes, judged by their own
//! exit codes and by what they report. What must not happen is judged; how fast it was is judged by the release build (`.ci/run`).

#[path = "e2e/floods.rs"]
mod floods;

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use hanse_tests::house::Demo;
use serde_json::Value;

/// This is a debug build, and other tests may be running: figures may be this many times their targets.
const SLACK: &str = "20";

/// One demo at a time: each has figures that the other would spoil.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn t12_t14_floods_end_with_their_connection_and_nobody_else_notices() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = Demo::up::<&str>([]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(floods::are_cut_off_and_nobody_else_notices(&demo)).unwrap();
}

#[test]
fn demo_up_verify_tells_the_whole_story() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let binary = hanse_tests::house::binary().unwrap();
    let arguments = ["demo", "up", "--verify", "--slack", SLACK, "-o", "json"];
    let output = Command::new(binary).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}\n{said}\n{talk}"));
    let steps = report["steps"].as_array().unwrap();
    let failed: Vec<&Value> = steps.iter().filter(|step| step["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{talk}");
    assert_eq!(steps.len(), 17, "the story has 17 steps");
    assert_eq!(report["ok"], true);
    assert!(output.status.success());
}

#[test]
fn demo_tour_shows_each_document_at_work() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let binary = hanse_tests::house::binary().unwrap();
    // A place of its own: a demo that runs elsewhere would be toured in place of a new one.
    let place = tempfile::tempdir().unwrap();
    let output = Command::new(binary)
        .args(["demo", "tour", "-o", "json"])
        .env("TMPDIR", place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}\n{said}\n{talk}"));
    let steps = report["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    let order = ["canary", "header steering", "mirroring", "faults", "breakers", "limits", "JWT"];
    assert_eq!(names, order, "{talk}");
    for step in steps {
        assert_eq!(step["ok"], true, "{step:#}\n{talk}");
        assert!(step["command"].as_str().unwrap().starts_with("hanse policy apply -f "), "{step:#}");
        assert_ne!(step["before"], step["after"]);
    }
    assert!(report["ok"] == true && output.status.success());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left");
}
