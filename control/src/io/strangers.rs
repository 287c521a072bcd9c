//! Keeps the bundles of foreign trust domains fresh: the leader fetches each at the interval that its owner suggests,
//! and what is newer is committed. What is kept goes on being served, however long its owner cannot be reached.
//!
//! Owns how the last fetches of this node went; the bundles themselves are in the State.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hanse_federation::stranger::{DEFAULT_INTERVAL, Federation, Freshness, Stranger, compare, interval};
use hanse_identity::{Bundle, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::{Context, now, stopped};
use crate::command::{Actor, Command, Refusal};

pub mod fetch;

use fetch::FetchError;

/// Fetches under way at the same time.
const MAX_FETCHES: usize = 8;
/// How often the leader looks when nothing else wakes it.
const IDLE: Duration = Duration::from_secs(60);
/// Reasons for ignored keys that are told.
const MAX_IGNORED: usize = 8;

/// How the last fetch of one domain's bundle went on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StrangerReport {
    pub trust_domain: TrustDomain,
    /// When the relationship began that this is about.
    pub since: Timestamp,
    pub attempted: Timestamp,
    /// The last time that what is kept was confirmed or replaced.
    #[serde(default)]
    pub succeeded: Option<Timestamp>,
    /// Why the last fetch came to nothing, if it did.
    #[serde(default)]
    pub error: Option<String>,
    pub refresh_seconds: u64,
    /// Why keys of the document were left out.
    #[serde(default)]
    pub ignored: Vec<String>,
}

/// What this node knows of its own fetches.
#[derive(Default)]
pub struct StrangerLinks {
    reports: Mutex<BTreeMap<TrustDomain, StrangerReport>>,
}

/// Why a fetch did not lead to a bundle that is kept.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("there is no relationship with {0}")]
    Unknown(TrustDomain),
    #[error(
        "the bundle of {0} is set by hand, there is no endpoint to fetch it from: hanse trust federate tells of one"
    )]
    ByHand(TrustDomain),
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("what was fetched is no bundle: {0}")]
    Document(#[from] hanse_identity::bundle::BundleError),
    #[error("what was fetched is not taken: {0}")]
    Stale(#[from] hanse_federation::stranger::Stale),
    #[error("what was fetched is not taken: {0}")]
    Refused(Refusal),
    #[error("what was fetched could not be committed: {0}")]
    NotCommitted(#[from] super::driver::ProposeError),
}

impl StrangerLinks {
    fn table(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, StrangerReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the last fetch of each domain went here; what has ended is forgotten.
    pub fn reports(&self, strangers: &BTreeMap<TrustDomain, Stranger>) -> Vec<StrangerReport> {
        let mut table = self.table();
        table.retain(|domain, report| strangers.get(domain).is_some_and(|s| s.since == report.since));
        table.values().cloned().collect()
    }

    fn note(
        &self,
        domain: &TrustDomain,
        stranger: &Stranger,
        at: Timestamp,
        looked: &Result<Looked, LookError>,
    ) -> Duration {
        let mut table = self.table();
        let before = table.get(domain).filter(|b| b.since == stranger.since);
        // On failure, wait for the next interval as it was before (Federation §6.2).
        let refresh = match looked {
            Ok(looked) => looked.refresh,
            Err(_) => before.map_or(DEFAULT_INTERVAL, |b| Duration::from_secs(b.refresh_seconds)),
        };
        let report = StrangerReport {
            trust_domain: domain.clone(),
            since: stranger.since,
            attempted: at,
            succeeded: if looked.is_ok() { Some(at) } else { before.and_then(|b| b.succeeded) },
            error: looked.as_ref().err().map(ToString::to_string),
            refresh_seconds: refresh.as_secs(),
            ignored: match looked {
                Ok(looked) => looked.ignored.clone(),
                Err(_) => before.map(|b| b.ignored.clone()).unwrap_or_default(),
            },
        };
        table.insert(domain.clone(), report);
        refresh
    }
}

/// What came of a fetch.
#[derive(Debug)]
pub struct Looked {
    /// The revision at which a newer bundle was committed, if there was one.
    pub revision: Option<u64>,
    refresh: Duration,
    ignored: Vec<String>,
}

/// Fetches one domain's bundle now, and commits it if it is newer.
pub async fn look(context: &Context, actor: &Actor, trust_domain: &TrustDomain) -> Result<Looked, LookError> {
    look_and_note(context, actor, trust_domain).await.0
}

/// The same, and when to look again.
async fn look_and_note(
    context: &Context,
    actor: &Actor,
    trust_domain: &TrustDomain,
) -> (Result<Looked, LookError>, Duration) {
    let state = context.handle.state();
    let Some(stranger) = state.private.strangers.get(trust_domain) else {
        return (Err(LookError::Unknown(trust_domain.clone())), DEFAULT_INTERVAL);
    };
    let Some(federation) = &stranger.federation else {
        return (Err(LookError::ByHand(trust_domain.clone())), DEFAULT_INTERVAL);
    };
    let looked = try_look(context, actor, stranger, federation).await;
    match &looked {
        Ok(Looked { revision: Some(revision), .. }) => {
            tracing::info!(%trust_domain, revision, "a newer bundle of a foreign trust domain");
        }
        Ok(_) => {
            tracing::debug!(%trust_domain, "the bundle of a foreign trust domain is the one that is kept")
        }
        Err(why) => {
            context.metrics.stranger_fetches_failed.inc();
            tracing::warn!(%trust_domain, url = %federation.url, %why, "the bundle of a foreign trust domain could not be refreshed");
        }
    }
    let refresh = context.strangers.note(trust_domain, stranger, now(), &looked);
    (looked, refresh)
}

async fn try_look(
    context: &Context,
    actor: &Actor,
    stranger: &Stranger,
    federation: &Federation,
) -> Result<Looked, LookError> {
    let Federation { trust_domain, url, profile } = federation;
    let tls = fetch::endpoint_tls(&context.handle.state(), profile).await?;
    let document = Bundle::from_jwks(trust_domain, &fetch::fetch(url, tls, fetch::BUNDLE).await?)?;
    let refresh = interval(document.refresh_hint);
    let mut ignored = document.ignored;
    shorten(&mut ignored);
    let revision = match compare(stranger.bundle.as_ref(), &document.bundle)? {
        Freshness::Same => None,
        Freshness::Newer => {
            let bundle = Box::new(document.bundle);
            let command = Command::ForeignBundlePut { bundle, since: stranger.since };
            let outcome = context.handle.propose(actor, command).await?;
            Some(outcome.result.map(|_| outcome.revision).map_err(LookError::Refused)?)
        }
    };
    Ok(Looked { revision, refresh, ignored })
}

/// The first few reasons for ignored keys, and how many more there are.
pub fn shorten(ignored: &mut Vec<String>) {
    let more = ignored.len().saturating_sub(MAX_IGNORED);
    ignored.truncate(MAX_IGNORED);
    if more > 0 {
        ignored.push(format!("and {more} more"));
    }
}

/// When a relationship is looked at next; `None` while a fetch is under way.
struct Due {
    federation: Federation,
    since: Timestamp,
    at: Option<Instant>,
}

/// While this node leads: fetches every foreign bundle when it is due, until the node stops.
pub async fn supervise(context: Arc<Context>) {
    let mut statuses = context.handle.statuses();
    let mut states = context.handle.states();
    let mut stop = context.stop.clone();
    let mut due: BTreeMap<TrustDomain, Due> = BTreeMap::new();
    let mut fetches: JoinSet<(TrustDomain, Duration)> = JoinSet::new();
    loop {
        let strangers = match statuses.borrow_and_update().is_leader {
            true => states.borrow_and_update().private.strangers.clone(),
            false => BTreeMap::new(),
        };
        due.retain(|domain, due| {
            strangers
                .get(domain)
                .is_some_and(|s| s.since == due.since && s.federation.as_ref() == Some(&due.federation))
        });
        for (domain, stranger) in strangers {
            let Some(federation) = stranger.federation else { continue };
            let (since, at) = (stranger.since, Some(Instant::now()));
            due.entry(domain).or_insert(Due { federation, since, at });
        }
        start_due(&context, &mut due, &mut fetches);
        let next = due.values().filter_map(|due| due.at).min();
        let next = if fetches.len() < MAX_FETCHES { next } else { None };
        tokio::select! {
            () = tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + IDLE)) => {}
            Some(done) = fetches.join_next() => {
                // One that broke off without a word is among those that are under way: all of them are due again.
                let (ended, refresh) = match done {
                    Ok((domain, refresh)) => (Some(domain), refresh),
                    Err(_) => (None, DEFAULT_INTERVAL),
                };
                for (domain, due) in &mut due {
                    if due.at.is_none() && ended.as_ref().is_none_or(|ended| ended == domain) {
                        due.at = Some(Instant::now() + refresh);
                    }
                }
            }
            changed = states.changed() => if changed.is_err() { return },
            changed = statuses.changed() => if changed.is_err() { return },
            () = stopped(&mut stop) => return,
        }
    }
}

fn start_due(
    context: &Arc<Context>,
    due: &mut BTreeMap<TrustDomain, Due>,
    fetches: &mut JoinSet<(TrustDomain, Duration)>,
) {
    let now = Instant::now();
    for (domain, due) in due {
        if fetches.len() >= MAX_FETCHES {
            return;
        }
        if due.at.is_some_and(|at| at <= now) {
            due.at = None;
            let (context, domain) = (context.clone(), domain.clone());
            fetches.spawn(async move {
                let (_, refresh) = look_and_note(&context, &Actor::mesh(), &domain).await;
                (domain, refresh)
            });
        }
    }
}

/// Of what all nodes know of one domain, the newest.
pub fn freshest(reports: impl IntoIterator<Item = StrangerReport>) -> Option<StrangerReport> {
    reports.into_iter().max_by_key(|report| (report.attempted, report.succeeded))
}
