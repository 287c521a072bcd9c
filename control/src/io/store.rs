//! The store: a node's log, hard state and snapshot in one redb file, one synced transaction per batch.
//!
//! Every record carries a checksum over its key and content, and the shape of the log (its first and last index) is
//! a record of its own. All of it is read and checked when the store is opened: a record that is not what was
//! written, or a log with a hole, is a clear error, and the node does not start. It is never served, and never
//! repaired by guessing: a node that has lost what it acknowledged must not vote. What was being written when the
//! process was killed is there in full or not at all: commits are in two phases, so redb needs no checksum to tell
//! which of its two roots is whole, and cannot fall back behind a commit that had returned.
//!
//! The applied State is not written entry by entry. On opening it is the State of the snapshot, and the entries up
//! to the stored commit index are applied to it again; what was committed after that is learnt from the others.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::consensus::{Batch, Disk, DiskError, Entry, HardState, Recovered, Snapshot};

/// The file's name in the data directory.
pub const STORE_FILE: &str = "state.redb";
/// The layout that is written, and the only one that is read.
const FORMAT: u64 = 1;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const HARD_STATE: &str = "hardState";
const SNAPSHOT: &str = "snapshot";
const SHAPE: &str = "shape";

/// Bytes that redb may keep of the file in memory (it would take a gigabyte): the log is read once, at the start.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes of a record's checksum.
const CHECKSUM: usize = 16;

/// A node's store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    shape: Shape,
    poisoned: bool,
}

/// What the log looks like: if a record is missing, this tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    /// Index and term of the entry before the first.
    before: (u64, u64),
    last: u64,
}

impl Store {
    /// Opens the store in `dir`, or makes it. One process at a time.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join(STORE_FILE);
        let told = |e: &dyn std::fmt::Display| DiskError::Open(format!("{}: {e}", path.display()));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|e| told(&e))?;
        let opened = Self::database(|| builder().create_file(file)).map_err(|e| at(&path, e))?;
        sync_directory(dir).map_err(|e| told(&e))?;
        Ok(opened)
    }

    /// The same on any other backend: tests put one under it that loses what was not synced.
    pub fn on(backend: impl redb::StorageBackend) -> Result<Self, DiskError> {
        Self::database(|| builder().create_with_backend(backend))
    }

    fn database(open: impl FnOnce() -> Result<Database, redb::DatabaseError>) -> Result<Self, DiskError> {
        // A damaged file may trip an assertion in redb: that is damage too, not a crash.
        let database = match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(database)) => database,
            Ok(Err(e @ redb::DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(DiskError::Open(e.to_string()));
            }
            Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(e))))
                if e.kind() != std::io::ErrorKind::InvalidData =>
            {
                return Err(DiskError::Open(e.to_string()));
            }
            Ok(Err(e)) => return Err(DiskError::Damaged(e.to_string())),
            Err(_) => return Err(DiskError::Damaged("redb cannot read it".into())),
        };
        Ok(Self { database, shape: Shape::default(), poisoned: false })
    }

    fn read_all(&self) -> Result<Option<(Recovered, Shape)>, DiskError> {
        let read = self.database.begin_read().map_err(damaged)?;
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(damaged(e)),
        };
        let record = |key: &'static str| -> Result<Vec<u8>, DiskError> {
            let stored = meta.get(key).map_err(damaged)?;
            let stored = stored.ok_or_else(|| DiskError::Damaged(format!("the record {key} is missing")))?;
            Ok(unseal(key.as_bytes(), stored.value()).ok_or_else(|| bad(key))?.to_vec())
        };
        let shape = Shape::read(&record(SHAPE)?).ok_or_else(|| bad(SHAPE))?;
        let hard_state = read_hard_state(&record(HARD_STATE)?).ok_or_else(|| bad(HARD_STATE))?;
        let snapshot = read_snapshot(&record(SNAPSHOT)?).ok_or_else(|| bad(SNAPSHOT))?;
        let log = read.open_table(LOG).map_err(damaged)?;
        let mut entries = Vec::new();
        let mut expected = shape.before.0 + 1;
        for row in log.iter().map_err(damaged)? {
            let (key, value) = row.map_err(damaged)?;
            let index = key.value();
            if index != expected {
                return Err(DiskError::Damaged(format!("entry {expected} of the log is missing")));
            }
            let entry = unseal(&index.to_be_bytes(), value.value()).and_then(|body| read_entry(index, body));
            entries.push(entry.ok_or_else(|| bad(&format!("entry {index}")))?);
            expected += 1;
        }
        if expected != shape.last + 1 {
            let last = shape.last;
            return Err(DiskError::Damaged(format!("the log ends at {}, it ended at {last}", expected - 1)));
        }
        Ok(Some((Recovered { hard_state, snapshot, entries, before: shape.before }, shape)))
    }

    fn transact(&self, batch: &Batch) -> Result<Shape, DiskError> {
        let mut write = self.database.begin_write().map_err(unwritten)?;
        // Two phases, so that a crash cannot make redb fall back behind a commit that has returned.
        write.set_two_phase_commit(true);
        write.set_durability(redb::Durability::Immediate).map_err(unwritten)?;
        let shape = self.put(&write, batch)?;
        write.commit().map_err(unwritten)?;
        Ok(shape)
    }

    fn put(&self, write: &WriteTransaction, batch: &Batch) -> Result<Shape, DiskError> {
        let mut shape = self.shape;
        let mut meta = write.open_table(META).map_err(unwritten)?;
        let mut log = write.open_table(LOG).map_err(unwritten)?;
        if let Some(snapshot) = &batch.snapshot {
            let sealed = seal(SNAPSHOT.as_bytes(), &write_snapshot(snapshot));
            meta.insert(SNAPSHOT, sealed.as_slice()).map_err(unwritten)?;
            if batch.clear_log {
                log.retain(|_, _| false).map_err(unwritten)?;
                shape = Shape { before: (snapshot.index, snapshot.term), last: snapshot.index };
            }
        }
        if let Some(first) = batch.entries.first() {
            log.retain_in(first.index.., |_, _| false).map_err(unwritten)?;
            for entry in &batch.entries {
                let sealed = seal(&entry.index.to_be_bytes(), &write_entry(entry));
                log.insert(entry.index, sealed.as_slice()).map_err(unwritten)?;
                shape.last = entry.index;
            }
        }
        if let Some(from) = batch.drop_before.filter(|from| *from > shape.before.0 + 1) {
            let last_dropped = from - 1;
            let term = match log.get(last_dropped).map_err(unwritten)? {
                Some(row) => unseal(&last_dropped.to_be_bytes(), row.value())
                    .and_then(|body| read_entry(last_dropped, body))
                    .map(|entry| entry.term),
                None => None,
            };
            let term = term.ok_or_else(|| bad(&format!("entry {last_dropped}")))?;
            log.retain_in(..from, |_, _| false).map_err(unwritten)?;
            shape.before = (last_dropped, term);
        }
        if let Some(hard_state) = batch.hard_state {
            let sealed = seal(HARD_STATE.as_bytes(), &write_hard_state(hard_state));
            meta.insert(HARD_STATE, sealed.as_slice()).map_err(unwritten)?;
        }
        meta.insert(SHAPE, seal(SHAPE.as_bytes(), &shape.write()).as_slice()).map_err(unwritten)?;
        Ok(shape)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

impl Disk for Store {
    fn load(&mut self) -> Result<Option<Recovered>, DiskError> {
        let read = catch_unwind(AssertUnwindSafe(|| self.read_all()));
        let read = read.map_err(|_| DiskError::Damaged("redb cannot read it".into()))?;
        Ok(read?.map(|(recovered, shape)| {
            self.shape = shape;
            recovered
        }))
    }

    fn write(&mut self, batch: &Batch) -> Result<(), DiskError> {
        if self.poisoned {
            return Err(DiskError::Poisoned);
        }
        // Whatever goes wrong, what the file holds is not known any more: a write that failed to be synced may be
        // read back from the page cache and still be lost.
        self.poisoned = true;
        self.shape = self.transact(batch)?;
        self.poisoned = false;
        Ok(())
    }
}

impl Shape {
    fn write(self) -> Vec<u8> {
        numbers(&[FORMAT, self.before.0, self.before.1, self.last])
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let ([format, index, term, last], []) = read_numbers::<4>(bytes)? else { return None };
        (format == FORMAT).then_some(Self { before: (index, term), last })
    }
}

fn write_hard_state(hard_state: HardState) -> Vec<u8> {
    numbers(&[hard_state.term, hard_state.vote, hard_state.commit])
}

fn read_hard_state(bytes: &[u8]) -> Option<HardState> {
    let ([term, vote, commit], []) = read_numbers::<3>(bytes)? else { return None };
    Some(HardState { term, vote, commit })
}

fn write_entry(entry: &Entry) -> Vec<u8> {
    let mut bytes = numbers(&[entry.term]);
    bytes.extend_from_slice(&entry.data);
    bytes
}

fn read_entry(index: u64, bytes: &[u8]) -> Option<Entry> {
    let ([term], data) = read_numbers::<1>(bytes)?;
    Some(Entry { index, term, data: Bytes::copy_from_slice(data) })
}

fn write_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let voters = u64::try_from(snapshot.voters.len()).unwrap_or(u64::MAX);
    let mut bytes = numbers(&[snapshot.index, snapshot.term, voters]);
    bytes.extend(numbers(&snapshot.voters));
    bytes.extend_from_slice(&snapshot.data);
    bytes
}

fn read_snapshot(bytes: &[u8]) -> Option<Snapshot> {
    let ([index, term, count], mut rest) = read_numbers::<3>(bytes)?;
    let mut voters = Vec::new();
    for _ in 0..count {
        let ([voter], after) = read_numbers::<1>(rest)?;
        voters.push(voter);
        rest = after;
    }
    Some(Snapshot { index, term, voters, data: Bytes::copy_from_slice(rest) })
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn read_numbers<const N: usize>(mut bytes: &[u8]) -> Option<([u64; N], &[u8])> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        let (read, rest) = bytes.split_first_chunk::<8>()?;
        (*number, bytes) = (u64::from_be_bytes(*read), rest);
    }
    Some((numbers, bytes))
}

fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sealed = checksum(key, body).to_vec();
    sealed.extend_from_slice(body);
    sealed
}

fn unseal<'b>(key: &[u8], sealed: &'b [u8]) -> Option<&'b [u8]> {
    let (sum, body) = sealed.split_first_chunk::<CHECKSUM>()?;
    (*sum == checksum(key, body)).then_some(body)
}

/// SHA-256 over key and content, cut short: against rot, not against an attacker who can write the file.
fn checksum(key: &[u8], body: &[u8]) -> [u8; CHECKSUM] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(key);
    context.update(&[0]);
    context.update(body);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    sum
}

fn at(path: &Path, error: DiskError) -> DiskError {
    match error {
        DiskError::Open(why) => DiskError::Open(format!("{}: {why}", path.display())),
        DiskError::Damaged(why) => DiskError::Damaged(format!("{}: {why}", path.display())),
        other => other,
    }
}

fn bad(what: &str) -> DiskError {
    DiskError::Damaged(format!("{what} is not what was written"))
}

fn damaged(error: impl std::fmt::Display) -> DiskError {
    DiskError::Damaged(error.to_string())
}

fn unwritten(error: impl std::fmt::Display) -> DiskError {
    DiskError::Write(error.to_string())
}

fn sync_directory(dir: &Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
