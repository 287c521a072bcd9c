//! Faults on purpose (FaultInjection): a request waits, or is answered in its backend's place. Health hears of neither.

use hanse_federation::policy::route::{Abort, Injected};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Outbound;
use crate::answer::Reason;
use crate::headers;
use crate::io::body::AnswerBody;
use crate::io::record::Record;
use crate::outbound::Plan;
use crate::runtime::now;

/// What the log and the answer say of a request that was aborted.
const FAULT: HeaderValue = HeaderValue::from_static("fault");

impl Outbound {
    /// `Some`: the answer in the backend's place. A delay counts as the backend's own would: with the request's time over,
    /// so is the request.
    pub(super) async fn inject(
        &self,
        plan: &Plan,
        request: &Request<Incoming>,
        is_grpc: bool,
        deadline: Instant,
        record: &mut Record,
    ) -> Result<Option<Response<AnswerBody>>, Reason> {
        let Some(fault) = plan.filters.as_ref().and_then(|filters| filters.fault()) else { return Ok(None) };
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let Injected { delay, abort } = fault.decide(now(), &header, is_grpc, || self.random.next());
        if let Some(delay) = delay {
            record.injected("DI");
            let over = Instant::now() + delay;
            tokio::time::sleep_until(over.min(deadline)).await;
            if over > deadline {
                return Err(Reason::Timeout);
            }
        }
        let Some(abort) = abort else { return Ok(None) };
        record.injected("FI");
        "fault".clone_into(&mut record.entry.hanse_reason);
        let mut response = Response::new(AnswerBody::empty());
        let headers = response.headers_mut();
        headers.insert(headers::ANSWERED_BY, headers::ANSWERED_BY_MESH);
        headers.insert(headers::REASON, FAULT);
        match abort {
            Abort::Http(status) => {
                *response.status_mut() = StatusCode::from_u16(status).map_err(|_| Reason::NoBackend)?;
            }
            Abort::Grpc(status) => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from(status));
                headers.insert("grpc-message", FAULT);
            }
        }
        Ok(Some(response))
    }
}
