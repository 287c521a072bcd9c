//! Workers: one OS thread each, with a single-threaded runtime and its own state, so that no request waits for
//! another core. Also what such a thread needs: an executor of local tasks, and random numbers.

use std::cell::Cell;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::thread::JoinHandle;

use tokio::task::LocalSet;

/// Runs hyper's tasks on the worker that made them. They are large, as one type is for requests and connections alike, and
/// on its way into a task one is moved several times: in a box of its own only once.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Box::pin(future));
    }
}

/// Starts a worker thread that runs `main` to its end on its own runtime. `main` is called on the new thread and
/// may use `spawn_local`; tasks still alive when it returns are dropped.
pub fn spawn<M, F>(name: String, main: M) -> std::io::Result<JoinHandle<anyhow::Result<()>>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    std::thread::Builder::new().name(name).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        local.block_on(&runtime, async move { main().await })
    })
}

/// Number of workers when none is given: one per core that we may use.
pub fn default_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Random numbers for choices (weights, jitter), one generator per worker: SplitMix64. Not for secrets.
#[derive(Debug)]
pub struct Random(Cell<u64>);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// Seeded from the process's own hash keys, which the operating system filled.
    pub fn from_entropy() -> Self {
        Self::seeded(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0.0..1.0.
    pub fn fraction(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
