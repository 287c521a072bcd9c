//! What DNS says of the names outside that requests have gone to: asked in the background, kept when DNS fails.
//!
//! The request path reads a snapshot and waits only for a name's first answer. Names are asked for as long as somebody uses
//! them; an answer is held at least `MIN_TTL` and at most `MAX_TTL`, and the last good one serves until a better one
//! comes, for `KEEP_LAST_GOOD` at most.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hanse_identity::Timestamp;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::drain::Stop;
use super::now;

/// What is known of names, for workers to read and for one task to write.
pub struct Resolved {
    known: ArcSwap<HashMap<Arc<str>, Arc<Known>>>,
    asks: mpsc::Sender<Ask>,
    asked: Mutex<Option<mpsc::Receiver<Ask>>>,
    changed: watch::Sender<u64>,
}

/// Where a name comes from. Anybody can make up more of those that apps name, so they leave room for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    Document,
    App,
}

/// Somebody waits for the first answer about a name.
type Ask = (Arc<str>, NamedBy);

/// One name.
pub struct Known {
    pub answer: Arc<Answer>,
    /// When a request last wanted it, whole seconds.
    used: AtomicU64,
}

/// The addresses behind a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In order, so that the same answer is the same whatever DNS's rotation.
    pub addresses: Vec<IpAddr>,
    /// When DNS last said so; zero if it never did.
    pub since: Timestamp,
    /// What the last question came to, if it was no answer.
    pub error: Option<String>,
}

/// What one question came to.
struct Told {
    name: Arc<str>,
    outcome: Result<(Vec<IpAddr>, Duration), String>,
}

/// The names that are asked for, and when each is next.
#[derive(Default)]
struct Agenda(HashMap<Arc<str>, Due>);

struct Due {
    by: NamedBy,
    at: Instant,
    under_way: bool,
    failures: u32,
}

/// Longest wait of a request for the first answer.
pub const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(3);
pub const MIN_TTL: Duration = Duration::from_secs(5);
pub const MAX_TTL: Duration = Duration::from_secs(300);
/// How long the last good answer serves while DNS fails.
pub const KEEP_LAST_GOOD: Duration = Duration::from_secs(3600);
/// A name that nobody has used for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Names of documents, and as many of apps.
const MAX_NAMES: usize = 1024;
/// How often it is told that there are as many.
const TELL_FULL_AFTER: Duration = Duration::from_secs(60);
/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 32;
/// Questions under way at a time, up to which apps' names are asked for, and those that wait for one of them.
const MAX_ASKING: usize = 32;
const MAX_ASKING_FOR_APPS: usize = MAX_ASKING / 2;
const ASK_QUEUE: usize = 256;
/// Longest time for one question, and how often it is put.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(1200);
const QUESTIONS: usize = 2;
/// Pause after a failure; doubles.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// And at most up to this: a name that was not there may be any moment.
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);

impl Default for Resolved {
    fn default() -> Self {
        let (asks, asked) = mpsc::channel(ASK_QUEUE);
        Self {
            known: ArcSwap::default(),
            asks,
            asked: Mutex::new(Some(asked)),
            changed: watch::Sender::new(0),
        }
    }
}

impl Resolved {
    /// What is known of the name now; it is asked for if that is nothing.
    pub fn now(&self, name: &str, by: NamedBy) -> Option<Arc<Answer>> {
        let seconds = now().seconds();
        if let Some(known) = self.known.load().get(name) {
            // Written once a second at most, so that workers do not fight for the line.
            if known.used.load(Ordering::Relaxed) < seconds {
                known.used.store(seconds, Ordering::Relaxed);
            }
            return Some(Arc::clone(&known.answer));
        }
        // A full queue is told by the wait's end.
        let _ = self.asks.try_send((name.into(), by));
        None
    }

    /// Waits for the first answer or failure.
    pub async fn first(&self, name: &str, by: NamedBy) -> Option<Arc<Answer>> {
        let mut changes = self.changed.subscribe();
        let answered = async {
            loop {
                changes.borrow_and_update();
                match self.now(name, by) {
                    Some(answer) => return Some(answer),
                    None => changes.changed().await.ok()?,
                }
            }
        };
        tokio::time::timeout(FIRST_ANSWER_WITHIN, answered).await.ok().flatten()
    }

    fn publish(&self, change: impl FnOnce(&mut HashMap<Arc<str>, Arc<Known>>)) {
        let mut known = HashMap::clone(&self.known.load());
        change(&mut known);
        self.known.store(Arc::new(known));
        self.changed.send_modify(|version| *version += 1);
    }

    fn tell(&self, name: &Arc<str>, outcome: Result<Vec<IpAddr>, String>, now: Timestamp) {
        let known = self.known.load();
        let before = known.get(name);
        let answer = next_answer(before.map(|known| &*known.answer), outcome, now);
        // Whoever compares answers has nothing new to build then.
        let same = |before: &Answer| before.addresses == answer.addresses && before.error == answer.error;
        if before.is_some_and(|b| same(&b.answer) && now.since(b.answer.since) < MAX_TTL) {
            return;
        }
        let used = before.map_or(now.seconds(), |known| known.used.load(Ordering::Relaxed));
        let entry = Arc::new(Known { answer: Arc::new(answer), used: AtomicU64::new(used) });
        self.publish(|known| drop(known.insert(Arc::clone(name), entry)));
    }
}

/// What is known after a question: what DNS said, or the last good answer for as long as that may serve.
fn next_answer(before: Option<&Answer>, outcome: Result<Vec<IpAddr>, String>, now: Timestamp) -> Answer {
    match outcome {
        Ok(mut addresses) => {
            addresses.sort_unstable();
            addresses.dedup();
            addresses.truncate(MAX_ADDRESSES);
            Answer { addresses, since: now, error: None }
        }
        Err(error) => match before {
            Some(before) if now.since(before.since) <= KEEP_LAST_GOOD => {
                Answer { error: Some(error), ..before.clone() }
            }
            _ => Answer { error: Some(error), ..Answer::default() },
        },
    }
}

/// Asks DNS until the process ends: `servers`, or whom this system asks.
pub async fn follow(resolved: Arc<Resolved>, servers: Vec<SocketAddr>, mut stop: Stop) {
    let taken = resolved.asked.lock().ok().and_then(|mut asked| asked.take());
    let Some(mut asked) = taken else { return };
    let resolver = match resolver(&servers) {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => {
            tracing::warn!(%error, "DNS cannot be asked: services outside without addresses are out of reach");
            return;
        }
    };
    let (mut agenda, mut told_full) = (Agenda::default(), None);
    let mut asking = JoinSet::new();
    loop {
        let at = Instant::now();
        for name in agenda.take_due(at, asking.len()) {
            asking.spawn(ask(Arc::clone(&resolver), name));
        }
        let next = agenda.0.values().filter(|due| !due.under_way).map(|due| due.at).min();
        let next = next.map_or(Duration::from_secs(1), |next| next.saturating_duration_since(at));
        tokio::select! {
            () = stop.ended() => return,
            Some((name, by)) = asked.recv() => {
                if !agenda.put(&name, by, at) && told_full.is_none_or(|told| at - told > TELL_FULL_AFTER) {
                    told_full = Some(at);
                    tracing::warn!(%name, ?by, "not asked for: {MAX_NAMES} names are in use already");
                }
            }
            Some(told) = asking.join_next() => {
                let Ok(Told { name, outcome }) = told else { continue };
                let Some(due) = agenda.0.get_mut(&name) else { continue };
                due.under_way = false;
                due.failures = if outcome.is_ok() { 0 } else { due.failures.saturating_add(1) };
                let pause = match &outcome {
                    Ok((_, ttl)) => (*ttl).clamp(MIN_TTL, MAX_TTL),
                    Err(error) => {
                        tracing::info!(%name, %error, "DNS");
                        (AGAIN_FIRST * 2u32.saturating_pow(due.failures.min(16) - 1)).min(AGAIN_AT_MOST)
                    }
                };
                due.at = Instant::now() + pause;
                resolved.tell(&name, outcome.map(|(addresses, _)| addresses), now());
            }
            () = tokio::time::sleep(next.clamp(Duration::from_millis(10), Duration::from_secs(60))) => {
                forget(&resolved, &mut agenda, now());
            }
        }
    }
}

impl Agenda {
    /// `false`: there are as many names already.
    fn put(&mut self, name: &Arc<str>, by: NamedBy, at: Instant) -> bool {
        if let Some(due) = self.0.get_mut(name) {
            // What a document names now is not an app's word any more.
            if by == NamedBy::Document {
                due.by = by;
            }
            return true;
        }
        let fits = self.0.values().filter(|due| due.by == by).count() < MAX_NAMES;
        if fits {
            self.0.insert(Arc::clone(name), Due { by, at, under_way: false, failures: 0 });
        }
        fits
    }

    /// Which names are to be asked for now that `asking` are: those of documents first, then whoever waits longest.
    fn take_due(&mut self, at: Instant, asking: usize) -> Vec<Arc<str>> {
        let mut taken = Vec::new();
        for (by, most) in [(NamedBy::Document, MAX_ASKING), (NamedBy::App, MAX_ASKING_FOR_APPS)] {
            let room = most.saturating_sub(asking + taken.len());
            let due = self.0.iter_mut().filter(|(_, due)| due.by == by && !due.under_way && due.at <= at);
            let mut due: Vec<_> = due.collect();
            due.sort_unstable_by_key(|(_, due)| due.at);
            for (name, due) in due.into_iter().take(room) {
                due.under_way = true;
                taken.push(Arc::clone(name));
            }
        }
        taken
    }
}

/// Lets go of names that nobody uses.
fn forget(resolved: &Resolved, agenda: &mut Agenda, now: Timestamp) {
    let before = now.seconds().saturating_sub(FORGET_AFTER.as_secs());
    let known = resolved.known.load();
    let unused: Vec<Arc<str>> = known
        .iter()
        .filter(|(_, known)| known.used.load(Ordering::Relaxed) < before)
        .map(|(name, _)| Arc::clone(name))
        .collect();
    if unused.is_empty() {
        return;
    }
    agenda.0.retain(|name, _| !unused.contains(name));
    resolved.publish(|known| known.retain(|name, _| !unused.contains(name)));
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, String> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio().map_err(|e| e.to_string())?,
        servers => {
            let server = |address: &SocketAddr| {
                let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                ways.iter_mut().for_each(|way| way.port = address.port());
                NameServerConfig::new(address.ip(), true, ways.to_vec())
            };
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.timeout = QUESTION_TIMEOUT;
    options.attempts = QUESTIONS;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // How long an answer holds is decided here, and nowhere else.
    options.cache_size = 0;
    builder.build().map_err(|e| e.to_string())
}

async fn ask(resolver: Arc<TokioResolver>, name: Arc<str>) -> Told {
    // With its dot: no search domain of this host is tried.
    let looked_up = resolver.lookup_ip(format!("{name}.")).await;
    let outcome = match looked_up {
        Ok(found) => {
            let ttl = found.valid_until().saturating_duration_since(Instant::now());
            Ok((found.iter().collect(), ttl))
        }
        Err(error) => Err(error.to_string()),
    };
    Told { name, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_answer_serves_until_it_is_too_old() {
        let at = |seconds: u64| Timestamp(seconds * 1000);
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let good = next_answer(None, Ok(vec![two, one, two]), at(100));
        assert_eq!(good, Answer { addresses: vec![one, two], since: at(100), error: None });
        let failed = next_answer(Some(&good), Err("SERVFAIL".to_owned()), at(3700));
        assert_eq!(failed.addresses, [one, two]);
        assert_eq!((failed.since, failed.error.as_deref()), (at(100), Some("SERVFAIL")));
        let over = next_answer(Some(&failed), Err("SERVFAIL".to_owned()), at(3701));
        assert!(over.addresses.is_empty());
        let never = next_answer(None, Err("NXDOMAIN".to_owned()), at(1));
        assert_eq!((never.addresses.len(), never.error.as_deref()), (0, Some("NXDOMAIN")));
    }

    #[test]
    fn names_that_apps_make_up_leave_room_for_those_of_documents() {
        let (mut agenda, at) = (Agenda::default(), Instant::now());
        let name = |n: usize| Arc::from(format!("n{n}.example"));
        let since = |n: usize| at + Duration::from_millis(n as u64);
        let fits = (0..2 * MAX_NAMES).filter(|n| agenda.put(&name(*n), NamedBy::App, since(*n))).count();
        assert_eq!(fits, MAX_NAMES);
        let at = since(2 * MAX_NAMES);
        let first = agenda.take_due(at, 0);
        let longest: Vec<_> = (0..MAX_ASKING_FOR_APPS).map(name).collect();
        assert_eq!(first, longest, "who waits longest");
        let documented = Arc::from("www.example.com");
        assert!(agenda.put(&documented, NamedBy::Document, at));
        assert_eq!(agenda.take_due(at, first.len()), [documented], "before all apps' names that wait");
        // One that a document has come to name gives its place back.
        assert!(
            agenda.put(&name(0), NamedBy::Document, at) && agenda.put(&name(MAX_NAMES), NamedBy::App, at)
        );
        assert!(!agenda.put(&name(MAX_NAMES + 1), NamedBy::App, at));
    }
}
