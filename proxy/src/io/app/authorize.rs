//! Whether external authorizers let a request through that the policies let through, and what they change in it.

use http::Request;
use hyper::body::Incoming;

use super::{Caller, Inbound, InboundResponse, Serving, mark};
use crate::answer::Reason;
use crate::external::{Denied, Edits, Verdict, question, verdict};
use crate::inbound::Admitted;
use crate::io::authorize::Silent;
use crate::io::body::ResponseBody;
use crate::io::record::Record;

/// Why a request does not go on.
pub(super) enum Stopped {
    /// An authorizer said no.
    Denied(Box<Denied>),
    /// None said yes.
    Silent,
}

impl Inbound {
    /// Asks every authorizer whose policy matched, one after the other; what they write into the answer.
    pub(super) async fn authorize(
        &self,
        admitted: &Admitted,
        caller: &Caller,
        request: &mut Request<Incoming>,
        record: &mut Record,
    ) -> Result<Edits, Stopped> {
        if admitted.granted().external.is_empty() {
            return Ok(Edits::default());
        }
        // In a box: few services have one, and the future of every request would have room for it.
        Box::pin(async {
            let mut response = Edits::default();
            for external in &admitted.granted().external {
                let asked = question(external, &caller.names.source, &caller.names.destination, request);
                let nobody = caller.verified.is_none();
                let answered = match self.authorizers.ask(external, asked, nobody).await {
                    Ok(answer) => verdict(answer).map_err(Silent::from),
                    Err(silent) => Err(silent),
                };
                let policy = external.policy.as_ref();
                match answered {
                    Ok(Verdict::Allow(allowed)) => {
                        self.authorizers.count(policy, "allowed");
                        allowed.apply(request.headers_mut());
                        response.extend(allowed.response);
                    }
                    Ok(Verdict::Deny(denied)) => {
                        self.authorizers.count(policy, "denied");
                        policy.clone_into(&mut record.entry.policy);
                        record.entry.response_code_details = "denied by its authorizer".to_owned();
                        return Err(Stopped::Denied(Box::new(denied)));
                    }
                    Err(why) if external.fail_open && why.is_absence() => {
                        self.authorizers.count(policy, "failed-open");
                        tracing::debug!(policy, %why, "an authorizer did not answer, and the request goes on");
                    }
                    Err(why) => {
                        self.authorizers.count(policy, "failed");
                        policy.clone_into(&mut record.entry.policy);
                        record.entry.response_code_details = format!("authorizer: {why}");
                        return Err(Stopped::Silent);
                    }
                }
            }
            Ok(response)
        })
        .await
    }
}

impl Stopped {
    /// What whoever asked is told; why an authorizer was silent is in the log.
    pub(super) fn answer(self, record: Record) -> InboundResponse {
        match self {
            Self::Silent => super::mesh_answer(Reason::AuthorizerSilent, record),
            Self::Denied(denied) => denied_answer(*denied, record),
        }
    }
}

fn denied_answer(denied: Denied, mut record: Record) -> InboundResponse {
    record.refused(Reason::DeniedExternally);
    record.answered(denied.status);
    let serving = Serving { record, borrowed: None, left: None, _flying: None };
    let mut response = http::Response::new(ResponseBody::whole(denied.body.into(), serving));
    *response.status_mut() = denied.status;
    mark(response.headers_mut(), Reason::DeniedExternally);
    denied.headers.apply(response.headers_mut());
    response
}
