//! The load: keep-alive connections in a closed loop, or at a fixed rate with latency counted from when a request was due.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hanse_tests::http::Connection;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;

/// What is asked for, and of whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: String,
    pub host: String,
    pub path: String,
}

/// Longest wait for what has just been started.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

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

/// Closed loop with a connection for each request: what opening one costs. Answers the number of 200s.
pub async fn fresh(target: &Target, at_a_time: usize, time: Duration) -> Result<u64> {
    let done = Rc::new(Cell::new(0u64));
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (target, done) = (target.clone(), Rc::clone(&done));
        tasks.spawn_local(async move {
            while Instant::now() < until {
                ask(&mut Connection::open(&target.address).await?, &target).await?;
                done.set(done.get() + 1);
            }
            Ok(())
        });
    }
    finish(tasks).await?;
    Ok(done.get())
}

/// One connection that reads as fast as it can. Answers the number of bytes.
pub async fn bulk(target: &Target, time: Duration) -> Result<u64> {
    let mut stream = TcpStream::connect(&target.address).await?;
    let ask = format!("GET /bytes/{} HTTP/1.1\r\nhost: {}\r\n\r\n", u32::MAX as u64 * 1024, target.host);
    stream.write_all(ask.as_bytes()).await?;
    let (until, mut done, mut buffer) = (Instant::now() + time, 0, vec![0; 256 * 1024]);
    while Instant::now() < until {
        let read = tokio::time::timeout(ANSWERS_WITHIN, stream.read(&mut buffer)).await??;
        ensure!(read > 0, "the stream ended after {done} bytes");
        done += read as u64;
    }
    Ok(done)
}

/// Opens mutual TLS and closes it again, so many at a time. Answers how many were opened.
pub async fn handshakes(
    address: SocketAddr,
    name: &'static str,
    config: &Arc<ClientConfig>,
    at_a_time: usize,
    time: Duration,
) -> Result<u64> {
    let done = Rc::new(Cell::new(0u64));
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (done, connector) = (Rc::clone(&done), TlsConnector::from(Arc::clone(config)));
        tasks.spawn_local(async move {
            while Instant::now() < until {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let mut tls = connector.connect(ServerName::try_from(name)?, tcp).await?;
                tls.shutdown().await?;
                // It has done its half when it closes too; a client that it refuses is told so here.
                let mut rest = Vec::new();
                match tokio::time::timeout(ANSWERS_WITHIN, tls.read_to_end(&mut rest)).await? {
                    // Not everybody says that he ends.
                    Err(error) if !matches!(error.kind(), UnexpectedEof | ConnectionReset) => {
                        return Err(error.into());
                    }
                    _ => {}
                }
                done.set(done.get() + 1);
            }
            Ok(())
        });
    }
    finish(tasks).await?;
    Ok(done.get())
}

/// Waits until the target answers.
pub async fn answers(target: &Target) -> Result<()> {
    let until = Instant::now() + ANSWERS_WITHIN;
    loop {
        let asked = async { ask(&mut Connection::open(&target.address).await?, target).await };
        match asked.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
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

/// So many requests on each of so many connections, which are open and used before `begins` is called.
pub async fn repeated(
    target: &Target,
    connections: usize,
    each: usize,
    begins: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let open = idle(target, connections).await?;
    begins()?;
    let mut tasks = JoinSet::new();
    for mut connection in open {
        let target = target.clone();
        tasks.spawn_local(async move {
            for _ in 0..each {
                ask(&mut connection, &target).await?;
            }
            Ok(())
        });
    }
    finish(tasks).await
}

async fn ask(connection: &mut Connection, target: &Target) -> Result<()> {
    let answer = connection.get(&target.host, &target.path).await?;
    if answer.status != 200 || !target.path.ends_with(&format!("/{}", answer.body.len())) {
        bail!("status {} {:?}, {} bytes", answer.status, answer.headers, answer.body.len());
    }
    Ok(())
}

async fn finish(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended?.context("a connection of the load")?;
    }
    Ok(())
}
