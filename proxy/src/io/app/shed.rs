//! Requests that are turned away before anybody works for them: a RateLimit has no credit, or the app has no room.

use std::time::Duration;

use http::{HeaderValue, Request, header};
use hyper::body::{Body as _, Incoming};

use super::{Caller, Inbound, InboundResponse, mesh_answer};
use crate::answer::Reason;
use crate::inbound::priority_of;
use crate::io::authentication::Believed;
use crate::io::concurrency::Held;
use crate::io::limits::retry_after;
use crate::io::record::Record;

/// Why a request is turned away, and when it may come again.
pub(super) struct Turned {
    pub reason: Reason,
    pub after: Duration,
}

impl Inbound {
    /// Credit, and a place at the app where a policy limits how many there are.
    pub(super) fn room(
        &self,
        caller: &Caller,
        user: &Believed,
        request: &Request<Incoming>,
        record: &mut Record,
    ) -> Result<Option<Held>, Turned> {
        self.within_limits(caller, request, record)?;
        if self.app.is_none() {
            return Ok(None);
        }
        let Some(view) = self.plane.knowledge.view() else { return Ok(None) };
        let held = self.limits.concurrency.at(&view, &self.services, &self.plane.telemetry);
        let Some(guarded) = held else { return Ok(None) };
        let user = user.as_ref().map(|user| &user.token);
        let priority = priority_of(&guarded.rules, &view, caller.verified.as_ref(), user, request);
        let policy = guarded.rules.policy.clone();
        guarded.admit(priority, request.body().is_end_stream()).map_err(|after| {
            record.entry.policy = policy.to_string();
            record.entry.response_code_details = format!("limits.concurrency: {}", priority.as_str());
            Turned { reason: Reason::Shed, after }
        })
    }
}

impl Turned {
    pub(super) fn answer(self, record: Record) -> InboundResponse {
        let mut response = mesh_answer(self.reason, record);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after(self.after)));
        response
    }
}
