//! Who may call what: one table for every rpc that a control node serves, asked before any handler runs.
//!
//! What is not in the table is denied. A test holds the table against the `.proto` files. A row for an rpc of the Admin
//! service names the role that it needs (`role.rs`): viewer to read; operator for services, policies, workloads and agents;
//! ca-admin for revocations, trust and roles; federation-admin for other clusters and foreign trust domains.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use hanse_identity::name::MemberRole;
use hanse_identity::{SpiffeId, Trust, VerifiedCaller};
use tonic::{Request, Status};

use super::context::{Context, now};
use super::server::ConnInfo;
use crate::role::Role;
use crate::state::State;

/// Who may call an rpc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// No certificate needed: the request itself carries a proof, or asks for nothing worth one.
    Anyone,
    /// A control node of this cluster.
    Node,
    /// Who holds that role in this cluster; to read, any role will do.
    Has(Role),
    /// An agent of this cluster.
    Agent,
    /// A workload or a gateway of this cluster.
    Subscriber,
    /// A workload of this cluster that a registration lets be a nested issuer.
    Downstream,
    /// A control node of a joined cluster.
    PeerNode,
}

/// (service, rpc, who).
pub const ROLES: &[(&str, &str, Who)] = &[
    ("hanse.issue.v1.Issue", "JoinAgent", Who::Anyone),
    ("hanse.issue.v1.Issue", "AttestAgent", Who::Anyone),
    ("hanse.issue.v1.Issue", "RenewAgent", Who::Agent),
    ("hanse.issue.v1.Issue", "IssueSvid", Who::Agent),
    ("hanse.issue.v1.Issue", "IssueJwt", Who::Agent),
    ("hanse.issue.v1.Issue", "WatchAgent", Who::Agent),
    ("hanse.issue.v1.Issue", "IssueDownstream", Who::Downstream),
    ("hanse.watch.v1.Watch", "Watch", Who::Subscriber),
    ("hanse.control.v1.Node", "Raft", Who::Node),
    ("hanse.control.v1.Node", "Forward", Who::Node),
    ("hanse.control.v1.Node", "Census", Who::Node),
    ("hanse.control.v1.Node", "Tap", Who::Node),
    ("hanse.control.v1.Admin", "NodeList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "ClusterTokenCreate", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "ClusterJoin", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "ClusterList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "ClusterCheck", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "ClusterLeave", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "ServiceList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "ServiceEndpoints", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "ServiceExport", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "ServiceUnexport", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "PolicyApply", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "PolicyGet", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "PolicyDelete", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "PolicyValidate", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "RevokePreview", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "Revoke", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "RevokeStatus", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "RevokeList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "RevokeLift", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "RevokeShow", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "RevokeClear", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "RevokeExport", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "AgentTokenCreate", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "AgentList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "AgentEvict", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "AgentUnban", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "AgentAllow", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "HostTrustSet", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "HostTrustShow", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "HostTrustDelete", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "WorkloadRegister", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "WorkloadApply", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "WorkloadList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "WorkloadDelete", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "ProxyList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "Traffic", Who::Has(Role::Viewer)),
    // Paths and callers of single requests are more than figures.
    ("hanse.control.v1.Admin", "Tap", Who::Has(Role::Operator)),
    ("hanse.control.v1.Admin", "AuditList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "IdentityList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "IdentityVerify", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "FederationPut", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "FederationList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "FederationRefresh", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "FederationDelete", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "RoleList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "RoleBind", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "RoleUnbind", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "TrustRotate", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "TrustAbort", Who::Has(Role::CaAdmin)),
    ("hanse.control.v1.Admin", "TrustStatus", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "TrustBundleList", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Admin", "TrustBundleSet", Who::Has(Role::FederationAdmin)),
    ("hanse.control.v1.Admin", "TrustBundleDelete", Who::Has(Role::FederationAdmin)),
    // Gives whoever asks what it has already, for itself.
    ("hanse.control.v1.Admin", "CredentialRenew", Who::Has(Role::Viewer)),
    ("hanse.control.v1.Peer", "Join", Who::Anyone),
    ("hanse.control.v1.Peer", "Greet", Who::Anyone),
    ("hanse.control.v1.Peer", "Session", Who::PeerNode),
    ("hanse.control.v1.Peer", "RevocationStatus", Who::PeerNode),
    ("hanse.control.v1.Peer", "BundleStatus", Who::PeerNode),
    ("hanse.control.v1.Peer", "Leave", Who::PeerNode),
];

/// The row for a gRPC path `/<service>/<rpc>`.
pub fn row(path: &str) -> Option<Who> {
    let (service, rpc) = path.strip_prefix('/')?.split_once('/')?;
    ROLES.iter().find(|(s, r, _)| *s == service && *r == rpc).map(|(_, _, who)| *who)
}

/// Whether an identity is one of those.
pub fn admits(who: Who, state: &State, id: &SpiffeId) -> bool {
    let view = &state.view;
    let own = &view.trust_domain;
    match who {
        Who::Anyone => true,
        Who::Node => id.is_member(own, MemberRole::Node),
        Who::Has(Role::Viewer) => !state.roles_of(id).is_empty(),
        Who::Has(role) => state.roles_of(id).contains(&role),
        Who::Agent => id.is_member(own, MemberRole::Agent),
        Who::Subscriber => {
            id.trust_domain() == own && (is_workload(id) || id.is_member(own, MemberRole::Gateway))
        }
        Who::Downstream => id.trust_domain() == own && id.as_member().is_none() && state.is_nested_issuer(id),
        Who::PeerNode => {
            view.peer_of(id.trust_domain()).is_some() && id.is_member(id.trust_domain(), MemberRole::Node)
        }
    }
}

/// `/ns/<namespace>/sa/<account>`.
pub fn is_workload(id: &SpiffeId) -> bool {
    let segments: Vec<&str> = id.path().split('/').collect();
    matches!(segments[..], ["", "ns", _, "sa", _])
}

/// The decision on one request.
pub fn decide(
    path: &str,
    state: &State,
    trust: &Trust,
    caller: Option<&VerifiedCaller>,
) -> Result<(), Status> {
    let Some(who) = row(path) else {
        return Err(Status::permission_denied(format!("nobody may call {path}")));
    };
    let Some(caller) = caller else {
        return match who {
            Who::Anyone => Ok(()),
            _ => Err(Status::unauthenticated("this call needs a client certificate of the mesh")),
        };
    };
    // What is decided here goes by identities that the log knows of, and it knows of none that such an issuer gives.
    if caller.nested_issuer().is_some() {
        let why = format!(
            "control nodes hear nobody whose SVID a nested issuer signed, as that of {}",
            caller.id()
        );
        return Err(Status::permission_denied(why));
    }
    // The connection may be older than the revocation.
    caller.still_believed(trust, now()).map_err(|e| Status::unauthenticated(e.to_string()))?;
    if admits(who, state, caller.id()) {
        return Ok(());
    }
    let lacks = match who {
        Who::Has(role) => format!(": it lacks the role {role}"),
        Who::Downstream => ": no registration of it says downstream".to_owned(),
        _ => String::new(),
    };
    Err(Status::permission_denied(format!("{} may not call {path}{lacks}", caller.id())))
}

/// Who called; for handlers of rpcs that the table gives to somebody in particular.
pub fn caller_of<T>(request: &Request<T>) -> Result<&VerifiedCaller, Status> {
    request
        .extensions()
        .get::<ConnInfo>()
        .and_then(|info| info.caller.as_ref())
        .ok_or_else(|| Status::unauthenticated("this call needs a client certificate of the mesh"))
}

/// What is known of the connection that a request came over.
pub fn connection_of<T>(request: &Request<T>) -> Result<&ConnInfo, Status> {
    request.extensions().get::<ConnInfo>().ok_or_else(|| Status::internal("the request has no connection"))
}

/// Asks the table before every request.
#[derive(Clone)]
pub struct RolesLayer {
    context: Arc<Context>,
}

/// A service behind the table.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    context: Arc<Context>,
}

impl RolesLayer {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

impl<S> tower::Layer<S> for RolesLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, context: self.context.clone() }
    }
}

impl<S, B, R> tower::Service<http::Request<B>> for Guarded<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures_util::future::Either<std::future::Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let info = request.extensions().get::<ConnInfo>();
        let caller = info.and_then(|info| info.caller.as_ref());
        let state = self.context.handle.state();
        let trust = self.context.trust.current();
        match decide(request.uri().path(), &state, &trust, caller) {
            Ok(()) => futures_util::future::Either::Right(self.inner.call(request)),
            Err(status) => {
                self.context.metrics.denied.inc();
                tracing::warn!(
                    path = request.uri().path(),
                    caller = caller.map(|c| c.id().to_string()).unwrap_or_default(),
                    remote = info.map(|i| i.remote.to_string()).unwrap_or_default(),
                    why = status.message(),
                    "request denied"
                );
                futures_util::future::Either::Left(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests;
