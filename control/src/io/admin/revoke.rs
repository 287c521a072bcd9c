//! Revocation: the blast radius before, the Command, and the receipt after: in this cluster and in every joined one.

use std::time::Duration;

use futures_util::future::join_all;
use hanse_federation::View;
use hanse_federation::wire::{decode, encode};
use hanse_identity::grant::MAX_LIFETIME;
use hanse_identity::{RevocationId, RevocationTarget, ServiceName};
use serde::de::DeserializeOwned;
use tonic::Status;

use super::Call;
use crate::admin::{
    Listing, PeerQuestion, PreviewReach, Receipt, ReceiptPart, RevocationItem, RevokeLiftRequest,
    RevokeListRequest, RevokePreview, RevokePreviewRequest, RevokeRequest, RevokeStatusRequest, Revoked,
    Written, merged, part_of,
};
use crate::command::{Answer, Command, Refusal};
use crate::io::census::{Query, Subscriber, gather};
use crate::io::context::{Context, now};
use crate::io::dial;
use crate::io::status::refused;
use crate::state::State;
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// How long one peer may take to answer; it asks its own nodes and subscribers meanwhile.
const PEER_TIMEOUT: Duration = Duration::from_secs(3);
/// A certificate may have been signed this much later than our clock says.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);

pub async fn preview(call: Call, request: RevokePreviewRequest) -> Result<RevokePreview, Status> {
    let context = &call.context;
    let mut reading = call.read().await;
    let state = reading.state.clone();
    let question = PeerQuestion::Live(request.clone());
    let (own, theirs, gathered) = tokio::join!(
        own_reach(context, &request.target),
        ask_peers::<PreviewReach>(context, &state, &question, &request.target),
        gather(context, &Query::Subscribers),
    );
    let (subscribers, silent) = gathered.subscribers();
    reading.silent(&silent);
    let mut reach = vec![own];
    for (cluster, answer) in theirs {
        reach.push(answer.unwrap_or_else(|error| PreviewReach {
            cluster,
            live_connections: 0,
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
        holders: holders(&request.target, merged(subscribers)),
        registrations: match &request.target {
            RevocationTarget::Identity(id) => state.registrations_of(id).count(),
            RevocationTarget::Serial(_) => 0,
        },
        sole_server_of: sole_server_of(&state.view, &request.target),
        reach,
        target: request.target,
        meta: reading.meta,
        warnings: reading.warnings,
    })
}

fn holders(target: &RevocationTarget, subscribers: Vec<Subscriber>) -> Vec<String> {
    match target {
        RevocationTarget::Identity(id) => {
            subscribers.into_iter().filter(|s| s.identity == *id).map(|s| s.name.to_string()).collect()
        }
        RevocationTarget::Serial(_) => Vec::new(),
    }
}

fn sole_server_of(view: &View, target: &RevocationTarget) -> Vec<ServiceName> {
    let RevocationTarget::Identity(id) = target else { return Vec::new() };
    let only = |s: &&hanse_federation::Service| s.identities.len() == 1 && s.identities.contains(id);
    view.services.values().filter(only).map(|s| s.name.clone()).collect()
}

/// Live connections of the target in this cluster.
pub async fn own_reach(context: &Context, target: &RevocationTarget) -> PreviewReach {
    let live = gather(context, &Query::Live { target: target.clone() }).await.live();
    PreviewReach {
        cluster: context.cluster.clone(),
        live_connections: live.connections,
        answered: live.answered,
        asked: live.asked,
        error: None,
    }
}

pub async fn revoke(call: Call, request: RevokeRequest) -> Result<Revoked, Status> {
    let expires = match &request.target {
        // No certificate of that number can outlive the longest lifetime that is granted.
        RevocationTarget::Serial(_) => Some(now() + MAX_LIFETIME + CLOCK_MARGIN),
        RevocationTarget::Identity(_) => None,
    };
    let command =
        Command::Revoke { target: request.target, reason: request.reason, note: request.note, expires };
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
    let context = &call.context;
    let state = call.read().await.state;
    let Some(revocation) = state.view.revocations.get(&request.id) else {
        return Err(refused(&Refusal::NotFound { what: format!("revocation {}", request.id) }));
    };
    // Peers hear of what concerns our own names. A hold on somebody else's, and what they told us, is theirs.
    let told =
        revocation.id.origin == context.trust_domain && *revocation.trust_domain() == context.trust_domain;
    let question = PeerQuestion::Revocation(request.clone());
    let asked = async {
        if told {
            ask_peers::<ReceiptPart>(context, &state, &question, &revocation.target).await
        } else {
            Vec::new()
        }
    };
    let (own, theirs) = tokio::join!(own_part(context, &request.id), asked);
    let mut parts = vec![own];
    for (cluster, part) in theirs {
        parts.push(part.unwrap_or_else(|error| ReceiptPart::unreachable(cluster, error)));
    }
    Ok(Receipt::new(request.id, parts))
}

/// This cluster's part of a receipt.
pub async fn own_part(context: &Context, id: &RevocationId) -> ReceiptPart {
    let (subscribers, silent) = gather(context, &Query::Revocation { id: id.clone() }).await.subscribers();
    let revision = context.revisions.of(&context.handle.state().view, id);
    part_of(context.cluster.clone(), id, revision, subscribers, silent)
}

/// Asks every peer the same, at the same time.
async fn ask_peers<A: DeserializeOwned>(
    context: &Context,
    state: &State,
    question: &PeerQuestion,
    target: &RevocationTarget,
) -> Vec<(hanse_identity::ClusterName, Result<A, String>)> {
    let asked = state.view.peers.values().map(|peer| async move {
        let cluster = peer.record.cluster.clone();
        if let RevocationTarget::Identity(id) = target
            && *id.trust_domain() != context.trust_domain
        {
            // They answer only about our own names.
            return None;
        }
        let answer = tokio::time::timeout(PEER_TIMEOUT, ask_peer(context, peer, question)).await;
        Some((cluster, answer.unwrap_or_else(|_| Err(format!("no answer within {PEER_TIMEOUT:?}")))))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask_peer<A: DeserializeOwned>(
    context: &Context,
    peer: &hanse_federation::Peer,
    question: &PeerQuestion,
) -> Result<A, String> {
    let tls = context.node_tls(&peer.record.trust_domain);
    let mut last = "it has no endpoint".to_owned();
    for endpoint in &peer.record.endpoints {
        let link = match dial::connect(endpoint, tls.clone()).await {
            Ok(link) => link,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let mut client = PeerClient::new(link.channel);
        match client.revocation_status(Document { json: encode(question) }).await {
            Ok(reply) => return decode("peer answer", &reply.into_inner().json).map_err(|e| e.to_string()),
            Err(status) => last = status.message().to_owned(),
        }
    }
    Err(last)
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
