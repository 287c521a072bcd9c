//! The authorities of this node: opened at the start, chosen by the committed bundle, made when a rotation wants one,
//! forgotten once they are out of the bundle. What is to be done is decided by `signing`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hanse_identity::{Authority, AuthorityCertificate, AuthorityState, Bundle, KeyId, NodeName};

use super::context::{Context, stopped};
use super::key_store::{KeyPurpose, KeyStore};
use super::keys::{self, AUTHORITY_LIFETIME, KeyFileError, NodeFile};
use crate::command::Command;
use crate::signing::{self, HeldKey, Step};
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
    /// Keys in the store that nothing was known of when the node started.
    closed: Mutex<Vec<KeyId>>,
}

#[derive(Clone, Debug)]
struct Held {
    authority: Arc<Authority>,
    /// Made by this process for the rotation that runs: not in the bundle before it is published.
    fresh: bool,
}

impl Held {
    /// Of the key that signs.
    fn key(&self) -> KeyId {
        signing_key(&self.authority)
    }

    fn as_held(&self) -> HeldKey {
        let below_a_root = self.authority.intermediate().is_some();
        HeldKey { key: self.key(), fresh: self.fresh, below_a_root }
    }
}

/// The id of the key that signs: an authority below a root is not in the bundle itself.
pub fn signing_key(authority: &Authority) -> KeyId {
    authority.intermediate().map_or(authority.certificate().key_id, |own| own.key_id)
}

impl Authorities {
    /// Opens what the store has: the authority that the node was made with, and those that the committed bundle, or
    /// the one that was written last, says are this node's. A key that nothing is known of was never used; it is opened
    /// once the bundle has it.
    pub fn open(
        dir: &Path,
        file: &NodeFile,
        store: &dyn KeyStore,
        committed: Option<&Bundle>,
    ) -> Result<Self, KeyFileError> {
        let written = keys::load_bundle(dir)?;
        let known: Vec<&AuthorityCertificate> =
            committed.into_iter().chain(&written).flat_map(|b| &b.authorities).collect();
        let (mut held, mut closed) = (Vec::new(), Vec::new());
        for key in store.list(KeyPurpose::Authority)? {
            if key == file.record.signing_key() {
                held.insert(0, Arc::new(keys::first_authority(file, store)?));
                continue;
            }
            let own = known.iter().find(|a| a.key_id == key && names_node(&a.subject, &file.record.name));
            match own {
                Some(own) => {
                    let private = store.open(KeyPurpose::Authority, &key)?;
                    held.push(Arc::new(Authority::restore(&file.trust_domain, private, &own.der)?));
                }
                None => closed.push(key),
            }
        }
        let held = held.into_iter().map(|authority| Held { authority, fresh: false }).collect();
        let (held, closed) = (ArcSwap::from_pointee(held), Mutex::new(closed));
        Ok(Self { dir: dir.to_owned(), written, held, closed })
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

    fn closed(&self) -> std::sync::MutexGuard<'_, Vec<KeyId>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, state: &State, node: &NodeName) -> Step {
        match state.view.bundles.get(&state.view.trust_domain) {
            Some(bundle) => {
                let wanted = state.rotating().is_some_and(|r| r.wants(node));
                // Several nodes' keys may be in one token: none opens another's.
                let own = |a: &&AuthorityCertificate| names_node(&a.subject, node);
                let own: Vec<KeyId> = bundle.authorities.iter().filter(own).map(|a| a.key_id).collect();
                let closed: Vec<KeyId> = self.closed().iter().filter(|k| own.contains(k)).copied().collect();
                signing::step(&keys_of(&self.held.load()), &closed, bundle, wanted)
            }
            None => Step::Rest,
        }
    }
}

fn keys_of(held: &[Held]) -> Vec<HeldKey> {
    held.iter().map(Held::as_held).collect()
}

/// The one that comes last in the bundle of those that are in such a state there.
fn choose(held: &[Held], bundle: &Bundle, fits: impl Fn(AuthorityState) -> bool) -> Option<Arc<Authority>> {
    let chosen = signing::choose(&keys_of(held), bundle, fits)?;
    held.iter().find(|h| h.key() == chosen).map(|h| h.authority.clone())
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
                let (serial, at) = (keys::random_serial(), maker.time());
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
            let rotation = state.rotating().map(|rotation| rotation.id);
            let command = Command::AuthorityPublish { node: context.name.clone(), certificate, rotation };
            let outcome = context
                .handle
                .propose(&context.own_id().to_string(), command)
                .await
                .map_err(|e| e.to_string())?;
            outcome.result.map_err(|refusal| refusal.to_string())?;
            tracing::info!(%key, revision = outcome.revision, "authority published");
        }
        Step::Open(key) => {
            let own = state.view.bundles.get(&context.trust_domain).into_iter().flat_map(|b| &b.authorities);
            let own = own.into_iter().find(|a| a.key_id == key).ok_or("it is not in the bundle")?.clone();
            let (opener, store) = (context.clone(), Arc::clone(&context.key_store));
            let opened = tokio::task::spawn_blocking(move || {
                let private = store.open(KeyPurpose::Authority, &key).map_err(|e| e.to_string())?;
                Authority::restore(&opener.trust_domain, private, &own.der).map_err(|e| e.to_string())
            });
            let authority = Arc::new(opened.await.map_err(|e| e.to_string())??);
            tracing::info!(%key, "authority opened");
            authorities.closed().retain(|closed| *closed != key);
            authorities.change(|held| held.push(Held { authority, fresh: false }));
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
