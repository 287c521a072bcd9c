//! Requests that are turned away before anybody works for them: a RateLimit has no credit, or the app has no room.

use std::sync::Arc;
use std::time::Duration;

use hanse_federation::policy::document::concurrency::Priority;
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;

use super::{Caller, Inbound, InboundResponse, mesh_answer};
use crate::answer::Reason;
use crate::inbound::{Admitted, priority_of};
use crate::io::authentication::Believed;
use crate::io::concurrency::{Guarded, Held};
use crate::io::limits::retry_after;
use crate::io::record::Record;

/// Why a request is turned away, and when it may come again.
pub(super) struct Turned {
    pub reason: Reason,
    pub after: Duration,
}

/// What a request needs at the app where a policy limits how much that works on.
pub(super) struct Room(Option<(Arc<Guarded>, Priority)>);

impl Inbound {
    /// Credit; and which place it needs. Where others are asked about it first, it holds none meanwhile, since their time is not
    /// the app's; but who would get none is not asked about at all.
    pub(super) fn room(
        &self,
        admitted: &Admitted,
        caller: &Caller,
        user: &Believed,
        request: &Request<Incoming>,
        record: &mut Record,
    ) -> Result<Room, Turned> {
        self.within_limits(caller, request, record)?;
        if self.app.is_none() {
            return Ok(Room(None));
        }
        let Some(view) = self.plane.knowledge.view() else { return Ok(Room(None)) };
        let held = self.limits.concurrency.at(&view, &self.services, &self.plane.telemetry);
        let Some(guarded) = held else { return Ok(Room(None)) };
        let user = user.as_ref().map(|user| &user.token);
        let priority = priority_of(&guarded.rules, &view, caller.verified.as_ref(), user, request);
        if !admitted.granted().external.is_empty() {
            guarded.check(priority).map_err(|after| shed(&guarded, priority, after, record))?;
        }
        Ok(Room(Some((guarded, priority))))
    }
}

impl Room {
    /// Takes the place. `whole`: nothing of the request is still to come.
    pub(super) fn enter(self, whole: bool, record: &mut Record) -> Result<Option<Held>, Turned> {
        let Some((guarded, priority)) = self.0 else { return Ok(None) };
        let entered = Arc::clone(&guarded).enter(priority, whole);
        entered.map_err(|after| shed(&guarded, priority, after, record))
    }
}

fn shed(guarded: &Guarded, priority: Priority, after: Duration, record: &mut Record) -> Turned {
    record.entry.policy = guarded.rules.policy.to_string();
    record.entry.response_code_details = format!("limits.concurrency: {}", priority.as_str());
    Turned { reason: Reason::Shed, after }
}

impl Turned {
    pub(super) fn answer(self, record: Record) -> InboundResponse {
        let mut response = mesh_answer(self.reason, record);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after(self.after)));
        response
    }
}
