//! Messages on their way: a request as the mesh carries it, and a response as our app gets it.

use std::net::IpAddr;

use hanse_federation::policy::{Filters, Redirect};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::ext::Protocol;

use super::failed::Failed;
use super::names::Named;
use crate::answer::Reason;
use crate::attempt::Failure;
use crate::headers;
use crate::io::body::{AnswerBody, RequestBody};
use crate::io::record::Record;
use crate::outbound::Plan;

/// Stands for the host that a request does not name.
pub(super) const NO_AUTHORITY: &str = "localhost";
/// What the log says of a request that a route redirected.
const REDIRECT: &str = "redirect";

/// Whether a proxy on the way says that nobody is there; `Some(true)`: and that no app saw the request.
pub(super) fn nobody_there<B>(response: &Response<B>) -> Option<bool> {
    let status = response.status();
    let unavailable = matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    );
    if !unavailable || !response.headers().contains_key(headers::ANSWERED_BY) {
        return None;
    }
    let reason = response.headers().get(headers::REASON).and_then(|reason| reason.to_str().ok());
    Some(reason.is_some_and(Reason::says_undelivered))
}

/// Whether the far proxy kept the request from an app that has all that it can do.
pub(super) fn was_shed<B>(response: &Response<B>) -> bool {
    response.status() == Reason::Shed.status()
        && response.headers().contains_key(headers::ANSWERED_BY)
        && response.headers().get(headers::REASON).is_some_and(|reason| reason == Reason::Shed.as_str())
}

/// The request as the mesh carries it: HTTP/2 form, without what ends here or is the mesh's own. `named`: its authority,
/// where that has been read already. `client`: one outside, and whether it came by TLS.
pub(super) fn prepare(
    request: Request<Incoming>,
    filters: Option<&Filters>,
    named: Option<&Authority>,
    client: Option<(IpAddr, bool)>,
    record: &Record,
) -> Result<Request<RequestBody>, Reason> {
    let authority = match (filters.and_then(Filters::host), named) {
        (None, Some(named)) => named.clone(),
        (rewritten, _) => {
            let authority = headers::authority(&request).map_err(|_| Reason::BadRequest)?;
            let authority = rewritten.or(authority).unwrap_or(NO_AUTHORITY);
            authority.parse().map_err(|_| Reason::BadRequest)?
        }
    };
    let asked = request.uri();
    let rewritten = filters.and_then(|filters| filters.path_and_query(asked.path(), asked.query()));
    let path = match rewritten {
        Some(rewritten) => rewritten.parse().map_err(|_| Reason::BadRequest)?,
        None => asked.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = Some(path);
    let uri = Uri::from_parts(uri).map_err(|_| Reason::BadRequest)?;
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.version = Version::HTTP_2;
    parts.extensions.clear();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_reserved(&mut parts.headers);
    if let Some((from, tls)) = client {
        // Again: what a client's `Connection` names has just gone, whoever wrote it.
        headers::tell_client(&mut parts.headers, from, tls);
    }
    parts.headers.remove(header::HOST);
    // Our own server answered it already, by reading the body.
    parts.headers.remove(header::EXPECT);
    record.put(&mut parts.headers);
    if let Some(filters) = filters {
        filters.edit_request(&mut parts.headers);
    }
    Ok(Request::from_parts(parts, RequestBody::new(body, record.received.clone())))
}

pub(super) fn bodiless_copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    *copy.version_mut() = request.version();
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        copy.extensions_mut().insert(protocol.clone());
    }
    request.headers().clone_into(copy.headers_mut());
    copy
}

/// The response as our app gets it.
pub(super) fn finish(
    mut response: Response<AnswerBody>,
    plan: &Plan,
    tier: &'static str,
    cluster: &Named,
    record: &mut Record,
) -> Response<AnswerBody> {
    let headers = response.headers_mut();
    // Mostly there is none, which is seen by one look at each name.
    if headers.keys().any(|name| headers::is_reserved(name.as_str()))
        && let Some(reason) = headers.get(headers::REASON).and_then(|reason| reason.to_str().ok())
    {
        reason.clone_into(&mut record.entry.hanse_reason);
    }
    headers::strip_hop_by_hop(headers);
    if let Some(filters) = &plan.filters {
        filters.edit_response(headers);
    }
    headers.insert(headers::CLUSTER, cluster.header.clone());
    headers.insert(headers::TIER, HeaderValue::from_static(tier));
    response
}

/// No further attempt: what the far side said, or our own words.
pub(super) fn give_up(
    failed: Failed,
    plan: &Plan,
    tier: &'static str,
    cluster: &Named,
    record: &mut Record,
) -> Result<Response<AnswerBody>, Reason> {
    match failed.response {
        Some(response) if failed.failure == Failure::Status => {
            Ok(finish(response, plan, tier, cluster, record))
        }
        Some(response) => {
            record.entry.response_flags = failed.reason.flags();
            Ok(finish(response, plan, tier, cluster, record))
        }
        None => Err(failed.reason),
    }
}

/// The answer that a route gives in its backend's place.
pub(super) fn redirected(
    redirect: &Redirect,
    (authority, secure): (&str, bool),
    asked: &Uri,
    plan: &Plan,
    record: &mut Record,
) -> Result<Response<AnswerBody>, Reason> {
    let location = redirect.location(secure, authority, asked.path(), asked.query());
    let location = HeaderValue::from_str(&location).map_err(|_| Reason::BadRequest)?;
    let mut response = Response::new(AnswerBody::empty());
    *response.status_mut() = StatusCode::from_u16(redirect.status).map_err(|_| Reason::NoBackend)?;
    response.headers_mut().insert(header::LOCATION, location);
    if let Some(filters) = &plan.filters {
        filters.edit_response(response.headers_mut());
    }
    response.headers_mut().insert(headers::ANSWERED_BY, headers::ANSWERED_BY_MESH);
    REDIRECT.clone_into(&mut record.entry.hanse_reason);
    Ok(response)
}
