//! Refusals and failed writes as gRPC statuses; the client reads them back (`client.rs`).

use hanse_federation::wire::{WireError, decode, encode};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::driver::ProposeError;
use super::quorum::NODE_REVOKED;
use crate::command::{Answer, Outcome, Refusal};
use crate::wire::control::Document;

/// Metadata key: JSON of a `Refusal`.
pub const REFUSAL_KEY: &str = "hanse-refusal";
/// Metadata key: why there is no outcome, one of `NO_QUORUM`, `OVERLOADED`, `REVOKED`.
pub const CAUSE_KEY: &str = "hanse-cause";
pub const NO_QUORUM: &str = "no-quorum";
pub const OVERLOADED: &str = "overloaded";
/// The node is revoked and has done nothing: another one is to be asked.
pub const REVOKED: &str = "node-revoked";

/// A Command that changed nothing.
pub fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::Invalid(_) => Code::InvalidArgument,
        Refusal::Precondition(_) => Code::FailedPrecondition,
        Refusal::NotAllowed(_) => Code::PermissionDenied,
        Refusal::Limit(_) => Code::ResourceExhausted,
    };
    let mut status = Status::new(code, one_line(&refusal.to_string()));
    // Metadata is ASCII; a refusal that is not can still be read from the message.
    if let Ok(json) = String::from_utf8(encode(refusal)).unwrap_or_default().parse() {
        status.metadata_mut().insert(REFUSAL_KEY, json);
    }
    status
}

/// A write or a linearizable read without an outcome.
pub fn no_outcome(error: &ProposeError) -> Status {
    let (code, cause) = match error {
        ProposeError::NoLeader => (Code::Unavailable, Some(NO_QUORUM)),
        ProposeError::Timeout(_) => (Code::DeadlineExceeded, Some(NO_QUORUM)),
        ProposeError::Overloaded(_) => (Code::ResourceExhausted, Some(OVERLOADED)),
        ProposeError::ShuttingDown => (Code::Unavailable, None),
        ProposeError::TooLarge(_) => (Code::InvalidArgument, None),
    };
    let mut status = Status::new(code, error.to_string());
    if let Some(cause) = cause {
        status.metadata_mut().insert(CAUSE_KEY, MetadataValue::from_static(cause));
    }
    status
}

/// Nothing was done, because this node is revoked.
pub fn node_revoked() -> Status {
    let mut status = Status::unavailable(NODE_REVOKED);
    status.metadata_mut().insert(CAUSE_KEY, MetadataValue::from_static(REVOKED));
    status
}

/// What an outcome answered, or its refusal.
pub fn answered(outcome: Outcome) -> Result<(u64, Answer), Status> {
    match outcome.result {
        Ok(answer) => Ok((outcome.revision, answer)),
        Err(refusal) => Err(refused(&refusal)),
    }
}

/// A document of ours.
pub fn document<T: serde::Serialize>(value: &T) -> Document {
    Document { json: encode(value) }
}

/// A document from outside.
pub fn read<T: serde::de::DeserializeOwned>(what: &'static str, document: &Document) -> Result<T, Status> {
    decode(what, &document.json).map_err(unreadable)
}

/// Bytes from outside that are not what they should be.
pub fn unreadable(error: WireError) -> Status {
    Status::invalid_argument(one_line(&error.to_string()))
}

/// Status messages travel in a header.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_through_a_status() {
        let refusal = Refusal::NotFound { what: "service shop/reviews".to_owned() };
        let status = refused(&refusal);
        assert_eq!(status.code(), Code::NotFound);
        let json = status.metadata().get(REFUSAL_KEY).unwrap().as_bytes();
        assert_eq!(decode::<Refusal>("refusal", json).unwrap(), refusal);
    }

    #[test]
    fn no_leader_is_told_from_other_unavailability() {
        let cause = |e| no_outcome(&e).metadata().get(CAUSE_KEY).cloned();
        assert_eq!(cause(ProposeError::NoLeader).unwrap(), NO_QUORUM);
        assert_eq!(cause(ProposeError::ShuttingDown), None);
    }
}
