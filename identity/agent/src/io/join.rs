//! Joining: from a token, or a certificate of the host's own, to this agent's own SVID.

use std::time::Duration;

use hanse_identity::name::MemberRole;
use hanse_identity::svid::Svid;
use hanse_identity::token::{JoinToken, agent_join_request};
use hanse_identity::wire::issue::{AttestAgentRequest, JoinAgentReply, JoinAgentRequest};
use hanse_identity::{
    Bundle, KeyId, NodeName, Revocations, SpiffeId, Timestamp, Trust, TrustDomain, Usage, renewal, tls,
    verify,
};
use tonic::{Code, Response, Status};
use zeroize::Zeroizing;

use super::dial::{ALPN_H2, Dialed, dial};
use super::host::HostProof;
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
    #[error("no control node is named")]
    NoEndpoint,
    #[error("every control node refuses: {0}")]
    Refused(String),
    #[error("join token {0} is there instead")]
    Overtaken(String),
    #[error("the join token expired before a control node could be reached; last: {0}")]
    Expired(String),
}

/// By what the host is proved.
#[derive(Debug)]
pub enum Proof {
    Token(JoinToken),
    /// The host's own certificate.
    Host(HostProof),
}

impl Proof {
    /// Under which name a join that has begun is kept, and the identity that it ends in.
    pub fn invite(&self) -> &str {
        match self {
            Self::Token(token) => &token.invite,
            Self::Host(host) => &host.invite,
        }
    }

    fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Token(token) => &token.trust_domain,
            Self::Host(host) => &host.trust_domain,
        }
    }

    fn pins(&self) -> &[KeyId] {
        match self {
            Self::Token(token) => &token.pins,
            Self::Host(host) => &host.pins,
        }
    }

    fn endpoints(&self) -> &[String] {
        match self {
            Self::Token(token) => &token.endpoints,
            Self::Host(host) => &host.endpoints,
        }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        matches!(self, Self::Token(token) if token.expires <= now)
    }

    /// Asks with a proof that is of this connection.
    async fn ask(
        &self,
        dialed: Dialed,
        agent: &NodeName,
        csr_der: &[u8],
    ) -> Result<Result<Response<JoinAgentReply>, Status>, Attempt> {
        let (binding, mut client) = (dialed.binding, IssueClient::new(dialed.channel));
        let (agent_text, csr) = (agent.to_string(), csr_der.to_vec());
        match self {
            Self::Token(token) => {
                let proof = token.prove(&binding, &agent_join_request(agent, csr_der));
                let proof = proof.map_err(|e| Attempt::Refused(e.to_string()))?;
                let invite = token.invite.clone();
                Ok(client
                    .join_agent(JoinAgentRequest { invite, agent: agent_text, csr_der: csr, proof })
                    .await)
            }
            Self::Host(host) => {
                let signature = host.key.prove(&host.trust_domain, &binding, agent, csr_der);
                let signature = signature.map_err(|e| Attempt::Refused(e.to_string()))?;
                let chain_der = host.key.chain.clone();
                let request = AttestAgentRequest { agent: agent_text, csr_der: csr, chain_der, signature };
                Ok(client.attest_agent(request).await)
            }
        }
    }
}

/// Why one control node did not admit the agent.
#[derive(Debug)]
enum Attempt {
    /// Another time or another node may do.
    Failed(String),
    /// It has decided.
    Refused(String),
}

/// Joins the cluster; tries every control node until one admits, all refuse, or the token, if it is one, expires.
pub async fn join(
    by: &Proof,
    agent: &NodeName,
    extra_endpoints: &[String],
    store: &Store,
) -> Result<StoredIdentity, JoinError> {
    let mut endpoints = by.endpoints().to_vec();
    endpoints.extend(extra_endpoints.iter().filter(|e| !by.endpoints().contains(e)).cloned());
    if endpoints.is_empty() {
        return Err(JoinError::NoEndpoint);
    }
    let request = begin(by, store)?;
    for round in 0.. {
        let (mut refusals, mut last) = (0, String::new());
        for endpoint in &endpoints {
            match attempt(by, agent, &request, endpoint).await {
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
        if by.is_over(now()) {
            return Err(JoinError::Expired(last));
        }
        tokio::time::sleep(renewal::retry_after(round, jitter())).await;
    }
    unreachable!("the rounds do not end")
}

/// The key and request of this join: those of an earlier run with the same proof, or new ones, kept first.
fn begin(by: &Proof, store: &Store) -> Result<StoredJoin, JoinError> {
    if let Some(begun) = store.joining(by.invite())? {
        return Ok(begun);
    }
    let (key, csr) = key_and_request()?;
    let joining = StoredJoin { invite: by.invite().to_owned(), key: key.to_vec(), csr };
    store.write_joining(&joining)?;
    Ok(joining)
}

async fn attempt(
    by: &Proof,
    agent: &NodeName,
    joining: &StoredJoin,
    endpoint: &str,
) -> Result<StoredIdentity, Attempt> {
    let config = tls::pinned_client_config(by.trust_domain(), by.pins(), ALPN_H2);
    let dialed = dial(endpoint, config).await.map_err(|e| Attempt::Failed(e.to_string()))?;
    let reply = tokio::time::timeout(JOIN_TIMEOUT, by.ask(dialed, agent, &joining.csr)).await;
    let reply = reply.map_err(|_| Attempt::Failed("no answer in time".to_owned()))??.map_err(|status| {
        let reason = format!("{:?}: {}", status.code(), status.message());
        if decided(status.code()) { Attempt::Refused(reason) } else { Attempt::Failed(reason) }
    })?;
    accept(by, agent, joining, reply.into_inner()).map_err(Attempt::Failed)
}

/// Whether the same request would get the same answer again.
fn decided(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        PermissionDenied | Unauthenticated | InvalidArgument | NotFound | AlreadyExists | FailedPrecondition
    )
}

/// Believes the answer only as far as it fits what was known before, and verifies.
fn accept(
    by: &Proof,
    agent: &NodeName,
    joining: &StoredJoin,
    reply: JoinAgentReply,
) -> Result<StoredIdentity, String> {
    let trust_domain = by.trust_domain();
    if reply.trust_domain != trust_domain.as_str() {
        return Err(format!("the answer is of trust domain {:?}, not {trust_domain}", reply.trust_domain));
    }
    let cluster = reply.cluster.parse().map_err(|e| format!("the answer: {e}"))?;
    if let Proof::Token(token) = by
        && cluster != token.cluster
    {
        return Err(format!("the answer is of cluster {cluster}, the token of {}", token.cluster));
    }
    let bundle: Bundle = serde_json::from_slice(&reply.bundle).map_err(|e| format!("the bundle: {e}"))?;
    bundle.check().map_err(|e| format!("the bundle: {e}"))?;
    if bundle.trust_domain != *trust_domain || !bundle.pins().iter().any(|pin| by.pins().contains(pin)) {
        return Err("the bundle is not the one that was expected".to_owned());
    }
    let svid = Svid::new(reply.chain_der, Zeroizing::new(joining.key.clone()));
    let svid = svid.map_err(|e| format!("the SVID: {e}"))?;
    let own = SpiffeId::member(trust_domain, MemberRole::Agent, agent);
    if svid.facts.id != own {
        return Err(format!("the SVID is of {}, not {own}", svid.facts.id));
    }
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    let trust = Trust::new([&bundle], Revocations::default());
    verify(&trust, &chain, now(), Usage::Client).map_err(|e| format!("the SVID: {e}"))?;
    let mut identity = StoredIdentity {
        name: agent.clone(),
        cluster,
        trust_domain: trust_domain.clone(),
        chain_pem: String::new(),
        key_pem: String::new(),
        bundle,
        endpoints: Vec::new(),
        invite: by.invite().to_owned(),
        spare: None,
    };
    identity.set_svid(&svid);
    Ok(identity)
}
