//! The store against a model: reopened after every step, cut off at every write, with every kind of damage.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::*;

/// A disk whose power can be cut: what was not synced is there in part, or not.
#[derive(Clone, Debug, Default)]
struct PowerCut {
    state: Arc<Mutex<Image>>,
}

#[derive(Debug, Default)]
struct Image {
    synced: Vec<u8>,
    /// Changes since the last sync, in order.
    pending: Vec<Change>,
    current: Vec<u8>,
    /// Calls that still succeed; then all fail.
    left: Option<u32>,
    /// Of a disk that fills up: the pages that have a place on it, and how many more get one. Files are sparse: it is a
    /// write that fails, not the growth before it.
    allocated: BTreeSet<usize>,
    room: Option<usize>,
}

const PAGE: usize = 4096;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                image.resize(image.len().max(end), 0);
                image[*offset..end].copy_from_slice(data);
            }
            Self::Length(length) => image.resize(*length, 0),
        }
    }
}

impl PowerCut {
    fn from(bytes: Vec<u8>) -> Self {
        let image = Image { synced: bytes.clone(), current: bytes, ..Image::default() };
        Self { state: Arc::new(Mutex::new(image)) }
    }

    fn fail_after(&self, calls: u32) {
        self.state.lock().unwrap().left = Some(calls);
    }

    /// What a machine finds that comes up again: some of what was not synced, also in parts.
    fn after_power_cut(&self, chance: &mut Chance) -> Vec<u8> {
        let image = self.state.lock().unwrap();
        let mut found = image.synced.clone();
        for change in &image.pending {
            match (chance.below(3), change) {
                (0, _) => {}
                (1, Change::Write(offset, data)) => {
                    let torn = usize::try_from(chance.below(data.len() as u64 + 1)).unwrap();
                    Change::Write(*offset, data[..torn].to_vec()).apply(&mut found);
                }
                _ => change.apply(&mut found),
            }
        }
        found
    }

    /// From now on there is room for so many more pages.
    fn fill_up(&self, room: usize) {
        self.state.lock().unwrap().room = Some(room);
    }

    /// What a process finds that is started again on the same machine: what was written, and as much room.
    fn found_again(&self) -> Self {
        let image = self.state.lock().unwrap();
        let (current, allocated, room) = (image.current.clone(), image.allocated.clone(), image.room);
        let again = Image { synced: current.clone(), current, allocated, room, ..Image::default() };
        Self { state: Arc::new(Mutex::new(again)) }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut image = self.state.lock().unwrap();
        image.spend()?;
        image.allocate(&change)?;
        change.apply(&mut image.current);
        image.pending.push(change);
        Ok(())
    }
}

impl Image {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is cut")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Image {
    fn allocate(&mut self, change: &Change) -> io::Result<()> {
        let Change::Write(offset, data) = change else { return Ok(()) };
        for page in offset / PAGE..(offset + data.len()).div_ceil(PAGE) {
            if let (Some(room), false) = (&mut self.room, self.allocated.contains(&page)) {
                *room = room.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            }
            self.allocated.insert(page);
        }
        Ok(())
    }
}

impl redb::StorageBackend for PowerCut {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.state.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = image.current.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.state.lock().unwrap();
        image.spend()?;
        image.pending.clear();
        image.synced = image.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    Snapshot { index, term, voters: vec![1, 2, 3], data: format!("state at {index}").repeat(9).into() }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: format!("entry {index} of term {term}").into() }
}

/// The next batch that a node could write.
fn batch(chance: &mut Chance, held: &Recovered) -> Batch {
    let last = held.entries.last().map_or(held.before.0, |e| e.index);
    let term = held.hard_state.term + chance.below(2);
    let mut batch = Batch {
        hard_state: Some(HardState { term, vote: chance.below(4), commit: last }),
        ..Batch::default()
    };
    match chance.below(6) {
        // The leader's snapshot, far ahead.
        0 => {
            let index = last + 10;
            batch.snapshot = Some(snapshot(index, term));
            batch.clear_log = true;
            batch.entries = vec![entry(index + 1, term)];
        }
        // Our own snapshot, and the log behind it goes.
        1 if last > held.snapshot.index => {
            batch.snapshot = Some(snapshot(last, term));
            batch.drop_before = Some(last.saturating_sub(3).max(1));
        }
        // A conflict: the end of the log is replaced.
        2 if last > held.snapshot.index + 1 => {
            batch.entries = (last - 1..last + 2).map(|index| entry(index, term)).collect();
        }
        _ => {
            let count = 1 + chance.below(4);
            batch.entries = (last + 1..=last + count).map(|index| entry(index, term)).collect();
        }
    }
    batch
}

fn reopened(bytes: Vec<u8>) -> Result<Option<Recovered>, DiskError> {
    Store::on(PowerCut::from(bytes))?.load()
}

#[test]
fn what_was_written_is_there_after_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut chance = Chance(1);
    let mut model = Recovered::default();
    let mut first = Batch::founding(snapshot(1, 1));
    assert_eq!(Store::open(dir.path()).unwrap().load(), Ok(None));
    for _ in 0..150 {
        let mut store = Store::open(dir.path()).unwrap();
        // As in life, a store is read before it is written.
        let held = store.load().unwrap();
        let next = match held {
            None => std::mem::take(&mut first),
            Some(held) => {
                assert_eq!(held, model);
                batch(&mut chance, &model)
            }
        };
        store.write(&next).unwrap();
        model.write(&next);
        assert_eq!(store.load().unwrap().as_ref(), Some(&model));
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_that_was_written() {
    let mut cuts = 0;
    for seed in 0..250 {
        let mut chance = Chance(seed);
        let disk = PowerCut::default();
        let mut store = Store::on(disk.clone()).unwrap();
        let mut model = Recovered::default();
        let founding = Batch::founding(snapshot(1, 1));
        store.write(&founding).unwrap();
        model.write(&founding);
        for _ in 0..chance.below(8) {
            let next = batch(&mut chance, &model);
            store.write(&next).unwrap();
            model.write(&next);
        }
        let next = batch(&mut chance, &model);
        disk.fail_after(u32::try_from(chance.below(24)).unwrap());
        let written = store.write(&next);
        let mut after = model.clone();
        after.write(&next);
        let found = reopened(disk.after_power_cut(&mut chance)).unwrap().unwrap();
        if written.is_ok() {
            assert_eq!(found, after, "seed {seed}: a write that returned is lost");
        } else {
            cuts += 1;
            assert!(found == model || found == after, "seed {seed}: half of a write is there");
            assert_eq!(store.write(&next), Err(DiskError::Poisoned), "seed {seed}");
        }
    }
    assert!(cuts > 20, "only {cuts} writes were cut off");
}

/// A full disk ends the node (see the driver); what it had acknowledged is there as soon as there is room again, and as
/// long as there is none it starts and cannot write, or says why it does not start.
#[test]
fn a_full_disk_loses_nothing_and_is_no_damage() {
    let (mut filled, mut opened) = (0, 0);
    for seed in 0..60 {
        let mut chance = Chance(seed);
        let mut model = Recovered::default();
        let disk = PowerCut::default();
        let mut store = Store::on(disk.clone()).unwrap();
        let founding = Batch::founding(snapshot(1, 1));
        store.write(&founding).unwrap();
        model.write(&founding);
        disk.fill_up(usize::try_from(chance.below(12)).unwrap());
        let mut after = model.clone();
        for _ in 0..200 {
            let next = batch(&mut chance, &model);
            after.write(&next);
            if let Err(why) = store.write(&next) {
                assert!(matches!(&why, DiskError::Write(_)), "seed {seed}: {why}");
                assert_eq!(store.write(&next), Err(DiskError::Poisoned), "seed {seed}");
                filled += 1;
                break;
            }
            model.write(&next);
        }
        drop(store);
        let left = disk.found_again();
        match Store::on(left.clone()).and_then(|mut store| store.load()) {
            Ok(found) => {
                let found = found.unwrap();
                assert!(found == model || found == after, "seed {seed}: while it is full");
                opened += 1;
            }
            Err(why) => assert!(matches!(&why, DiskError::Open(_)), "seed {seed}: {why}"),
        }
        let roomy = left.found_again();
        roomy.fill_up(1_000);
        let found = Store::on(roomy).unwrap().load().unwrap().unwrap();
        assert!(found == model || found == after, "seed {seed}: what was acknowledged is lost");
    }
    assert!(filled > 20 && opened > 0, "{filled} disks were full, {opened} could be read then");
}

/// A store as a power cut leaves it, with what it holds.
fn cut_off() -> (Vec<u8>, Recovered) {
    let disk = PowerCut::default();
    let mut store = Store::on(disk.clone()).unwrap();
    let mut chance = Chance(3);
    let mut model = Recovered::default();
    let founding = Batch::founding(snapshot(1, 1));
    store.write(&founding).unwrap();
    model.write(&founding);
    for _ in 0..6 {
        let next = batch(&mut chance, &model);
        store.write(&next).unwrap();
        model.write(&next);
    }
    let image = disk.state.lock().unwrap().synced.clone();
    (image, model)
}

/// Where redb says which of its two roots counts: the one byte in the file that nothing vouches for.
const ROOT_CHOICE: usize = 9;

#[test]
fn a_flipped_bit_is_seen_or_does_not_matter() {
    let (image, model) = cut_off();
    let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0 && *at != ROOT_CHOICE).collect();
    let mut seen = 0;
    for at in used.into_iter().step_by(5) {
        let mut damaged = image.clone();
        damaged[at] ^= 1 << (at % 8);
        match reopened(damaged) {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(&model), "a flipped bit in byte {at} changed what is read")
            }
            Err(DiskError::Damaged(_)) => seen += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(seen > 50, "only {seen} flips were seen");
}

#[test]
fn a_file_that_is_cut_off_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.write(&Batch::founding(snapshot(1, 1))).unwrap();
    let entries = (2..400).map(|index| entry(index, 1)).collect();
    store.write(&Batch { entries, ..Batch::default() }).unwrap();
    let model = store.load().unwrap();
    drop(store);
    let path = dir.path().join(STORE_FILE);
    let whole = fs::read(&path).unwrap();
    for part in [0.99, 0.9, 0.5, 0.1] {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let length = (whole.len() as f64 * part) as usize;
        fs::write(&path, &whole[..length]).unwrap();
        match Store::open(dir.path()).and_then(|mut store| store.load()) {
            Ok(found) => assert_eq!(found, model),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(DiskError::Open(_))));
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let mode = fs::metadata(dir.path().join(STORE_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn another_layout_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.write(&Batch::founding(snapshot(1, 1))).unwrap();
    let write = store.database.begin_write().unwrap();
    {
        let mut meta = write.open_table(META).unwrap();
        let newer = seal(SHAPE.as_bytes(), &numbers(&[FORMAT + 1, 1, 1, 1]));
        meta.insert(SHAPE, newer.as_slice()).unwrap();
    }
    write.commit().unwrap();
    assert!(matches!(store.load(), Err(DiskError::Damaged(_))));
}

#[test]
fn a_missing_or_misplaced_record_is_seen() {
    type Damage = fn(&WriteTransaction);
    let damages: [Damage; 5] = [
        |w| drop(w.open_table(LOG).unwrap().remove(3).unwrap()),
        |w| drop(w.open_table(LOG).unwrap().remove(5).unwrap()),
        |w| drop(w.open_table(LOG).unwrap().remove(2).unwrap()),
        |w| drop(w.open_table(META).unwrap().remove(HARD_STATE).unwrap()),
        |w| {
            let mut log = w.open_table(LOG).unwrap();
            let third = log.get(3).unwrap().unwrap().value().to_vec();
            log.insert(4, third.as_slice()).unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let disk = PowerCut::default();
        let mut store = Store::on(disk).unwrap();
        store.write(&Batch::founding(snapshot(1, 1))).unwrap();
        let entries = (2..=5).map(|index| entry(index, 1)).collect();
        store.write(&Batch { entries, ..Batch::default() }).unwrap();
        assert!(store.load().is_ok());
        let write = store.database.begin_write().unwrap();
        damage(&write);
        write.commit().unwrap();
        assert!(matches!(store.load(), Err(DiskError::Damaged(_))), "damage {number} went unseen");
    }
}
