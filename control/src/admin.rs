//! The documents of the Admin API: what the CLI sends, and what it prints as items.
//!
//! One type per question and per answer, tied together by `AdminCall`, so that neither the client nor the server
//! can pair them wrongly. JSON in camelCase, additive. Times are milliseconds since the Unix epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hanse_federation::catalog::Export;
use hanse_federation::policy::{Diagnostic, PolicyKey, PolicyKind};
use hanse_federation::stranger::EndpointUrl;
use hanse_identity::{
    AgentScope, ClusterName, NodeName, Registration, RevocationId, Selector, ServiceName, SpiffeId,
    Timestamp, TrustDomain,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod agent;
mod audit;
mod cluster;
mod federation;
mod identity;
mod proof;
mod receipt;
mod revocations;
mod revoke;
mod role;
mod rotation;
mod tap;
mod traffic;

pub use agent::*;
pub use audit::*;
pub use cluster::*;
pub use federation::*;
pub use identity::*;
pub use proof::{Proof, ProofState, Tried};
pub use receipt::{Behind, Gates, ReachState, Receipt, ReceiptPart, Tally, merged, part_of};
pub use revocations::*;
pub use revoke::*;
pub use role::*;
pub use rotation::{
    BundlePart, BundleQuestion, CredentialRenewRequest, CredentialReply, Resting, TrustAbortRequest,
    TrustBundleListRequest, TrustRotateRequest, TrustStatus, TrustStatusRequest, WaitsFor, asks_peers,
    nested, waited_for, waits_for,
};
pub use tap::*;
pub use traffic::*;

/// A question of the Admin service, and the type of its answer.
pub trait AdminCall: Serialize + DeserializeOwned + Send + Sync + 'static {
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The rpc's name in `control.proto`.
    const RPC: &'static str;
}

macro_rules! calls {
    ($($request:ty => $reply:ty, $rpc:literal;)*) => {
        $(impl AdminCall for $request {
            type Reply = $reply;
            const RPC: &'static str = $rpc;
        })*
    };
}

calls! {
    NodeListRequest => NodeList, "NodeList";
    ClusterTokenCreateRequest => TokenReply, "ClusterTokenCreate";
    ClusterListRequest => Listing<ClusterItem>, "ClusterList";
    ClusterCheckRequest => ClusterCheckReply, "ClusterCheck";
    ClusterLeaveRequest => ClusterLeaveReply, "ClusterLeave";
    ServiceListRequest => Listing<ServiceItem>, "ServiceList";
    ServiceEndpointsRequest => Listing<TierItem>, "ServiceEndpoints";
    ServiceExportRequest => Written, "ServiceExport";
    ServiceUnexportRequest => Written, "ServiceUnexport";
    PolicyApplyRequest => PolicyApplyReply, "PolicyApply";
    PolicyGetRequest => Listing<PolicyItem>, "PolicyGet";
    PolicyDeleteRequest => Written, "PolicyDelete";
    PolicyValidateRequest => PolicyValidateReply, "PolicyValidate";
    RevokePreviewRequest => RevokePreview, "RevokePreview";
    RevokeRequest => Revoked, "Revoke";
    RevokeStatusRequest => Receipt, "RevokeStatus";
    RevokeListRequest => Listing<RevocationItem>, "RevokeList";
    RevokeLiftRequest => Written, "RevokeLift";
    RevokeShowRequest => RevokeShown, "RevokeShow";
    RevokeClearRequest => RevokeCleared, "RevokeClear";
    RevokeExportRequest => Listing<PublishedList>, "RevokeExport";
    AgentTokenCreateRequest => TokenReply, "AgentTokenCreate";
    AgentListRequest => Listing<AgentItem>, "AgentList";
    AgentEvictRequest => Evicted, "AgentEvict";
    AgentUnbanRequest => Written, "AgentUnban";
    AgentAllowRequest => Written, "AgentAllow";
    HostTrustSetRequest => Written, "HostTrustSet";
    HostTrustShowRequest => HostTrustShown, "HostTrustShow";
    HostTrustDeleteRequest => Written, "HostTrustDelete";
    WorkloadRegisterRequest => Written, "WorkloadRegister";
    WorkloadApplyRequest => Written, "WorkloadApply";
    WorkloadListRequest => Listing<WorkloadItem>, "WorkloadList";
    WorkloadDeleteRequest => Written, "WorkloadDelete";
    ProxyListRequest => Listing<ProxyItem>, "ProxyList";
    TrafficRequest => TrafficReply, "Traffic";
    AuditListRequest => AuditList, "AuditList";
    IdentityListRequest => IdentityList, "IdentityList";
    IdentityVerifyRequest => IdentityVerdict, "IdentityVerify";
    FederationPutRequest => Written, "FederationPut";
    FederationListRequest => Listing<FederationItem>, "FederationList";
    FederationRefreshRequest => FederationItem, "FederationRefresh";
    FederationDeleteRequest => Written, "FederationDelete";
    RoleListRequest => Listing<RoleItem>, "RoleList";
    RoleBindRequest => Written, "RoleBind";
    RoleUnbindRequest => Written, "RoleUnbind";
    TrustRotateRequest => Written, "TrustRotate";
    TrustAbortRequest => Written, "TrustAbort";
    TrustStatusRequest => TrustStatus, "TrustStatus";
    TrustBundleListRequest => Listing<hanse_identity::Bundle>, "TrustBundleList";
    TrustBundleSetRequest => TrustBundleSet, "TrustBundleSet";
    TrustBundleDeleteRequest => Written, "TrustBundleDelete";
    CredentialRenewRequest => CredentialReply, "CredentialRenew";
}

/// Where and when an answer was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub cluster: ClusterName,
    /// Raft index of the State that answered.
    pub raft_index: u64,
    pub observed_at: Timestamp,
    /// Somebody who should have been asked did not answer; `warnings` names them.
    #[serde(default)]
    pub partial: bool,
}

/// Something worth saying that is no failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// `E6204` …
    pub code: String,
    pub message: String,
}

/// A list of items, as the CLI's JSON contract wants it (`apiVersion` and `kind` are added by the CLI).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing<T> {
    pub meta: Meta,
    pub items: Vec<T>,
    #[serde(default = "Vec::new")]
    pub warnings: Vec<Warning>,
}

/// The answer to a write: what it did, and the log index at which it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    pub revision: u64,
    /// False: it was so already.
    pub changed: bool,
}

// ---- nodes

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeListRequest {}

/// Members of the cluster's Raft group, and what the group can bear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeList {
    pub meta: Meta,
    pub items: Vec<NodeItem>,
    pub quorum: Quorum,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeItem {
    pub cluster: ClusterName,
    pub node: NodeName,
    pub raft_id: u64,
    /// `voter`: every node is one in this version.
    pub role: String,
    pub state: NodeState,
    pub term: u64,
    pub applied: u64,
    /// Entries behind the leader's applied index; absent for the leader and for a silent node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// When the node's own SVID ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Timestamp>,
    /// Why it signs nothing for others, if so: its clock is contradicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_signing: Option<String>,
    pub version: String,
    pub address: String,
    pub peer_address: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    Leader,
    Follower,
    /// Answers, but knows of no leader.
    Leaderless,
    /// Did not answer.
    Silent,
    /// Not asked: nothing that it says is believed.
    Revoked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quorum {
    pub voters: usize,
    pub needed: usize,
    pub answering: usize,
    /// How many more nodes may fail before writes stop.
    pub can_lose: usize,
}

impl Quorum {
    pub fn new(voters: usize, answering: usize) -> Self {
        let needed = voters / 2 + 1;
        Self { voters, needed, answering, can_lose: answering.saturating_sub(needed) }
    }
}

// ---- services

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceListRequest {}

/// One service name, wherever it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceItem {
    pub service: ServiceName,
    /// Whether this cluster serves or exports it itself.
    pub local: bool,
    pub endpoints: usize,
    pub ready_endpoints: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Export>,
    pub identities: BTreeSet<SpiffeId>,
    /// Peers that export it to us.
    pub imported_from: Vec<ImportedService>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportedService {
    pub cluster: ClusterName,
    pub endpoints: u32,
    pub ready_endpoints: u32,
    pub identities: BTreeSet<SpiffeId>,
}

/// The failover ladder of a service, as a caller at `from` would climb it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEndpointsRequest {
    pub service: ServiceName,
    /// `region/zone` of the caller; empty = not said.
    #[serde(default)]
    pub from: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierItem {
    pub tier: usize,
    /// `zone`, `region`, `cluster` or `peer`.
    pub kind: String,
    pub cluster: ClusterName,
    /// `region/zone` of its endpoints where they agree, else empty.
    pub locality: String,
    pub endpoints: usize,
    pub ready_endpoints: usize,
    /// Share of traffic that the registry alone would give it, 0.0 to 1.0; proxies add what they observe.
    pub share: f64,
    pub state: TierState,
    pub members: Vec<TierMember>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TierState {
    Serving,
    Standby,
    Down,
}

/// One endpoint of ours, or a peer's gateways as one way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierMember {
    pub name: String,
    pub address: String,
    pub locality: String,
    pub weight: u32,
    pub ready: bool,
    pub identity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportRequest {
    pub service: ServiceName,
    pub to: Export,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceUnexportRequest {
    pub service: ServiceName,
}

// ---- policy

/// Applies every document of a text, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApplyRequest {
    /// The name to show in diagnostics.
    pub file: String,
    pub text: String,
    #[serde(default)]
    pub dry_run: bool,
    /// What `jwksFile`s of the text name, by that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApplyReply {
    pub meta: Meta,
    /// Whether the documents are in force now; false for a dry run and where a diagnostic is an error.
    pub applied: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    pub items: Vec<PolicyEffect>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What applying does to one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyEffect {
    pub key: PolicyKey,
    pub action: PolicyAction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyAction {
    Created,
    Changed,
    Unchanged,
}

/// All documents, those of a kind, or one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyGetRequest {
    #[serde(default)]
    pub kind: Option<PolicyKind>,
    #[serde(default)]
    pub name: Option<ServiceName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyItem {
    pub key: PolicyKey,
    pub created: Timestamp,
    /// As its author would write it.
    pub document: serde_json::Value,
    /// Of a RequestAuthentication: how it stands with the keys that are fetched for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerKeys>,
}

/// Keys of one issuer that are fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuerKeys {
    pub issuer: String,
    pub url: EndpointUrl,
    /// How many are in force; without any no token of the issuer is believed.
    pub keys: usize,
    /// When they were last confirmed, as far as any node that answered knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<Timestamp>,
    /// Why the last fetch came to nothing, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDeleteRequest {
    pub keys: Vec<PolicyKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyValidateRequest {
    pub file: String,
    pub text: String,
    /// As with `PolicyApplyRequest`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyValidateReply {
    pub meta: Meta,
    /// No diagnostic is an error.
    pub ok: bool,
    pub documents: usize,
    pub diagnostics: Vec<Diagnostic>,
}

// ---- agents and workloads

/// Makes a join token that admits one agent, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentTokenCreateRequest {
    pub agent: NodeName,
    pub ttl_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRegisterRequest {
    pub registration: Registration,
}

/// Several registrations, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadApplyRequest {
    pub registrations: Vec<Registration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadListRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadItem {
    pub id: SpiffeId,
    pub agent: AgentScope,
    pub selectors: BTreeSet<Selector>,
    pub services: BTreeSet<ServiceName>,
    pub ttl_seconds: u64,
    /// Where it serves, if it has no proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Trust domains of no joined cluster whose bundles it is given.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub federates_with: BTreeSet<TrustDomain>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// It may act as an administrator, with the roles that it was given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// It may have an intermediate authority, and issue SVIDs by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
    /// The revocation because of which no SVID is issued, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<RevocationId>,
}

impl WorkloadItem {
    /// A registration as it is shown.
    pub fn of(registration: &Registration, revoked: Option<RevocationId>) -> Self {
        let r = registration.clone();
        Self {
            id: r.id,
            agent: r.agent,
            selectors: r.selectors,
            services: r.services,
            ttl_seconds: r.ttl_seconds,
            address: r.address,
            federates_with: r.federates_with,
            hint: r.hint,
            expires: r.expires,
            admin: r.admin,
            downstream: r.downstream,
            revoked,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadDeleteRequest {
    pub id: SpiffeId,
    pub agent: AgentScope,
}

// ---- proxies

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyListRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyItem {
    pub name: NodeName,
    pub kind: SubscriberKind,
    pub identity: SpiffeId,
    /// The control node that holds its stream, or held it last.
    pub node: NodeName,
    pub connected: bool,
    /// Revision that it has put in force.
    pub applied: u64,
    /// Revisions behind the node that was asked.
    pub lag: u64,
    pub version: String,
    /// Why its announcement is not accepted, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Who listens to a control node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubscriberKind {
    Proxy,
    Gateway,
    Agent,
}

impl SubscriberKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Gateway => "gateway",
            Self::Agent => "agent",
        }
    }
}
