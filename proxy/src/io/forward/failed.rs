//! An attempt that came to nothing: why, what health hears of it, and what is left for another.

use hanse_federation::health::Observation;
use http::{Request, Response};

use crate::answer::Reason;
use crate::attempt::Failure;
use crate::io::body::{AnswerBody, RequestBody};
use crate::io::dial::DialError;
use crate::io::record::Record;

/// How one attempt ended without a response to pass on.
pub(super) struct Failed {
    pub failure: Failure,
    /// What health is told; nothing where the path is to blame, which is known already.
    pub observation: Option<Observation>,
    pub reason: Reason,
    /// The request, where it was not sent.
    pub request: Option<Request<RequestBody>>,
    /// What the far proxy said, to pass on if nobody says better.
    pub response: Option<Response<AnswerBody>>,
}

impl Failed {
    pub fn unconnected(error: &DialError, request: Request<RequestBody>, record: &mut Record) -> Self {
        let observation = match error {
            DialError::NoPath(_) | DialError::NoUpgrades => None,
            DialError::Refused { .. } => Some(Observation::NobodyThere),
            _ => Some(Observation::ConnectFailure),
        };
        record.entry.response_code_details = error.to_string();
        Self {
            failure: Failure::Unsent,
            observation,
            reason: Reason::Unreachable,
            request: Some(request),
            response: None,
        }
    }

    /// The mesh lets it go no further, whatever comes.
    pub fn refused(reason: Reason, request: Request<RequestBody>) -> Self {
        Self { failure: Failure::Unsent, observation: None, reason, request: Some(request), response: None }
    }

    pub fn unsent(request: Request<RequestBody>) -> Self {
        // The connection closed between being picked and being used: nobody's fault that health should hear of.
        let failure = Failure::Unsent;
        Self {
            failure,
            observation: None,
            reason: Reason::ConnectionLost,
            request: Some(request),
            response: None,
        }
    }

    pub fn broken(error: hyper::Error) -> Self {
        tracing::debug!(%error, "the connection broke under a request");
        let failure = if error.is_timeout() { Failure::TimedOut } else { Failure::Broken };
        let reason = Reason::ConnectionLost;
        Self { failure, observation: Some(failure.observation()), reason, request: None, response: None }
    }

    pub fn late() -> Self {
        let failure = Failure::TimedOut;
        let observation = Some(failure.observation());
        Self { failure, observation, reason: Reason::Timeout, request: None, response: None }
    }

    /// The app's own answer, which is passed on if there is no other attempt.
    pub fn status(response: Response<AnswerBody>) -> Self {
        Self {
            failure: Failure::Status,
            // Health has been told of the answer.
            observation: None,
            reason: Reason::Unreachable,
            request: None,
            response: Some(response),
        }
    }

    /// Its proxy has kept it from the app, which is well.
    pub fn shed(response: Response<AnswerBody>) -> Self {
        Self {
            failure: Failure::Shed,
            observation: None,
            reason: Reason::Shed,
            request: None,
            response: Some(response),
        }
    }

    pub fn nobody_there(undelivered: bool, response: Response<AnswerBody>) -> Self {
        let failure = Failure::NobodyThere { undelivered };
        let observation = Some(failure.observation());
        Self { failure, observation, reason: Reason::Unreachable, request: None, response: Some(response) }
    }
}
