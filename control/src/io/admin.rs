//! Admin: the service that administrators and the CLI call. One function per rpc, by subject in the files below.
//!
//! Reads are linearizable where there is a quorum, and say in a warning when they are not. Writes are proposed with
//! the caller's SPIFFE ID as actor and logged.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::policy::grant::refused;
use hanse_federation::policy::{PeerAuthentication, PolicyDuration, PolicySpec};
use hanse_identity::NodeName;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::context::{Context, now};
use super::joiner;
use super::roles::caller_of;
use super::status::{answered, document, no_outcome, node_revoked, read};
use crate::admin::{
    AdminCall, AgentAllowRequest, AgentEvictRequest, AgentListRequest, AgentTokenCreateRequest,
    AgentUnbanRequest, AuditListRequest, ClusterCheckRequest, ClusterJoinRequest, ClusterLeaveRequest,
    ClusterListRequest, ClusterTokenCreateRequest, CredentialRenewRequest, FederationDeleteRequest,
    FederationListRequest, FederationPutRequest, FederationRefreshRequest, HostTrustDeleteRequest,
    HostTrustSetRequest, HostTrustShowRequest, IdentityListRequest, IdentityVerifyRequest, Meta,
    NodeListRequest, PolicyApplyRequest, PolicyDeleteRequest, PolicyGetRequest, PolicyValidateRequest,
    ProxyListRequest, RevokeClearRequest, RevokeExportRequest, RevokeLiftRequest, RevokeListRequest,
    RevokePreviewRequest, RevokeRequest, RevokeShowRequest, RevokeStatusRequest, RoleBindRequest,
    RoleListRequest, RoleUnbindRequest, ServiceEndpointsRequest, ServiceExportRequest, ServiceListRequest,
    ServiceUnexportRequest, TapRequest, TrafficRequest, TrustAbortRequest, TrustBundleDeleteRequest,
    TrustBundleListRequest, TrustBundleSetRequest, TrustRotateRequest, TrustStatusRequest, Warning,
    WorkloadApplyRequest, WorkloadDeleteRequest, WorkloadListRequest, WorkloadRegisterRequest, Written,
};
use crate::command::{Actor, Answer, Command};
use crate::state::State;
use crate::state::audit::{self as trail, Subject};
use crate::wire::control::Document;
use crate::wire::control::admin_server::Admin;

pub mod agent;
pub mod audit;
pub mod certificates;
pub mod cluster;
pub mod federation;
pub mod identity;
pub mod node;
pub mod policy;
pub mod revocations;
pub mod revoke;
pub mod role;
pub mod service;
pub mod tap;
pub mod token;
pub mod traffic;
pub mod trust;

/// How long a read waits for a State that has everything acknowledged before it, before this node's own will do.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines of a join that wait for a slow administrator.
const JOIN_QUEUE: usize = 32;

/// The service.
pub struct AdminService {
    context: Arc<Context>,
}

/// One call: the node it came to, and who made it.
#[derive(Clone)]
pub struct Call {
    pub context: Arc<Context>,
    pub actor: Actor,
}

/// A State to answer from, and what is to be said of it.
pub struct Reading {
    pub state: Arc<State>,
    pub meta: Meta,
    pub warnings: Vec<Warning>,
}

impl AdminService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// A revoked node hears nothing of its cluster any more: it sends administrators elsewhere too.
    fn stands(&self) -> Result<(), Status> {
        if self.context.is_revoked() { Err(node_revoked()) } else { Ok(()) }
    }

    async fn answer<C, F, A>(
        &self,
        request: Request<Document>,
        handler: F,
    ) -> Result<Response<Document>, Status>
    where
        C: AdminCall,
        F: FnOnce(Call, C) -> A,
        A: Future<Output = Result<C::Reply, Status>>,
    {
        let actor = Actor::from(caller_of(&request)?);
        self.stands()?;
        let asked: C = read(C::RPC, request.get_ref())?;
        let answered = handler(Call { context: self.context.clone(), actor }, asked).await?;
        Ok(Response::new(document(&answered)))
    }
}

macro_rules! admin_service {
    ($($rpc:ident($request:ty) => $handler:path;)*) => {
        #[tonic::async_trait]
        impl Admin for AdminService {
            type ClusterJoinStream = Pin<Box<dyn Stream<Item = Result<Document, Status>> + Send>>;

            async fn cluster_join(
                &self,
                request: Request<Document>,
            ) -> Result<Response<Self::ClusterJoinStream>, Status> {
                let actor = Actor::from(caller_of(&request)?);
                self.stands()?;
                let asked: ClusterJoinRequest = read("ClusterJoin", request.get_ref())?;
                let (lines, stream) = mpsc::channel(JOIN_QUEUE);
                tokio::spawn(joiner::run(self.context.clone(), actor, asked, lines));
                Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
            }

            type TapStream = Pin<Box<dyn Stream<Item = Result<Document, Status>> + Send>>;

            async fn tap(&self, request: Request<Document>) -> Result<Response<Self::TapStream>, Status> {
                let caller = caller_of(&request)?;
                let (actor, reader) = (Actor::from(caller), caller.id().clone());
                self.stands()?;
                let asked: TapRequest = read("Tap", request.get_ref())?;
                let call = Call { context: self.context.clone(), actor };
                let events = tap::begin(call, reader, asked).await?;
                Ok(Response::new(Box::pin(ReceiverStream::new(events))))
            }

            $(async fn $rpc(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
                self.answer::<$request, _, _>(request, $handler).await
            })*
        }
    };
}

admin_service! {
    node_list(NodeListRequest) => node::list;
    proxy_list(ProxyListRequest) => node::proxies;
    cluster_token_create(ClusterTokenCreateRequest) => token::for_cluster;
    cluster_list(ClusterListRequest) => cluster::list;
    cluster_check(ClusterCheckRequest) => cluster::check;
    cluster_leave(ClusterLeaveRequest) => cluster::leave;
    service_list(ServiceListRequest) => service::list;
    service_endpoints(ServiceEndpointsRequest) => service::endpoints;
    service_export(ServiceExportRequest) => service::export;
    service_unexport(ServiceUnexportRequest) => service::unexport;
    policy_apply(PolicyApplyRequest) => policy::apply;
    policy_get(PolicyGetRequest) => policy::get;
    policy_delete(PolicyDeleteRequest) => policy::delete;
    policy_validate(PolicyValidateRequest) => policy::check;
    revoke_preview(RevokePreviewRequest) => revoke::preview;
    revoke(RevokeRequest) => revoke::revoke;
    revoke_status(RevokeStatusRequest) => revoke::status;
    revoke_list(RevokeListRequest) => revoke::list;
    revoke_lift(RevokeLiftRequest) => revoke::lift;
    revoke_show(RevokeShowRequest) => revocations::show;
    revoke_clear(RevokeClearRequest) => revocations::clear;
    revoke_export(RevokeExportRequest) => revocations::export;
    agent_token_create(AgentTokenCreateRequest) => token::for_agent;
    agent_list(AgentListRequest) => agent::list;
    agent_evict(AgentEvictRequest) => agent::evict;
    agent_unban(AgentUnbanRequest) => agent::unban;
    agent_allow(AgentAllowRequest) => agent::allow;
    host_trust_set(HostTrustSetRequest) => agent::trust_hosts;
    host_trust_show(HostTrustShowRequest) => agent::trusted_hosts;
    host_trust_delete(HostTrustDeleteRequest) => agent::distrust_hosts;
    workload_register(WorkloadRegisterRequest) => identity::register;
    workload_apply(WorkloadApplyRequest) => identity::apply;
    workload_list(WorkloadListRequest) => identity::workloads;
    workload_delete(WorkloadDeleteRequest) => identity::delete;
    traffic(TrafficRequest) => traffic::traffic;
    audit_list(AuditListRequest) => audit::list;
    identity_list(IdentityListRequest) => certificates::list;
    identity_verify(IdentityVerifyRequest) => certificates::check;
    federation_put(FederationPutRequest) => federation::put;
    federation_list(FederationListRequest) => federation::list;
    federation_refresh(FederationRefreshRequest) => federation::refresh;
    federation_delete(FederationDeleteRequest) => federation::delete;
    role_list(RoleListRequest) => role::list;
    role_bind(RoleBindRequest) => role::bind;
    role_unbind(RoleUnbindRequest) => role::unbind;
    trust_rotate(TrustRotateRequest) => trust::rotate;
    trust_abort(TrustAbortRequest) => trust::abort;
    trust_status(TrustStatusRequest) => trust::status;
    trust_bundle_list(TrustBundleListRequest) => trust::bundles;
    trust_bundle_set(TrustBundleSetRequest) => federation::set;
    trust_bundle_delete(TrustBundleDeleteRequest) => federation::unset;
    credential_renew(CredentialRenewRequest) => trust::renew;
}

impl Call {
    /// The State to answer a read from.
    pub async fn read(&self) -> Reading {
        let handle = &self.context.handle;
        let fresh = match handle.status().leader {
            Some(_) => tokio::time::timeout(READ_TIMEOUT, handle.read()).await.ok().and_then(Result::ok),
            None => None,
        };
        let mut warnings = Vec::new();
        let state = fresh.unwrap_or_else(|| {
            warnings.push(Warning {
                code: "E3101".to_owned(),
                message: format!(
                    "no quorum answered within {READ_TIMEOUT:?}: this is what {} knows, it may be old",
                    self.context.name
                ),
            });
            handle.state()
        });
        let meta = Meta {
            cluster: self.context.cluster.clone(),
            raft_index: state.view.revision.0,
            observed_at: now(),
            partial: !warnings.is_empty(),
        };
        Reading { state, meta, warnings }
    }

    /// Commits a Command in the caller's name.
    pub async fn write(&self, command: Command) -> Result<(u64, Answer), Status> {
        let Subject { kind, target, .. } = trail::subject(&command).unwrap_or_default();
        let actor = &self.actor.id;
        let outcome = self.context.handle.propose(&self.actor, command).await.map_err(|e| no_outcome(&e))?;
        let revision = outcome.revision;
        let answer = answered(outcome);
        match &answer {
            Ok(_) => tracing::info!(actor, kind, target, revision, "write"),
            Err(status) => tracing::info!(actor, kind, target, why = status.message(), "write refused"),
        }
        answer
    }

    /// A write whose answer is only that it is done.
    pub async fn written(&self, command: Command) -> Result<Written, Status> {
        let (revision, answer) = self.write(command).await?;
        Ok(Written { revision, changed: answer != Answer::Already })
    }
}

/// Most references without a grant that an answer names.
const MAX_REFUSED_TOLD: usize = 32;

impl Reading {
    /// Nodes that did not answer make the reading partial.
    pub fn silent<'n>(&mut self, nodes: impl IntoIterator<Item = &'n NodeName>) {
        for node in nodes {
            self.partial("E3102", format!("control node {node} did not answer"));
        }
    }

    /// Ports that take plain text, and for how long: whoever looks at the cluster, its services or its policies is told.
    pub fn permissive(&mut self) {
        let now = now();
        for document in self.state.view.policies.values() {
            let PolicySpec::PeerAuthentication(spec) = &document.spec else { continue };
            let services = spec.target_refs.iter().map(|target| target.service(document.name.namespace()));
            let services = services.map(|service| service.to_string()).collect::<Vec<_>>().join(", ");
            for port in &spec.ports {
                let until = PeerAuthentication::closes(port, document.created);
                if until <= now {
                    continue;
                }
                let (port, left) = (port.port, PolicyDuration::new(until.left(now)));
                let message = format!(
                    "port {port} of {services} takes callers without an identity, in plain text, until {until} (for {left}): {}",
                    document.key()
                );
                self.warnings.push(Warning { code: "E4142".to_owned(), message });
            }
        }
    }

    /// Routes that name what nobody has granted them.
    pub fn not_permitted(&mut self) {
        let mut refused = refused(&self.state.view);
        let told = refused.by_ref().take(MAX_REFUSED_TOLD).map(|(route, to)| {
            let there = to.service.namespace();
            let message = format!(
                "{route}: RefNotPermitted: no ReferenceGrant in {there} lets it name {} {} ({})",
                to.kind, to.service, to.path
            );
            Warning { code: "E4108".to_owned(), message }
        });
        let told: Vec<Warning> = told.collect();
        let more = refused.count();
        self.warnings.extend(told);
        if more > 0 {
            let message = format!("RefNotPermitted: {more} more references of routes are not granted");
            self.warnings.push(Warning { code: "E4108".to_owned(), message });
        }
    }

    pub fn partial(&mut self, code: &str, message: String) {
        self.meta.partial = true;
        self.warnings.push(Warning { code: code.to_owned(), message });
    }
}
