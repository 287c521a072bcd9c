//! Linearizable reads: many readers share one read index, and every attempt has a context of its own.

use crate::consensus::{Group, ReadIndex};

/// Ticks after which a question that was not answered is asked again, under a new context.
const ASK_AGAIN_TICKS: u32 = 3;

/// Readers that are remembered at most: those who have given up cannot be told from those who wait, and without a
/// leader nobody is answered.
const MAX_WAITING: usize = 16_384;

/// The reads of one node.
#[derive(Debug)]
pub(super) struct Reads {
    node: u64,
    /// Unlike that of another life of this process: its contexts may still be on their way.
    life: u64,
    attempt: u64,
    /// Came after the question that is on its way: its answer may be too old for them.
    waiting: Vec<u64>,
    asked: Option<Asked>,
    /// (index that must be applied, readers).
    answered: Vec<(u64, Vec<u64>)>,
}

#[derive(Debug)]
struct Asked {
    context: Vec<u8>,
    readers: Vec<u64>,
    ticks: u32,
}

impl Reads {
    pub(super) fn new(node: u64, life: u64) -> Self {
        Self { node, life, attempt: 0, waiting: Vec::new(), asked: None, answered: Vec::new() }
    }

    pub(super) fn wait(&mut self, id: u64) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.drain(..MAX_WAITING / 2);
        }
        self.waiting.push(id);
    }

    /// A question may be lost without a word (no leader, a new leader): its readers go into the next one.
    pub(super) fn tick(&mut self) {
        let Some(asked) = &mut self.asked else { return };
        asked.ticks += 1;
        if asked.ticks >= ASK_AGAIN_TICKS
            && let Some(asked) = self.asked.take()
        {
            self.waiting.extend(asked.readers);
        }
    }

    /// Asks for those who wait, unless a question is on its way. Says whether it asked.
    pub(super) fn ask_next(&mut self, group: &mut Group) -> bool {
        if self.asked.is_some() || self.waiting.is_empty() {
            return false;
        }
        self.attempt += 1;
        let context: Vec<u8> =
            [self.node, self.life, self.attempt].iter().flat_map(|number| number.to_be_bytes()).collect();
        group.read_index(context.clone());
        self.asked = Some(Asked { context, readers: std::mem::take(&mut self.waiting), ticks: 0 });
        true
    }

    /// An answer; one to a question that was given up is ignored.
    pub(super) fn arrived(&mut self, read: ReadIndex) {
        if let Some(asked) = self.asked.take_if(|asked| asked.context == read.context) {
            self.answered.push((read.index, asked.readers));
        }
    }

    /// The readers that may see the State at `applied`.
    pub(super) fn ready(&mut self, applied: u64) -> Vec<u64> {
        let ready = self.answered.extract_if(.., |(index, _)| *index <= applied);
        ready.flat_map(|(_, readers)| readers).collect()
    }
}
