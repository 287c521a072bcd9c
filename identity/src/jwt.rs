//! JWT-SVIDs: the keys that sign them, signing for a ticket, and the one place where a token is believed. In `user` the same for
//! tokens of end users, which nobody here signs.
//!
//! As with X.509, only `grant` can make the `Ticket` that is signed for, and what was signed is read again as a
//! stranger would read it. Tokens are bearer secrets: they are never logged, and `Debug` does not show them.

mod issue;
pub mod user;
mod validate;

use serde::{Deserialize, Serialize};

use crate::authority::AuthorityState;
use crate::bundle::{KeyKind, is_sound_key, key_kind};
use crate::time::Timestamp;
use crate::x509;

pub use issue::{
    DEFAULT_JWT_LIFETIME, IssuedJwt, JwtIssueError, JwtKey, MAX_AUDIENCE_BYTES, MAX_AUDIENCES,
    MAX_JWT_LIFETIME, MIN_JWT_LIFETIME, check_audiences,
};
pub use validate::{JwtError, LEEWAY, MAX_TOKEN_BYTES, ValidJwt, validate};

/// Longest `kid`, in bytes.
pub const MAX_KEY_ID_BYTES: usize = 256;

/// The public half of a key that signs JWT-SVIDs, as a bundle has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtAuthority {
    /// `kid`: how a token names the key. Ours is the SHA-256 of the SubjectPublicKeyInfo in hex.
    pub key_id: String,
    /// SubjectPublicKeyInfo, DER.
    #[serde(with = "crate::wire::base64_bytes")]
    pub spki_der: Vec<u8>,
    /// From when on nothing that it signed is believed; `None` if its owner does not say (bundle documents cannot).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    pub state: AuthorityState,
}

/// Why a JWT authority cannot be in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtAuthorityError {
    #[error("its key id is empty, longer than {MAX_KEY_ID_BYTES} bytes, or has control characters")]
    KeyId,
    #[error("its key is none of ECDSA P-256, P-384, P-521 and RSA of 2048 to 8192 bits, or is not sound")]
    Key,
}

impl JwtAuthority {
    /// Checks what can be checked of a public key alone, as read from a peer, a command or a document.
    pub fn check(&self) -> Result<(), JwtAuthorityError> {
        let fits = (1..=MAX_KEY_ID_BYTES).contains(&self.key_id.len());
        if !fits || self.key_id.chars().any(char::is_control) {
            return Err(JwtAuthorityError::KeyId);
        }
        if is_sound_key(&self.spki_der) { Ok(()) } else { Err(JwtAuthorityError::Key) }
    }

    /// Whether validators may believe what it signed.
    pub fn is_trusted(&self) -> bool {
        self.state != AuthorityState::Retired
    }

    /// Whether its key id is derived from its key, as with every key of ours.
    pub fn names_its_key(&self) -> bool {
        self.key_id == x509::key_id(&self.spki_der).to_string()
    }

    fn kind(&self) -> Option<KeyKind> {
        key_kind(&self.spki_der)
    }
}

#[cfg(test)]
mod tests;
