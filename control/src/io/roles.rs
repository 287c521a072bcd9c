//! Who may call what: one table for every rpc that a control node serves, asked before any handler runs.
//!
//! What is not in the table is denied. A test holds the table against the `.proto` files.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use hanse_federation::View;
use hanse_identity::name::MemberRole;
use hanse_identity::{SpiffeId, Trust, VerifiedCaller};
use tonic::{Request, Status};

use super::context::{Context, now};
use super::server::ConnInfo;

/// Who may call an rpc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// No certificate needed: the request itself carries a proof, or asks for nothing worth one.
    Anyone,
    /// A control node of this cluster.
    Node,
    /// An administrator of this cluster; its control nodes too.
    Admin,
    /// An agent of this cluster.
    Agent,
    /// A workload or a gateway of this cluster.
    Subscriber,
    /// A control node of a joined cluster.
    PeerNode,
}

/// (service, rpc, who).
pub const ROLES: &[(&str, &str, Who)] = &[
    ("hanse.issue.v1.Issue", "JoinAgent", Who::Anyone),
    ("hanse.issue.v1.Issue", "RenewAgent", Who::Agent),
    ("hanse.issue.v1.Issue", "IssueSvid", Who::Agent),
    ("hanse.issue.v1.Issue", "WatchAgent", Who::Agent),
    ("hanse.watch.v1.Watch", "Watch", Who::Subscriber),
    ("hanse.control.v1.Node", "Raft", Who::Node),
    ("hanse.control.v1.Node", "Forward", Who::Node),
    ("hanse.control.v1.Node", "Census", Who::Node),
    ("hanse.control.v1.Admin", "NodeList", Who::Admin),
    ("hanse.control.v1.Admin", "ClusterTokenCreate", Who::Admin),
    ("hanse.control.v1.Admin", "ClusterJoin", Who::Admin),
    ("hanse.control.v1.Admin", "ClusterList", Who::Admin),
    ("hanse.control.v1.Admin", "ClusterCheck", Who::Admin),
    ("hanse.control.v1.Admin", "ClusterLeave", Who::Admin),
    ("hanse.control.v1.Admin", "ServiceList", Who::Admin),
    ("hanse.control.v1.Admin", "ServiceEndpoints", Who::Admin),
    ("hanse.control.v1.Admin", "ServiceExport", Who::Admin),
    ("hanse.control.v1.Admin", "ServiceUnexport", Who::Admin),
    ("hanse.control.v1.Admin", "PolicyApply", Who::Admin),
    ("hanse.control.v1.Admin", "PolicyGet", Who::Admin),
    ("hanse.control.v1.Admin", "PolicyDelete", Who::Admin),
    ("hanse.control.v1.Admin", "PolicyValidate", Who::Admin),
    ("hanse.control.v1.Admin", "RevokePreview", Who::Admin),
    ("hanse.control.v1.Admin", "Revoke", Who::Admin),
    ("hanse.control.v1.Admin", "RevokeStatus", Who::Admin),
    ("hanse.control.v1.Admin", "RevokeList", Who::Admin),
    ("hanse.control.v1.Admin", "RevokeLift", Who::Admin),
    ("hanse.control.v1.Admin", "AgentTokenCreate", Who::Admin),
    ("hanse.control.v1.Admin", "AgentList", Who::Admin),
    ("hanse.control.v1.Admin", "WorkloadRegister", Who::Admin),
    ("hanse.control.v1.Admin", "WorkloadList", Who::Admin),
    ("hanse.control.v1.Admin", "WorkloadDelete", Who::Admin),
    ("hanse.control.v1.Admin", "ProxyList", Who::Admin),
    ("hanse.control.v1.Peer", "Join", Who::Anyone),
    ("hanse.control.v1.Peer", "Greet", Who::Anyone),
    ("hanse.control.v1.Peer", "Session", Who::PeerNode),
    ("hanse.control.v1.Peer", "RevocationStatus", Who::PeerNode),
    ("hanse.control.v1.Peer", "Leave", Who::PeerNode),
];

/// The row for a gRPC path `/<service>/<rpc>`.
pub fn row(path: &str) -> Option<Who> {
    let (service, rpc) = path.strip_prefix('/')?.split_once('/')?;
    ROLES.iter().find(|(s, r, _)| *s == service && *r == rpc).map(|(_, _, who)| *who)
}

/// Whether an identity is one of those.
pub fn admits(who: Who, view: &View, id: &SpiffeId) -> bool {
    let own = &view.trust_domain;
    match who {
        Who::Anyone => true,
        Who::Node => id.is_member(own, MemberRole::Node),
        Who::Admin => id.is_member(own, MemberRole::Admin) || id.is_member(own, MemberRole::Node),
        Who::Agent => id.is_member(own, MemberRole::Agent),
        Who::Subscriber => {
            id.trust_domain() == own && (is_workload(id) || id.is_member(own, MemberRole::Gateway))
        }
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
pub fn decide(path: &str, view: &View, trust: &Trust, caller: Option<&VerifiedCaller>) -> Result<(), Status> {
    let Some(who) = row(path) else {
        return Err(Status::permission_denied(format!("nobody may call {path}")));
    };
    let Some(caller) = caller else {
        return match who {
            Who::Anyone => Ok(()),
            _ => Err(Status::unauthenticated("this call needs a client certificate of the mesh")),
        };
    };
    // The connection may be older than the revocation.
    caller.still_believed(trust, now()).map_err(|e| Status::unauthenticated(e.to_string()))?;
    if admits(who, view, caller.id()) {
        Ok(())
    } else {
        Err(Status::permission_denied(format!("{} may not call {path}", caller.id())))
    }
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
        match decide(request.uri().path(), &state.view, &trust, caller) {
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
mod tests {
    use super::*;
    use hanse_federation::change::{Change, PeerRecord};
    use hanse_identity::Timestamp;

    /// (service, rpc) of every rpc in a `.proto`.
    fn rpcs(proto: &str) -> Vec<(String, String)> {
        let mut package = "";
        let mut service = String::new();
        let mut found = Vec::new();
        for line in proto.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("package ") {
                package = name.trim_end_matches(';');
            } else if let Some(rest) = line.strip_prefix("service ") {
                service = format!("{package}.{}", rest.trim_end_matches('{').trim());
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                let name = rest.split('(').next().unwrap().trim().to_owned();
                found.push((service.clone(), name));
            }
        }
        found
    }

    #[test]
    fn every_rpc_has_exactly_one_row_and_every_row_an_rpc() {
        let mut wanted: Vec<_> = [
            include_str!("../../proto/control.proto"),
            include_str!("../../../identity/proto/issue.proto"),
            include_str!("../../../federation/proto/watch.proto"),
        ]
        .into_iter()
        .flat_map(rpcs)
        .collect();
        assert!(wanted.len() > 30, "the protos were not read: {wanted:?}");
        let mut listed: Vec<_> = ROLES.iter().map(|(s, r, _)| ((*s).to_owned(), (*r).to_owned())).collect();
        wanted.sort();
        listed.sort();
        assert_eq!(listed, wanted);
    }

    #[test]
    fn only_join_and_greet_need_no_certificate() {
        let open: Vec<_> =
            ROLES.iter().filter(|(_, _, who)| *who == Who::Anyone).map(|(_, rpc, _)| *rpc).collect();
        assert_eq!(open, ["JoinAgent", "Join", "Greet"]);
    }

    #[test]
    fn the_unlisted_is_denied_to_everyone() {
        assert_eq!(row("/hanse.control.v1.Admin/Nothing"), None);
        assert_eq!(row("hanse.control.v1.Admin/NodeList"), None);
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let denied =
            decide("/grpc.reflection.v1.ServerReflection/Info", &view, &Trust::default(), None).unwrap_err();
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        let unknown = decide("/hanse.control.v1.Admin/NodeList", &view, &Trust::default(), None).unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn roles_are_told_apart_by_spiffe_id() {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: "west".parse().unwrap(),
            trust_domain: "west.example".parse().unwrap(),
            endpoints: vec![],
            invite: "i".to_owned(),
            joined: Timestamp(1),
        }));
        let allowed = |who, id: &str| admits(who, &view, &id.parse().unwrap());
        let of_east = |path: &str| format!("spiffe://east.example{path}");
        for (who, path) in [
            (Who::Node, "/hanse/node/east-1"),
            (Who::Admin, "/hanse/admin/ann"),
            (Who::Admin, "/hanse/node/east-1"),
            (Who::Agent, "/hanse/agent/host-1"),
            (Who::Subscriber, "/hanse/gateway/gateway-1"),
            (Who::Subscriber, "/ns/shop/sa/reviews"),
        ] {
            assert!(allowed(who, &of_east(path)), "{who:?} {path}");
            let elsewhere = format!("spiffe://west.example{path}");
            assert!(!allowed(who, &elsewhere), "{who:?} {elsewhere}");
        }
        assert!(!allowed(Who::Node, &of_east("/hanse/admin/ann")));
        assert!(!allowed(Who::Admin, &of_east("/ns/shop/sa/reviews")));
        assert!(!allowed(Who::Subscriber, &of_east("/hanse/agent/host-1")));
        assert!(!allowed(Who::Subscriber, &of_east("/ns/shop/sa/reviews/more")));
        assert!(allowed(Who::PeerNode, "spiffe://west.example/hanse/node/west-1"));
        assert!(!allowed(Who::PeerNode, "spiffe://west.example/hanse/admin/ann"));
        assert!(!allowed(Who::PeerNode, "spiffe://north.example/hanse/node/north-1"));
        assert!(!allowed(Who::PeerNode, &of_east("/hanse/node/east-1")));
    }
}
