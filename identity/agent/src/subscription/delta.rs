//! The incremental protocol: every response carries what is new of single secrets, each under a version of its own
//! that means the same on every stream, so that a client that comes back is not sent what it has.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Name as _;

use super::{
    Conversation, Digest, Heard, Rejection, RequestError, check_names, check_type, detail_of, digest_of,
    nonce, version_of,
};
use crate::secrets::MAX_NAMES;

/// Responses that may wait for their answers; no more is sent before one comes.
const MAX_IN_FLIGHT: usize = 16;

/// One stream of `DeltaSecrets`.
#[derive(Debug)]
pub struct DeltaSubscription {
    /// Makes nonces of one stream differ from another's.
    stream: u64,
    names: BTreeSet<String>,
    /// Versions that the client brought along and that have not been compared yet.
    brought: BTreeMap<String, String>,
    /// What the client should have.
    wanted: BTreeMap<String, Digest>,
    sent: BTreeMap<String, Digest>,
    accepted: BTreeMap<String, Digest>,
    /// Names of which the client was told that they do not exist.
    told_missing: BTreeSet<String>,
    /// Responses without an answer: what was in them, `None` for a removal.
    in_flight: BTreeMap<u64, Vec<(String, Option<Digest>)>>,
    responses: u64,
    rejection: Option<Rejection>,
}

impl DeltaSubscription {
    pub fn new(stream: u64) -> Self {
        Self {
            stream,
            names: BTreeSet::new(),
            brought: BTreeMap::new(),
            wanted: BTreeMap::new(),
            sent: BTreeMap::new(),
            accepted: BTreeMap::new(),
            told_missing: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            responses: 0,
            rejection: None,
        }
    }

    /// What a request says about a response. One may change names and answer nothing: it then has no nonce.
    fn hear_answer(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        if request.response_nonce.is_empty() {
            return Heard::Asked;
        }
        let answered =
            self.in_flight.keys().find(|n| nonce(self.stream, **n) == request.response_nonce).copied();
        let Some((version, content)) = answered.and_then(|n| Some((n, self.in_flight.remove(&n)?))) else {
            return Heard::Stale;
        };
        if let Some(error) = &request.error_detail {
            let detail = detail_of(error);
            let names = content.into_iter().map(|(name, _)| name).collect();
            self.rejection = Some(Rejection { version, names, detail: detail.clone() });
            return Heard::Rejected { version, detail };
        }
        for (name, digest) in content {
            match digest {
                // Dropped meanwhile: then nothing is to be remembered of it.
                Some(digest) if self.names.contains(&name) => drop(self.accepted.insert(name, digest)),
                _ => drop(self.accepted.remove(&name)),
            }
        }
        if self.rejection.as_ref().is_some_and(|r| r.version < version) {
            self.rejection = None;
        }
        Heard::Accepted { version }
    }

    fn forget(&mut self, name: &str) {
        self.brought.remove(name);
        self.wanted.remove(name);
        self.sent.remove(name);
        self.accepted.remove(name);
        self.told_missing.remove(name);
    }
}

impl Conversation for DeltaSubscription {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const TELLS_OF_MISSING: bool = true;

    fn hear(&mut self, request: &DeltaDiscoveryRequest) -> Result<Heard, RequestError> {
        check_type(&request.type_url)?;
        check_names(&request.resource_names_subscribe)?;
        check_names(&request.resource_names_unsubscribe)?;
        check_names(request.initial_resource_versions.keys())?;
        let first = self.names.is_empty() && self.responses == 0;
        if first && request.resource_names_subscribe.is_empty() {
            return Err(RequestError::NoNames);
        }
        let heard = self.hear_answer(request);
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name);
            self.forget(name);
        }
        for name in &request.resource_names_subscribe {
            // Who asks for what it has asked for already is sent it again.
            self.forget(name);
            self.names.insert(name.clone());
        }
        if self.names.len() > MAX_NAMES {
            return Err(RequestError::TooManyNames(self.names.len()));
        }
        if first {
            let asked =
                request.initial_resource_versions.iter().filter(|(name, _)| self.names.contains(*name));
            self.brought = asked.map(|(name, version)| (name.clone(), version.clone())).collect();
        }
        Ok(heard)
    }

    fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    fn holds(&self, name: &str) -> bool {
        self.sent.contains_key(name) || self.accepted.contains_key(name) || self.brought.contains_key(name)
    }

    fn answer(
        &mut self,
        ready: BTreeMap<String, Any>,
        missing: &BTreeSet<String>,
    ) -> Option<DeltaDiscoveryResponse> {
        self.wanted = ready.iter().map(|(name, secret)| (name.clone(), digest_of(secret))).collect();
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let (mut resources, mut content) = (Vec::new(), Vec::new());
        for (name, secret) in ready {
            let digest = digest_of(&secret);
            self.told_missing.remove(&name);
            if self.sent.get(&name) == Some(&digest) {
                continue;
            }
            self.sent.insert(name.clone(), digest);
            let version = version_of(&secret);
            if self.brought.remove(&name).is_some_and(|brought| brought == version) {
                self.accepted.insert(name, digest);
                continue;
            }
            content.push((name.clone(), Some(digest)));
            resources.push(Resource { name, version, resource: Some(secret), ..Default::default() });
        }
        let mut removed_resources = Vec::new();
        for name in missing.iter().filter(|name| self.names.contains(*name)) {
            if self.told_missing.insert(name.clone()) {
                self.sent.remove(name);
                content.push((name.clone(), None));
                removed_resources.push(name.clone());
            }
        }
        if content.is_empty() {
            return None;
        }
        self.responses += 1;
        self.in_flight.insert(self.responses, content);
        Some(DeltaDiscoveryResponse {
            system_version_info: self.responses.to_string(),
            resources,
            type_url: Secret::type_url(),
            removed_resources,
            nonce: nonce(self.stream, self.responses),
            ..Default::default()
        })
    }

    fn in_force(&self) -> bool {
        self.wanted.iter().all(|(name, digest)| self.accepted.get(name) == Some(digest))
    }

    fn unanswered(&self) -> bool {
        !self.in_flight.is_empty()
    }

    fn rejection(&self) -> Option<&Rejection> {
        self.rejection.as_ref()
    }
}
