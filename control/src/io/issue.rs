//! Issue: agents join, renew, and fetch SVIDs for the workloads they have attested.
//!
//! Who may have what is `identity::grant`'s decision; single use of an invite is the log's. While there is no
//! quorum, SVIDs are still renewed from the State that this node has.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use hanse_federation::wire::encode;
use hanse_identity::grant::{self, grant_member};
use hanse_identity::issue::Issued;
use hanse_identity::jwt::JwtIssueError;
use hanse_identity::name::MemberRole;
use hanse_identity::proof::HeldProof;
use hanse_identity::token::{Admits, Invite, agent_join_request};
use hanse_identity::wire::AgentState;
use hanse_identity::wire::issue::{
    AgentDown, AgentUp, AttestAgentRequest, DownstreamReply, DownstreamRequest, IssueJwtRequest,
    IssueSvidRequest, JoinAgentReply, JoinAgentRequest, JwtReply, RenewAgentRequest, SvidReply,
};
use hanse_identity::{
    Bundle, Evidence, NodeName, Registration, Selector, SpiffeId, Ticket, Timestamp, issue, verify_host,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::authorities::signing_key;
use super::census::{SdsReport, StreamKey};
use super::context::{Context, now, stopped};
use super::issuance::Recorded;
use super::keys::random_serial;
use super::quorum::{CLOCK_CONTRADICTED, Leash, NO_QUORUM, NODE_REVOKED};
use super::roles::{caller_of, connection_of};
use super::status::{answered, no_outcome, refused};
use super::watch::SIGN_OF_LIFE;
use crate::admin::SubscriberKind;
use crate::command::Command;
use crate::state::State;
use crate::state::hosts::HostJoin;
use crate::state::issuance::{IssuedRecord, IssuedSvid, MAX_ISSUED_PER_AGENT};
use crate::wire::issue::issue_server::Issue;

/// How long an SVID waits for a read that has seen every acknowledged revocation, before the local State decides.
const FRESH_READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Most selectors that an agent may report of one caller: most of them are its groups, by number and by name.
const MAX_SELECTORS: usize = 1024;
/// States that wait for a slow agent; each is complete, so more would be of no use.
const AGENT_QUEUE: usize = 4;
/// How long an agent that is out may take to say that it has heard so: a receipt counts that. Less than the time for
/// which its connection is borne.
const LAST_WORD: Duration = Duration::from_millis(400);
/// An agent is told a newer revision at least this often, even if nothing of it concerns the agent.
const AGENT_REFRESH: Duration = Duration::from_secs(5);

/// The service.
pub struct IssueService {
    context: Arc<Context>,
}

impl IssueService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Signs, and has the SVID recorded before anybody gets it. `state` is what the ticket was granted in. It is let go
    /// before the log is waited for: whoever holds an old State makes the node copy the next one.
    async fn sign(
        &self,
        state: Arc<State>,
        agent: &NodeName,
        ticket: Ticket,
        csr_der: &[u8],
    ) -> Result<Vec<Vec<u8>>, Status> {
        let (issued, record) = self.signed(&state, agent, ticket, csr_der)?;
        drop(state);
        let recorded = match self.context.recorder.record(record).await {
            Recorded::Yes => true,
            Recorded::Owed => false,
            Recorded::Refused => {
                return Err(Status::unavailable("it was revoked while it was being issued: ask again"));
            }
            Recorded::Overloaded => {
                return Err(Status::resource_exhausted("too many SVIDs wait to be recorded: ask again"));
            }
        };
        self.context.metrics.svid_issued.inc();
        let facts = &issued.facts;
        tracing::info!(id = %facts.id, serial = %facts.serial, not_after = %facts.not_after, recorded, "SVID issued");
        Ok(issued.chain)
    }

    /// An SVID that nobody may have yet, and its record.
    fn signed(
        &self,
        state: &State,
        agent: &NodeName,
        ticket: Ticket,
        csr_der: &[u8],
    ) -> Result<(Issued, IssuedRecord), Status> {
        let context = &self.context;
        self.may_sign(state)?;
        let now = self.time_to_sign()?;
        if state.private.issued.of_agent(agent) >= MAX_ISSUED_PER_AGENT {
            return Err(Status::resource_exhausted(format!(
                "{MAX_ISSUED_PER_AGENT} certificates of agent {agent} and its workloads live: no more are issued before some end"
            )));
        }
        let none = || Status::unavailable("none of this node's authorities signs at the moment: ask again");
        let signer = context.signing_authority(state).ok_or_else(none)?;
        let issued = issue(ticket, csr_der, &signer, random_serial(), now)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let facts = &issued.facts;
        let authority = signing_key(&signer);
        // A key that has been revoked gets no new certificate either, and no revoked authority signs.
        if let Some(revocation) = state.view.revocations.check_from(facts, &[authority]) {
            let why = format!("what {} asks for is revoked by {}", facts.id, revocation.id);
            return Err(Status::permission_denied(why));
        }
        let svid = Arc::new(IssuedSvid {
            serial: facts.serial.clone(),
            id: facts.id.clone(),
            key: facts.key_id,
            authority,
            agent: agent.clone(),
            node: context.name.clone(),
            issued: Some(now),
            not_after: facts.not_after,
            downstream: false,
        });
        let record = IssuedRecord { svid, granted: state.view.revision.0, handed_out: false };
        Ok((issued, record))
    }

    /// The time by which this node signs, if its clock is not contradicted.
    fn time_to_sign(&self) -> Result<Timestamp, Status> {
        let time = self.context.handle.clock().to_sign_by();
        time.inspect_err(|_| {
            self.context.metrics.signings_refused.inc();
        })
    }

    /// Nothing more is signed by a revoked node. That is no decision about who asks: another node gives it.
    fn may_sign(&self, state: &State) -> Result<(), Status> {
        match state.node_revocation(&self.context.name) {
            Some(_) => Err(Status::unavailable(NODE_REVOKED)),
            None => Ok(()),
        }
    }

    fn member_ticket(&self, state: &State, id: &SpiffeId) -> Result<Ticket, Status> {
        let context = &self.context;
        grant_member(&context.trust_domain, &state.view.revocations, id, context.member_lifetime)
            .map_err(|e| refused_ticket(&e))
    }

    /// Decides whether the workload that the agent vouches for may have that identity.
    fn workload_ticket(
        &self,
        state: &State,
        agent: NodeName,
        id: &str,
        selectors: &[String],
    ) -> Result<Ticket, Status> {
        let invalid = |e: String| Status::invalid_argument(e);
        let id: SpiffeId = id.parse().map_err(|e: hanse_identity::NameError| invalid(e.to_string()))?;
        if selectors.len() > MAX_SELECTORS {
            return Err(Status::invalid_argument(format!("more than {MAX_SELECTORS} selectors")));
        }
        // A newer agent may know kinds that this node does not: they prove nothing here, and take nothing away.
        let selectors: BTreeSet<Selector> = selectors.iter().filter_map(|s| s.parse().ok()).collect();
        let evidence = Evidence { agent, selectors };
        if let Some(why) = state.agent_refused(&evidence.agent) {
            return Err(Status::permission_denied(why));
        }
        grant::grant(
            &self.context.trust_domain,
            state.registrations_of(&id),
            &state.view.revocations,
            &evidence,
            &id,
        )
        .map_err(|e| {
            tracing::warn!(%id, agent = %evidence.agent, why = %e, "SVID refused");
            refused_ticket(&e)
        })
    }

    /// Commits that an agent joins, and gives it its first SVID.
    async fn admit(
        &self,
        agent: &NodeName,
        command: Command,
        csr_der: &[u8],
    ) -> Result<Response<JoinAgentReply>, Status> {
        let context = &self.context;
        let id = SpiffeId::member(&context.trust_domain, MemberRole::Agent, agent);
        let outcome = context.handle.propose(&id.to_string(), command).await.map_err(|e| no_outcome(&e))?;
        answered(outcome)?;
        let state = context.handle.state();
        let bundle = encode(own_bundle(&state)?);
        let ticket = self.member_ticket(&state, &id)?;
        let chain_der = self.sign(state, agent, ticket, csr_der).await?;
        tracing::info!(%agent, "agent joined");
        Ok(Response::new(JoinAgentReply {
            cluster: context.cluster.to_string(),
            trust_domain: context.trust_domain.to_string(),
            chain_der,
            bundle,
        }))
    }

    /// The State with every acknowledged revocation in it, or what there is while there is no quorum.
    async fn fresh_state(&self) -> Arc<State> {
        let handle = &self.context.handle;
        if handle.status().leader.is_none() {
            return handle.state();
        }
        match tokio::time::timeout(FRESH_READ_TIMEOUT, handle.read()).await {
            Ok(Ok(state)) => state,
            _ => handle.state(),
        }
    }
}

fn own_bundle(state: &State) -> Result<&Bundle, Status> {
    let bundle = state.view.bundles.get(&state.view.trust_domain);
    bundle.ok_or_else(|| Status::internal("the cluster has no bundle of its own"))
}

fn refused_ticket(refusal: &hanse_identity::Refusal) -> Status {
    Status::permission_denied(refusal.to_string())
}

/// SHA-256 in hex: how the log recognises the same request again.
pub fn request_hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// At which time an invite's proof is to be checked. One that has been used is not refused for its age: the log
/// answers the same request again, and no other.
pub fn proof_time(invite: &Invite) -> Timestamp {
    let now = now();
    if invite.used_by.is_some() { now.min(invite.made) } else { now }
}

/// The agent that called, by its own SVID.
fn agent_of<T>(request: &Request<T>) -> Result<(NodeName, SpiffeId), Status> {
    let id = caller_of(request)?.id().clone();
    match id.as_member() {
        Some((MemberRole::Agent, name)) => {
            let name = name.parse().map_err(|e| Status::permission_denied(format!("{e}")))?;
            Ok((name, id))
        }
        _ => Err(Status::permission_denied("only an agent may ask this")),
    }
}

#[tonic::async_trait]
impl Issue for IssueService {
    async fn join_agent(
        &self,
        request: Request<JoinAgentRequest>,
    ) -> Result<Response<JoinAgentReply>, Status> {
        // First: what is refused for another reason is not asked again elsewhere.
        self.time_to_sign()?;
        let info = connection_of(&request)?;
        self.context.joining.from(info.remote.ip())?;
        let (binding, request) = (info.binding, request.into_inner());
        let agent: NodeName = request
            .agent
            .parse()
            .map_err(|e: hanse_identity::NameError| Status::invalid_argument(e.to_string()))?;
        let signed = agent_join_request(&agent, &request.csr_der);
        let state = self.context.handle.read().await.map_err(|e| no_outcome(&e))?;
        // One answer for a token that never was and a proof that does not fit: nothing to learn by guessing.
        let unknown =
            || Status::permission_denied("the join token is not known here, or its proof does not fit");
        let invite = state.private.invites.get(&request.invite).ok_or_else(unknown)?;
        if invite.admits != Admits::Agent(agent.clone()) {
            return Err(unknown());
        }
        invite.check(&binding, &signed, &request.proof, proof_time(invite)).map_err(|e| match e {
            hanse_identity::token::TokenError::Expired(_) => Status::permission_denied(e.to_string()),
            _ => unknown(),
        })?;
        let request_hash = request_hash(&signed);
        // Who is refused again and again writes nothing into the log, and who is let in not much.
        state.may_join(&request.invite, &request_hash, proof_time(invite)).map_err(|e| refused(&e))?;
        self.context.joining.with(&request.invite)?;
        let command = Command::AgentJoin { invite: request.invite, request_hash };
        self.admit(&agent, command, &request.csr_der).await
    }

    async fn attest_agent(
        &self,
        request: Request<AttestAgentRequest>,
    ) -> Result<Response<JoinAgentReply>, Status> {
        self.time_to_sign()?;
        // The challenge is the session, for one proof, and for as long as a connection without a client certificate lasts.
        let info = connection_of(&request)?;
        self.context.joining.from(info.remote.ip())?;
        if info.caller.is_some() || info.attested.swap(true, Ordering::AcqRel) {
            let why = "a host shows its certificate once, over a connection of its own without a client certificate";
            return Err(Status::permission_denied(why));
        }
        let binding = info.binding;
        let request = request.into_inner();
        let agent: NodeName = request
            .agent
            .parse()
            .map_err(|e: hanse_identity::NameError| Status::invalid_argument(e.to_string()))?;
        let state = self.context.handle.read().await.map_err(|e| no_outcome(&e))?;
        let Some(settings) = &state.private.hosts else {
            return Err(Status::permission_denied("no certificate attests a host here"));
        };
        let own = &self.context.trust_domain;
        let chain: Vec<&[u8]> = request.chain_der.iter().map(Vec::as_slice).collect();
        let host = verify_host(&settings.trust, own, &state.view.revocations, &chain, now());
        let host = host.and_then(|host| {
            host.possesses(own, &binding, &agent, &request.csr_der, &request.signature).map(|()| host)
        });
        let host = host.map_err(|why| {
            tracing::warn!(%agent, %why, "a host's certificate is refused");
            Status::permission_denied(why.to_string())
        })?;
        let request_hash = request_hash(&agent_join_request(&agent, &request.csr_der));
        let join = Box::new(HostJoin { certificate: host.certificate, request_hash });
        if let Err(refusal) = state.may_attest(&agent, &join, settings.since, now()) {
            tracing::warn!(%agent, why = %refusal, "a host is not let in");
            return Err(refused(&refusal));
        }
        self.context.joining.with(&join.certificate.fingerprint)?;
        let command = Command::AgentAttest { agent: agent.clone(), join, since: settings.since };
        self.admit(&agent, command, &request.csr_der).await
    }

    async fn renew_agent(&self, request: Request<RenewAgentRequest>) -> Result<Response<SvidReply>, Status> {
        let (agent, id) = agent_of(&request)?;
        let state = self.fresh_state().await;
        if let Some(why) = state.agent_refused(&agent) {
            return Err(Status::permission_denied(why));
        }
        let ticket = self.member_ticket(&state, &id)?;
        let chain_der = self.sign(state, &agent, ticket, &request.into_inner().csr_der).await?;
        Ok(Response::new(SvidReply { chain_der }))
    }

    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<SvidReply>, Status> {
        let (agent, _) = agent_of(&request)?;
        let request = request.into_inner();
        let state = self.fresh_state().await;
        let ticket = self.workload_ticket(&state, agent.clone(), &request.spiffe_id, &request.selectors)?;
        let chain_der = self.sign(state, &agent, ticket, &request.csr_der).await?;
        Ok(Response::new(SvidReply { chain_der }))
    }

    async fn issue_jwt(&self, request: Request<IssueJwtRequest>) -> Result<Response<JwtReply>, Status> {
        let (agent, _) = agent_of(&request)?;
        let (request, now) = (request.into_inner(), self.time_to_sign()?);
        let state = self.fresh_state().await;
        self.may_sign(&state)?;
        let ticket = self.workload_ticket(&state, agent, &request.spiffe_id, &request.selectors)?;
        let bundle = own_bundle(&state)?;
        let unpublished = || Status::unavailable(JwtIssueError::NotPublished.to_string());
        let key = self.context.jwt.signing(bundle, now).ok_or_else(unpublished)?;
        let wanted = (request.ttl_seconds != 0).then(|| Duration::from_secs(request.ttl_seconds));
        let issued = key.issue(ticket, bundle, &request.audience, wanted, now).map_err(|e| match e {
            JwtIssueError::Audience(_) => Status::invalid_argument(e.to_string()),
            _ => Status::internal(e.to_string()),
        })?;
        self.context.metrics.jwt_issued.inc();
        tracing::info!(id = %issued.id, key = issued.key_id, audience = ?request.audience, expires = %issued.expires, "JWT-SVID issued");
        Ok(Response::new(JwtReply { token: issued.token.to_string(), expires: issued.expires.0 }))
    }

    async fn issue_downstream(
        &self,
        request: Request<DownstreamRequest>,
    ) -> Result<Response<DownstreamReply>, Status> {
        let caller = caller_of(&request)?.clone();
        let (csr_der, now) = (request.into_inner().csr_der, self.time_to_sign()?);
        super::downstream::issue(&self.context, &caller, &csr_der, now).await.map(Response::new)
    }

    type WatchAgentStream = Pin<Box<dyn Stream<Item = Result<AgentDown, Status>> + Send>>;

    async fn watch_agent(
        &self,
        request: Request<Streaming<AgentUp>>,
    ) -> Result<Response<Self::WatchAgentStream>, Status> {
        let (agent, id) = agent_of(&request)?;
        let remote = connection_of(&request)?.remote;
        let serial = caller_of(&request)?.facts().serial.clone();
        let (questions, taken_over) = mpsc::channel(1);
        let key = self
            .context
            .census
            .join(SubscriberKind::Agent, agent.clone(), id, String::new(), questions, now())
            .map_err(|e| Status::already_exists(e.to_string()))?;
        self.context.census.came_from(&key, remote, serial);
        let (down, stream) = mpsc::channel(AGENT_QUEUE);
        let context = self.context.clone();
        tokio::spawn(async move {
            let serving =
                AgentStream { context: &context, agent: &agent, key: &key, up: request.into_inner(), down };
            serving.run(taken_over).await;
            context.census.leave(&key, now());
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One agent's stream.
struct AgentStream<'s> {
    context: &'s Context,
    agent: &'s NodeName,
    key: &'s StreamKey,
    up: Streaming<AgentUp>,
    down: mpsc::Sender<Result<AgentDown, Status>>,
}

impl AgentStream<'_> {
    async fn run(mut self, mut taken_over: mpsc::Receiver<super::census::LiveQuestion>) {
        let (mut states, mut stop) = (self.context.handle.states(), self.context.stop.clone());
        let mut refresh = tokio::time::interval(AGENT_REFRESH);
        let mut look = tokio::time::interval(SIGN_OF_LIFE);
        // A node that is cut off, or that signs nothing, is no node to stay with while there is a better one.
        let is_fit = || {
            let handle = &self.context.handle;
            handle.status().leader.is_some() && handle.clock().contradiction().is_none()
        };
        let mut leash = Leash::new(is_fit(), Instant::now());
        let (mut told, mut looked): (Option<AgentState>, Option<u64>) = (None, None);
        let (mut acknowledged, mut out_since) = (0, None);
        loop {
            let state = states.borrow_and_update().clone();
            // What nodes have issued concerns no agent, and there is a lot of it.
            if looked != Some(state.private.moved) {
                looked = Some(state.private.moved);
                let news = agent_state(&state, self.agent);
                if told.as_ref().is_none_or(|old| differs(old, &news)) && !self.tell(news, &mut told).await {
                    return;
                }
            }
            // It has been told why; its connection is cut a moment later.
            let over = match state.agent_refused(self.agent) {
                Some(why) => Some((Status::permission_denied(why), LAST_WORD)),
                None if self.context.is_revoked() => {
                    Some((Status::unavailable(NODE_REVOKED), Duration::ZERO))
                }
                None => None,
            };
            if over.is_none() {
                out_since = None;
            }
            let mut left = None;
            if let Some((status, moment)) = over {
                let since = *out_since.get_or_insert_with(Instant::now);
                let heard = told.as_ref().is_some_and(|told| acknowledged >= told.revision);
                let rest = moment.saturating_sub(since.elapsed());
                if heard || rest.is_zero() {
                    // A full queue means that nobody reads: then the end of the stream is all that can be told.
                    let _ = self.down.try_send(Err(status));
                    return;
                }
                left = Some(rest);
            }
            // Nobody waits with a State in hand: it would have to be copied.
            drop(state);
            tokio::select! {
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
                changed = states.changed() => if changed.is_err() { return },
                _ = refresh.tick() => {
                    let news = agent_state(&self.context.handle.state(), self.agent);
                    let moved = told.as_ref().is_none_or(|old| old.revision < news.revision);
                    if moved && !self.tell(news, &mut told).await {
                        return;
                    }
                }
                up = self.up.next() => match up {
                    Some(Ok(up)) => {
                        self.context.census.sds(self.key, SdsReport {
                            known: up.known_revision,
                            subscribers: up.sds_subscribers,
                            acknowledged: up.sds_acknowledged,
                            rejected: up.sds_rejected,
                            outgoing: up.outgoing_svids,
                        });
                        // Before the revision: who asks for both takes no proof for missing that is under way.
                        if !up.proofs.is_empty() {
                            let proofs: Vec<HeldProof> = serde_json::from_slice(&up.proofs).unwrap_or_default();
                            self.context.census.proofs(self.key, proofs);
                        }
                        acknowledged = acknowledged.max(up.applied_revision);
                        self.context.census.applied(self.key, up.applied_revision, vec![], now());
                    }
                    _ => return,
                },
                _ = look.tick() => {
                    if leash.is_over(is_fit(), Instant::now()) {
                        let why = match self.context.handle.status().leader {
                            Some(_) => CLOCK_CONTRADICTED,
                            None => NO_QUORUM,
                        };
                        let _ = self.down.try_send(Err(Status::unavailable(why)));
                        return;
                    }
                }
                _ = taken_over.recv() => return,
                () = stopped(&mut stop) => return,
            }
        }
    }

    async fn tell(&self, news: AgentState, told: &mut Option<AgentState>) -> bool {
        let sent = self.down.send(Ok(AgentDown { state: encode(&news) })).await.is_ok();
        *told = Some(news);
        sent
    }
}

/// What this agent needs to know of a State.
pub(crate) fn agent_state(state: &State, agent: &NodeName) -> AgentState {
    let strangers = &state.private.strangers;
    let foreign = strangers.values().filter_map(|s| s.bundle.as_ref());
    AgentState {
        revision: state.view.revision.0,
        registrations: state
            .private
            .registrations
            .values()
            .filter(|r| r.agent.covers(agent))
            .map(|r| Registration::clone(r))
            .collect(),
        bundles: state.view.bundles.values().chain(foreign).cloned().collect(),
        crls: state.view.crls.clone(),
        strangers: strangers.keys().cloned().collect(),
        revocations: state.view.revocations.clone(),
        endpoints: state.private.nodes.values().map(|n| n.address.clone()).collect(),
        doors: super::doors::of(&state.view, agent),
    }
}

/// Whether anything is different but the revision, and the doors: whoever needs them hears of a revocation.
fn differs(old: &AgentState, new: &AgentState) -> bool {
    old.registrations != new.registrations
        || old.bundles != new.bundles
        || old.crls != new.crls
        || old.strangers != new.strangers
        || old.revocations != new.revocations
        || old.endpoints != new.endpoints
}
