//! Keys of end users' issuers: the leader fetches the sets from where policies say that they are published, and commits what
//! is new, so that every proxy has it and no request waits for a fetch. The last good set stays while an issuer is silent.
//!
//! Owns how the last fetches of this node went; the sets themselves are in the View.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hanse_federation::policy::authentication::KeySource;
use hanse_federation::stranger::{EndpointUrl, SHORTEST_INTERVAL};
use hanse_identity::Timestamp;
use hanse_identity::jwt::user::{JwkSet, JwksError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::{Context, now, stopped};
use super::driver::ProposeError;
use super::strangers::fetch::{FetchError, KEY_SET, fetch, web_tls};
use crate::command::{Command, Refusal};
use crate::state::MAX_ISSUER_KEYS;

/// How often the leader looks which documents there are and which sets are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Fetches under way at the same time.
const MAX_FETCHES: usize = 8;

/// How the last fetch of one set went on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuerReport {
    /// `KeySource::id`.
    pub source: String,
    pub url: EndpointUrl,
    pub attempted: Timestamp,
    /// The first fetch of it here.
    #[serde(default)]
    pub began: Option<Timestamp>,
    /// The last time that what is kept was confirmed or replaced.
    #[serde(default)]
    pub succeeded: Option<Timestamp>,
    /// Why the last fetch came to nothing, if it did.
    #[serde(default)]
    pub error: Option<String>,
    /// Fetches in a row that came to nothing.
    #[serde(default)]
    pub failures: u32,
}

/// What this node knows of its own fetches.
#[derive(Default)]
pub struct IssuerLinks {
    reports: Mutex<BTreeMap<String, IssuerReport>>,
}

/// Why a fetch did not lead to keys that are kept.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("{0}")]
    Fetch(#[from] FetchError),
    #[error("what was fetched cannot be used: {0}")]
    Keys(#[from] JwksError),
    #[error("what was fetched is not taken: {0}")]
    Refused(Refusal),
    #[error(
        "{MAX_ISSUER_KEYS} key sets are kept already, and more are not: delete a document that names another"
    )]
    TooMany,
    #[error("what was fetched could not be committed: {0}")]
    NotCommitted(#[from] ProposeError),
}

impl IssuerLinks {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, IssuerReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the last fetch of each set went here.
    pub fn reports(&self) -> Vec<IssuerReport> {
        self.table().values().cloned().collect()
    }

    /// How long the longest wait for a fetch that went well is: since the last one, or since the first one was tried.
    pub fn oldest(&self, now: Timestamp) -> Duration {
        let table = self.table();
        let since = table.values().filter_map(|report| report.succeeded.or(report.began));
        since.map(|since| now.since(since)).max().unwrap_or_default()
    }

    /// What no document names any more is forgotten.
    fn retain(&self, named: &BTreeMap<KeySource, Duration>) {
        let ids: Vec<String> = named.keys().map(KeySource::id).collect();
        self.table().retain(|source, _| ids.contains(source));
    }

    /// When to fetch again: a failure is tried again soon, and ever later up to the interval.
    fn note(
        &self,
        source: &KeySource,
        every: Duration,
        renewed: &Result<Option<u64>, RenewError>,
    ) -> Duration {
        let (id, at) = (source.id(), now());
        let mut table = self.table();
        let before = table.get(&id);
        let failures = if renewed.is_ok() { 0 } else { before.map_or(0, |b| b.failures).saturating_add(1) };
        let report = IssuerReport {
            source: id.clone(),
            url: source.url.clone(),
            attempted: at,
            began: before.map_or(Some(at), |b| b.began),
            succeeded: if renewed.is_ok() { Some(at) } else { before.and_then(|b| b.succeeded) },
            error: renewed.as_ref().err().map(ToString::to_string),
            failures,
        };
        table.insert(id, report);
        match failures {
            0 => every,
            many => every.min(SHORTEST_INTERVAL * 2u32.saturating_pow(many.min(10) - 1)),
        }
    }
}

/// When each set is fetched next.
#[derive(Default)]
struct Schedule(BTreeMap<KeySource, Due>);

struct Due {
    /// `None` while a fetch is under way.
    at: Option<Instant>,
    /// How often documents want it.
    every: Duration,
}

impl Schedule {
    /// What is to be fetched now; who has waited longest goes first, so that no source comes before another by its name.
    fn ready(&mut self, named: BTreeMap<KeySource, Duration>, now: Instant) -> Vec<(KeySource, Duration)> {
        self.0.retain(|source, _| named.contains_key(source));
        let mut ready = Vec::new();
        for (source, every) in named {
            let due = self.0.entry(source.clone()).or_insert(Due { at: Some(now), every });
            // Wanted more often than before, it is not waited for as long as it was.
            due.at = due.at.map(|at| if every < due.every { at.min(now + every) } else { at });
            due.every = every;
            ready.extend(due.at.filter(|at| *at <= now).map(|at| (at, source, every)));
        }
        ready.sort_by_key(|(at, ..)| *at);
        ready.into_iter().map(|(_, source, every)| (source, every)).collect()
    }

    fn begun(&mut self, source: &KeySource) {
        if let Some(due) = self.0.get_mut(source) {
            due.at = None;
        }
    }

    /// A fetch is over. `again`: by how often it was wanted when it began.
    fn over(&mut self, source: &KeySource, again: Duration, now: Instant) {
        if let Some(due) = self.0.get_mut(source) {
            due.at = Some(now + again.min(due.every));
        }
    }

    /// A fetch broke off without a word: it is among those that are under way.
    fn broken_off(&mut self, now: Instant) {
        self.0.values_mut().for_each(|due| due.at = due.at.or(Some(now + SHORTEST_INTERVAL)));
    }
}

/// While this node leads: fetches every set when it is due, and drops those that nobody names, until the node stops.
pub async fn supervise(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let mut schedule = Schedule::default();
    let mut fetches: JoinSet<(KeySource, Duration)> = JoinSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(done) = fetches.join_next() => {
                match done {
                    Ok((source, again)) => schedule.over(&source, again, Instant::now()),
                    Err(_) => schedule.broken_off(Instant::now()),
                }
            }
            () = stopped(&mut stop) => return,
        }
        if !context.handle.status().is_leader {
            // Whoever leads next begins anew.
            schedule = Schedule::default();
            fetches.abort_all();
            continue;
        }
        let named = KeySource::all(&context.handle.state().view);
        context.issuers.retain(&named);
        drop_unnamed(&context, &named).await;
        for (source, every) in schedule.ready(named, Instant::now()) {
            if fetches.len() < MAX_FETCHES {
                schedule.begun(&source);
                let context = context.clone();
                fetches.spawn(async move {
                    let again = renew_and_note(&context, &source, every).await;
                    (source, again)
                });
            }
        }
    }
}

async fn drop_unnamed(context: &Context, named: &BTreeMap<KeySource, Duration>) {
    let state = context.handle.state();
    if state.view.issuer_keys.is_empty() {
        return;
    }
    let ids: Vec<String> = named.keys().map(KeySource::id).collect();
    let gone: Vec<String> = state.view.issuer_keys.keys().filter(|id| !ids.contains(id)).cloned().collect();
    drop(state);
    for source in gone {
        let command = Command::IssuerKeys { source: source.clone(), jwks: None };
        match context.handle.propose("", command).await {
            Ok(_) => {
                tracing::info!(source, "the keys of an issuer that no policy names any more are dropped")
            }
            // The next look will find them again.
            Err(error) => tracing::warn!(source, why = %error, "an issuer's keys could not be dropped yet"),
        }
    }
}

async fn renew_and_note(context: &Context, source: &KeySource, every: Duration) -> Duration {
    let renewed = renew(context, source).await;
    let url = &source.url;
    match &renewed {
        Ok(Some(revision)) => tracing::info!(%url, revision, "the keys of an issuer are new"),
        Ok(None) => tracing::debug!(%url, "the keys of an issuer are those that are kept"),
        Err(why) => {
            context.metrics.issuer_fetches_failed.inc();
            tracing::warn!(%url, %why, "the keys of an issuer could not be fetched; those that are kept stay in force");
        }
    }
    context.issuers.note(source, every, &renewed)
}

/// Fetches one set; the revision at which another one than before was committed.
async fn renew(context: &Context, source: &KeySource) -> Result<Option<u64>, RenewError> {
    let tls = web_tls(source.roots.as_deref()).await?;
    let jwks = only_keys(&fetch(&source.url, tls, KEY_SET).await?)?;
    let id = source.id();
    let state = context.handle.state();
    let kept = &state.view.issuer_keys;
    match kept.get(&id) {
        Some(same) if *same == jwks => return Ok(None),
        // Documents of an older version may name more: no Command has to say so every time.
        None if kept.len() >= MAX_ISSUER_KEYS => return Err(RenewError::TooMany),
        _ => {}
    }
    drop(state);
    let command = Command::IssuerKeys { source: id, jwks: Some(jwks) };
    let outcome = context.handle.propose("", command).await?;
    outcome.result.map_err(RenewError::Refused)?;
    Ok(Some(outcome.revision))
}

/// The set without what else is in the document, always written in one way: what only looks different is not committed.
fn only_keys(document: &str) -> Result<String, JwksError> {
    // What is wrong with it is told without its words: it may be anybody's document.
    JwkSet::parse(document).map_err(|error| match error {
        JwksError::Shape(_) => JwksError::Shape("it has no list of keys".to_owned()),
        other => other,
    })?;
    let document: Value = serde_json::from_str(document).map_err(|e| JwksError::Shape(e.to_string()))?;
    Ok(serde_json::json!({ "keys": document["keys"] }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(host: &str) -> KeySource {
        KeySource { url: format!("https://{host}/keys").parse().unwrap(), roots: None }
    }

    #[test]
    fn a_set_that_is_wanted_more_often_is_not_waited_for_as_long_as_before() {
        let (hour, minute, short) = (Duration::from_secs(3600), Duration::from_secs(60), SHORTEST_INTERVAL);
        let one = source("id.example");
        let wanted = |every| BTreeMap::from([(one.clone(), every)]);
        let mut schedule = Schedule::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(schedule.ready(wanted(hour), begun), [(one.clone(), hour)]);
        schedule.begun(&one);
        assert_eq!(schedule.ready(wanted(hour), at(1)), [], "it is under way");
        schedule.over(&one, hour, at(1));
        assert_eq!(schedule.ready(wanted(hour), at(2)), []);
        assert_eq!(schedule.ready(wanted(minute), at(3)), [], "not within its own interval");
        assert_eq!(schedule.ready(wanted(minute), at(63)), [(one.clone(), minute)]);
        // Also if that was said while it was fetched.
        schedule.begun(&one);
        assert_eq!(schedule.ready(wanted(short), at(64)), []);
        schedule.over(&one, minute, at(65));
        assert_eq!(schedule.ready(wanted(short), at(70)), [(one.clone(), short)]);
        // Wanted less often, it is fetched once more when it was due, and so is one that fails.
        schedule.begun(&one);
        schedule.over(&one, short, at(71));
        assert_eq!(schedule.ready(wanted(hour), at(76)), [(one.clone(), hour)]);
        schedule.begun(&one);
        schedule.broken_off(at(77));
        assert_eq!(schedule.ready(wanted(hour), at(82)), [(one.clone(), hour)]);
        assert_eq!(schedule.ready(BTreeMap::new(), at(83)), []);
        assert_eq!(schedule.0.len(), 0, "nobody names it");
    }

    #[test]
    fn keys_that_were_never_fetched_grow_older_too() {
        let links = IssuerLinks::default();
        let note = |host: &str, renewed| links.note(&source(host), SHORTEST_INTERVAL, &renewed);
        assert_eq!(links.oldest(now()), Duration::ZERO, "nothing is fetched");
        note("silent.example", Err(RenewError::TooMany));
        std::thread::sleep(Duration::from_millis(2));
        let later = now();
        note("silent.example", Err(RenewError::TooMany));
        note("good.example", Ok(None));
        assert!(links.oldest(later) >= Duration::from_millis(2), "since the first one was tried");
        note("silent.example", Ok(Some(7)));
        note("silent.example", Err(RenewError::TooMany));
        assert_eq!(links.oldest(later), Duration::ZERO, "since the last one that went well");
    }
}
