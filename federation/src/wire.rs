//! The wire of the federation model: messages between control nodes and the data plane. prost types stop here.
//!
//! Domain types travel as JSON inside typed envelopes (DECISIONS.md): one schema, additive, readable in a log.

/// Generated from `federation/proto/watch.proto`: messages only; the service's stubs are made where they are used.
#[allow(clippy::all, missing_docs)]
pub mod watch {
    include!("wire/hanse.watch.v1.rs");
}

/// Bytes from outside that are not the document they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read: {why}")]
pub struct WireError {
    pub what: &'static str,
    pub why: String,
}

/// A domain type as JSON bytes. Domain types of this crate always serialise.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("domain types have string keys and no failing serialisers")
}

/// JSON bytes as a domain type; names are checked on the way in.
pub fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(bytes).map_err(|e| WireError { what, why: e.to_string() })
}
