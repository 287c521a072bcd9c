//! Join tokens: what one side prints, the other side reads, and neither ever commits.
//!
//! A token carries where to dial, which roots to expect (pins), and the private half of a one-time key pair.
//! The control nodes keep only the public half (`Invite`), so no secret is in the Raft log. The joiner signs
//! the TLS session binding and its request with it: the proof cannot be replayed on another connection.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::bundle::KeyId;
use crate::name::{ClusterName, NodeName, TrustDomain};
use crate::time::Timestamp;
use crate::x509;

/// Largest token text that is read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Separates these signatures from any other that a key could be made to make.
const PROOF_CONTEXT: &[u8] = b"hanse join v1";
const AGENT_PREFIX: &str = "hanse-agent-v1";
const CLUSTER_PREFIX: &str = "hanse-cluster-v1";

/// What a token admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Admits {
    /// One agent, by name.
    Agent(crate::name::NodeName),
    /// One cluster, by name.
    Cluster(ClusterName),
}

/// The text that `token create` prints: `hanse-<kind>-v1.<base64url of JSON>`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    pub invite: String,
    pub admits: Admits,
    /// The cluster that made it.
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    /// `host:port` of control nodes.
    pub endpoints: Vec<String>,
    pub pins: Vec<KeyId>,
    pub expires: Timestamp,
    /// Private key of the invite, PKCS#8 DER, base64. Never logged: `Debug` leaves it out.
    pub(crate) secret: Secret,
}

/// A private key, PKCS#8 DER; base64 in documents, wiped when dropped.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

/// The public half, as the control nodes commit it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invite {
    pub id: String,
    pub admits: Admits,
    /// SubjectPublicKeyInfo DER of the one-time key, base64.
    pub public_key: String,
    pub made: Timestamp,
    pub expires: Timestamp,
    /// SHA-256 (hex) of the request that used it; the same request again gets the same answer.
    #[serde(default)]
    pub used_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the text is not a Hanse join token: {0}")]
    Malformed(String),
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    #[error("the token is for {0:?}")]
    WrongKind(Admits),
    #[error("the proof does not belong to this token, request and connection")]
    Proof,
}

/// The bytes that an agent proves when it joins: its name, a zero byte, its certificate request.
/// A name has no zero byte, so no two pairs give the same bytes.
pub fn agent_join_request(agent: &crate::name::NodeName, csr_der: &[u8]) -> Vec<u8> {
    [agent.as_str().as_bytes(), &[0], csr_der].concat()
}

impl JoinToken {
    /// Makes a token and its public half from a fresh one-time P-256 key.
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        invite: String,
        admits: Admits,
        cluster: ClusterName,
        trust_domain: TrustDomain,
        endpoints: Vec<String>,
        pins: Vec<KeyId>,
        key: &KeyPair,
        now: Timestamp,
        expires: Timestamp,
    ) -> (JoinToken, Invite) {
        let public = Invite {
            id: invite.clone(),
            admits: admits.clone(),
            public_key: STANDARD.encode(key.subject_public_key_info()),
            made: now,
            expires,
            used_by: None,
        };
        let secret = Secret(Zeroizing::new(key.serialize_der()));
        let token = JoinToken { invite, admits, cluster, trust_domain, endpoints, pins, expires, secret };
        (token, public)
    }

    /// Signs (context, session binding, request) with the one-time key.
    pub fn prove(&self, binding: &[u8; 32], request: &[u8]) -> Result<Vec<u8>, TokenError> {
        let pkcs8 = PrivatePkcs8KeyDer::from(self.secret.0.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| TokenError::Malformed("its key cannot be read".to_owned()))?;
        key.sign(&proof_message(&self.invite, binding, request))
            .map_err(|_| TokenError::Malformed("its key does not sign".to_owned()))
    }

    /// The agent's name, if that is what it admits.
    pub fn admitted_agent(&self) -> Result<&NodeName, TokenError> {
        match &self.admits {
            Admits::Agent(name) => Ok(name),
            other => Err(TokenError::WrongKind(other.clone())),
        }
    }

    /// The cluster's name, if that is what it admits.
    pub fn admitted_cluster(&self) -> Result<&ClusterName, TokenError> {
        match &self.admits {
            Admits::Cluster(name) => Ok(name),
            other => Err(TokenError::WrongKind(other.clone())),
        }
    }
}

impl JoinToken {
    fn prefix(&self) -> &'static str {
        match self.admits {
            Admits::Agent(_) => AGENT_PREFIX,
            Admits::Cluster(_) => CLUSTER_PREFIX,
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD.decode(text.as_str()).map_err(|_| serde::de::Error::custom("is not base64"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

/// What a proof signs. Every part is led by its length, so that no two different inputs give the same bytes.
fn proof_message(invite: &str, binding: &[u8; 32], request: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    for part in [PROOF_CONTEXT, invite.as_bytes(), binding.as_slice(), request] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

impl Invite {
    /// Checks a proof that `JoinToken::prove` made, and the expiry. Single use is the log's business.
    pub fn check(
        &self,
        binding: &[u8; 32],
        request: &[u8],
        proof: &[u8],
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if now >= self.expires {
            return Err(TokenError::Expired(self.expires));
        }
        let key = STANDARD.decode(&self.public_key).map_err(|_| TokenError::Proof)?;
        let (_, key) = SubjectPublicKeyInfo::from_der(&key).map_err(|_| TokenError::Proof)?;
        let point = x509::p256_point(&key).ok_or(TokenError::Proof)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(&proof_message(&self.id, binding, request), proof)
            .map_err(|_| TokenError::Proof)
    }
}

impl std::str::FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let malformed = |why: &str| TokenError::Malformed(why.to_owned());
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(malformed("it is too long"));
        }
        let (prefix, body) = text.split_once('.').ok_or_else(|| malformed("it has no dot"))?;
        if prefix != AGENT_PREFIX && prefix != CLUSTER_PREFIX {
            return Err(malformed("it starts with neither hanse-agent-v1 nor hanse-cluster-v1"));
        }
        let json =
            URL_SAFE_NO_PAD.decode(body).map(Zeroizing::new).map_err(|_| malformed("it is not base64url"))?;
        // serde's own message could quote the secret.
        let token: Self =
            serde_json::from_slice(&json).map_err(|_| malformed("its content cannot be read"))?;
        if prefix != token.prefix() {
            return Err(malformed("its prefix and its content differ"));
        }
        if token.pins.is_empty() || token.endpoints.is_empty() {
            return Err(malformed("it has no pin or no endpoint"));
        }
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &token.secret.0)
            .map_err(|_| malformed("its key cannot be read"))?;
        Ok(token)
    }
}

impl std::fmt::Display for JoinToken {
    /// The full token, secret included: for the one place that prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_vec(self).map(Zeroizing::new).map_err(|_| std::fmt::Error)?;
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*json));
        write!(f, "{}.{}", self.prefix(), *body)
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("invite", &self.invite)
            .field("admits", &self.admits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
