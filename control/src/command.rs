//! Commands: intents that enter the Raft log, and what applying one answers.

use std::collections::BTreeSet;

use hanse_federation::Peer;
use hanse_federation::catalog::{Announcement, Export, Session};
use hanse_federation::change::PeerFact;
use hanse_federation::join::Offer;
use hanse_federation::policy::{PolicyDocument, PolicyKey};
use hanse_federation::stranger::Federation;
use hanse_identity::host::HostTrust;
use hanse_identity::token::Invite;
use hanse_identity::{
    AgentScope, AuthorityCertificate, Bundle, Closing, ClusterName, Crl, JwtAuthority, KeyId, NodeName,
    Reason, Registration, RevocationId, RevocationTarget, Serial, ServiceName, SpiffeId, Timestamp,
    TrustDomain, VerifiedCaller,
};
use serde::{Deserialize, Serialize};

use crate::role::Role;
use crate::state::hosts::HostJoin;
use crate::state::issuance::IssuedRecord;
use crate::state::rotation::Gate;
use crate::state::strangers::Dependents;

/// What is written to the log: one Command with who asked, when, and an id by which a retry is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// Drawn at random by the node that first took the request; the same again is answered, not applied again.
    pub id: u64,
    /// The clock of the node that took the request; the only time that applying may know.
    pub now: Timestamp,
    /// SPIFFE ID of who asked; empty for the mesh itself.
    pub actor: String,
    /// Serial number of the certificate that the actor showed; none for the mesh itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Serial>,
    pub command: Command,
}

/// Who asks for a Command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// SPIFFE ID; empty for the mesh itself.
    pub id: String,
    pub certificate: Option<Serial>,
}

/// An intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// A proxy or gateway says what it serves. `identity` is from its verified SVID, `node` holds its stream.
    Announce {
        announcement: Box<Announcement>,
        identity: SpiffeId,
        node: NodeName,
    },
    /// The stream behind an announcement is gone and its lease is over. Void if a newer session was announced.
    Withdraw {
        name: NodeName,
        session: Session,
    },
    Export {
        service: ServiceName,
        to: Export,
    },
    Unexport {
        service: ServiceName,
    },
    /// All or nothing. With `expected`, only if the View is still at that revision for these keys.
    PolicyApply {
        documents: Vec<PolicyDocument>,
    },
    PolicyDelete {
        keys: Vec<PolicyKey>,
    },
    /// What was fetched of an issuer of end users' tokens; without a set, that no document names the source any more.
    IssuerKeys {
        source: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        jwks: Option<String>,
    },
    /// Documents whose end has come.
    PolicyLapse {
        keys: Vec<PolicyKey>,
    },
    Revoke {
        target: RevocationTarget,
        reason: Reason,
        note: String,
        expires: Option<Timestamp>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reissue: bool,
        #[serde(default, skip_serializing_if = "Closing::is_now")]
        closing: Closing,
    },
    Lift {
        id: RevocationId,
    },
    /// Takes entries of our own away, in bulk and whatever they are; `compromised` says that key compromises are meant
    /// too. All or nothing.
    RevocationsClear {
        ids: Vec<RevocationId>,
        compromised: bool,
    },
    /// SVIDs that a node is about to hand out, or has handed out while there was no quorum.
    Issued {
        records: Vec<IssuedRecord>,
    },
    /// A workload is about to be given an intermediate authority.
    DownstreamIssued {
        record: Box<IssuedRecord>,
    },
    /// Entries that no valid certificate can match any more.
    Lapse {
        ids: Vec<RevocationId>,
    },
    InviteCreate {
        invite: Invite,
    },
    /// A host proved an agent invite. Consumes it.
    AgentJoin {
        invite: String,
        request_hash: String,
    },
    /// Which authorities may vouch for hosts from now on, and how agents are named after those hosts' certificates.
    HostTrustPut {
        trust: Box<HostTrust>,
    },
    /// Certificates attest no host any more.
    HostTrustDelete {},
    /// A host proved that it has the key of a certificate that was verified against the settings of `since`.
    AgentAttest {
        agent: NodeName,
        join: Box<HostJoin>,
        since: u64,
    },
    /// Once more until then, an agent that is there, or was put out, may join by its host's certificate.
    AgentAllow {
        agent: NodeName,
        until: Timestamp,
    },
    /// The agent's SVIDs are dead; it may join again with a new join token.
    AgentEvict {
        agent: NodeName,
        note: String,
    },
    /// Ends the revocations of an agent, holds or not. It has to join anew.
    AgentUnban {
        agent: NodeName,
    },
    WorkloadRegister {
        registration: Registration,
    },
    WorkloadDelete {
        id: SpiffeId,
        agent: AgentScope,
    },
    /// Several at once, all or nothing, in this order.
    WorkloadApply {
        registrations: Vec<Registration>,
    },
    /// Registrations whose end has come.
    WorkloadLapse {
        keys: Vec<(SpiffeId, AgentScope)>,
    },
    /// Inviter's commit: consumes the invite and makes the peer. The same request again answers the same.
    PeerAccept {
        invite: String,
        request_hash: String,
        offer: Box<Offer>,
    },
    /// Joiner's commit.
    PeerAdd {
        invite: String,
        offer: Box<Offer>,
    },
    /// Leave or evict; with `only_invite`, only if that invite made the peer (rollback of a join).
    PeerRemove {
        cluster: ClusterName,
        only_invite: Option<String>,
    },
    /// What a peer told, after the import filter. With `follows`, only if nothing else has been taken in from it
    /// since: a leader that was deposed meanwhile must not take back what the next one has heard.
    PeerFacts {
        cluster: ClusterName,
        facts: Vec<PeerFact>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<Told>,
    },
    /// A node publishes its authority's certificate into the cluster's bundle.
    AuthorityPublish {
        node: NodeName,
        certificate: AuthorityCertificate,
        /// The rotation that it was made for. One that was aborted has had its keys forgotten, and what was under way for it
        /// must not be taken for the next one's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation: Option<u64>,
    },
    /// Begins to replace authorities: all of the cluster's, or the one with that key. With `reissue` SVIDs below them
    /// are replaced at once, else when they would be renewed anyway.
    RotateBegin {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authority: Option<KeyId>,
        reissue: bool,
    },
    /// The gate before `to` has been found passed. The same again changes nothing.
    RotateStep {
        id: u64,
        to: Gate,
    },
    /// Takes a rotation back: what is prepared is dropped, or what signs already is replaced by what signed before.
    RotateAbort {},
    /// An administrator is about to be given a new certificate, for itself.
    CredentialRenew {
        id: SpiffeId,
        serial: Serial,
    },
    /// An administrator is about to look at live requests. Changes nothing: it is for the audit trail.
    Tap {
        /// Whose, and which.
        what: String,
        seconds: u64,
    },
    /// The node that owns an authority publishes its newest revocation list. The list's signature is the proof.
    CrlPublish {
        crl: Crl,
    },
    /// A node publishes the public half of a key that it is going to sign JWT-SVIDs with.
    JwtAuthorityPublish {
        node: NodeName,
        authority: JwtAuthority,
    },
    /// Gives an identity roles beside those that it was given before. An administrator that nobody has named had every
    /// role until now, and has exactly these from now on.
    RoleBind {
        id: SpiffeId,
        roles: BTreeSet<Role>,
    },
    /// Takes roles away from an identity.
    RoleUnbind {
        id: SpiffeId,
        roles: BTreeSet<Role>,
    },
    /// Begins or changes a relationship with a foreign trust domain; the bundle is the administrator's own word.
    FederationPut {
        federation: Box<Federation>,
        bundle: Option<Box<Bundle>>,
    },
    /// Ends what there is with a foreign trust domain: its bundle is deleted and fetched no more. `registrations` is what
    /// becomes of those that name it; without a word they stay as they are.
    FederationDelete {
        trust_domain: TrustDomain,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registrations: Option<Dependents>,
    },
    /// An administrator sets the bundle of a foreign trust domain by hand. `older` says that one of a lower sequence, or
    /// of the same with other keys, is meant to replace what is kept.
    ForeignBundleSet {
        bundle: Box<Bundle>,
        older: bool,
    },
    /// A bundle that was fetched for the relationship that began at `since`.
    ForeignBundlePut {
        bundle: Box<Bundle>,
        since: Timestamp,
    },
}

impl Actor {
    /// The mesh itself.
    pub fn mesh() -> Self {
        Self::default()
    }
}

impl From<&VerifiedCaller> for Actor {
    fn from(caller: &VerifiedCaller) -> Self {
        Self { id: caller.id().to_string(), certificate: Some(caller.facts().serial.clone()) }
    }
}

impl From<&str> for Actor {
    fn from(id: &str) -> Self {
        Self { id: id.to_owned(), certificate: None }
    }
}

impl From<&String> for Actor {
    fn from(id: &String) -> Self {
        id.as_str().into()
    }
}

impl From<&Actor> for Actor {
    fn from(actor: &Actor) -> Self {
        actor.clone()
    }
}

/// How far a joined cluster has told us, as our log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub synced: u64,
    /// How many services and revocations a retelling that is under way has named.
    pub named: Option<usize>,
}

impl Told {
    pub fn of(peer: &Peer) -> Self {
        let named = peer.retelling.as_ref().map(|r| r.services.len() + r.revocations.len());
        Self { synced: peer.synced, named }
    }
}

/// What applying answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The log index it was applied at: the revision of its Changes.
    pub revision: u64,
    pub result: Result<Answer, Refusal>,
}

/// What a Command may answer beyond "done".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Done,
    /// Nothing had to be changed: it was so already.
    Already,
    Revoked(RevocationId),
    /// Recorded, but for these: revoked meanwhile, and not to be handed out.
    Issued {
        refused: BTreeSet<Serial>,
    },
}

/// Why a Command changed nothing. Stable kinds: the CLI turns them into exit codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("limit reached: {0}")]
    Limit(String),
}
