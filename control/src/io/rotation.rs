//! The leader's part of a rotation: it measures what a gate waits for, in this cluster and in its peers, and proposes the
//! next step when that is nothing. Also begins one by itself before an authority is half through its life.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::{NodeName, Timestamp, TrustDomain};
use tokio::time::Instant;

use super::census::{Part, Query, Subscriber, gather};
use super::context::{Context, stopped};
use super::keys::AUTHORITY_LIFETIME;
use super::peer_ask::{Question, ask_these};
use crate::admin::{BundlePart, BundleQuestion, SubscriberKind, WaitsFor, asks_peers, waited_for, waits_for};
use crate::command::Command;
use crate::state::State;

/// How often a running rotation is measured.
const MEASURE_EVERY: Duration = Duration::from_millis(250);
/// How often it is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What is left of an authority's life when its successor is begun: more than half.
const BEGIN_WITH_LEFT: Duration = Duration::from_secs(AUTHORITY_LIFETIME.as_secs() / 100 * 55);
/// After one that was taken back, or that left an authority where it was, none begins by itself for so long.
const PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a measurement found.
pub struct Measured {
    pub waits_for: Vec<WaitsFor>,
    pub parts: Vec<BundlePart>,
}

/// Takes the rotation that runs through its gates while this node leads, until the node stops.
pub async fn keep(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut measure_tick = tokio::time::interval(MEASURE_EVERY);
    measure_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<Instant> = None;
    let mut told = None;
    loop {
        tokio::select! {
            _ = measure_tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        if !context.handle.status().is_leader {
            continue;
        }
        let state = context.handle.state();
        let Some(rotation) = state.rotating() else {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                looked = Some(Instant::now());
                begin_if_due(&context, &state).await;
            }
            continue;
        };
        let (id, gate) = (rotation.id, rotation.gate);
        let measured = measure(&context, &state).await;
        if let Some(first) = measured.waits_for.first() {
            if told.as_ref() != Some(&(id, gate, first.clone())) {
                let (who, why, more) = (&first.who, &first.why, measured.waits_for.len() - 1);
                tracing::info!(rotation = id, %gate, cluster = %first.cluster, who, why, more, "a gate waits");
                told = Some((id, gate, first.clone()));
            }
            continue;
        }
        let step = Command::RotateStep { id, to: gate.next() };
        match context.handle.propose("", step).await {
            Ok(outcome) => match outcome.result {
                Ok(_) => {
                    let (to, revision) = (gate.next(), outcome.revision);
                    tracing::info!(rotation = id, %to, revision, "a gate is passed");
                }
                Err(refusal) => tracing::warn!(rotation = id, why = %refusal, "a gate stays closed"),
            },
            Err(error) => tracing::warn!(rotation = id, why = %error, "a step is not committed yet"),
        }
    }
}

/// What the gate of the rotation waits for, and how the bundle stands here and, where the gate asks them or none runs,
/// at the peers.
pub async fn measure(context: &Context, state: &State) -> Measured {
    let (own, connected) = own_part(context, state).await;
    let mut parts = vec![own];
    let Some(rotation) = &state.private.rotation else {
        parts.extend(peer_parts(context, state).await);
        return Measured { waits_for: Vec::new(), parts };
    };
    // Not by a clock that the others contradict: what it takes for expired still lives.
    let now = context.time();
    let mut waiting = waits_for(state, rotation, &parts, &connected, now);
    // Peers are asked last: what is missing at home is missing anyway.
    if !rotation.is_running() || (waiting.is_empty() && asks_peers(rotation.gate)) {
        parts.extend(peer_parts(context, state).await);
        waiting = waits_for(state, rotation, &parts, &connected, now);
    }
    Measured { waits_for: waiting, parts }
}

/// How this cluster's own bundle stands at home, and which agents have a stream.
async fn own_part(context: &Context, state: &State) -> (BundlePart, BTreeSet<NodeName>) {
    let own = &context.trust_domain;
    let sequence = state.view.bundles.get(own).map_or(0, |bundle| bundle.sequence);
    let (part, subscribers) = part_of(context, state, own, sequence).await;
    let agents = subscribers.into_iter().filter(|s| s.kind == SubscriberKind::Agent && s.connected);
    (part, agents.map(|s| s.name).collect())
}

/// How the bundle of a trust domain stands in this cluster.
pub async fn part_of(
    context: &Context,
    state: &State,
    trust_domain: &TrustDomain,
    sequence: u64,
) -> (BundlePart, Vec<Subscriber>) {
    // What is acknowledged is asked first: what rests on an authority must not be older than that.
    let (subscribers, silent) = gather(context, &Query::Subscribers).await.subscribers();
    let gathered = gather(context, &Query::Trust).await;
    let silent = silent.into_iter().chain(gathered.silent).collect();
    let nodes = gathered.parts.into_iter().filter_map(|(node, part)| match part {
        Part::Trust(trust) => Some((node, trust)),
        _ => None,
    });
    let revision = context.bundle_revisions.of(&state.view, trust_domain, sequence);
    let own = *trust_domain == context.trust_domain;
    let cluster = context.cluster.clone();
    let part = BundlePart::new(
        cluster,
        (trust_domain, own),
        revision,
        subscribers.iter().cloned(),
        nodes.collect(),
        silent,
    );
    (part, subscribers)
}

/// How our bundle stands at every peer that is waited for.
async fn peer_parts(context: &Context, state: &State) -> Vec<BundlePart> {
    let sequence = state.view.bundles.get(&context.trust_domain).map_or(0, |bundle| bundle.sequence);
    let question = Question::Bundle(BundleQuestion { sequence });
    let answers = ask_these::<BundlePart>(context, waited_for(state), &question).await;
    let parts = answers.into_iter().map(|(cluster, answer)| match answer {
        // A peer speaks for itself, by the name that we know it by.
        Ok(part) => BundlePart { cluster, ..part },
        Err(error) => BundlePart::unreachable(cluster, error),
    });
    parts.collect()
}

async fn begin_if_due(context: &Context, state: &State) {
    if !is_due(state, context.time()) {
        return;
    }
    match context.handle.propose("", Command::RotateBegin { authority: None, reissue: false }).await {
        Ok(outcome) => match outcome.result {
            Ok(_) => {
                tracing::info!(
                    rotation = outcome.revision,
                    "an authority is near half of its life: rotating"
                );
            }
            Err(refusal) => tracing::warn!(why = %refusal, "the authorities cannot be rotated"),
        },
        Err(error) => tracing::warn!(why = %error, "the rotation has not begun yet"),
    }
}

/// Whether an authority of our own is about to be half through its life.
fn is_due(state: &State, now: Timestamp) -> bool {
    let below_a_root = state.private.nodes.values().any(|node| node.intermediate.is_some());
    let last = state.private.rotation.as_ref().and_then(|r| r.reached.values().max());
    if below_a_root || last.is_some_and(|at| now.since(*at) < PAUSE) {
        return false;
    }
    let own = state.view.bundles.get(&state.view.trust_domain);
    own.is_some_and(|b| b.trusted().any(|a| a.not_after.left(now) < BEGIN_WITH_LEFT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::key_store::FileKeyStore;
    use crate::io::keys::{NewNode, init};

    #[test]
    fn a_rotation_begins_by_itself_before_half_of_an_authoritys_life() {
        let dir = tempfile::tempdir().unwrap();
        let made = Timestamp::from_seconds(1_800_000_000);
        let new = NewNode {
            cluster: "east".parse().unwrap(),
            trust_domain: "east.example".parse().unwrap(),
            name: "east-1".parse().unwrap(),
            raft_id: 1,
            address: "127.0.0.1:1".to_owned(),
            peer_address: "127.0.0.1:1".to_owned(),
            region: String::new(),
            zone: String::new(),
        };
        let store = FileKeyStore::new(dir.path(), new.trust_domain.clone(), None);
        let file = init(dir.path(), new, &store, made).unwrap();
        let state = State::founded(file.cluster, file.trust_domain, vec![file.record]);
        let (half, margin) = (made + AUTHORITY_LIFETIME / 2, AUTHORITY_LIFETIME / 10);
        assert!(!is_due(&state, made));
        assert!(!is_due(&state, half - margin));
        assert!(is_due(&state, half - margin / 4), "before half");
    }
}
