//! Subscription: the conversation of an SDS stream, without the stream.
//!
//! Pure: requests in, responses out. `world` speaks the state of the world, `delta` the incremental protocol (xDS
//! protocol, "Four variants"). Both own versions and nonces, what the client has said about them, and the rule that
//! content is sent again only when it differs from what was sent last, whether that was accepted or not.

pub mod delta;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_lc_rs::digest;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use hanse_identity::Timestamp;
use hanse_identity::wire::to_hex;
use prost::Name as _;

use crate::secrets::MAX_NAMES;

/// Longest name of a secret: a SPIFFE ID (SPIFFE-ID §2.3).
pub const MAX_NAME_BYTES: usize = 2048;
/// Requests that a client may send at once.
const REQUEST_BURST: u32 = 64;
/// After that, one more for each of these.
const REQUEST_EVERY: Duration = Duration::from_millis(100);
/// How much of a client's explanation is kept, in characters.
const MAX_DETAIL: usize = 512;

/// SHA-256 of a secret's content.
type Digest = [u8; 32];

/// One stream: what is asked for, what was sent, what is in force at the client.
pub trait Conversation {
    type Request;
    type Response;
    /// Whether the client can be told that a secret does not exist.
    const TELLS_OF_MISSING: bool;

    /// Takes a request in.
    fn hear(&mut self, request: &Self::Request) -> Result<Heard, RequestError>;

    /// The names asked for.
    fn names(&self) -> &BTreeSet<String>;

    /// Whether the client has some content of that name, from this stream or an earlier one: what has become of it
    /// has to be told by content, for a client keeps what it has when nothing comes.
    fn holds(&self, name: &str) -> bool;

    /// The response that brings the client up to `ready` (those of `names` that are ready); `missing` do not exist.
    /// `None` if it has been sent all of that as it is.
    fn answer(&mut self, ready: BTreeMap<String, Any>, missing: &BTreeSet<String>) -> Option<Self::Response>;

    /// Whether the client has said that it has put in force all that `answer` was last given.
    fn in_force(&self) -> bool;

    /// Whether a response waits for the client's word.
    fn unanswered(&self) -> bool;

    /// What the client refused last, until it has accepted something newer.
    fn rejection(&self) -> Option<&Rejection>;
}

/// What a request said about a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it asks for names.
    Asked,
    /// The client has put that version in force.
    Accepted { version: u64 },
    /// The client keeps what it had before.
    Rejected { version: u64, detail: String },
    /// It answers a response that does not wait for an answer, and is ignored.
    Stale,
}

/// A response that the client refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub version: u64,
    pub names: Vec<String>,
    /// The client's own words, shortened.
    pub detail: String,
}

/// Why a request ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("this stream carries {expected}, not {0}", expected = Secret::type_url())]
    Type(String),
    #[error("the first request names no secret")]
    NoNames,
    #[error("secrets are asked for by their names, not by {0:?}")]
    Wildcard(String),
    #[error("a name has {0} bytes, at most {MAX_NAME_BYTES} are read")]
    NameTooLong(usize),
    #[error("{0} secrets in one request, at most {MAX_NAMES} are served on a stream")]
    TooManyNames(usize),
}

/// How fast a client may ask: a bucket of `REQUEST_BURST` that fills again with time.
#[derive(Debug)]
pub struct RequestRate {
    left: u32,
    filled: Timestamp,
}

impl RequestRate {
    pub fn new(now: Timestamp) -> Self {
        Self { left: REQUEST_BURST, filled: now }
    }

    /// Whether one more request is within the rate.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let earned = now.since(self.filled).as_millis() / REQUEST_EVERY.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(REQUEST_BURST);
            self.filled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

fn check_type(type_url: &str) -> Result<(), RequestError> {
    match type_url.is_empty() || type_url == Secret::type_url() {
        true => Ok(()),
        false => Err(RequestError::Type(type_url.chars().take(120).collect())),
    }
}

fn check_names<'n>(names: impl IntoIterator<Item = &'n String>) -> Result<(), RequestError> {
    let mut count = 0;
    for name in names {
        count += 1;
        if name.len() > MAX_NAME_BYTES {
            return Err(RequestError::NameTooLong(name.len()));
        }
        // An empty name is how the protocol's older form says the same.
        if name == "*" || name.is_empty() {
            return Err(RequestError::Wildcard(name.clone()));
        }
    }
    if count > MAX_NAMES { Err(RequestError::TooManyNames(count)) } else { Ok(()) }
}

fn digest_of(secret: &Any) -> Digest {
    let digest = digest::digest(&digest::SHA256, &secret.value);
    digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

/// A version that means the same on every stream: of the content.
pub fn version_of(secret: &Any) -> String {
    to_hex(&digest_of(secret)[..16])
}

fn detail_of(error: &rpc::Status) -> String {
    error.message.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect()
}

fn nonce(stream: u64, response: u64) -> String {
    format!("{stream:016x}-{response}")
}

#[cfg(test)]
mod tests;
