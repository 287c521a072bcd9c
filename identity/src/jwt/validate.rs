//! Validating JWT-SVIDs (JWT-SVID §2 to §5): header, key, signature, claims, revocation, in this order.
//!
//! The key is looked for in the bundle of the trust domain that `sub` names and nowhere else. Which key and which
//! algorithm may fit is decided by the bundle, never by the token.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::bundle::{Bundle, KeyKind};
use crate::name::{NameError, SpiffeId, TrustDomain};
use crate::revocation::{Revocation, RevocationId, Revocations};
use crate::time::Timestamp;

/// Largest token that is read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How far the clocks of issuer and validator may be apart (JWT-SVID §3.3).
pub const LEEWAY: Duration = Duration::from_secs(30);

/// A token that was believed, at the time and for the audience that it was validated for.
#[derive(Clone, PartialEq)]
pub struct ValidJwt {
    pub id: SpiffeId,
    pub audience: Vec<String>,
    pub issued: Option<Timestamp>,
    pub expires: Timestamp,
    /// Every claim of the token.
    pub claims: Map<String, Value>,
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("the token has {0} bytes, at most {MAX_TOKEN_BYTES} are read")]
    TooLarge(usize),
    #[error("the token is not a JWS in compact serialization (JWT-SVID §5.1): {0}")]
    Shape(&'static str),
    #[error("the token's header is not that of a JWT-SVID (JWT-SVID §2): {0}")]
    Header(String),
    #[error("the token's alg {0:?} is not allowed (JWT-SVID §2.1)")]
    Algorithm(String),
    #[error("the token's typ {0:?} is neither JWT nor JOSE (JWT-SVID §2.3)")]
    Type(String),
    #[error("the token has no kid: which key signed it cannot be known")]
    NoKeyId,
    #[error("the token's claims are not those of a JWT-SVID: {0}")]
    Claims(String),
    #[error("the token's sub is not a workload's SPIFFE ID (JWT-SVID §3.1): {0}")]
    Subject(String),
    #[error("no bundle for trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    #[error("not signed by a JWT authority of {0}")]
    UnknownAuthority(TrustDomain),
    #[error("the token's alg does not fit the key that it names")]
    WrongKey,
    #[error("the token's signature is not its key's")]
    Signature,
    #[error("the token is for another audience (JWT-SVID §3.2)")]
    Audience,
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    #[error("the token is not valid before {0}")]
    NotYetValid(Timestamp),
    #[error("{id} is revoked by {revocation}")]
    Revoked { id: SpiffeId, revocation: RevocationId },
}

impl From<NameError> for JwtError {
    fn from(error: NameError) -> Self {
        Self::Subject(error.to_string())
    }
}

/// The header parameters that a JWT-SVID may have; any other makes it none (§2).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    typ: Option<String>,
}

/// `alg` values of §2.1: what they verify with, and the keys that they are for.
pub(super) const ALGORITHMS: &[(&str, KeyKind, &dyn VerificationAlgorithm)] = &[
    ("ES256", KeyKind::P256, &signature::ECDSA_P256_SHA256_FIXED),
    ("ES384", KeyKind::P384, &signature::ECDSA_P384_SHA384_FIXED),
    ("ES512", KeyKind::P521, &signature::ECDSA_P521_SHA512_FIXED),
    ("RS256", KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
    ("RS384", KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
    ("RS512", KeyKind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
    ("PS256", KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
    ("PS384", KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
    ("PS512", KeyKind::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
];

/// Validates a token at `now` for a validator that is known as `audience`. `bundle_of` gives the bundle of a trust
/// domain, if the validator has one.
pub fn validate<'b>(
    bundle_of: impl FnOnce(&TrustDomain) -> Option<&'b Bundle>,
    revocations: &Revocations,
    token: &str,
    audience: &str,
    now: Timestamp,
) -> Result<ValidJwt, JwtError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(JwtError::TooLarge(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Shape("it has no parts"))?;
    let (header, payload) = signed.split_once('.').ok_or(JwtError::Shape("it has two parts"))?;
    if payload.contains('.') {
        return Err(JwtError::Shape("it has more than three parts"));
    }
    let header: Header =
        serde_json::from_slice(&part(header)?).map_err(|e| JwtError::Header(e.to_string()))?;
    let (_, kind, algorithm) = ALGORITHMS
        .iter()
        .find(|(name, ..)| *name == header.alg)
        .ok_or_else(|| JwtError::Algorithm(header.alg.chars().take(32).collect()))?;
    if let Some(other) = header.typ.filter(|typ| typ != "JWT" && typ != "JOSE") {
        return Err(JwtError::Type(other.chars().take(32).collect()));
    }
    let key_id = header.kid.filter(|kid| !kid.is_empty()).ok_or(JwtError::NoKeyId)?;
    let claims: Map<String, Value> =
        serde_json::from_slice(&part(payload)?).map_err(|e| JwtError::Claims(e.to_string()))?;
    let id = subject(&claims)?;

    let trust_domain = id.trust_domain();
    let bundle = bundle_of(trust_domain).filter(|bundle| bundle.trust_domain == *trust_domain);
    let bundle = bundle.ok_or_else(|| JwtError::UnknownTrustDomain(trust_domain.clone()))?;
    let alive = |end: Option<Timestamp>| end.is_none_or(|end| now < end);
    let authority = bundle
        .trusted_jwt()
        .find(|authority| authority.key_id == key_id && alive(authority.not_after))
        .ok_or_else(|| JwtError::UnknownAuthority(trust_domain.clone()))?;
    if authority.kind() != Some(*kind) {
        return Err(JwtError::WrongKey);
    }
    UnparsedPublicKey::new(*algorithm, &authority.spki_der)
        .verify(signed.as_bytes(), &part(signature)?)
        .map_err(|_| JwtError::Signature)?;

    let valid = read(id, claims)?;
    valid.check(audience, now)?;
    let silenced = revocations.of_identity(&valid.id);
    // Of an identity that was given new SVIDs, what was issued up to the order is dead. Tokens tell whole seconds: one of
    // the same second counts as older, and the issuer dates new ones later.
    let old = |r: &&Revocation| valid.issued.is_none_or(|issued| issued.seconds() <= r.at.seconds());
    match silenced.or_else(|| revocations.reissued(&valid.id).find(old)) {
        Some(r) => Err(JwtError::Revoked { id: valid.id.clone(), revocation: r.id.clone() }),
        None => Ok(valid),
    }
}

pub(super) fn part(text: &str) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtError::Shape("a part is not base64url without padding"))
}

/// `sub`: the SPIFFE ID of a workload, and a bare trust domain is none.
fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtError> {
    let sub = claims.get("sub").and_then(Value::as_str);
    let id: SpiffeId = sub.ok_or_else(|| JwtError::Subject("there is none".to_owned()))?.parse()?;
    match id.path() {
        "" => Err(JwtError::Subject(format!("{id} is a trust domain"))),
        _ => Ok(id),
    }
}

/// The registered claims that count here (RFC 7519 §4.1), of a token whose signature is good.
fn read(id: SpiffeId, claims: Map<String, Value>) -> Result<ValidJwt, JwtError> {
    let wrong = |rule: &str| JwtError::Claims(rule.to_owned());
    let audience: Vec<String> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            let texts: Option<Vec<String>> = many.iter().map(|v| v.as_str().map(str::to_owned)).collect();
            texts.ok_or_else(|| wrong("aud holds something that is not text"))?
        }
        _ => return Err(wrong("there is no aud (JWT-SVID §3.2)")),
    };
    if audience.is_empty() {
        return Err(wrong("aud is empty (JWT-SVID §3.2)"));
    }
    let expires = time(&claims, "exp")?.ok_or_else(|| wrong("there is no exp (JWT-SVID §3.3)"))?;
    let issued = time(&claims, "iat")?;
    Ok(ValidJwt { id, audience, issued, expires, claims })
}

/// A NumericDate (RFC 7519 §2): seconds, perhaps with a fraction, which is cut off.
pub(super) fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, JwtError> {
    /// Beyond this (the year 9999) a number is no time, and sums of it could overflow.
    const LATEST: f64 = 253_402_300_800.0;
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|s| (0.0..LATEST).contains(s));
    let seconds = seconds.ok_or_else(|| JwtError::Claims(format!("{name} is not a time (RFC 7519 §2)")))?;
    Ok(Some(Timestamp::from_seconds(seconds as u64)))
}

impl ValidJwt {
    fn check(&self, audience: &str, now: Timestamp) -> Result<(), JwtError> {
        if audience.is_empty() || !self.audience.iter().any(|one| one == audience) {
            return Err(JwtError::Audience);
        }
        if now >= self.expires + LEEWAY {
            return Err(JwtError::Expired(self.expires));
        }
        let starts = [time(&self.claims, "nbf")?, self.issued];
        match starts.into_iter().flatten().max() {
            Some(start) if now + LEEWAY < start => Err(JwtError::NotYetValid(start)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for ValidJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidJwt")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
