//! Tokens of end users (RFC 7519), which issuers outside the mesh have signed: their key sets, and the one place where such a
//! token is believed. As strict as with JWT-SVIDs where that fits; what differs is who may sign, and what a token says.

use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::validate::{ALGORITHMS, LEEWAY, MAX_TOKEN_BYTES, part, time};
use super::{JwtError, MAX_KEY_ID_BYTES};
use crate::bundle::{KeyKind, SECRET_MEMBERS, key_from_jwk, key_kind};
use crate::time::Timestamp;

/// Largest key set that is read, in bytes.
pub const MAX_JWKS_BYTES: usize = 256 * 1024;
/// Most keys of a set.
pub const MAX_JWKS_KEYS: usize = 64;

/// The keys of an issuer (RFC 7517 §5), those that verify signatures.
#[derive(Debug)]
pub struct JwkSet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The one `alg` that it is for, if its owner says so.
    only: Option<String>,
    kind: Kind,
    /// SubjectPublicKeyInfo (DER); of Ed25519 the key itself.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Known(KeyKind),
    Ed25519,
}

/// Why a key set is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("the key set has {0} bytes, at most {MAX_JWKS_BYTES} are read")]
    TooLarge(usize),
    #[error("it is no JWK set (RFC 7517 §5): {0}")]
    Shape(String),
    #[error("it has {0} keys, at most {MAX_JWKS_KEYS} are read")]
    TooMany(usize),
    #[error("none of its keys verifies signatures (RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519)")]
    NoKey,
    #[error(
        "it has a private or symmetric key, which is its issuer's alone: leave out keys of kty oct, and d, p, q, dp, dq, qi and oth"
    )]
    Private,
}

/// Why an end user's token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserJwtError {
    #[error("the token has {0} bytes, at most {MAX_TOKEN_BYTES} are read")]
    TooLarge(usize),
    #[error("the token is no signed JWT in compact serialization: {0}")]
    Shape(String),
    #[error("the token's alg {0:?} is not allowed")]
    Algorithm(String),
    #[error("the token's typ {0:?} is not that of an access or ID token")]
    Type(String),
    #[error("the token has critical headers, which nobody here knows (RFC 7515 §4.1.11)")]
    Critical,
    #[error("the token's claims: {0}")]
    Claims(String),
    #[error("no key of the issuer has signed the token")]
    UnknownKey,
    #[error("the token's signature is not its key's")]
    Signature,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    #[error("the token is not valid before {0}")]
    NotYetValid(Timestamp),
}

impl From<JwtError> for UserJwtError {
    fn from(error: JwtError) -> Self {
        match error {
            JwtError::Claims(why) => Self::Claims(why),
            other => Self::Shape(other.to_string()),
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    typ: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// A token whose parts have been read and of which nothing is believed yet.
pub struct Unverified<'t> {
    signed: &'t str,
    signature: &'t str,
    header: Header,
    claims: Map<String, Value>,
}

/// A token that was believed.
#[derive(Clone, PartialEq)]
pub struct UserToken {
    /// `iss/sub`.
    pub principal: String,
    pub expires: Timestamp,
    pub claims: Map<String, Value>,
}

impl JwkSet {
    /// Keys that are for something else, or of a kind that is unknown here, are passed over (RFC 7517 §5).
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Map<String, Value>>,
        }
        if text.len() > MAX_JWKS_BYTES {
            return Err(JwksError::TooLarge(text.len()));
        }
        let document: Document = serde_json::from_str(text).map_err(|e| JwksError::Shape(e.to_string()))?;
        if document.keys.len() > MAX_JWKS_KEYS {
            return Err(JwksError::TooMany(document.keys.len()));
        }
        if document.keys.iter().any(|key| SECRET_MEMBERS.iter().any(|member| key.contains_key(*member))) {
            return Err(JwksError::Private);
        }
        let keys: Vec<Key> = document.keys.iter().filter_map(Key::read).collect();
        if keys.is_empty() { Err(JwksError::NoKey) } else { Ok(Self { keys }) }
    }

    /// How many keys verify signatures.
    #[allow(clippy::len_without_is_empty, reason = "a set has a key")]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key that the token names; the only one, if it names none.
    fn find(&self, header: &Header) -> Option<&Key> {
        match (&header.kid, self.keys.as_slice()) {
            (Some(id), keys) => keys.iter().find(|key| key.id.as_ref() == Some(id)),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

impl Key {
    fn read(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let verifies = |operations: &Vec<Value>| operations.iter().any(|o| o.as_str() == Some("verify"));
        let named = jwk.get("key_ops").and_then(Value::as_array).is_none_or(verifies);
        if text("use").is_some_and(|used| used != "sig") || !named {
            return None;
        }
        let (kind, bytes) = match (text("kty"), text("crv")) {
            (Some("OKP"), Some("Ed25519")) => {
                let key = URL_SAFE_NO_PAD.decode(text("x")?).ok().filter(|key| key.len() == 32)?;
                (Kind::Ed25519, key)
            }
            _ => {
                let der = key_from_jwk(jwk).ok()?;
                (Kind::Known(key_kind(&der)?), der)
            }
        };
        let id = text("kid").filter(|id| id.len() <= MAX_KEY_ID_BYTES).map(str::to_owned);
        Some(Self { id, only: text("alg").map(str::to_owned), kind, bytes })
    }
}

impl<'t> Unverified<'t> {
    pub fn read(token: &'t str) -> Result<Self, UserJwtError> {
        let shape = |why: &str| UserJwtError::Shape(why.to_owned());
        if token.len() > MAX_TOKEN_BYTES {
            return Err(UserJwtError::TooLarge(token.len()));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| shape("it has no parts"))?;
        let (header, payload) = signed.split_once('.').ok_or_else(|| shape("it has two parts"))?;
        if payload.contains('.') {
            return Err(shape("it has more than three parts"));
        }
        let header: Header =
            serde_json::from_slice(&part(header)?).map_err(|e| UserJwtError::Shape(e.to_string()))?;
        if header.crit.is_some() {
            return Err(UserJwtError::Critical);
        }
        // Other types (logout tokens, proofs of possession) are signed by the same keys, and are no leave to enter.
        let types = ["JWT", "at+jwt", "application/at+jwt", "JOSE"];
        if let Some(other) =
            header.typ.as_ref().filter(|typ| !types.iter().any(|t| typ.eq_ignore_ascii_case(t)))
        {
            return Err(UserJwtError::Type(other.chars().take(32).collect()));
        }
        let claims =
            serde_json::from_slice(&part(payload)?).map_err(|e| UserJwtError::Claims(e.to_string()))?;
        Ok(Self { signed, signature, header, claims })
    }

    /// Who the token says has signed it.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Believes the token, or says why not. Any of `audiences`, if there are any.
    pub fn verify(
        self,
        keys: &JwkSet,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<UserToken, UserJwtError> {
        let alg = self.header.alg.as_str();
        let (kind, algorithm) =
            algorithm(alg).ok_or_else(|| UserJwtError::Algorithm(alg.chars().take(32).collect()))?;
        let fits = |key: &&Key| key.kind == kind && key.only.as_ref().is_none_or(|only| only == alg);
        let key = keys.find(&self.header).filter(fits).ok_or(UserJwtError::UnknownKey)?;
        UnparsedPublicKey::new(algorithm, &key.bytes)
            .verify(self.signed.as_bytes(), &part(self.signature)?)
            .map_err(|_| UserJwtError::Signature)?;
        self.check(audiences, now)
    }

    fn check(self, audiences: &[String], now: Timestamp) -> Result<UserToken, UserJwtError> {
        let missing = |name: &str| UserJwtError::Claims(format!("there is no {name}"));
        let expires = time(&self.claims, "exp")?.ok_or_else(|| missing("exp"))?;
        if now >= expires + LEEWAY {
            return Err(UserJwtError::Expired(expires));
        }
        let starts = [time(&self.claims, "nbf")?, time(&self.claims, "iat")?];
        if let Some(start) = starts.into_iter().flatten().max().filter(|start| now + LEEWAY < *start) {
            return Err(UserJwtError::NotYetValid(start));
        }
        let meant = |one: &Value| one.as_str().is_some_and(|one| audiences.iter().any(|a| a == one));
        let audience = match self.claims.get("aud") {
            _ if audiences.is_empty() => true,
            Some(Value::Array(many)) => many.iter().any(meant),
            Some(one) => meant(one),
            None => false,
        };
        if !audience {
            return Err(UserJwtError::Audience);
        }
        let issuer = self.issuer().ok_or_else(|| missing("iss"))?;
        let subject = self.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        Ok(UserToken { principal: format!("{issuer}/{subject}"), expires, claims: self.claims })
    }
}

fn algorithm(name: &str) -> Option<(Kind, &'static dyn VerificationAlgorithm)> {
    if name == "EdDSA" {
        return Some((Kind::Ed25519, &signature::ED25519));
    }
    let known = ALGORITHMS.iter().find(|(known, ..)| *known == name);
    known.map(|(_, kind, algorithm)| (Kind::Known(*kind), *algorithm))
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
