//! The keys that this node signs JWT-SVIDs with: made, published, used, replaced at half-life, forgotten.
//!
//! A key signs only while the cluster's committed bundle has it (F-1), and a successor only once everybody has had
//! time to hear of it. What is to be done is decided by `step` and `choose`; both are functions of what is known.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hanse_identity::{AuthorityState, Bundle, JwtAuthority, JwtKey, KeyId, Timestamp, TrustDomain};

use super::context::{Context, stopped};
use super::key_store::{KeyPurpose, KeyStore, KeyStoreError};
use crate::command::Command;
use crate::state::State;

/// How long a key is believed after it was published; its successor is made at half of that.
pub const JWT_KEY_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a successor is published before it signs: five times the refresh hint of our bundle documents, so that
/// strangers who poll have seen it (SPIFFE Federation §4.1).
pub const OVERLAP: Duration = Duration::from_secs(300);
/// How often a node looks whether there is something to do, if nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause after something could not be done: no quorum, a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// The keys of this node.
pub struct JwtKeys {
    held: ArcSwap<Vec<Held>>,
}

#[derive(Clone, Debug)]
struct Held {
    key: Arc<JwtKey>,
    /// Made by this process, so it may still have to be published. One that was found in the store and that the
    /// cluster does not know was never used, or has been given up.
    fresh: bool,
}

/// The next thing to do about the keys.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Rest,
    Make,
    /// Which one, by its key id.
    Publish(String),
    Forget(String),
}

impl JwtKeys {
    /// Opens the keys that the store has.
    pub fn open(store: &dyn KeyStore, trust_domain: &TrustDomain) -> Result<Self, KeyStoreError> {
        let mut held = Vec::new();
        for id in store.list(KeyPurpose::Jwt)? {
            let key = store.open(KeyPurpose::Jwt, &id)?;
            held.push(Held { key: Arc::new(JwtKey::new(trust_domain, key)), fresh: false });
        }
        Ok(Self { held: ArcSwap::from_pointee(held) })
    }

    /// The key to sign with, by the cluster's bundle; `None` while none has been committed.
    pub fn signing(&self, bundle: &Bundle, now: Timestamp) -> Option<Arc<JwtKey>> {
        choose(&self.held.load(), bundle, now).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Held>)) {
        let mut held = Vec::clone(&self.held.load());
        change(&mut held);
        self.held.store(Arc::new(held));
    }
}

fn ends(authority: &JwtAuthority) -> Timestamp {
    authority.not_after.unwrap_or(Timestamp(u64::MAX))
}

/// A key's entry, if what it signs now will be believed.
fn alive<'b>(key: &JwtKey, bundle: &'b Bundle, now: Timestamp) -> Option<&'b JwtAuthority> {
    key.published(bundle).filter(|a| a.state == AuthorityState::Active && now < ends(a))
}

/// The newest key that has been public for long enough; before there is one, the oldest.
fn choose<'k>(held: &'k [Held], bundle: &Bundle, now: Timestamp) -> Option<&'k Arc<JwtKey>> {
    let mut alive: Vec<_> =
        held.iter().filter_map(|h| Some((ends(alive(&h.key, bundle, now)?), &h.key))).collect();
    alive.sort_by_key(|(end, _)| *end);
    let settled = alive.iter().rfind(|(end, _)| *end - JWT_KEY_LIFETIME + OVERLAP <= now);
    settled.or(alive.first()).map(|(_, key)| *key)
}

fn step(held: &[Held], bundle: &Bundle, now: Timestamp) -> Step {
    for Held { key, fresh } in held {
        let key_id = key.key_id().to_owned();
        match key.published(bundle) {
            None if *fresh => return Step::Publish(key_id),
            None => return Step::Forget(key_id),
            Some(a) if a.state == AuthorityState::Retired || ends(a) <= now => return Step::Forget(key_id),
            Some(_) => {}
        }
    }
    let newest = held.iter().filter_map(|h| alive(&h.key, bundle, now)).map(ends).max();
    match newest {
        Some(end) if now < end - JWT_KEY_LIFETIME / 2 => Step::Rest,
        _ => Step::Make,
    }
}

/// Keeps this node's JWT keys in order until the node stops.
pub async fn keep(context: Arc<Context>) {
    let (mut stop, mut states) = (context.stop.clone(), context.handle.states());
    loop {
        let next = context.jwt.next(&states.borrow_and_update(), &context);
        let wait = match next {
            Step::Rest => LOOK_EVERY,
            // What this node has applied may be old news: before anything is given up or made, ask a quorum.
            _ => match work(&context).await {
                Ok(()) => Duration::ZERO,
                Err(why) => {
                    tracing::warn!(why, "this node's JWT keys are not in order yet");
                    RETRY
                }
            },
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = states.changed(), if wait == LOOK_EVERY => if changed.is_err() { return },
            () = stopped(&mut stop) => return,
        }
    }
}

impl JwtKeys {
    fn next(&self, state: &State, context: &Context) -> Step {
        match state.view.bundles.get(&context.trust_domain) {
            Some(bundle) => step(&self.held.load(), bundle, context.time()),
            None => Step::Rest,
        }
    }
}

/// Does one step, decided on what a quorum has.
async fn work(context: &Arc<Context>) -> Result<(), String> {
    let state = context.handle.read().await.map_err(|e| e.to_string())?;
    let keys = &context.jwt;
    match keys.next(&state, context) {
        Step::Rest => {}
        Step::Make => {
            let store = Arc::clone(&context.key_store);
            let made = tokio::task::spawn_blocking(move || store.create(KeyPurpose::Jwt)).await;
            let made = made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            let key = Arc::new(JwtKey::new(&context.trust_domain, made));
            tracing::info!(key = key.key_id(), "JWT key made");
            keys.change(|held| held.push(Held { key, fresh: true }));
        }
        Step::Publish(key_id) => {
            let held = keys.held.load();
            let held = held.iter().find(|h| h.key.key_id() == key_id).ok_or("the key has gone")?;
            let authority = held.key.authority(context.time() + JWT_KEY_LIFETIME);
            let command = Command::JwtAuthorityPublish { node: context.name.clone(), authority };
            let outcome = context.handle.propose("", command).await.map_err(|e| e.to_string())?;
            outcome.result.map_err(|refusal| refusal.to_string())?;
            tracing::info!(key = key_id, revision = outcome.revision, "JWT key published");
        }
        Step::Forget(key_id) => {
            let id: KeyId = key_id.parse().map_err(str::to_owned)?;
            let store = Arc::clone(&context.key_store);
            let gone = tokio::task::spawn_blocking(move || store.delete(KeyPurpose::Jwt, &id)).await;
            gone.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            tracing::info!(key = key_id, "JWT key forgotten");
            keys.change(|held| held.retain(|h| h.key.key_id() != key_id));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn own() -> TrustDomain {
        "east.example".parse().unwrap()
    }

    fn held(fresh: bool) -> Held {
        let key = rcgen::KeyPair::generate().unwrap();
        Held { key: Arc::new(JwtKey::new(&own(), key.try_into().unwrap())), fresh }
    }

    /// A bundle in which each of these was published at that time.
    fn bundle(published: &[(&Held, Timestamp)]) -> Bundle {
        let entry = |(held, at): &(&Held, Timestamp)| held.key.authority(*at + JWT_KEY_LIFETIME);
        let jwt_authorities = published.iter().map(entry).collect();
        Bundle { jwt_authorities, ..Bundle::new(own(), 1, Vec::new()) }
    }

    fn id(held: &Held) -> String {
        held.key.key_id().to_owned()
    }

    #[test]
    fn a_key_is_made_published_and_then_there_is_nothing_to_do() {
        assert_eq!(step(&[], &bundle(&[]), NOW), Step::Make);
        let key = held(true);
        assert_eq!(step(std::slice::from_ref(&key), &bundle(&[]), NOW), Step::Publish(id(&key)));
        assert_eq!(step(std::slice::from_ref(&key), &bundle(&[(&key, NOW)]), NOW), Step::Rest);
    }

    #[test]
    fn f_1_nothing_is_signed_before_the_key_is_committed() {
        let key = held(true);
        assert!(choose(std::slice::from_ref(&key), &bundle(&[]), NOW).is_none());
        let chosen =
            choose(std::slice::from_ref(&key), &bundle(&[(&key, NOW)]), NOW).map(|k| k.key_id().to_owned());
        assert_eq!(chosen, Some(id(&key)), "the first key has nothing to wait for");
    }

    #[test]
    fn f_1_a_successor_is_published_long_before_it_signs() {
        let (old, new) = (held(false), held(true));
        let half = NOW + JWT_KEY_LIFETIME / 2;
        let alone = bundle(&[(&old, NOW)]);
        assert_eq!(step(std::slice::from_ref(&old), &alone, half - SECOND), Step::Rest);
        assert_eq!(step(std::slice::from_ref(&old), &alone, half), Step::Make);
        let (keys, both) = ([old.clone(), new.clone()], bundle(&[(&old, NOW), (&new, half)]));
        assert_eq!(step(&keys, &both, half), Step::Rest);
        let signs = |at| choose(&keys, &both, at).map(|k| k.key_id().to_owned());
        assert_eq!(signs(half + OVERLAP - SECOND), Some(id(&old)));
        assert_eq!(signs(half + OVERLAP), Some(id(&new)));
    }

    #[test]
    fn ended_retired_and_unknown_keys_are_forgotten() {
        let (old, new) = (held(false), held(false));
        let end = NOW + JWT_KEY_LIFETIME;
        let keys = [old.clone(), new.clone()];
        let mut both = bundle(&[(&old, NOW), (&new, end - SECOND)]);
        assert_eq!(step(&keys, &both, end), Step::Forget(id(&old)));
        both.jwt_authorities[1].state = AuthorityState::Retired;
        assert_eq!(step(&keys[1..], &both, end), Step::Forget(id(&new)));
        assert!(choose(&keys, &both, end).is_none());
        assert_eq!(
            step(&keys[1..], &bundle(&[]), end),
            Step::Forget(id(&new)),
            "never published, or given up"
        );
    }

    #[test]
    fn a_tainted_key_is_replaced_at_once() {
        let key = held(false);
        let mut tainted = bundle(&[(&key, NOW)]);
        tainted.jwt_authorities[0].state = AuthorityState::Tainted;
        assert_eq!(step(std::slice::from_ref(&key), &tainted, NOW), Step::Make);
        assert!(choose(&[key], &tainted, NOW).is_none());
    }
}
