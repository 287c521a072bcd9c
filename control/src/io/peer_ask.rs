//! Asking the joined clusters something: all of them at the same time, each endpoint after endpoint, within a bound.

use std::time::Duration;

use futures_util::future::join_all;
use hanse_federation::Peer;
use hanse_federation::wire::{decode, encode};
use hanse_identity::ClusterName;
use serde::de::DeserializeOwned;

use super::context::Context;
use super::dial;
use crate::admin::{BundleQuestion, PeerQuestion};
use crate::state::State;
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// How long one peer may take to answer; it asks its own nodes and subscribers meanwhile.
const PEER_TIMEOUT: Duration = Duration::from_secs(3);

/// What a peer answers to a node of ours.
pub enum Question {
    /// How far a revocation of ours is in force there, or whom it would hit.
    Revocation(PeerQuestion),
    /// How our bundle stands there.
    Bundle(BundleQuestion),
}

/// Every peer's answer, or why there is none.
pub async fn ask_peers<A: DeserializeOwned>(
    context: &Context,
    state: &State,
    question: &Question,
) -> Vec<(ClusterName, Result<A, String>)> {
    ask_these(context, state.view.peers.values(), question).await
}

/// The same, of some of them.
pub async fn ask_these<'p, A: DeserializeOwned>(
    context: &Context,
    peers: impl Iterator<Item = &'p Peer>,
    question: &Question,
) -> Vec<(ClusterName, Result<A, String>)> {
    let asked = peers.map(|peer| async move {
        let answer = tokio::time::timeout(PEER_TIMEOUT, ask(context, peer, question)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PEER_TIMEOUT:?}")));
        (peer.record.cluster.clone(), answer)
    });
    join_all(asked).await
}

async fn ask<A: DeserializeOwned>(context: &Context, peer: &Peer, question: &Question) -> Result<A, String> {
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
        let answered = match question {
            Question::Revocation(q) => client.revocation_status(Document { json: encode(q) }).await,
            Question::Bundle(q) => client.bundle_status(Document { json: encode(q) }).await,
        };
        match answered {
            Ok(reply) => return decode("peer answer", &reply.into_inner().json).map_err(|e| e.to_string()),
            Err(status) => last = status.message().to_owned(),
        }
    }
    Err(last)
}
