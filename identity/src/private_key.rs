//! Private keys that sign for a node: held in this process's memory, or by something else that signs for it.
//!
//! A local key can be written down (`to_pkcs8`, for the node's own sealed file and nothing else); an external one,
//! such as that of a hardware module, cannot be had, only used. Whoever signs with a `PrivateKey` cannot tell them apart.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize as _, Zeroizing};

use crate::bundle::KeyId;
use crate::x509;

/// Bytes of a P-256 signature as JOSE writes it: r, then s (RFC 7518 §3.4).
pub const FIXED_SIGNATURE_BYTES: usize = 64;

/// One ECDSA P-256 key that signs with SHA-256. Its bytes, where they are here at all, are wiped when it is dropped.
pub struct PrivateKey(Held);

enum Held {
    Local(KeyPair),
    External(Box<dyn SigningKey + Send + Sync>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    #[error("it cannot be read as PKCS#8: {0}")]
    Unreadable(String),
    #[error("it is not ECDSA P-256")]
    NotP256,
    #[error("it does not sign: {0}")]
    Signing(String),
    #[error("what signs for it gave no ECDSA signature")]
    NotASignature,
}

impl PrivateKey {
    /// A key pair in memory.
    pub fn local(key: KeyPair) -> Result<Self, PrivateKeyError> {
        // Put away first: a refused key is wiped as well.
        let key = Self(Held::Local(key));
        key.is_p256().then_some(key).ok_or(PrivateKeyError::NotP256)
    }

    /// From what `to_pkcs8` gave.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let der = PrivatePkcs8KeyDer::from(der);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        Self::local(key.map_err(|e| PrivateKeyError::Unreadable(e.to_string()))?)
    }

    /// A key that something else holds. `sign` takes the message, not its digest, and gives a DER signature
    /// (RFC 3279 §2.2.3); it blocks, and has a bound of its own on how long.
    pub fn external(key: Box<dyn SigningKey + Send + Sync>) -> Result<Self, PrivateKeyError> {
        let key = Self(Held::External(key));
        key.is_p256().then_some(key).ok_or(PrivateKeyError::NotP256)
    }

    /// SHA-256 of the public key.
    pub fn id(&self) -> KeyId {
        x509::key_id(&self.subject_public_key_info())
    }

    /// PKCS#8 DER, for the node's own file and nothing else; `None` if the key is not here.
    pub fn to_pkcs8(&self) -> Option<Zeroizing<Vec<u8>>> {
        match &self.0 {
            Held::Local(key) => Some(Zeroizing::new(key.serialize_der())),
            Held::External(_) => None,
        }
    }

    /// Whether something else signs for it.
    pub fn is_external(&self) -> bool {
        matches!(self.0, Held::External(_))
    }

    /// An ES256 signature as JOSE wants it: r and s, 32 bytes each (RFC 7518 §3.4).
    pub fn sign_fixed(&self, message: &[u8]) -> Result<[u8; FIXED_SIGNATURE_BYTES], PrivateKeyError> {
        let der = self.sign(message).map_err(|e| PrivateKeyError::Signing(e.to_string()))?;
        fixed_signature(&der).ok_or(PrivateKeyError::NotASignature)
    }

    fn is_p256(&self) -> bool {
        *self.algorithm() == PKCS_ECDSA_P256_SHA256
    }

    fn held(&self) -> &dyn SigningKey {
        match &self.0 {
            Held::Local(key) => key,
            Held::External(key) => key.as_ref(),
        }
    }
}

/// `SEQUENCE { INTEGER r, INTEGER s }` (RFC 3279 §2.2.3) as two numbers of 32 bytes.
fn fixed_signature(der: &[u8]) -> Option<[u8; FIXED_SIGNATURE_BYTES]> {
    let [0x30, length, body @ ..] = der else { return None };
    // Two P-256 integers always fit the short form of a length.
    if usize::from(*length) != body.len() || *length >= 0x80 {
        return None;
    }
    let mut fixed = [0; FIXED_SIGNATURE_BYTES];
    let (r, s) = fixed.split_at_mut(FIXED_SIGNATURE_BYTES / 2);
    let rest = fixed_integer(body, r)?;
    fixed_integer(rest, s)?.is_empty().then_some(fixed)
}

/// Reads one DER INTEGER into `into`, right-aligned; what comes after it.
fn fixed_integer<'d>(der: &'d [u8], into: &mut [u8]) -> Option<&'d [u8]> {
    let [0x02, length, body @ ..] = der else { return None };
    let (number, rest) = body.split_at_checked(usize::from(*length))?;
    let start = number.iter().position(|b| *b != 0)?;
    let number = &number[start..];
    let from = into.len().checked_sub(number.len())?;
    into[from..].copy_from_slice(number);
    Some(rest)
}

impl TryFrom<KeyPair> for PrivateKey {
    type Error = PrivateKeyError;

    fn try_from(key: KeyPair) -> Result<Self, Self::Error> {
        Self::local(key)
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        if let Held::Local(key) = &mut self.0 {
            key.zeroize();
        }
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.held().der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.held().algorithm()
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.held().sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
