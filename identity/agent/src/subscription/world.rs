//! The state of the world: every response carries all secrets of the stream that are ready, under one version.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Name as _;

use super::{
    Conversation, Digest, Heard, Rejection, RequestError, check_names, check_type, detail_of, digest_of,
    nonce,
};

/// One stream of `StreamSecrets`.
#[derive(Debug)]
pub struct Subscription {
    /// Makes nonces of one stream differ from another's.
    stream: u64,
    names: BTreeSet<String>,
    /// What the client should have.
    wanted: BTreeMap<String, Digest>,
    sent: BTreeMap<String, Digest>,
    accepted: BTreeMap<String, Digest>,
    version: u64,
    /// Version of the last response that the client has answered.
    answered: u64,
    rejection: Option<Rejection>,
    /// The client came with content from an earlier stream.
    returns: bool,
}

impl Subscription {
    pub fn new(stream: u64) -> Self {
        Self {
            stream,
            names: BTreeSet::new(),
            wanted: BTreeMap::new(),
            sent: BTreeMap::new(),
            accepted: BTreeMap::new(),
            version: 0,
            answered: 0,
            rejection: None,
            returns: false,
        }
    }
}

impl Conversation for Subscription {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const TELLS_OF_MISSING: bool = false;

    fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, RequestError> {
        check_type(&request.type_url)?;
        check_names(&request.resource_names)?;
        // Until something was sent there is nothing that a nonce could answer; one left over from an earlier
        // stream says nothing about this one.
        let answers = self.version > 0;
        if answers && request.response_nonce != nonce(self.stream, self.version) {
            return Ok(Heard::Stale);
        }
        if !answers && self.names.is_empty() {
            if request.resource_names.is_empty() {
                return Err(RequestError::NoNames);
            }
            self.returns = !request.version_info.is_empty();
        }
        self.names = request.resource_names.iter().cloned().collect();
        self.wanted.retain(|name, _| self.names.contains(name));
        self.sent.retain(|name, _| self.names.contains(name));
        self.accepted.retain(|name, _| self.names.contains(name));
        // A second request with the same nonce only changes names.
        if !answers || self.answered == self.version {
            return Ok(Heard::Asked);
        }
        let version = self.version;
        self.answered = version;
        Ok(match &request.error_detail {
            Some(error) => {
                let detail = detail_of(error);
                let names = self.sent.keys().cloned().collect();
                self.rejection = Some(Rejection { version, names, detail: detail.clone() });
                Heard::Rejected { version, detail }
            }
            None => {
                self.accepted.clone_from(&self.sent);
                self.rejection = None;
                Heard::Accepted { version }
            }
        })
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    fn holds(&self, name: &str) -> bool {
        self.sent.contains_key(name) || (self.returns && self.version == 0)
    }

    fn answer(
        &mut self,
        ready: BTreeMap<String, Any>,
        _missing: &BTreeSet<String>,
    ) -> Option<DiscoveryResponse> {
        self.wanted = ready.iter().map(|(name, secret)| (name.clone(), digest_of(secret))).collect();
        if self.wanted.iter().all(|(name, digest)| self.sent.get(name) == Some(digest)) {
            return None;
        }
        self.version += 1;
        self.sent.extend(self.wanted.clone());
        Some(DiscoveryResponse {
            version_info: self.version.to_string(),
            nonce: nonce(self.stream, self.version),
            type_url: Secret::type_url(),
            resources: ready.into_values().collect(),
            ..Default::default()
        })
    }

    fn in_force(&self) -> bool {
        self.wanted.iter().all(|(name, digest)| self.accepted.get(name) == Some(digest))
    }

    fn unanswered(&self) -> bool {
        self.version > self.answered
    }

    fn rejection(&self) -> Option<&Rejection> {
        self.rejection.as_ref()
    }
}
