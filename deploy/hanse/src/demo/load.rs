//! Load: requests at a fixed rate that do not wait for one another (open loop), and what became of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::app::Part;
use super::client::Client;

/// Longest that a request of the load may take before it counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests under way at the same time; more are counted as failed, not queued.
const MAX_IN_FLIGHT: u64 = 4096;

/// Where the load goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The outbound listener of the proxy through which it goes.
    pub outbound: SocketAddr,
    pub host: String,
    pub path: String,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Sample {
    pub start: Instant,
    pub end: Instant,
    /// The answer was complete: 2xx, and no part of it missing.
    pub ok: bool,
    /// HTTP status, 0 if there was no answer.
    pub status: u16,
    /// The cluster that answered, as the app said.
    pub cluster: String,
    /// Version and instance that answered, as the app said.
    pub version: String,
    pub instance: String,
    /// Why not, if not.
    pub why: String,
}

/// A load that runs. Dropping it ends it.
pub struct Load {
    pub started: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

/// Counters of the steady load, for status and the last line.
#[derive(Debug, Default)]
pub struct Counters {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    pub by_cluster: Mutex<BTreeMap<String, u64>>,
    pub last_failure: Mutex<String>,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    pub ok: u64,
    pub failed: u64,
    pub by_cluster: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_failure: String,
}

/// Sends one request and says what became of it.
pub async fn request(client: &Client, target: &Target) -> Sample {
    let start = Instant::now();
    let result = client.get(target.outbound, &target.host, &target.path, REQUEST_TIMEOUT).await;
    let mut sample = Sample {
        start,
        end: Instant::now(),
        ok: false,
        status: 0,
        cluster: String::new(),
        version: String::new(),
        instance: String::new(),
        why: String::new(),
    };
    match result {
        Err(error) => sample.why = error.to_string(),
        Ok(answer) => {
            sample.status = answer.status.as_u16();
            match serde_json::from_slice::<Part>(&answer.body) {
                Ok(part) => {
                    sample.ok = answer.status.is_success() && part.complete();
                    sample.why = missing(&part);
                    (sample.cluster, sample.version, sample.instance) =
                        (part.cluster, part.version, part.instance);
                }
                Err(_) => sample.why = answer.header("x-hanse-reason").to_owned(),
            }
        }
    }
    sample
}

fn missing(part: &Part) -> String {
    let below = part.parts.iter().map(missing).filter(|m| !m.is_empty());
    part.missing.iter().cloned().chain(below).collect::<Vec<_>>().join("; ")
}

impl Load {
    /// Starts `rate` requests per second at `targets` in turn.
    pub fn start(client: &Client, targets: Vec<Target>, rate: u32) -> Self {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let (client, kept) = (client.clone(), samples.clone());
        let task = tokio::spawn(open_loop(client, targets, rate, move |sample| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }));
        Self { started: Instant::now(), samples, task }
    }

    /// What has ended so far.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends no more, waits for what is under way, and gives everything, by start.
    pub async fn finish(self) -> Vec<Sample> {
        self.task.abort();
        let deadline = Instant::now() + REQUEST_TIMEOUT + Duration::from_secs(1);
        // Every request under way holds a clone of `samples`; the task's own is gone once it is aborted.
        while Arc::strong_count(&self.samples) > 1 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut samples = self.samples();
        samples.sort_by_key(|s| s.start);
        samples
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends at the rate for ever; every sample goes to `take`.
async fn open_loop<Take>(client: Client, targets: Vec<Target>, rate: u32, take: Take)
where
    Take: Fn(Sample) + Clone + Send + 'static,
{
    if rate == 0 || targets.is_empty() {
        return;
    }
    let in_flight = Arc::new(AtomicU64::new(0));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for target in targets.iter().cycle() {
        ticks.tick().await;
        if in_flight.fetch_add(1, Ordering::Relaxed) >= MAX_IN_FLIGHT {
            in_flight.fetch_sub(1, Ordering::Relaxed);
            let now = Instant::now();
            let why = "too many requests under way".to_owned();
            let (cluster, version, instance) = Default::default();
            take(Sample { start: now, end: now, ok: false, status: 0, cluster, version, instance, why });
            continue;
        }
        let (client, target, take, in_flight) =
            (client.clone(), target.clone(), take.clone(), in_flight.clone());
        tokio::spawn(async move {
            let sample = request(&client, &target).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
            take(sample);
        });
    }
}

/// The steady load of `demo up`: counts, keeps nothing.
pub fn steady(client: &Client, targets: Vec<Target>, rate: u32) -> (Arc<Counters>, JoinHandle<()>) {
    let counters = Arc::<Counters>::default();
    let kept = counters.clone();
    let task = tokio::spawn(open_loop(client.clone(), targets, rate, move |sample| {
        if sample.ok {
            kept.ok.fetch_add(1, Ordering::Relaxed);
            let mut by_cluster = kept.by_cluster.lock().unwrap_or_else(PoisonError::into_inner);
            *by_cluster.entry(sample.cluster).or_default() += 1;
        } else {
            kept.failed.fetch_add(1, Ordering::Relaxed);
            *kept.last_failure.lock().unwrap_or_else(PoisonError::into_inner) =
                format!("{} {}", sample.status, sample.why);
        }
    }));
    (counters, task)
}

impl Counters {
    pub fn counted(&self) -> Counted {
        Counted {
            ok: self.ok.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            by_cluster: self.by_cluster.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            last_failure: self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Longest time without a success, between the first and the last of them.
pub fn longest_gap(samples: &[Sample]) -> Duration {
    let mut ends: Vec<Instant> = samples.iter().filter(|s| s.ok).map(|s| s.end).collect();
    ends.sort_unstable();
    ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Slowest answer.
pub fn slowest(samples: &[Sample]) -> Duration {
    samples.iter().map(|s| s.end - s.start).max().unwrap_or_default()
}

/// Reasons of the failures, with how often each occurred.
pub fn failures(samples: &[Sample]) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for sample in samples.iter().filter(|s| !s.ok) {
        *reasons.entry(format!("{} {}", sample.status, sample.why)).or_default() += 1;
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, end_ms: u64, ok: bool) -> Sample {
        Sample {
            start,
            end: start + Duration::from_millis(end_ms),
            ok,
            status: if ok { 200 } else { 503 },
            cluster: "east".into(),
            version: String::new(),
            instance: String::new(),
            why: String::new(),
        }
    }

    #[test]
    fn a_gap_is_time_without_success() {
        let start = Instant::now();
        let samples = [
            sample(start, 10, true),
            sample(start, 500, false),
            sample(start, 910, true),
            sample(start, 950, true),
        ];
        assert_eq!(longest_gap(&samples), Duration::from_millis(900));
        assert_eq!(slowest(&samples), Duration::from_millis(950));
        assert_eq!(failures(&samples).values().sum::<usize>(), 1);
        assert_eq!(longest_gap(&[]), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_load_reports_every_request_that_it_sent() {
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = crate::demo::app::Config {
            service: "ratings".into(),
            instance: "ratings-1".into(),
            version: "v1".into(),
            cluster: "east".into(),
            listen,
            outbound: listen,
            calls: Vec::new(),
        };
        let app = tokio::spawn(crate::demo::app::serve(config));
        let client = Client::default();
        let target = Target { outbound: listen, host: "ratings".into(), path: "/".into() };
        while !request(&client, &target).await.ok {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let load = Load::start(&client, vec![target], 500);
        while load.samples().len() < 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let samples = load.finish().await;
        assert!(samples.iter().all(|s| s.ok && s.cluster == "east" && s.instance == "ratings-1"));
        app.abort();
    }
}
