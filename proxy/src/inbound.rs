//! Inbound, the pure part: who may have a request served here.

use std::collections::BTreeSet;

use hanse_federation::View;
use hanse_federation::policy::access::{AccessTable, Asked, Caller, Denied, Granted};
use hanse_federation::policy::authentication::Unauthenticated;
use hanse_federation::policy::concurrency::Concurrency;
use hanse_federation::policy::document::concurrency::Priority;
use hanse_identity::jwt::user::UserToken;
use hanse_identity::{ClusterName, RevocationId, ServiceName, VerifiedCaller};
use http::{HeaderValue, Request, Response, StatusCode};

use crate::answer::Reason;
use crate::concurrency::Outcome;
use crate::headers;
use crate::outbound::GRPC_STATUS;

/// Leave to hand one request to the app. Only `admit` makes one.
#[derive(Debug)]
pub struct Admitted {
    granted: Granted,
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Reason(Reason),
    /// An AccessPolicy, or its absence.
    Policy(Denied),
    /// The end user's token.
    Token(Unauthenticated),
}

/// Decides for one request. The caller's certificate was verified and its connection is in the table, so a revocation
/// closes it; or it has none (`None`), and its connection is open for as long as its port takes plain text. What can change under a living connection beside that is asked here: our exports, and our own standing.
///
/// Default deny between clusters: a caller from abroad needs one of our services to be exported to its cluster. A
/// route may have sent the request to any of them under another's Host, so the Host does not narrow it, here and in the
/// policies: what is said of any service of this workload counts. Who is nobody is from no cluster: the gateway lets
/// nothing but TLS in from others.
pub fn admit<B>(
    view: Option<&View>,
    own_revoked: Option<&RevocationId>,
    services: &BTreeSet<ServiceName>,
    access: &AccessTable,
    caller: Option<&VerifiedCaller>,
    user: Option<&UserToken>,
    request: &Request<B>,
) -> Result<Admitted, Refused> {
    if own_revoked.is_some() {
        return Err(Refused::Reason(Reason::Revoked));
    }
    let view = view.ok_or(Refused::Reason(Reason::NotReady))?;
    let allowed = |caller: &VerifiedCaller| {
        *caller.id().trust_domain() == view.trust_domain
            || services.iter().any(|service| view.may_call(caller.id(), service))
    };
    if !caller.is_none_or(allowed) {
        return Err(Refused::Reason(Reason::NotAllowed));
    }
    let granted =
        if access.is_empty() { Granted::default() } else { decide(view, access, caller, user, request)? };
    Ok(Admitted { granted })
}

/// Decides for one TCP connection to a port of one of our services. Rules of policies that look at requests allow none and
/// deny all: what is inside is not read.
pub fn admit_stream(
    view: Option<&View>,
    own_revoked: Option<&RevocationId>,
    service: &ServiceName,
    port: u16,
    access: &AccessTable,
    caller: Option<&VerifiedCaller>,
) -> Result<Admitted, Refused> {
    if own_revoked.is_some() {
        return Err(Refused::Reason(Reason::Revoked));
    }
    let view = view.ok_or(Refused::Reason(Reason::NotReady))?;
    let allowed = |caller: &VerifiedCaller| {
        *caller.id().trust_domain() == view.trust_domain || view.may_call(caller.id(), service)
    };
    if !caller.is_none_or(allowed) {
        return Err(Refused::Reason(Reason::NotAllowed));
    }
    let asking = Caller { id: caller.map(VerifiedCaller::id), cluster: cluster_of(view, caller), user: None };
    let granted = access.decide_stream(&asking, &view.cluster, port).map_err(Refused::Policy)?;
    Ok(Admitted { granted })
}

/// Where the caller is at home, as far as we know.
fn cluster_of<'v>(view: &'v View, caller: Option<&VerifiedCaller>) -> Option<&'v ClusterName> {
    let from = caller?.id().trust_domain();
    match view.peer_of(from) {
        _ if *from == view.trust_domain => Some(&view.cluster),
        peer => peer.map(|peer| &peer.record.cluster),
    }
}

fn decide<B>(
    view: &View,
    access: &AccessTable,
    caller: Option<&VerifiedCaller>,
    user: Option<&UserToken>,
    request: &Request<B>,
) -> Result<Granted, Refused> {
    with_asked(view, caller, user, request, |caller, asked| {
        access.decide(caller, &view.cluster, asked).map_err(Refused::Policy)
    })
}

/// Who goes first where the app has less room than there are requests.
pub fn priority_of<B>(
    rules: &Concurrency,
    view: &View,
    caller: Option<&VerifiedCaller>,
    user: Option<&UserToken>,
    request: &Request<B>,
) -> Priority {
    with_asked(view, caller, user, request, |caller, asked| rules.priority(caller, &view.cluster, asked))
}

/// What the app's answer says of how much it has to do.
pub fn came_to<B>(response: &Response<B>) -> Outcome {
    // Of gRPC, where there is no body: deadline exceeded, resource exhausted, unavailable.
    let of_grpc = response.headers().get(GRPC_STATUS).map(HeaderValue::as_bytes);
    match (response.status(), of_grpc) {
        (StatusCode::TOO_MANY_REQUESTS, _) | (_, Some(b"8")) => Outcome::Refused,
        (status, _) if status.is_server_error() => Outcome::Failed,
        (_, Some(b"4" | b"14")) => Outcome::Failed,
        _ => Outcome::Answered,
    }
}

/// Caller and request as policies look at them.
fn with_asked<B, T>(
    view: &View,
    caller: Option<&VerifiedCaller>,
    user: Option<&UserToken>,
    request: &Request<B>,
    ask: impl FnOnce(&Caller<'_>, &Asked<'_>) -> T,
) -> T {
    let header = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each_value(request, name, tell);
    let asked = Asked { method: request.method().as_str(), path: request.uri().path(), header: &header };
    let cluster = cluster_of(view, caller);
    ask(&Caller { id: caller.map(VerifiedCaller::id), cluster, user }, &asked)
}

impl Admitted {
    /// What the policies had to say.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }
}

impl Refused {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Reason(reason) => *reason,
            Self::Token(_) => Reason::Unauthenticated,
            Self::Policy(Denied::Path(_)) => Reason::BadRequest,
            Self::Policy(Denied::By(_) | Denied::NotAllowed) => Reason::NotAllowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_server_are_failures_and_only_refusals_say_nothing() {
        let of = |status: u16, grpc: Option<&str>| {
            let response = Response::builder().status(status);
            let response = grpc.into_iter().fold(response, |to, status| to.header(GRPC_STATUS, status));
            came_to(&response.body(()).unwrap())
        };
        for status in [200, 204, 302, 400, 401, 403, 404, 409, 422] {
            assert_eq!(of(status, None), Outcome::Answered, "{status}");
        }
        for status in [500, 502, 503, 504] {
            assert_eq!(of(status, None), Outcome::Failed, "{status}");
        }
        assert_eq!(of(429, None), Outcome::Refused);
        for (status, outcome) in [
            ("0", Outcome::Answered),
            ("5", Outcome::Answered),
            ("8", Outcome::Refused),
            ("4", Outcome::Failed),
            ("14", Outcome::Failed),
        ] {
            assert_eq!(of(200, Some(status)), outcome, "{status}");
        }
    }
}
