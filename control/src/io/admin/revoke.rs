//! Revocation: the blast radius before, the Command, and the receipt after: in this cluster and in every joined one.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_federation::View;
use hanse_identity::grant::MAX_LIFETIME;
use hanse_identity::{
    ClusterName, Reason, Revocation, RevocationId, RevocationTarget, ServiceName, SpiffeId,
};
use serde::de::DeserializeOwned;
use tonic::Status;

use super::Call;
use crate::admin::{
    Gates, IntermediateItem, Listing, PeerQuestion, PreviewReach, Proof, Receipt, ReceiptPart,
    RevocationItem, RevokeLiftRequest, RevokeListRequest, RevokePreview, RevokePreviewRequest, RevokeRequest,
    RevokeStatusRequest, Revoked, SubscriberKind, Written, merged, part_of,
};
use crate::command::{Answer, Command, Refusal};
use crate::io::census::{Query, Subscriber, gather};
use crate::io::context::{Context, now};
use crate::io::peer_ask::{Question, ask_peers};
use crate::io::rotation::measure;
use crate::io::status::refused;
use crate::state::State;

/// A certificate may have been signed this much later than our clock says.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);

pub async fn preview(call: Call, request: RevokePreviewRequest) -> Result<RevokePreview, Status> {
    let context = &call.context;
    let mut reading = call.read().await;
    let state = reading.state.clone();
    let draft = draft(&state, &request).map_err(|refusal| refused(&refusal))?;
    let question = PeerQuestion::Live(Box::new(draft.clone()));
    let (own, theirs, gathered) = tokio::join!(
        own_reach(context, &draft),
        answers::<PreviewReach>(context, &state, question, draft.is_of(&context.trust_domain)),
        gather(context, &Query::Subscribers),
    );
    let (subscribers, silent) = gathered.subscribers();
    reading.silent(&silent);
    let mut reach = vec![own];
    for (cluster, answer) in theirs {
        reach.push(answer.unwrap_or_else(|error| PreviewReach {
            cluster,
            live_connections: 0,
            callers: Vec::new(),
            answered: 0,
            asked: 0,
            error: Some(error),
        }));
    }
    let errors: Vec<_> = reach
        .iter()
        .filter_map(|r| Some(format!("cluster {} cannot be asked: {}", r.cluster, r.error.as_ref()?)))
        .collect();
    errors.into_iter().for_each(|message| reading.partial("E6201", message));
    Ok(RevokePreview {
        already: state.view.revocations.iter().find(|r| r.target == request.target).map(|r| r.id.clone()),
        certificates: state.live_certificates(&draft, now()),
        holders: holders(&state, &draft, merged(subscribers)),
        registrations: registrations(&state, &draft),
        sole_server_of: sole_server_of(&state.view, &draft),
        intermediates: IntermediateItem::hit(&state, &draft, now()),
        reach,
        target: request.target,
        meta: reading.meta,
        warnings: reading.warnings,
    })
}

/// The revocation as it would be committed now.
fn draft(state: &State, request: &RevokePreviewRequest) -> Result<Revocation, Refusal> {
    let origin = state.view.trust_domain.clone();
    let id = RevocationId { number: state.view.revision.0, origin };
    let (serials, authorities) = state.expanded(&request.target, now())?;
    let reissue = request.reissue && matches!(request.target, RevocationTarget::Identity(_));
    let target = request.target.clone();
    Ok(Revocation {
        serials,
        authorities,
        reissue,
        ..Revocation::new(id, target, Reason::Unspecified, now())
    })
}

/// The identities that it concerns: by name, or because they have a certificate that it hits.
fn concerned(state: &State, draft: &Revocation) -> BTreeSet<SpiffeId> {
    let issued = draft.serials.iter().filter_map(|serial| state.private.issued.get(serial));
    let serial = match &draft.target {
        RevocationTarget::Serial(serial) => state.private.issued.get(serial),
        _ => None,
    };
    let below = state.private.issued.live(now()).filter(|svid| draft.authorities.contains(&svid.authority));
    let named = match &draft.target {
        RevocationTarget::Identity(id) => Some(id.clone()),
        _ => draft.silences(),
    };
    issued.chain(serial).chain(below).map(|svid| svid.id.clone()).chain(named).collect()
}

fn holders(state: &State, draft: &Revocation, subscribers: Vec<Subscriber>) -> Vec<String> {
    let concerned = concerned(state, draft);
    let hit = |s: &Subscriber| concerned.contains(&s.identity) || draft_is_of_domain(draft, &s.identity);
    subscribers.into_iter().filter(hit).map(|s| s.name.to_string()).collect()
}

fn draft_is_of_domain(draft: &Revocation, id: &SpiffeId) -> bool {
    matches!(&draft.target, RevocationTarget::Cluster(trust_domain) if id.trust_domain() == trust_domain)
}

fn registrations(state: &State, draft: &Revocation) -> usize {
    match &draft.target {
        RevocationTarget::Identity(id) if !draft.reissue => state.registrations_of(id).count(),
        RevocationTarget::Agent(agent) => {
            state.private.registrations.values().filter(|r| r.agent.name() == Some(agent)).count()
        }
        _ => 0,
    }
}

/// Services that nobody else here may answer for; none if new certificates are given.
fn sole_server_of(view: &View, draft: &Revocation) -> Vec<ServiceName> {
    let RevocationTarget::Identity(id) = &draft.target else { return Vec::new() };
    let only = |s: &&hanse_federation::Service| {
        !draft.reissue && s.identities.len() == 1 && s.identities.contains(id)
    };
    view.services.values().filter(only).map(|s| s.name.clone()).collect()
}

/// Live connections in this cluster that a revocation would hit.
pub async fn own_reach(context: &Context, revocation: &Revocation) -> PreviewReach {
    let query = Query::Live { revocation: Box::new(revocation.clone()) };
    let live = gather(context, &query).await.live();
    PreviewReach {
        cluster: context.cluster.clone(),
        live_connections: live.connections,
        callers: live.callers.into_iter().collect(),
        answered: live.answered,
        asked: live.asked,
        error: None,
    }
}

pub async fn revoke(call: Call, request: RevokeRequest) -> Result<Revoked, Status> {
    let RevokeRequest { target, reason, note, reissue, closing } = request;
    let expires = match &target {
        // Of a number that the index does not know: no certificate can outlive the longest lifetime.
        RevocationTarget::Serial(_) => Some(call.context.time() + MAX_LIFETIME + CLOCK_MARGIN),
        _ => None,
    };
    let command = Command::Revoke { target, reason, note, expires, reissue, closing };
    match call.write(command).await? {
        (revision, Answer::Revoked(id)) => {
            let state = call.context.handle.state();
            let expires = state.view.revocations.get(&id).map_or(expires, |r| r.expires);
            Ok(Revoked { id, revision, expires })
        }
        (revision, answer) => Err(Status::internal(format!("revoking at {revision} answered {answer:?}"))),
    }
}

pub async fn status(call: Call, request: RevokeStatusRequest) -> Result<Receipt, Status> {
    let state = call.read().await.state;
    receipt(&call.context, &state, &request.id).await
}

/// How far a revocation is enforced, here and in every cluster that is told of it.
pub async fn receipt(context: &Context, state: &State, id: &RevocationId) -> Result<Receipt, Status> {
    let Some(revocation) = state.view.revocations.get(id) else {
        return Err(refused(&Refusal::NotFound { what: format!("revocation {id}") }));
    };
    // Peers hear of what concerns our own names. A hold on somebody else's, and what they told us, is theirs.
    let told = revocation.is_of(&context.trust_domain);
    let question = PeerQuestion::Revocation(RevokeStatusRequest { id: id.clone() });
    let ((own, proof), theirs) =
        tokio::join!(own_part(context, id), answers::<ReceiptPart>(context, state, question, told));
    let mut parts = vec![own];
    for (cluster, part) in theirs {
        parts.push(part.unwrap_or_else(|error| ReceiptPart::unreachable(cluster, error)));
    }
    let gates = gates(context, state, revocation).await;
    let intermediates = IntermediateItem::hit(state, revocation, now());
    let receipt = Receipt::new(id.clone(), parts).with_proof(proof).with_gates(gates);
    Ok(receipt.with_intermediates(intermediates))
}

/// How far the replacement of a revoked authority is; none if it is nobody's any more, or another rotation has followed.
async fn gates(context: &Context, state: &State, revocation: &Revocation) -> Option<Gates> {
    let rotation =
        state.private.rotation.as_ref().filter(|r| r.revocation.as_ref() == Some(&revocation.id))?;
    let waits_for = match rotation.is_running() {
        true => measure(context, state).await.waits_for,
        false => Vec::new(),
    };
    Some(Gates { rotation: rotation.id, gate: rotation.gate, reached: rotation.reached.clone(), waits_for })
}

/// This cluster's part of a receipt, and what its agents saw that showed what is revoked.
pub async fn own_part(context: &Context, id: &RevocationId) -> (ReceiptPart, Proof) {
    let (mut subscribers, silent) =
        gather(context, &Query::Revocation { id: id.clone() }).await.subscribers();
    let state = context.handle.state();
    // Who is put out by it and has gone is nobody to wait for: whatever it holds is refused by the others.
    let put_out = state.view.revocations.get(id).and_then(|r| r.silences());
    let has_gone = |s: &Subscriber| !s.connected && s.kind == SubscriberKind::Agent;
    subscribers.retain(|s| !(has_gone(s) && put_out.as_ref() == Some(&s.identity)));
    // Nor is the word of who is put out a proof of anything.
    let believed = |s: &Subscriber| state.view.revocations.of_identity(&s.identity).is_none();
    subscribers.iter_mut().filter(|s| !believed(s)).for_each(|s| s.proofs.clear());
    let proof = Proof::of(id, &merged(subscribers.iter().cloned()));
    let revision = context.revisions.of(&state.view, id);
    (part_of(context.cluster.clone(), id, revision, subscribers, silent), proof)
}

/// What every peer says; nobody is asked if it is not `theirs_too`: they answer only about our own names.
async fn answers<A: DeserializeOwned>(
    context: &Context,
    state: &State,
    question: PeerQuestion,
    theirs_too: bool,
) -> Vec<(ClusterName, Result<A, String>)> {
    match theirs_too {
        true => ask_peers(context, state, &Question::Revocation(question)).await,
        false => Vec::new(),
    }
}

pub async fn list(call: Call, _: RevokeListRequest) -> Result<Listing<RevocationItem>, Status> {
    let context = &call.context;
    let (subscribers, silent) = gather(context, &Query::Subscribers).await.subscribers();
    let mut reading = call.read().await;
    reading.silent(&silent);
    let view = &reading.state.view;
    let subscribers = merged(subscribers);
    let items = view
        .revocations
        .iter()
        .map(|revocation| {
            let revision = context.revisions.of(view, &revocation.id);
            let enforces = |s: &&Subscriber| revision.is_some_and(|at| s.applied >= at);
            RevocationItem {
                can_be_lifted: revocation.can_be_lifted(),
                enforced: subscribers.iter().filter(enforces).count(),
                subscribers: subscribers.len(),
                revocation: revocation.clone(),
            }
        })
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

pub async fn lift(call: Call, request: RevokeLiftRequest) -> Result<Written, Status> {
    call.written(Command::Lift { id: request.id }).await
}
