//! Pages of other origins (CORS filters): preflights are answered here, and answers say who may read them.

use hanse_federation::policy::route::{origin_of, preflight_method};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};

use crate::headers;
use crate::io::body::AnswerBody;
use crate::io::record::Record;
use crate::outbound::Plan;

/// What the log says of a preflight that was answered here.
const PREFLIGHT: &str = "cors-preflight";

/// Where a request comes from, as its browser says; looked at only where a route asks for it.
pub(super) struct Crossing(Option<HeaderValue>);

/// The answer to a request that only asks whether another may be sent; the backend does not hear of it.
pub(super) fn preflight<B>(
    plan: &Plan,
    request: &Request<B>,
    record: &mut Record,
) -> Option<Response<AnswerBody>> {
    let cors = plan.cors()?;
    preflight_method(request.method(), request.headers())?;
    let mut response = Response::new(AnswerBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = cors.preflight(request.headers());
    response.headers_mut().insert(headers::ANSWERED_BY, headers::ANSWERED_BY_MESH);
    PREFLIGHT.clone_into(&mut record.entry.hanse_reason);
    Some(response)
}

impl Crossing {
    pub fn of(plan: &Plan, headers: &HeaderMap) -> Self {
        Self(plan.cors().and_then(|_| origin_of(headers).cloned()))
    }

    /// The answer, with what it says of who may read it.
    pub fn told(&self, plan: &Plan, mut response: Response<AnswerBody>) -> Response<AnswerBody> {
        if let Some(cors) = plan.cors() {
            cors.edit_response(self.0.as_ref(), response.headers_mut());
        }
        response
    }
}
