//! The authorities of this node: opened at the start, chosen by the committed bundle, made when a rotation wants one,
//! forgotten once they are out of the bundle. What is to be done is decided by `step`, a function of what is known.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hanse_identity::{Authority, AuthorityCertificate, AuthorityState, Bundle, KeyId, NodeName};

use super::context::{Context, now, stopped};
use super::key_store::{KeyPurpose, KeyStore};
use super::keys::{self, AUTHORITY_LIFETIME, KeyFileError, NodeFile};
use crate::command::Command;
use crate::state::State;
use crate::state::issuance::names_node;

/// How often a node looks whether there is something to do, if nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause after something could not be done: no quorum, a full disk.
const RETRY: Duration = Duration::from_millis(500);

/// The authorities whose keys this node holds, in the order in which it came by them.
pub struct Authorities {
    /// Where the bundle is kept beside `node.json`.
    dir: PathBuf,
    /// What was kept there when the node started.
    written: Option<Bundle>,
    held: ArcSwap<Vec<Held>>,
}

#[derive(Clone, Debug)]
struct Held {
    authority: Arc<Authority>,
    /// Made by this process for the rotation that runs: not in the bundle before it is published.
    fresh: bool,
}

/// The next thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Rest,
    Make,
    Publish(KeyId),
    Forget(KeyId),
}

impl Held {
    /// Of the key that signs.
    fn key(&self) -> KeyId {
        signing_key(&self.authority)
    }

    /// Below a root of the user's own house there is one for ever, and the bundle does not have it.
    fn is_below_a_root(&self) -> bool {
        self.authority.intermediate().is_some()
    }
}

/// The id of the key that signs: an authority below a root is not in the bundle itself.
pub fn signing_key(authority: &Authority) -> KeyId {
    authority.intermediate().map_or(authority.certificate().key_id, |own| own.key_id)
}

impl Authorities {
    /// Opens what the store has: the authority that the node was made with, and those that the committed bundle, or
    /// the one that was written last, says are this node's. A key that nothing is known of was never used.
    pub fn open(
        dir: &Path,
        file: &NodeFile,
        store: &dyn KeyStore,
        committed: Option<&Bundle>,
    ) -> Result<Self, KeyFileError> {
        let written = keys::load_bundle(dir)?;
        let known: Vec<&AuthorityCertificate> =
            committed.into_iter().chain(&written).flat_map(|b| &b.authorities).collect();
        let mut held = Vec::new();
        for key in store.list(KeyPurpose::Authority)? {
            if key == file.record.signing_key() {
                held.insert(0, Arc::new(keys::first_authority(file, store)?));
                continue;
            }
            let own = known.iter().find(|a| a.key_id == key && names_node(&a.subject, &file.record.name));
            if let Some(own) = own {
                let private = store.open(KeyPurpose::Authority, &key)?;
                held.push(Arc::new(Authority::restore(&file.trust_domain, private, &own.der)?));
            }
        }
        let held = held.into_iter().map(|authority| Held { authority, fresh: false }).collect();
        Ok(Self { dir: dir.to_owned(), written, held: ArcSwap::from_pointee(held) })
    }

    /// What signs for others: the newest of this node's that the bundle says is active.
    pub fn signing(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        choose(&self.held.load(), bundle, |state| state == AuthorityState::Active)
    }

    /// What signs this node's own SVID: where none is active, whichever is still believed. A node that starts has the
    /// State of its last snapshot at first, which may know none of them: then what the node itself has written counts.
    pub fn own(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        let held = self.held.load();
        self.signing(bundle)
            .or_else(|| choose(&held, bundle, |state| state != AuthorityState::Retired))
            .or_else(|| choose(&held, self.written.as_ref()?, |state| state == AuthorityState::Active))
    }

    /// All that the bundle has: each needs a revocation list.
    pub fn published(&self, bundle: &Bundle) -> Vec<Arc<Authority>> {
        let held = self.held.load();
        let there = |h: &&Held| bundle.authorities.iter().any(|a| a.key_id == h.key());
        held.iter().filter(there).map(|h| h.authority.clone()).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Held>)) {
        let mut held = Vec::clone(&self.held.load());
        change(&mut held);
        self.held.store(Arc::new(held));
    }

    fn next(&self, state: &State, node: &NodeName) -> Step {
        match state.view.bundles.get(&state.view.trust_domain) {
            Some(bundle) => {
                let wanted = state.rotating().is_some_and(|r| r.wants(node));
                step(&self.held.load(), bundle, wanted)
            }
            None => Step::Rest,
        }
    }
}

/// The one that comes last in the bundle of those that are in such a state there.
fn choose(held: &[Held], bundle: &Bundle, fits: impl Fn(AuthorityState) -> bool) -> Option<Arc<Authority>> {
    if let Some(below) = held.iter().find(|h| h.is_below_a_root()) {
        return Some(below.authority.clone());
    }
    let held = |a: &AuthorityCertificate| held.iter().find(|h| h.key() == a.key_id);
    let chosen = bundle.authorities.iter().rev().filter(|a| fits(a.state)).find_map(held);
    chosen.map(|h| h.authority.clone())
}

fn step(held: &[Held], bundle: &Bundle, wanted: bool) -> Step {
    for h in held.iter().filter(|h| !h.is_below_a_root()) {
        let published = bundle.authorities.iter().find(|a| a.key_id == h.key());
        match published {
            None if h.fresh && wanted => return Step::Publish(h.key()),
            // The last key is never given up, whatever the bundle says.
            None if held.len() > 1 => return Step::Forget(h.key()),
            Some(a) if a.state == AuthorityState::Retired && held.len() > 1 => return Step::Forget(h.key()),
            _ => {}
        }
    }
    if wanted { Step::Make } else { Step::Rest }
}

/// Keeps this node's authorities in order until the node stops.
pub async fn keep(context: Arc<Context>) {
    let (mut stop, mut states) = (context.stop.clone(), context.handle.states());
    let mut written = None;
    loop {
        let state = states.borrow_and_update().clone();
        let wait = match context.authorities.next(&state, &context.name) {
            Step::Rest => match write_bundle(&context, &state, &mut written).await {
                Ok(()) => LOOK_EVERY,
                Err(why) => {
                    tracing::warn!(why, "the bundle could not be written");
                    RETRY
                }
            },
            // What this node has applied may be old news: before anything is given up or made, ask a quorum.
            _ => match work(&context).await {
                Ok(()) => Duration::ZERO,
                Err(why) => {
                    tracing::warn!(why, "this node's authorities are not in order yet");
                    RETRY
                }
            },
        };
        drop(state);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = states.changed(), if wait == LOOK_EVERY => if changed.is_err() { return },
            () = stopped(&mut stop) => return,
        }
    }
}

/// Does one step, decided on what a quorum has.
async fn work(context: &Arc<Context>) -> Result<(), String> {
    let state = context.handle.read().await.map_err(|e| e.to_string())?;
    let authorities = &context.authorities;
    match authorities.next(&state, &context.name) {
        Step::Rest => {}
        Step::Make => {
            let (maker, store) = (context.clone(), Arc::clone(&context.key_store));
            let made = tokio::task::spawn_blocking(move || {
                let key = store.create(KeyPurpose::Authority).map_err(|e| e.to_string())?;
                let (serial, at) = (keys::random_serial(), now());
                Authority::create(&maker.trust_domain, &maker.name, key, serial, at, AUTHORITY_LIFETIME)
                    .map_err(|e| e.to_string())
            });
            let authority = Arc::new(made.await.map_err(|e| e.to_string())??);
            tracing::info!(key = %signing_key(&authority), "authority made");
            authorities.change(|held| held.push(Held { authority, fresh: true }));
        }
        Step::Publish(key) => {
            let held = authorities.held.load();
            let held = held.iter().find(|h| h.key() == key).ok_or("the authority has gone")?;
            let certificate = AuthorityCertificate {
                state: AuthorityState::Prepared,
                ..held.authority.certificate().clone()
            };
            let command = Command::AuthorityPublish { node: context.name.clone(), certificate };
            let outcome = context
                .handle
                .propose(&context.own_id().to_string(), command)
                .await
                .map_err(|e| e.to_string())?;
            outcome.result.map_err(|refusal| refusal.to_string())?;
            tracing::info!(%key, revision = outcome.revision, "authority published");
        }
        Step::Forget(key) => {
            let store = Arc::clone(&context.key_store);
            let gone = tokio::task::spawn_blocking(move || store.delete(KeyPurpose::Authority, &key)).await;
            gone.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            tracing::info!(%key, "authority forgotten");
            authorities.change(|held| held.retain(|h| h.key() != key));
        }
    }
    Ok(())
}

/// Writes the bundle that the node has, if it is another than was written last. Only when there is nothing else to do:
/// a key that has to be forgotten is known by what was written before.
async fn write_bundle(context: &Context, state: &State, written: &mut Option<u64>) -> Result<(), String> {
    let Some(bundle) = state.view.bundles.get(&context.trust_domain) else { return Ok(()) };
    // A cluster in memory has no directory.
    if *written == Some(bundle.sequence) || context.authorities.dir.as_os_str().is_empty() {
        return Ok(());
    }
    let (dir, copy) = (context.authorities.dir.clone(), bundle.clone());
    let wrote = tokio::task::spawn_blocking(move || keys::write_bundle(&dir, &copy)).await;
    wrote.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    *written = Some(bundle.sequence);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: u64, fresh: bool) -> Held {
        let key = rcgen::KeyPair::generate().unwrap();
        let (trust_domain, node) =
            ("east.example".parse().unwrap(), format!("east-{number}").parse().unwrap());
        let made = Authority::create(
            &trust_domain,
            &node,
            key,
            keys::random_serial(),
            hanse_identity::Timestamp::from_seconds(1_800_000_000),
            AUTHORITY_LIFETIME,
        );
        Held { authority: Arc::new(made.unwrap()), fresh }
    }

    fn bundle(entries: &[(&Held, AuthorityState)]) -> Bundle {
        let entry = |(held, state): &(&Held, AuthorityState)| AuthorityCertificate {
            state: *state,
            ..held.authority.certificate().clone()
        };
        Bundle::new("east.example".parse().unwrap(), 1, entries.iter().map(entry).collect())
    }

    use AuthorityState::{Active, Prepared, Retired, Tainted};

    #[test]
    fn one_is_made_and_published_when_a_rotation_wants_it() {
        let (old, new) = (held(1, false), held(1, true));
        let alone = bundle(&[(&old, Active)]);
        assert_eq!(step(std::slice::from_ref(&old), &alone, false), Step::Rest);
        assert_eq!(step(std::slice::from_ref(&old), &alone, true), Step::Make);
        let keys = [old.clone(), new.clone()];
        assert_eq!(step(&keys, &alone, true), Step::Publish(new.key()));
        assert_eq!(step(&keys, &bundle(&[(&old, Active), (&new, Prepared)]), false), Step::Rest);
    }

    #[test]
    fn what_is_no_more_in_the_bundle_is_forgotten_but_never_the_last() {
        let (old, new) = (held(1, false), held(1, true));
        let keys = [old.clone(), new.clone()];
        assert_eq!(step(&keys, &bundle(&[(&new, Active)]), false), Step::Forget(old.key()));
        assert_eq!(step(&keys, &bundle(&[(&old, Retired), (&new, Active)]), false), Step::Forget(old.key()));
        // Taken back before it was ever used.
        assert_eq!(step(&keys, &bundle(&[(&old, Active)]), false), Step::Forget(new.key()));
        assert_eq!(step(&keys[..1], &bundle(&[(&new, Active)]), false), Step::Rest);
    }

    #[test]
    fn the_newest_active_one_signs_and_nothing_else() {
        let (old, new) = (held(1, false), held(1, true));
        let keys = [old.clone(), new.clone()];
        let signs = |entries: &[(&Held, AuthorityState)]| {
            choose(&keys, &bundle(entries), |state| state == Active).map(|a| signing_key(&a))
        };
        assert_eq!(signs(&[(&old, Active), (&new, Prepared)]), Some(old.key()));
        assert_eq!(signs(&[(&old, Active), (&new, Active)]), Some(new.key()));
        assert_eq!(signs(&[(&old, Tainted), (&new, Active)]), Some(new.key()));
        assert_eq!(signs(&[(&old, Active), (&new, Tainted)]), Some(old.key()), "taken back");
        assert_eq!(signs(&[(&old, Tainted), (&new, Prepared)]), None);
    }
}
