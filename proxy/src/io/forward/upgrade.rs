//! Upgrades (RFC 9110 §7.8), WebSocket before all: a request of our app that wants its connection for something else.
//!
//! Between proxies it is an extended CONNECT (RFC 8441): chosen, sent, tried again and refused as any request. What the app
//! answers comes back as it is; where that is 101, both connections become a stream.

use std::rc::Rc;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::{Outbound, OutboundResponse};
use crate::answer::Reason;
use crate::headers;
use crate::io::body::{AnswerBody, RequestBody, ResponseBody};
use crate::io::record::Record;
use crate::io::stream::{self, Ending};

/// The method of an upgrade that is no GET; on an extended CONNECT.
pub const METHOD: HeaderName = HeaderName::from_static("x-hanse-upgrade-method");
/// What the app said in place of 101, where that would mean something else between proxies (2xx).
pub const STATUS: HeaderName = HeaderName::from_static("x-hanse-upgrade-status");

/// An upgrade that our app asks for.
pub(super) struct Upgrade {
    /// To what, as the app wrote it.
    protocol: HeaderValue,
    pub method: Method,
    client: OnUpgrade,
}

/// Both ends of an upgrade that the far app has agreed to; rides on the response.
#[derive(Clone)]
pub(super) struct Agreed {
    client: OnUpgrade,
    mesh: OnUpgrade,
}

impl Upgrade {
    /// What the request asks for, if it does. Call before hop-by-hop headers go. A request with a body, one that names
    /// several protocols, and one for HTTP/2 (`h2c`) is answered without the upgrade, as a server may.
    pub fn asked(request: &mut Request<Incoming>) -> Option<Self> {
        if request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
            return None;
        }
        let protocol = headers::upgrade(request.headers())?.clone();
        let client = request.extensions_mut().remove::<OnUpgrade>()?;
        Some(Self { protocol, method: request.method().clone(), client })
    }

    /// Makes the prepared request the extended CONNECT that carries it.
    pub fn put_on(&self, request: &mut Request<RequestBody>) -> Result<(), Reason> {
        let protocol = self.protocol.to_str().map_err(|_| Reason::BadRequest)?;
        request.extensions_mut().insert(Protocol::from(protocol));
        if self.method != Method::GET {
            let method = HeaderValue::from_str(self.method.as_str()).map_err(|_| Reason::BadRequest)?;
            request.headers_mut().insert(METHOD, method);
        }
        *request.method_mut() = Method::CONNECT;
        Ok(())
    }

    /// The answer as our app gets it: 101 where the far app said so.
    pub fn answered(self, mut response: Response<AnswerBody>) -> Response<AnswerBody> {
        let Some(mesh) = response.extensions_mut().remove::<OnUpgrade>() else { return response };
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, self.protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        response.extensions_mut().insert(Agreed { client: self.client, mesh });
        response
    }
}

/// Puts back what the far proxy had to write otherwise.
pub(super) fn restored<B>(mut response: Response<B>) -> Response<B> {
    if let Some(status) = response.headers_mut().remove(STATUS) {
        let status = StatusCode::from_bytes(status.as_bytes());
        *response.status_mut() =
            status.ok().filter(StatusCode::is_success).unwrap_or(StatusCode::BAD_GATEWAY);
    }
    response
}

impl Outbound {
    /// Hands the head of a 101 to our app, and carries what follows.
    pub(super) fn switch(
        self: &Rc<Self>,
        agreed: Agreed,
        response: Response<AnswerBody>,
        record: Record,
    ) -> OutboundResponse {
        let Some(place) = self.streams.place() else {
            return super::mesh_answer(Reason::Overload, false, record);
        };
        let (head, _) = response.into_parts();
        let carried = head.extensions.get::<super::Carried>().cloned();
        let idle = self.streams.idle();
        tokio::task::spawn_local(async move {
            let _held = (place, carried);
            let Some((mut client, mut mesh)) = stream::joined(agreed.client, agreed.mesh).await else {
                return;
            };
            let ending = stream::carry(&mut client, &mut mesh, record, idle).await;
            if !matches!(ending, Ending::Complete) {
                tracing::debug!(?ending, "an upgraded connection ended");
            }
        });
        Response::from_parts(head, ResponseBody::none())
    }
}
