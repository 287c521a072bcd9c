//! Subscription: one SDS stream's conversation, without the stream.
//!
//! Pure: requests in, responses out. Owns versions, nonces, and the rule that a secret is sent again only when
//! it differs from what was sent last, whether that was accepted or not.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Name as _;

use crate::secrets::MAX_NAMES;

/// One stream: what is asked for, what was sent, what was accepted.
#[derive(Debug)]
pub struct Subscription {
    /// Makes nonces of one stream differ from another's.
    stream: u64,
    names: BTreeSet<String>,
    sent: BTreeMap<String, Any>,
    version: u64,
    acknowledged: u64,
    rejected: u64,
}

/// What a request said about the last response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it asks for names.
    Asked,
    /// The client has put that version in force.
    Accepted { version: u64 },
    /// The client keeps what it had before.
    Rejected { version: u64, detail: String },
    /// It answers a response that is not the last one; a later request will follow.
    Stale,
}

/// Why a request ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("this stream carries {expected}, not {0}", expected = Secret::type_url())]
    Type(String),
    #[error("the first request names no secret")]
    NoNames,
    #[error("{0} secrets in one request, at most {MAX_NAMES} are served on a stream")]
    TooManyNames(usize),
}

impl Subscription {
    pub fn new(stream: u64) -> Self {
        Self {
            stream,
            names: BTreeSet::new(),
            sent: BTreeMap::new(),
            version: 0,
            acknowledged: 0,
            rejected: 0,
        }
    }

    /// The names asked for last.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Version that the client said it put in force; 0 = none yet.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Takes a request in.
    pub fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        if !request.type_url.is_empty() && request.type_url != Secret::type_url() {
            return Err(RequestError::Type(request.type_url.chars().take(120).collect()));
        }
        if request.resource_names.len() > MAX_NAMES {
            return Err(RequestError::TooManyNames(request.resource_names.len()));
        }
        // Until something was sent there is nothing that a nonce could answer; one left over from an earlier
        // stream says nothing about this one.
        let answers = self.version > 0;
        if answers && request.response_nonce != self.nonce() {
            return Ok(Heard::Stale);
        }
        if !answers && self.names.is_empty() && request.resource_names.is_empty() {
            return Err(RequestError::NoNames);
        }
        self.names = request.resource_names.iter().cloned().collect();
        self.sent.retain(|name, _| self.names.contains(name));
        let version = self.version;
        Ok(match &request.error_detail {
            _ if !answers => Heard::Asked,
            Some(error) => {
                self.rejected = version;
                Heard::Rejected { version, detail: error.message.chars().take(512).collect() }
            }
            // A second request with the same nonce only changes names.
            None if self.acknowledged == version || self.rejected == version => Heard::Asked,
            None => {
                self.acknowledged = version;
                Heard::Accepted { version }
            }
        })
    }

    /// The response that brings the client up to `secrets` (those of `names` that are ready); `None` if it has
    /// been sent all of them as they are.
    pub fn answer(&mut self, secrets: BTreeMap<String, Any>) -> Option<DiscoveryResponse> {
        let news = secrets.iter().any(|(name, secret)| self.sent.get(name) != Some(secret));
        if !news {
            return None;
        }
        self.version += 1;
        let resources = secrets.values().cloned().collect();
        self.sent.extend(secrets);
        Some(DiscoveryResponse {
            version_info: self.version.to_string(),
            nonce: self.nonce(),
            type_url: Secret::type_url(),
            resources,
            ..Default::default()
        })
    }

    fn nonce(&self) -> String {
        format!("{:016x}-{}", self.stream, self.version)
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::rpc::Status;

    use super::*;

    fn asking(names: &[&str]) -> DiscoveryRequest {
        let resource_names = names.iter().map(|n| (*n).to_owned()).collect();
        DiscoveryRequest { resource_names, type_url: Secret::type_url(), ..Default::default() }
    }

    fn answering(names: &[&str], response: &DiscoveryResponse) -> DiscoveryRequest {
        let (version_info, response_nonce) = (response.version_info.clone(), response.nonce.clone());
        DiscoveryRequest { version_info, response_nonce, ..asking(names) }
    }

    fn rejecting(names: &[&str], response: &DiscoveryResponse, previous: &str) -> DiscoveryRequest {
        let error_detail = Some(Status { code: 13, message: "no such key".into(), ..Default::default() });
        DiscoveryRequest { version_info: previous.into(), error_detail, ..answering(names, response) }
    }

    fn secrets(entries: &[(&str, &str)]) -> BTreeMap<String, Any> {
        let any = |value: &str| Any { type_url: Secret::type_url(), value: value.as_bytes().to_vec() };
        entries.iter().map(|(name, value)| ((*name).to_owned(), any(value))).collect()
    }

    #[test]
    fn first_request_is_answered_and_the_acknowledgement_is_not() {
        let mut stream = Subscription::new(7);
        assert_eq!(stream.hear(&asking(&["default"])), Ok(Heard::Asked));
        let first = stream.answer(secrets(&[("default", "a")])).unwrap();
        assert_eq!((first.version_info.as_str(), first.resources.len()), ("1", 1));
        assert_eq!(stream.hear(&answering(&["default"], &first)), Ok(Heard::Accepted { version: 1 }));
        assert_eq!(stream.answer(secrets(&[("default", "a")])), None);
        let second = stream.answer(secrets(&[("default", "b")])).unwrap();
        assert_eq!(second.version_info, "2");
        assert_ne!(second.nonce, first.nonce);
        assert_eq!(stream.acknowledged(), 1);
    }

    #[test]
    fn what_was_rejected_is_sent_again_only_when_it_has_changed() {
        let mut stream = Subscription::new(7);
        stream.hear(&asking(&["ALL"])).unwrap();
        let good = stream.answer(secrets(&[("ALL", "good")])).unwrap();
        stream.hear(&answering(&["ALL"], &good)).unwrap();
        let bad = stream.answer(secrets(&[("ALL", "bad")])).unwrap();
        let rejected = Heard::Rejected { version: 2, detail: "no such key".into() };
        assert_eq!(stream.hear(&rejecting(&["ALL"], &bad, "1")), Ok(rejected));
        assert_eq!(stream.answer(secrets(&[("ALL", "bad")])), None);
        assert_eq!(stream.acknowledged(), 1);
        let better = stream.answer(secrets(&[("ALL", "better")])).unwrap();
        assert_eq!(stream.hear(&answering(&["ALL"], &better)), Ok(Heard::Accepted { version: 3 }));
    }

    #[test]
    fn an_answer_to_an_older_response_is_ignored() {
        let mut stream = Subscription::new(7);
        stream.hear(&asking(&["default"])).unwrap();
        let first = stream.answer(secrets(&[("default", "a")])).unwrap();
        stream.answer(secrets(&[("default", "b")])).unwrap();
        assert_eq!(stream.hear(&answering(&["ALL"], &first)), Ok(Heard::Stale));
        assert!(stream.names().contains("default"));
    }

    #[test]
    fn names_may_change_on_the_stream() {
        let mut stream = Subscription::new(7);
        stream.hear(&asking(&["default"])).unwrap();
        let first = stream.answer(secrets(&[("default", "a")])).unwrap();
        stream.hear(&answering(&["default"], &first)).unwrap();
        assert_eq!(stream.hear(&answering(&["ALL", "default"], &first)), Ok(Heard::Asked));
        let both = stream.answer(secrets(&[("default", "a"), ("ALL", "x")])).unwrap();
        assert_eq!(both.resources.len(), 2);
        // Asked for less: nothing is sent. Asked again: it is.
        stream.hear(&answering(&["default"], &both)).unwrap();
        assert_eq!(stream.answer(secrets(&[("default", "a")])), None);
        stream.hear(&answering(&["ALL", "default"], &both)).unwrap();
        assert!(stream.answer(secrets(&[("default", "a"), ("ALL", "x")])).is_some());
    }

    #[test]
    fn a_nonce_of_an_earlier_stream_does_not_stop_the_first_request() {
        let mut stream = Subscription::new(7);
        let old =
            DiscoveryRequest { response_nonce: "old".into(), version_info: "9".into(), ..asking(&["ALL"]) };
        assert_eq!(stream.hear(&old), Ok(Heard::Asked));
    }

    #[test]
    fn requests_that_make_no_sense_are_errors() {
        let mut stream = Subscription::new(7);
        assert_eq!(stream.hear(&asking(&[])), Err(RequestError::NoNames));
        let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..asking(&["ALL"]) };
        assert!(matches!(stream.hear(&other), Err(RequestError::Type(_))));
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(stream.hear(&asking(&many)), Err(RequestError::TooManyNames(MAX_NAMES + 1)));
    }
}
