//! libFuzzer around the target that `HANSE_FUZZ_TARGET` names (`all`: only prints what there are); its seeds go to the
//! folder `HANSE_FUZZ_SEEDS`. `tests/fuzz/run` runs it.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use hanse_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fn begin() {
    let name = std::env::var("HANSE_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    if name == "all" {
        println!("{}", names.join(" "));
        std::process::exit(0);
    }
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("HANSE_FUZZ_TARGET is {name:?}; it has to be one of {names:?}");
        std::process::exit(2);
    };
    if let Some(folder) = std::env::var_os("HANSE_FUZZ_SEEDS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)
                .expect("the seeds' folder can be written");
        }
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let target = TARGET.get().expect("libFuzzer begins before it runs");
    (target.run)(bytes);
});
