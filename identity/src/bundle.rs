//! Bundles: the public authorities of one trust domain, and how they are written for others to read.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::authority::AuthorityState;
use crate::jwt::{JwtAuthority, JwtAuthorityError};
use crate::name::TrustDomain;
use crate::time::Timestamp;
use crate::wire::to_pem;
use crate::x509;
use crate::x509::authority::{AuthorityFacts, speaks_for};

mod document;
mod file;
mod jwk;

pub use document::{
    BundleDocument, MAX_DOCUMENT_BYTES, MAX_DOCUMENT_KEYS, MAX_MAP_DOMAINS, bundle_map, parse_bundle_map,
};
pub(crate) use file::SECRET_MEMBERS;
pub(crate) use jwk::{KeyKind, from_jwk as key_from_jwk, is_sound as is_sound_key, key_kind};

/// Most authorities that a bundle may have: several per control node, and then some.
pub const MAX_AUTHORITIES: usize = 64;
/// Most JWT authorities that a bundle may have.
pub const MAX_JWT_AUTHORITIES: usize = 64;

/// SHA-256 of a public key's SubjectPublicKeyInfo (DER); written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

/// One authority's certificate in a bundle: self-signed; ECDSA P-256 or P-384 or RSA of 2048 bits and more. If it
/// has a URI name at all, that is the bare trust domain (our own always have it, a user's own root may not).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityCertificate {
    /// X.509, DER.
    #[serde(with = "crate::wire::base64_bytes")]
    pub der: Vec<u8>,
    pub key_id: KeyId,
    /// RFC 4514 text of the subject; unique per authority.
    pub subject: String,
    pub not_after: Timestamp,
    pub state: AuthorityState,
}

/// The authorities of one trust domain; never merged with another's (SPIFFE Federation §7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    /// `spiffe_sequence`: grows with every change of content.
    pub sequence: u64,
    /// Who signs X509-SVIDs.
    pub authorities: Vec<AuthorityCertificate>,
    /// Who signs JWT-SVIDs; never the same keys (SPIFFE Trust Domain and Bundle §2: no multi-protocol keys).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_authorities: Vec<JwtAuthority>,
}

/// Why bytes are not a bundle, or not an authority's certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the certificate cannot be parsed: {0}")]
    Certificate(String),
    #[error("the certificate is not an authority of {0}: {1}")]
    NotAnAuthority(TrustDomain, &'static str),
    #[error("the bundle has no authority")]
    Empty,
    #[error(
        "there is a private key in it: a bundle is public; that key is to be replaced if this file has left its host"
    )]
    PrivateKey,
    #[error("two authorities share the subject {0}")]
    SubjectShared(String),
    #[error("the bundle has {0} authorities, at most {max} are read", max = MAX_AUTHORITIES)]
    TooMany(usize),
    #[error("the bundle has {0} JWT authorities, at most {max} are read", max = MAX_JWT_AUTHORITIES)]
    TooManyJwt(usize),
    #[error("JWT authority {key_id:?}: {why}")]
    Jwt { key_id: String, why: JwtAuthorityError },
    #[error("two JWT authorities have the key id {0:?}")]
    KeyIdShared(String),
    #[error("the bundle document cannot be read: {0}")]
    Document(String),
}

impl AuthorityCertificate {
    /// Parses and checks one authority's certificate; state is `Active`.
    pub fn parse(der: &[u8], trust_domain: &TrustDomain) -> Result<Self, BundleError> {
        let not_an_authority = |rule| BundleError::NotAnAuthority(trust_domain.clone(), rule);
        let certificate = x509::parse(der).map_err(BundleError::Certificate)?;
        speaks_for(&certificate, trust_domain).map_err(not_an_authority)?;
        let facts = AuthorityFacts::root(&certificate).map_err(not_an_authority)?;
        certificate
            .verify_signature(None)
            .map_err(|_| not_an_authority("it is not signed with its own key"))?;
        Ok(Self {
            der: der.to_vec(),
            key_id: facts.key_id,
            subject: facts.subject,
            not_after: facts.not_after,
            state: AuthorityState::Active,
        })
    }

    /// Whether verifiers may believe what it signed.
    pub fn is_trusted(&self) -> bool {
        self.state != AuthorityState::Retired
    }
}

impl Bundle {
    /// A bundle of X.509 authorities alone.
    pub fn new(trust_domain: TrustDomain, sequence: u64, authorities: Vec<AuthorityCertificate>) -> Self {
        Self { trust_domain, sequence, authorities, jwt_authorities: Vec::new() }
    }

    /// Checks every authority again, as read from a joined cluster or a file. A cluster of ours always has an X.509
    /// authority; see `check_foreign` for trust domains that are not run by Hanse.
    pub fn check(&self) -> Result<(), BundleError> {
        if self.authorities.is_empty() {
            return Err(BundleError::Empty);
        }
        self.check_foreign()?;
        let mut subjects = BTreeSet::new();
        match self.authorities.iter().find(|authority| !subjects.insert(&authority.subject)) {
            Some(twice) => Err(BundleError::SubjectShared(twice.subject.clone())),
            None => Ok(()),
        }
    }

    /// As `check`, of a trust domain that is not run by Hanse. It may have no authority at all: nothing of it is
    /// believed then, which is how its owner says that every key is revoked (SPIFFE Trust Domain and Bundle §4.1.3).
    /// Its authorities may share a subject: only revocation lists need to tell them apart by it.
    pub fn check_foreign(&self) -> Result<(), BundleError> {
        if self.authorities.len() > MAX_AUTHORITIES {
            return Err(BundleError::TooMany(self.authorities.len()));
        }
        if self.jwt_authorities.len() > MAX_JWT_AUTHORITIES {
            return Err(BundleError::TooManyJwt(self.jwt_authorities.len()));
        }
        for authority in &self.authorities {
            let read = AuthorityCertificate::parse(&authority.der, &self.trust_domain)?;
            if read != (AuthorityCertificate { state: read.state, ..authority.clone() }) {
                let rule = "what the bundle says about it is not what it says itself";
                return Err(BundleError::NotAnAuthority(self.trust_domain.clone(), rule));
            }
        }
        let mut key_ids = BTreeSet::new();
        for authority in &self.jwt_authorities {
            let key_id = || authority.key_id.chars().take(64).collect();
            authority.check().map_err(|why| BundleError::Jwt { key_id: key_id(), why })?;
            if !key_ids.insert(&authority.key_id) {
                return Err(BundleError::KeyIdShared(key_id()));
            }
        }
        Ok(())
    }

    /// The authorities that verifiers may believe: all but the retired.
    pub fn trusted(&self) -> impl Iterator<Item = &AuthorityCertificate> {
        self.authorities.iter().filter(|a| a.is_trusted())
    }

    /// Every trusted authority's certificate as PEM, concatenated.
    pub fn to_pem(&self) -> String {
        self.trusted().map(|a| to_pem("CERTIFICATE", &a.der).to_string()).collect()
    }

    /// The JWT authorities that validators may believe: all but the retired.
    pub fn trusted_jwt(&self) -> impl Iterator<Item = &JwtAuthority> {
        self.jwt_authorities.iter().filter(|a| a.is_trusted())
    }

    /// The pins of all trusted authorities, for join tokens.
    pub fn pins(&self) -> Vec<KeyId> {
        self.trusted().map(|a| a.key_id).collect()
    }
}

impl KeyId {
    /// The first 160 bits in hex: the key identifier that our certificates carry (RFC 7093 §2, method 1, over the
    /// whole SubjectPublicKeyInfo).
    pub fn prefix(&self) -> String {
        crate::wire::to_hex(&self.0[..20])
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = crate::wire::from_hex(text).ok_or("is not hex")?;
        bytes.try_into().map(KeyId).map_err(|_| "is not 64 hex digits")
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
