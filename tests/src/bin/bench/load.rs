//! The load: keep-alive connections in a closed loop, or at a fixed rate with latency counted from when a request was due.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hanse_tests::http::Connection;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

/// What is asked for, and of whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: String,
    pub host: String,
    pub path: String,
}

/// Runs `load` on a thread of its own kind: one core makes the load.
pub fn run<T>(load: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, load)
}

/// Closed loop: every connection asks again as soon as it was answered. Answers the number of 200s.
pub async fn closed(target: &Target, connections: usize, time: Duration) -> Result<u64> {
    let done = Rc::new(Cell::new(0u64));
    let stop = Rc::new(Cell::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (target, done, stop) = (target.clone(), Rc::clone(&done), Rc::clone(&stop));
        tasks.spawn_local(async move {
            let mut connection = Connection::open(&target.address).await?;
            while !stop.get() {
                ask(&mut connection, &target).await?;
                done.set(done.get() + 1);
            }
            Ok(())
        });
    }
    tokio::time::sleep(time).await;
    stop.set(true);
    finish(tasks).await?;
    Ok(done.get())
}

/// Open loop: `rate` requests per second over all connections, each counted from the moment that it was due, so that
/// what waits behind a slow one counts too. Answers the latencies in ascending order.
pub async fn open(target: &Target, connections: usize, rate: f64, time: Duration) -> Result<Vec<Duration>> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let turns: Vec<Arc<Semaphore>> = (0..connections).map(|_| Arc::new(Semaphore::new(0))).collect();
    let schedule = Schedule { begin: Instant::now() + Duration::from_millis(200), rate };
    for (number, turn) in turns.iter().enumerate() {
        let (target, latencies, turn) = (target.clone(), Rc::clone(&latencies), Arc::clone(turn));
        let mut next = number;
        tasks.spawn_local(async move {
            let mut connection = Connection::open(&target.address).await?;
            while schedule.due(next) < schedule.begin + time {
                turn.acquire().await?.forget();
                ask(&mut connection, &target).await?;
                latencies.borrow_mut().push(schedule.due(next).elapsed());
                next += connections;
            }
            Ok(())
        });
    }
    // A thread that sleeps is on time to some tens of microseconds; the runtime's timers round up to milliseconds.
    let clock = std::thread::spawn(move || {
        let dues = (0..).map(|number| schedule.due(number)).take_while(|due| *due < schedule.begin + time);
        for (number, due) in dues.enumerate() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            turns[number % turns.len()].add_permits(1);
        }
    });
    finish(tasks).await?;
    clock.join().map_err(|_| anyhow::anyhow!("the clock of the load ended early"))?;
    let mut latencies = latencies.take();
    latencies.sort_unstable();
    Ok(latencies)
}

/// When requests are due.
#[derive(Clone, Copy)]
struct Schedule {
    begin: Instant,
    rate: f64,
}

impl Schedule {
    fn due(self, number: usize) -> Instant {
        self.begin + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Connections that have been used once and are idle now.
pub async fn idle(target: &Target, count: usize) -> Result<Vec<Connection>> {
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(&target.address).await?;
        ask(&mut connection, target).await?;
        idle.push(connection);
    }
    Ok(idle)
}

async fn ask(connection: &mut Connection, target: &Target) -> Result<()> {
    let answer = connection.get(&target.host, &target.path).await?;
    if answer.status != 200 {
        bail!("status {} {:?}", answer.status, answer.headers);
    }
    Ok(())
}

async fn finish(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended?.context("a connection of the load")?;
    }
    Ok(())
}
