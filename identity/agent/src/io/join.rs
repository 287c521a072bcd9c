//! Joining: from a token to this agent's own SVID.

use std::time::Duration;

use hanse_identity::name::MemberRole;
use hanse_identity::svid::Svid;
use hanse_identity::token::{JoinToken, agent_join_request};
use hanse_identity::wire::issue::{JoinAgentReply, JoinAgentRequest};
use hanse_identity::{Bundle, NodeName, Revocations, SpiffeId, Trust, Usage, renewal, tls, verify};
use tonic::Code;
use zeroize::Zeroizing;

use super::control_link::{ALPN_H2, dial};
use super::store::{Store, StoreError, StoredIdentity, StoredJoin};
use super::svids::{MakeError, key_and_request};
use super::{jitter, now};
use crate::wire::issue::issue_client::IssueClient;

/// How long a control node may take to admit the agent; it commits to the cluster's log before it answers.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the agent could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] MakeError),
    #[error("the token and --control name no control node")]
    NoEndpoint,
    #[error("every control node refuses: {0}")]
    Refused(String),
    #[error("join token {0} is there instead")]
    Overtaken(String),
    #[error("the join token expired before a control node could be reached; last: {0}")]
    Expired(String),
}

/// Why one control node did not admit the agent.
#[derive(Debug)]
enum Attempt {
    /// Another time or another node may do.
    Failed(String),
    /// It has decided.
    Refused(String),
}

/// Joins the cluster of the token; tries every control node until one admits, all refuse, or the token expires.
pub async fn join(
    token: &JoinToken,
    agent: &NodeName,
    extra_endpoints: &[String],
    store: &Store,
) -> Result<StoredIdentity, JoinError> {
    let mut endpoints = token.endpoints.clone();
    endpoints.extend(extra_endpoints.iter().filter(|e| !token.endpoints.contains(e)).cloned());
    if endpoints.is_empty() {
        return Err(JoinError::NoEndpoint);
    }
    let request = begin(token, store)?;
    for round in 0.. {
        let (mut refusals, mut last) = (0, String::new());
        for endpoint in &endpoints {
            match attempt(token, agent, &request, endpoint).await {
                Ok(mut identity) => {
                    identity.endpoints = endpoints;
                    store.write_identity(&identity)?;
                    store.remove_joining()?;
                    return Ok(identity);
                }
                Err(Attempt::Refused(reason)) => {
                    tracing::warn!(endpoint, reason, "a control node refuses the join");
                    (refusals, last) = (refusals + 1, reason);
                }
                Err(Attempt::Failed(reason)) => {
                    tracing::warn!(endpoint, reason, "joining at a control node failed");
                    last = reason;
                }
            }
        }
        if refusals == endpoints.len() {
            return Err(JoinError::Refused(last));
        }
        if token.expires <= now() {
            return Err(JoinError::Expired(last));
        }
        tokio::time::sleep(renewal::retry_after(round, jitter())).await;
    }
    unreachable!("the rounds do not end")
}

/// The key and request of this join: those of an earlier run with the same token, or new ones, kept first.
fn begin(token: &JoinToken, store: &Store) -> Result<StoredJoin, JoinError> {
    if let Some(begun) = store.joining(&token.invite)? {
        return Ok(begun);
    }
    let (key, csr) = key_and_request()?;
    let joining = StoredJoin { invite: token.invite.clone(), key: key.to_vec(), csr };
    store.write_joining(&joining)?;
    Ok(joining)
}

async fn attempt(
    token: &JoinToken,
    agent: &NodeName,
    joining: &StoredJoin,
    endpoint: &str,
) -> Result<StoredIdentity, Attempt> {
    let config = tls::pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let dialed = dial(endpoint, config).await.map_err(|e| Attempt::Failed(e.to_string()))?;
    let proof = token.prove(&dialed.binding, &agent_join_request(agent, &joining.csr));
    let request = JoinAgentRequest {
        invite: token.invite.clone(),
        agent: agent.to_string(),
        csr_der: joining.csr.clone(),
        proof: proof.map_err(|e| Attempt::Refused(e.to_string()))?,
    };
    let mut client = IssueClient::new(dialed.channel);
    let reply = tokio::time::timeout(JOIN_TIMEOUT, client.join_agent(request)).await;
    let reply = reply.map_err(|_| Attempt::Failed("no answer in time".to_owned()))?.map_err(|status| {
        let reason = format!("{:?}: {}", status.code(), status.message());
        if decided(status.code()) { Attempt::Refused(reason) } else { Attempt::Failed(reason) }
    })?;
    accept(token, agent, joining, reply.into_inner()).map_err(Attempt::Failed)
}

/// Whether the same request would get the same answer again.
fn decided(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        PermissionDenied | Unauthenticated | InvalidArgument | NotFound | AlreadyExists | FailedPrecondition
    )
}

/// Believes the answer only as far as it fits the token and verifies.
fn accept(
    token: &JoinToken,
    agent: &NodeName,
    joining: &StoredJoin,
    reply: JoinAgentReply,
) -> Result<StoredIdentity, String> {
    if reply.cluster != token.cluster.as_str() || reply.trust_domain != token.trust_domain.as_str() {
        return Err(format!("the answer is of cluster {:?}, the token of {}", reply.cluster, token.cluster));
    }
    let bundle: Bundle = serde_json::from_slice(&reply.bundle).map_err(|e| format!("the bundle: {e}"))?;
    bundle.check().map_err(|e| format!("the bundle: {e}"))?;
    if bundle.trust_domain != token.trust_domain || !bundle.pins().iter().any(|pin| token.pins.contains(pin))
    {
        return Err("the bundle is not the one that the token speaks of".to_owned());
    }
    let svid = Svid::new(reply.chain_der, Zeroizing::new(joining.key.clone()));
    let svid = svid.map_err(|e| format!("the SVID: {e}"))?;
    let own = SpiffeId::member(&token.trust_domain, MemberRole::Agent, agent);
    if svid.facts.id != own {
        return Err(format!("the SVID is of {}, not {own}", svid.facts.id));
    }
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    let trust = Trust::new([&bundle], Revocations::default());
    verify(&trust, &chain, now(), Usage::Client).map_err(|e| format!("the SVID: {e}"))?;
    let mut identity = StoredIdentity {
        name: agent.clone(),
        cluster: token.cluster.clone(),
        trust_domain: token.trust_domain.clone(),
        chain_pem: String::new(),
        key_pem: String::new(),
        bundle,
        endpoints: Vec::new(),
        invite: token.invite.clone(),
    };
    identity.set_svid(&svid);
    Ok(identity)
}
