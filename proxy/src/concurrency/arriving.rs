//! Requests whose body is still to come. They count for a little while, so that a burst does not pass whole before the first
//! body is there; who takes longer than that is slow himself, and keeps nobody's place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A request counts in the slot in which it came, and in the next.
pub const SLOT: Duration = Duration::from_millis(250);

/// The slot, how many came in it and are still coming, and how many in the one before: in one number, so that they change
/// together.
#[derive(Debug, Default)]
pub struct Arriving(AtomicU64);

#[derive(Clone, Copy)]
struct Slots {
    slot: u32,
    current: u16,
    previous: u16,
}

impl Arriving {
    pub fn count(&self, now: Duration) -> u32 {
        // Where no bodies are, nobody writes here.
        Slots::read(self.0.load(Ordering::Relaxed)).at(now).count()
    }

    /// Counts one more, if `admits` says so of how many there are: the slot to leave, and how many there were.
    pub fn enter(&self, now: Duration, admits: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let one_more = |packed: u64| {
            let slots = Slots::read(packed).at(now);
            let current = slots.current.checked_add(1).filter(|_| admits(slots.count()))?;
            Some(Slots { current, ..slots }.packed())
        };
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let slots = Slots::read(before).at(now);
        Some((slots.slot, slots.count()))
    }

    /// It is here, or will not come. Who came long ago is not counted any more.
    pub fn leave(&self, slot: u32) {
        let one_less = |packed: u64| {
            let mut slots = Slots::read(packed);
            match slots.slot.checked_sub(slot)? {
                0 => slots.current = slots.current.checked_sub(1)?,
                1 => slots.previous = slots.previous.checked_sub(1)?,
                _ => return None,
            }
            Some(slots.packed())
        };
        // `Err`: there is nothing to take away.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }
}

impl Slots {
    fn read(packed: u64) -> Self {
        Self { slot: (packed >> 32) as u32, current: (packed >> 16) as u16, previous: packed as u16 }
    }

    fn packed(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.current) << 16 | u64::from(self.previous)
    }

    /// As they are then. Another worker's clock may have been read later: its slot stays.
    fn at(self, now: Duration) -> Self {
        let slot = (now.as_millis() / SLOT.as_millis()) as u32;
        match slot.saturating_sub(self.slot) {
            0 => self,
            1 => Self { slot, current: 0, previous: self.current },
            _ => Self { slot, current: 0, previous: 0 },
        }
    }

    fn count(self) -> u32 {
        u32::from(self.current) + u32::from(self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(slots: u32) -> Duration {
        Duration::from_millis(250 * slots as u64)
    }

    #[test]
    fn who_is_coming_counts_until_he_is_there_or_has_taken_too_long() {
        let arriving = Arriving::default();
        let enter = |now| arriving.enter(now, |_| true).unwrap();
        assert_eq!((enter(at(4)), enter(at(4)), enter(at(5))), ((4, 0), (4, 1), (5, 2)));
        assert_eq!(arriving.count(at(5)), 3);
        arriving.leave(4);
        assert_eq!(arriving.count(at(5)), 2);
        assert_eq!(enter(at(4)), (5, 2), "a clock that was read before another's");
        assert_eq!(arriving.count(at(6)), 2, "the one of slot 4 takes too long");
        assert_eq!(enter(at(6)), (6, 2));
        arriving.leave(4);
        assert_eq!(arriving.count(at(6)), 3, "and is not taken away twice");
        arriving.leave(5);
        assert_eq!((arriving.count(at(6)), arriving.count(at(7)), arriving.count(at(8))), (2, 1, 0));
        assert_eq!(arriving.enter(at(7), |present| present < 1), None);
        assert_eq!(arriving.enter(at(9), |present| present < 1), Some((9, 0)));
        (0..3).for_each(|_| arriving.leave(9));
        assert_eq!(arriving.count(at(9)), 0);
    }

    #[test]
    fn there_are_never_more_than_are_let_in_whoever_comes_at_the_same_time() {
        let arriving = Arriving::default();
        let entered: usize = std::thread::scope(|scope| {
            let come =
                || (0..1000).filter(|_| arriving.enter(at(1), |present| present < 100).is_some()).count();
            let threads = [(); 4].map(|()| scope.spawn(come));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((entered, arriving.count(at(1))), (100, 100));
    }
}
