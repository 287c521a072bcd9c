//! How many requests the app behind this proxy works on at a time: a limit that follows how long answers take, and who is
//! refused first when more come. Pure; the time is an argument.
//!
//! With more requests at a time than an app can work on, none is done sooner and each waits longer. So the limit falls when
//! answers take longer than they do undisturbed, and rises while they do not and there is demand for more (a gradient, as in
//! Envoy's adaptive concurrency and Netflix's concurrency-limits). How long they take undisturbed (`base`) is seen whenever few
//! are under way. Where that is never so, the limit is cut to a quarter for some answers, from time to time: an average over
//! a long time would take a queue that lasts for how things are.
//!
//! All workers of a proxy share one `Limiter`, by atomic numbers; nobody waits for another.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use hanse_federation::policy::concurrency::ConcurrencySettings;
use hanse_federation::policy::document::concurrency::Priority;

use arriving::Arriving;

mod arriving;

/// The limit before anything is known.
const FIRST_LIMIT: f64 = 20.0;
/// A window of answers is at least so long, and twice as long as an answer takes: what a new limit does has to be seen in it.
const WINDOW: Duration = Duration::from_millis(100);
/// And has so many answers, unless it has lasted as long as this already, or as twice an answer where that is more.
const LEAST_ANSWERS: u32 = 8;
const LONGEST_WINDOW: Duration = Duration::from_secs(5);
/// Whoever is slower than this is as slow as this.
const SLOWEST: Duration = Duration::from_secs(60);
/// Who gives up sooner may have reasons of his own.
const SHORT: Duration = Duration::from_millis(100);
/// Differences below this are the scheduler's, not the app's.
const NOISE_MICROS: f64 = 1000.0;
/// The limit never falls by more than this in one window: what is seen in the next began under the old one.
const STEEPEST: f64 = 0.7;
/// Where most requests come to nothing it falls by this.
const LOST: f64 = 0.5;
/// How fast `base` follows what is seen, downwards and upwards. A queue builds up while few are under way for a moment only.
const BASE_FALLS: f64 = 0.2;
const BASE_RISES: f64 = 0.05;
/// An app that does not rest is measured so soon at first, and again where it turns out to be much faster than was thought: it
/// may be faster still.
const FIRST_MEASURED: Duration = Duration::from_secs(2);
const MUCH_FASTER: f64 = 0.8;
/// While the app is measured, the limit is this part of what it was.
const MEASURED_AT: f64 = 0.25;

/// What a window of answers came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Median time to the head of the answer; `None`: none came that says anything.
    pub typical: Option<Duration>,
    /// Most that were here at once.
    pub most: u32,
    /// Most of them came to nothing, after no short while: whoever asked has given up, and the app may be working for nobody.
    pub lost: bool,
}

/// What an answer, or that there is none, says of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took its time, whatever the answer says.
    Answered,
    /// The app did not want to: how quick that was says nothing.
    Refused,
    /// An error of the app's, or nobody waits any more.
    Failed,
}

/// How a request is counted. Who has it gives it back, with `Limiter::end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// From that slot on, while its body may come soon.
    Arriving(u32),
    UnderWay,
}

/// The limit, and how it came about.
#[derive(Debug)]
pub struct Gradient {
    settings: ConcurrencySettings,
    limit: f64,
    /// Microseconds that an answer takes undisturbed; `None` before the first window.
    base: Option<f64>,
    /// When the app has to be measured, unless it rests before.
    due: Duration,
    phase: Phase,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Nothing has been too much so far: the limit grows by halves.
    Starting,
    Steady,
    /// The limit was this much. What is under way from then is waited for.
    Draining {
        held: f64,
    },
    /// What is seen now is undisturbed.
    Measuring {
        held: f64,
    },
}

/// The limiter of one app, for all workers.
#[derive(Debug)]
pub struct Limiter {
    gradient: Mutex<Gradient>,
    limit: AtomicU32,
    /// What the app has all of, and what it is about to have.
    under_way: AtomicU32,
    arriving: Arriving,
    /// Most of both since the window began.
    most: AtomicU32,
    /// By priority: it is refused until there is more room again.
    shedding: [AtomicBool; 3],
    shed: AtomicU64,
    answers: Answers,
    /// The window, in nanoseconds: where it may end, and where it does; answers to what was asked before `since` are not of it.
    ends: AtomicU64,
    latest: AtomicU64,
    since: AtomicU64,
    /// Nanoseconds; 0 before it is known.
    base: AtomicU64,
}

/// Answers by how long they took: eight buckets between powers of two, so that a bucket is an eighth wide at most.
#[derive(Debug)]
struct Answers {
    count: AtomicU32,
    lost: AtomicU32,
    buckets: Box<[AtomicU32]>,
}

const BUCKETS: usize = 27 * 8;

/// Leave for one request, or the time after which it may be tried again.
pub type Admission<T> = Result<T, Duration>;

/// What one priority has to pass, at one moment.
#[derive(Clone, Copy)]
struct Gate {
    /// Which of `shedding` it is, and what that says.
    state: usize,
    shedding: bool,
    bound: f64,
}

impl Gradient {
    /// `seed`: where measurements fall, which is not to be at the same moment everywhere.
    pub fn new(settings: ConcurrencySettings, now: Duration, seed: u64) -> Self {
        let limit = FIRST_LIMIT.clamp(f64::from(settings.min), f64::from(settings.max));
        let due = now + FIRST_MEASURED.min(settings.remeasure);
        Self { settings, limit, base: None, due, phase: Phase::Starting, random: seed }
    }

    pub fn limit(&self) -> u32 {
        // At least `min`, which is no fraction.
        self.limit as u32
    }

    /// What is known of an undisturbed answer.
    pub fn base(&self) -> Option<Duration> {
        self.base.map(|micros| Duration::from_secs_f64(micros / 1e6))
    }

    /// A window has ended. `true`: what is under way now says nothing of the next one.
    pub fn saw(&mut self, window: Window, now: Duration) -> bool {
        let rests = f64::from(window.most) * 2.0 <= self.limit;
        let seen = window.typical.map(|typical| typical.as_secs_f64() * 1e6);
        let seen = match seen.filter(|_| !window.lost) {
            Some(seen) => seen,
            // What is left of an answer's time says less than that there is none; and where there was room, less room mends
            // nothing.
            None => return self.saw_none(window.lost && !rests, now),
        };
        let base = *self.base.get_or_insert(seen);
        match self.phase {
            Phase::Draining { held } => {
                self.phase = Phase::Measuring { held };
                return true;
            }
            Phase::Measuring { held } => {
                (self.base, self.limit, self.phase) = (Some(seen), held, Phase::Steady);
                let again = self.pause();
                self.due = now + if seen < base * MUCH_FASTER { again.min(FIRST_MEASURED) } else { again };
                return true;
            }
            Phase::Starting | Phase::Steady => {}
        }
        let at_least = self.limit() <= self.settings.min;
        let pace = match seen < base {
            true => BASE_FALLS,
            // There is no less to be had: this is what it takes.
            false if at_least => 1.0,
            false if rests => BASE_RISES,
            false => 0.0,
        };
        let base = base + (seen - base) * pace;
        self.base = Some(base);
        if rests {
            self.due = now + self.pause();
            return false;
        }
        if now >= self.due && !at_least {
            self.phase = Phase::Draining { held: self.limit };
            self.set(self.limit * MEASURED_AT);
            return true;
        }
        let tolerable = base * (1.0 + f64::from(self.settings.tolerance) / 1000.0) + NOISE_MICROS;
        let gradient = (tolerable / seen).min(1.0);
        if gradient < 1.0 {
            self.phase = Phase::Steady;
        }
        let room = match self.phase {
            Phase::Starting => self.limit / 2.0,
            _ => self.limit.sqrt(),
        };
        // The step has a bound and the gradient has none: room would else make up for whatever it takes away.
        self.set((self.limit * gradient + room).max(self.limit * STEEPEST));
        false
    }

    /// Of a window that says nothing of how long answers take. `too_much`: most came to nothing, and the limit was used.
    fn saw_none(&mut self, too_much: bool, now: Duration) -> bool {
        let held = match self.phase {
            Phase::Draining { held } | Phase::Measuring { held } => held,
            Phase::Starting | Phase::Steady if too_much => self.limit,
            Phase::Starting | Phase::Steady => return false,
        };
        // A measurement that has failed is tried again, but not at once.
        self.due = self.due.max(now + FIRST_MEASURED);
        self.phase = Phase::Steady;
        self.set(if too_much { held * LOST } else { held });
        true
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(f64::from(self.settings.min), f64::from(self.settings.max));
    }

    /// Until the next measurement: as the policy says, give or take a quarter.
    fn pause(&mut self) -> Duration {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        self.settings.remeasure.mul_f64(0.75 + (bits >> 11) as f64 / (1u64 << 54) as f64)
    }
}

impl Limiter {
    pub fn new(settings: ConcurrencySettings, now: Duration, seed: u64) -> Self {
        let gradient = Gradient::new(settings, now, seed);
        Self {
            limit: AtomicU32::new(gradient.limit()),
            gradient: Mutex::new(gradient),
            under_way: AtomicU32::new(0),
            arriving: Arriving::default(),
            most: AtomicU32::new(0),
            shedding: Default::default(),
            shed: AtomicU64::new(0),
            answers: Answers::default(),
            ends: AtomicU64::new(nanos(now + WINDOW)),
            latest: AtomicU64::new(nanos(now + LONGEST_WINDOW)),
            since: AtomicU64::new(0),
            base: AtomicU64::new(0),
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// What an answer takes undisturbed, as far as is known.
    pub fn base(&self) -> Duration {
        Duration::from_nanos(self.base.load(Ordering::Relaxed))
    }

    /// Whether a request of that priority would be admitted now. It is not counted.
    pub fn check(&self, priority: Priority, now: Duration) -> Admission<()> {
        let Some(gate) = self.gate(priority) else { return Ok(()) };
        let present = self.under_way() + self.arriving.count(now);
        self.through(gate, gate.lets_in(present).then_some(()))
    }

    /// Admits a request of that priority, and counts it in the same moment; `None` for one that is not asked for (Exempt).
    /// The lower the priority, the sooner it is refused, and the more room there has to be before it is not any more. `whole`:
    /// nothing of it is still to come.
    pub fn enter(&self, priority: Priority, whole: bool, now: Duration) -> Admission<Option<Counted>> {
        let Some(gate) = self.gate(priority) else { return Ok(None) };
        let entered = match whole {
            true => {
                let arriving = self.arriving.count(now);
                let one_more =
                    |under_way: u32| gate.lets_in(under_way + arriving).then(|| under_way.saturating_add(1));
                let before = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
                before.ok().map(|before| (Counted::UnderWay, before + arriving + 1))
            }
            false => {
                let under_way = self.under_way();
                let entered = self.arriving.enter(now, |arriving| gate.lets_in(under_way + arriving));
                entered.map(|(slot, before)| (Counted::Arriving(slot), under_way + before + 1))
            }
        };
        let (counted, present) = self.through(gate, entered)?;
        self.note(present);
        Ok(Some(counted))
    }

    fn gate(&self, priority: Priority) -> Option<Gate> {
        let limit = f64::from(self.limit());
        let (state, refused_from, again_below) = match priority {
            Priority::Exempt => return None,
            Priority::Critical => (2, limit, limit),
            Priority::Default => (1, limit * 0.9, limit * 0.8),
            Priority::BestEffort => (0, limit * 0.7, limit * 0.5),
        };
        let shedding = self.shedding[state].load(Ordering::Relaxed);
        // One at a time always may.
        let bound = if shedding { again_below } else { refused_from }.max(1.0);
        Some(Gate { state, shedding, bound })
    }

    fn through<T>(&self, gate: Gate, admitted: Option<T>) -> Admission<T> {
        // Mostly it is as before: then nothing is written that others read.
        if admitted.is_none() != gate.shedding {
            self.shedding[gate.state].store(admitted.is_none(), Ordering::Relaxed);
        }
        // Not all at the same moment.
        admitted.ok_or_else(|| Duration::from_secs(1 + self.shed.fetch_add(1, Ordering::Relaxed) % 3))
    }

    /// So many are here.
    fn note(&self, present: u32) {
        if present > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(present, Ordering::Relaxed);
        }
    }

    /// The app has the whole request now.
    pub fn begin(&self, counted: Counted, now: Duration) -> Counted {
        if let Counted::Arriving(slot) = counted {
            // Left before it is counted again: one too many for an instant is better than a whole priority shed for nothing.
            self.arriving.leave(slot);
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.note(under_way + self.arriving.count(now));
        }
        Counted::UnderWay
    }

    /// It is over, however it ended.
    pub fn end(&self, counted: Counted) {
        match counted {
            Counted::Arriving(slot) => self.arriving.leave(slot),
            Counted::UnderWay => {
                self.under_way.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// What was asked at `asked` has come to that now. Failures say something only where they were no faster than answers are.
    /// `true`: the limit is another one.
    pub fn answered(&self, asked: Duration, now: Duration, outcome: Outcome) -> bool {
        let took = now.saturating_sub(asked);
        let of_window = nanos(asked) >= self.since.load(Ordering::Relaxed);
        let lost = outcome == Outcome::Failed && took > self.base().max(SHORT);
        if of_window && (outcome == Outcome::Answered || lost) {
            self.answers.add(took, lost);
        }
        let ends = self.ends.load(Ordering::Relaxed);
        let few = self.answers.count.load(Ordering::Relaxed) < LEAST_ANSWERS;
        if nanos(now) < ends || few && nanos(now) < self.latest.load(Ordering::Relaxed) {
            return false;
        }
        // Whoever has it ends the window; nobody waits.
        let Ok(mut gradient) = self.gradient.try_lock() else { return false };
        if self.ends.load(Ordering::Relaxed) != ends {
            return false;
        }
        let lost =
            self.answers.lost.swap(0, Ordering::Relaxed) * 2 > self.answers.count.load(Ordering::Relaxed);
        let typical = self.answers.take_median();
        let most = self.most.swap(self.under_way() + self.arriving.count(now), Ordering::Relaxed);
        let before = gradient.limit();
        if gradient.saw(Window { typical, most, lost }, now) {
            self.since.store(nanos(now), Ordering::Relaxed);
        }
        self.limit.store(gradient.limit(), Ordering::Relaxed);
        let base = gradient.base().unwrap_or_default();
        self.base.store(nanos(base), Ordering::Relaxed);
        self.latest.store(nanos(now + LONGEST_WINDOW.max(base * 2)), Ordering::Relaxed);
        self.ends.store(nanos(now + WINDOW.max(base * 2)), Ordering::Relaxed);
        gradient.limit() != before
    }
}

impl Gate {
    fn lets_in(self, present: u32) -> bool {
        f64::from(present) < self.bound
    }
}

impl Answers {
    fn add(&self, took: Duration, lost: bool) {
        let micros = took.min(SLOWEST).as_micros() as u64;
        self.buckets[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
        if lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The middle of the bucket that the median is in; begins anew. Whoever adds at the same time is counted here or later.
    fn take_median(&self) -> Option<Duration> {
        let counts: Vec<u32> = self.buckets.iter().map(|bucket| bucket.swap(0, Ordering::Relaxed)).collect();
        self.count.store(0, Ordering::Relaxed);
        let half = counts.iter().sum::<u32>().div_ceil(2);
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            half > 0 && seen >= half
        });
        at.map(|at| Duration::from_micros(middle_of(at)))
    }
}

impl Default for Answers {
    fn default() -> Self {
        let buckets = std::iter::repeat_with(AtomicU32::default).take(BUCKETS).collect();
        Self { count: AtomicU32::default(), lost: AtomicU32::default(), buckets }
    }
}

/// The first eight are a microsecond wide.
fn bucket_of(micros: u64) -> usize {
    let octave = micros.checked_ilog2().unwrap_or(0).saturating_sub(3) as u64;
    let bucket = if micros < 8 { micros } else { octave * 8 + (micros >> octave) };
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

fn middle_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 16 {
        return bucket;
    }
    let octave = bucket / 8 - 1;
    ((bucket - octave * 8) << octave) + (1 << octave) / 2
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
