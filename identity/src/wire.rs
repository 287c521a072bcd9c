//! The wire of identity: messages between an agent and a control node, and text encodings of bytes.
//!
//! prost types stop here. The `.proto` is `identity/proto/issue.proto`; the generated code is in the tree.

use std::collections::BTreeMap;

use crate::bundle::KeyId;
use crate::crl::Crl;
use crate::name::TrustDomain;

/// Generated from `identity/proto/issue.proto`: messages only; the service's stubs are made where they are used.
#[allow(clippy::all, missing_docs)]
pub mod issue {
    include!("wire/hanse.issue.v1.rs");
}

/// Bytes from hex of either case; `None` if it is not hex.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    digits.chunks(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

/// Bytes as lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 0xf)]).collect()
}

/// One PEM block (RFC 7468): base64 in lines of 64 characters.
pub fn to_pem(label: &str, der: &[u8]) -> zeroize::Zeroizing<String> {
    use base64::Engine as _;

    const LINE: usize = 64;
    let body = zeroize::Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    // Sized once: a growing String would leave copies of a private key behind.
    let mut pem =
        zeroize::Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 40));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

/// `#[serde(with = "…")]`: bytes as standard base64.
pub mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What an agent needs to know, complete.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// Revision of the cluster's log that this was read at.
    pub revision: u64,
    /// Registrations on this agent's host.
    pub registrations: Vec<crate::grant::Registration>,
    /// Own trust domain's and every peer's.
    pub bundles: Vec<crate::bundle::Bundle>,
    /// The newest revocation list of each authority in `bundles`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub crls: BTreeMap<TrustDomain, BTreeMap<KeyId, Crl>>,
    pub revocations: crate::revocation::Revocations,
    /// Trust domains of `bundles` that are neither the own one nor a joined cluster's: a workload is given their
    /// bundles only where its registration names them.
    #[serde(default, skip_serializing_if = "std::collections::BTreeSet::is_empty")]
    pub strangers: std::collections::BTreeSet<crate::name::TrustDomain>,
    /// `host:port` of the cluster's control nodes, so that an agent can fail over between them.
    pub endpoints: Vec<String>,
    /// Some listeners of this cluster and of each joined one, to which revoked certificates are shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doors: Vec<crate::proof::Door>,
}
