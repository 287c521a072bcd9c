//! Every target over its seeds and what is next to them, in any `cargo test`: so that no target rots, and what was found
//! once stays mended. The search itself is `tests/fuzz/run`.

use hanse_fuzz::{TARGETS, Target};

/// The neighbours of one seed: cut, with a byte changed, with a byte put in. The same ones every time.
fn neighbours(seed: &[u8]) -> Vec<Vec<u8>> {
    let step = seed.len() / 24 + 1;
    let mut all = Vec::new();
    for at in (0..seed.len()).step_by(step) {
        let mut changed = seed.to_vec();
        changed[at] ^= 1 << (at % 8);
        let mut grown = seed.to_vec();
        grown.insert(at, b"\0/.%\r\n:;"[at % 8]);
        all.extend([seed[..at].to_vec(), changed, grown]);
    }
    all
}

fn run(target: &Target) {
    let seeds = (target.seeds)();
    let taken = seeds.iter().filter(|seed| (target.run)(seed)).count();
    assert!(taken > 0, "{} takes none of its seeds, so it looks at nothing", target.name);
    let refused = seeds.iter().flat_map(|seed| neighbours(seed)).filter(|bytes| !(target.run)(bytes)).count();
    assert!(refused > 0, "{} takes everything", target.name);
}

#[test]
fn every_target_holds_on_its_seeds_and_their_neighbours() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
    TARGETS.iter().for_each(run);
}
