//! Copies of requests for other services (Gateway API, RequestMirror). A copy is on its own: the request does not wait
//! for it, and nothing that becomes of it is told to the app.

use std::rc::Rc;
use std::sync::Arc;

use hanse_federation::View;
use http::Request;
use tokio::time::Instant;

use super::{Decrement, Outbound, Outgoing, bodiless_copy};
use crate::attempt::Attempts;
use crate::io::body::{OnEnd as _, RequestBody};
use crate::io::copy::copy;
use crate::io::dial::For;
use crate::io::record::{Direction, Record};
use crate::outbound::Plan;

/// Copies that one worker has under way; above that, requests go without.
const MAX_COPIES: usize = 512;
/// How a copy is told apart from a request in the log.
const MIRRORED: &str = "mirrored";
const HAS_BODY: bool = true;

/// What became of a copy, as the metrics have it.
const SENT: &str = "sent";
const FAILED: &str = "failed";
const DROPPED: &str = "dropped";

impl Outbound {
    /// Sends the copies that the route asks for.
    pub(super) fn send_copies(
        self: &Rc<Self>,
        view: &Arc<View>,
        plan: &Plan,
        request: &mut Request<RequestBody>,
    ) {
        let Some(filters) = &plan.filters else { return };
        for to in filters.mirrors(|| self.random.next()) {
            if self.mirroring.get() >= MAX_COPIES {
                self.reporter.mirrored(&to.service.to_string(), DROPPED);
                continue;
            }
            let mut same = bodiless_copy(request);
            if let RequestBody::Streamed { copies, .. } = request.body_mut() {
                let (writer, reader) = copy();
                copies.push(writer);
                *same.body_mut() = RequestBody::Copied(reader);
            }
            let plan = Plan { backend: Arc::clone(to), attempt_timeout: None, filters: None, ..plan.clone() };
            let (this, view) = (Rc::clone(self), Arc::clone(view));
            self.mirroring.set(self.mirroring.get() + 1);
            tokio::task::spawn_local(async move {
                let _under_way = Decrement(&this.mirroring);
                let outcome = this.send_copy(&view, &plan, same).await;
                this.reporter.mirrored(&plan.backend.service.to_string(), outcome);
            });
        }
    }

    /// One attempt, within the time that the request itself has.
    async fn send_copy(&self, view: &View, plan: &Plan, mut request: Request<RequestBody>) -> &'static str {
        let mut record = Record::begin(&self.reporter, Direction::Outbound, &request);
        record.put(request.headers_mut());
        let own = self.plane.credentials.current();
        if let Some(own) = &own {
            self.tell_source(view, own, &mut record);
        }
        plan.route.as_ref().clone_into(&mut record.entry.policy);
        let tables = self.tables(view, &plan.backend);
        record.entry.upstream_cluster = tables.names.service.clone();
        let mut outgoing = Outgoing {
            view,
            plan,
            tables: &tables,
            deadline: Instant::now() + plan.request_timeout,
            // Sent once: whoever wants no gap in what is mirrored has to want answers too.
            attempts: Attempts::new(request.method(), HAS_BODY),
            retry: Arc::default(),
            tried: Vec::new(),
            what: For::Requests,
            hash: None,
            session: None,
            retrying: None,
            leaves: false,
        };
        outgoing.attempts.begin();
        let admitted = self.choose(&outgoing).and_then(|choice| {
            let (tier, cluster) = self.describe(&outgoing, &choice);
            record.entry.tier = tier;
            record.entry.destination_cluster = cluster.text;
            self.admit(&outgoing, &choice.candidate.target, &cluster.name, &mut record).map(|()| choice)
        });
        let answered = match admitted {
            Ok(choice) => {
                record.entry.attempts = outgoing.attempts.made();
                let attempt = self.attempt(&outgoing, &choice.candidate, request, &mut record).await;
                attempt.map_err(|failed| failed.reason)
            }
            Err(reason) => Err(reason),
        };
        MIRRORED.clone_into(&mut record.entry.response_code_details);
        match answered {
            Ok(response) => {
                record.answered(response.status());
                let discarded = tokio::time::timeout_at(outgoing.deadline, response.into_body().discard());
                let (bytes, complete) = discarded.await.unwrap_or_default();
                record.on_end(bytes, complete);
                SENT
            }
            Err(reason) => {
                record.refused(reason);
                record.on_end(0, true);
                FAILED
            }
        }
    }
}
