//! A node's authorities in the World: made, published, opened and forgotten as `control/io/authorities` does it, decided
//! by the very same `control::signing`; the first list of each as `control/io/crl` does it.

use hanse_control::command::Command;
use hanse_control::signing::{self, HeldKey, Step};
use hanse_control::state::State;
use hanse_identity::{AuthorityCertificate, AuthorityState, Bundle, KeyId};

use super::authorities::{authority, first_list};
use super::propose::{Purpose, ReadPurpose};
use super::{At, Bug, World};

/// A question to the quorum that had no answer for so long is asked again.
const ASK_AGAIN_MS: u64 = 1000;

/// The authorities of a running node, by their generation.
#[derive(Debug, Default)]
pub(crate) struct Held {
    open: Vec<(u32, HeldKey)>,
    closed: Vec<(u32, KeyId)>,
    /// Until when the quorum's answer is waited for.
    asked_until: u64,
}

impl Held {
    fn keys(&self) -> Vec<HeldKey> {
        self.open.iter().map(|(_, key)| *key).collect()
    }

    /// Which of them signs.
    pub(super) fn signing(&self, bundle: &Bundle) -> Option<KeyId> {
        signing::signing(&self.keys(), bundle)
    }
}

impl World {
    /// What a node that starts opens of the keys on its disk: those that its State, or what it has written, knows.
    pub(super) fn open_authorities(&self, at: At, state: &State) -> Held {
        let cluster = &self.clusters[at.cluster];
        let control = &cluster.nodes[at.index];
        let committed = own_bundle(state).into_iter().flat_map(|b| &b.authorities);
        let committed: Vec<KeyId> = committed.map(|a| a.key_id).collect();
        let mut held = Held::default();
        for generation in &control.store {
            let key = authority(&cluster.trust_domain, &control.name, *generation).key_id;
            if *generation == 0 || committed.contains(&key) || control.written.contains(&key) {
                held.open.push((*generation, HeldKey { key, fresh: false, below_a_root: false }));
            } else {
                held.closed.push((*generation, key));
            }
        }
        held
    }

    /// What signs for others now.
    pub(super) fn signing_key(&mut self, at: At) -> Option<KeyId> {
        let unpublished = self.bug == Some(Bug::SignUnpublished);
        let running = self.running(at)?;
        match unpublished {
            true => running.held.open.last().map(|(_, held)| held.key),
            false => running.held.signing(own_bundle(&running.state)?),
        }
    }

    fn next_step(&self, at: At) -> Option<Step> {
        let control = &self.clusters[at.cluster].nodes[at.index];
        let running = control.running.as_ref()?;
        let wanted = running.state.rotating().is_some_and(|r| r.wants(&control.name));
        let closed: Vec<KeyId> = running.held.closed.iter().map(|(_, key)| *key).collect();
        Some(signing::step(&running.held.keys(), &closed, own_bundle(&running.state)?, wanted))
    }

    /// Whether a node can sign, and everything that its bundle asks of it is done.
    pub(super) fn has_its_authorities(&self, at: At) -> bool {
        let control = &self.clusters[at.cluster].nodes[at.index];
        let signs = control.running.as_ref().is_some_and(|running| {
            own_bundle(&running.state).is_some_and(|bundle| running.held.signing(bundle).is_some())
        });
        signs && self.next_step(at) == Some(Step::Rest)
    }

    /// One step. What this node has applied may be old news: before anything is made or given up, a quorum is asked.
    pub(super) fn keep_authorities(&mut self, at: At) {
        if self.is_revoked(at) {
            return;
        }
        let now = self.now;
        match self.next_step(at) {
            None => {}
            Some(Step::Rest) => {
                let control = &mut self.clusters[at.cluster].nodes[at.index];
                if let Some(bundle) = control.running.as_ref().and_then(|r| own_bundle(&r.state)) {
                    control.written = bundle.authorities.iter().map(|a| a.key_id).collect();
                }
                self.publish_lists(at);
            }
            Some(_) => {
                let Some(running) = self.running(at).filter(|r| now >= r.held.asked_until) else { return };
                running.held.asked_until = now + ASK_AGAIN_MS;
                self.ask_read(at, ReadPurpose::Authorities);
            }
        }
    }

    /// A quorum has answered: now it is done.
    pub(super) fn authorities_decided(&mut self, at: At) {
        let step = self.next_step(at);
        let trust_domain = self.clusters[at.cluster].trust_domain.clone();
        let name = self.clusters[at.cluster].nodes[at.index].name.clone();
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        let Some(running) = &mut control.running else { return };
        running.held.asked_until = 0;
        match step {
            None | Some(Step::Rest) => {}
            Some(Step::Make) => {
                control.made += 1;
                control.store.push(control.made);
                let key = authority(&trust_domain, &name, control.made).key_id;
                running.held.open.push((control.made, HeldKey { key, fresh: true, below_a_root: false }));
            }
            Some(Step::Open(key)) => {
                let opened = running.held.closed.extract_if(.., |(_, closed)| *closed == key);
                let opened: Vec<u32> = opened.map(|(generation, _)| generation).collect();
                let open = |generation| (generation, HeldKey { key, fresh: false, below_a_root: false });
                running.held.open.extend(opened.into_iter().map(open));
            }
            Some(Step::Forget(key)) => {
                let gone = running.held.open.extract_if(.., |(_, held)| held.key == key);
                let gone: Vec<u32> = gone.map(|(generation, _)| generation).collect();
                control.store.retain(|generation| !gone.contains(generation));
            }
            Some(Step::Publish(key)) => {
                let generation = running.held.open.iter().find(|(_, held)| held.key == key).map(|(g, _)| *g);
                let waits = |command: &Command| matches!(command, Command::AuthorityPublish { .. });
                let (Some(generation), false) = (generation, running.waits_for(waits)) else { return };
                let certificate = AuthorityCertificate {
                    state: AuthorityState::Prepared,
                    ..authority(&trust_domain, &name, generation)
                };
                let rotation = running.state.rotating().map(|rotation| rotation.id);
                let command = Command::AuthorityPublish { node: name, certificate, rotation };
                self.propose(at, String::new(), command, Purpose::Mesh);
            }
        }
    }

    /// An authority that a rotation made needs a list before it may sign.
    fn publish_lists(&mut self, at: At) {
        let cluster = &self.clusters[at.cluster];
        let control = &cluster.nodes[at.index];
        let Some(running) = &control.running else { return };
        let view = &running.state.view;
        let listed =
            |key: &KeyId| view.crls.get(&view.trust_domain).is_some_and(|lists| lists.contains_key(key));
        let there = |key: &KeyId| own_bundle(&running.state).is_some_and(|b| has(b, key));
        let mut missing =
            running.held.open.iter().filter(|(g, held)| *g > 0 && there(&held.key) && !listed(&held.key));
        let Some((generation, _)) = missing.next() else { return };
        if running.waits_for(|command| matches!(command, Command::CrlPublish { .. })) {
            return;
        }
        let crl = first_list(&cluster.trust_domain, &control.name, *generation);
        self.propose(at, String::new(), Command::CrlPublish { crl }, Purpose::Mesh);
    }
}

/// The cluster's own bundle as a State has it.
pub(super) fn own_bundle(state: &State) -> Option<&Bundle> {
    state.view.bundles.get(&state.view.trust_domain)
}

fn has(bundle: &Bundle, key: &KeyId) -> bool {
    bundle.authorities.iter().any(|a| a.key_id == *key)
}
