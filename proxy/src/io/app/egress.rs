//! Requests at an egress gateway: admitted as any other, and sent out of the mesh in place of to an app.

use http::{HeaderMap, Request, Version};
use hyper::body::Incoming;

use super::{Caller, Flying, Inbound, InboundResponse, Serving, mesh_answer};
use crate::answer::Reason;
use crate::headers;
use crate::io::body::ResponseBody;
use crate::io::record::Record;

impl Inbound {
    /// Answers a request that was admitted, with what is outside has to say; `edit` is the authorizers'.
    pub(super) async fn leave(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        mut record: Record,
        flying: Flying,
        edit: impl FnOnce(&mut HeaderMap),
    ) -> InboundResponse {
        if caller.verified.is_none() {
            // Who came in plain text may have written anything: nothing that a proxy says of where to is believed of him.
            return mesh_answer(Reason::NotAllowed, record);
        }
        // In a box: the future of every request would carry the size of this one.
        let left = Box::pin(self.authorizers.outbound().leave(&self.services, request)).await;
        let (mut response, left) = match left {
            Ok(left) => left,
            Err(reason) => return mesh_answer(reason, record),
        };
        headers::strip_reserved(response.headers_mut());
        edit(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        record.answered(response.status());
        let serving = Serving { record, borrowed: None, left: Some(Box::new(left)), _flying: Some(flying) };
        response.map(|body| ResponseBody::answer(body, serving))
    }
}
