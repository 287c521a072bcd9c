//! Signing JWT-SVIDs: ES256 and nothing else (JWS compact serialization, RFC 7515 §3.1).

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::PublicKeyData as _;
use zeroize::Zeroizing;

use super::{JwtAuthority, JwtError, validate};
use crate::authority::AuthorityState;
use crate::bundle::Bundle;
use crate::grant::Ticket;
use crate::issue::{BACKDATED, SECOND};
use crate::name::{SpiffeId, TrustDomain};
use crate::private_key::PrivateKey;
use crate::revocation::Revocations;
use crate::time::Timestamp;

/// Lifetime of a token where the request does not say.
pub const DEFAULT_JWT_LIFETIME: Duration = Duration::from_secs(300);
/// Shortest and longest lifetime of a token. A token cannot be taken back from those who validate it offline: the
/// longest is also how long a revoked identity may still be believed there.
pub const MIN_JWT_LIFETIME: Duration = Duration::from_secs(10);
pub const MAX_JWT_LIFETIME: Duration = Duration::from_secs(3600);
/// Most audiences of one token; one is best (JWT-SVID §3.2).
pub const MAX_AUDIENCES: usize = 16;
/// Longest audience, in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 1024;

/// A private key that signs JWT-SVIDs of one trust domain. Never leaves the node that made it.
pub struct JwtKey {
    trust_domain: TrustDomain,
    key: PrivateKey,
    spki_der: Vec<u8>,
    key_id: String,
}

/// A freshly signed token.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedJwt {
    /// JWS compact serialization; a bearer secret.
    pub token: Zeroizing<String>,
    pub id: SpiffeId,
    pub expires: Timestamp,
    pub key_id: String,
}

/// Why no token was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtIssueError {
    #[error("{0}")]
    Audience(String),
    #[error("the JWT key is of trust domain {0}, the identity is not")]
    ForeignTrustDomain(TrustDomain),
    #[error("this node's JWT key is not in the cluster's bundle yet; nobody could validate the token")]
    NotPublished,
    #[error("this node's JWT key is {0:?}, only an active one signs")]
    NotActive(AuthorityState),
    #[error("this node's JWT key expired at {0}")]
    Expired(Timestamp),
    #[error("signing failed: {0}")]
    Signing(String),
    #[error("what was signed does not validate: {0}")]
    Recheck(#[from] JwtError),
}

impl JwtKey {
    /// Of a key that its node made and keeps.
    pub fn new(trust_domain: &TrustDomain, key: PrivateKey) -> Self {
        let (spki_der, key_id) = (key.subject_public_key_info(), key.id().to_string());
        Self { trust_domain: trust_domain.clone(), key, spki_der, key_id }
    }

    /// `kid`: the SHA-256 of the public key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The public half, to be published before anything is signed (SPIFFE Federation §4.1).
    pub fn authority(&self, not_after: Timestamp) -> JwtAuthority {
        JwtAuthority {
            key_id: self.key_id.clone(),
            spki_der: self.spki_der.clone(),
            not_after: Some(not_after),
            state: AuthorityState::Active,
        }
    }

    /// Its entry in a bundle; `None` if it is not there with this very key.
    pub fn published<'b>(&self, bundle: &'b Bundle) -> Option<&'b JwtAuthority> {
        let of_own = bundle.trust_domain == self.trust_domain;
        let same = |a: &&JwtAuthority| a.key_id == self.key_id && a.spki_der == self.spki_der;
        bundle.jwt_authorities.iter().find(same).filter(|_| of_own)
    }

    /// Signs a token for the ticket's identity. `bundle` is the trust domain's own as the cluster has committed it:
    /// a key that is not in it, active, signs nothing. The lifetime is `wanted` (none: five minutes) within bounds,
    /// and never longer than the ticket's or beyond the key's own end.
    pub fn issue(
        &self,
        ticket: Ticket,
        bundle: &Bundle,
        audience: &[String],
        wanted: Option<Duration>,
        now: Timestamp,
    ) -> Result<IssuedJwt, JwtIssueError> {
        if ticket.id().trust_domain() != &self.trust_domain {
            return Err(JwtIssueError::ForeignTrustDomain(self.trust_domain.clone()));
        }
        check_audiences(audience).map_err(JwtIssueError::Audience)?;
        let authority = self.published(bundle).ok_or(JwtIssueError::NotPublished)?;
        if authority.state != AuthorityState::Active {
            return Err(JwtIssueError::NotActive(authority.state));
        }
        let end = authority.not_after.unwrap_or(Timestamp(u64::MAX));
        if end <= now {
            return Err(JwtIssueError::Expired(end));
        }
        // After a reissue tokens of the second in which it was ordered are dead, and our clock may be behind.
        let issued = ticket.watermark.map_or(now, |mark| now.max(mark + BACKDATED + SECOND));
        let lifetime = wanted.unwrap_or(DEFAULT_JWT_LIFETIME).clamp(MIN_JWT_LIFETIME, MAX_JWT_LIFETIME);
        let expires = Timestamp::from_seconds((now + lifetime.min(ticket.lifetime())).min(end).seconds());
        let header = serde_json::json!({ "alg": "ES256", "kid": self.key_id, "typ": "JWT" });
        let claims = serde_json::json!({
            "sub": ticket.id(),
            "aud": audience,
            "iat": issued.seconds(),
            "exp": expires.seconds(),
        });
        let token = self.sign(&header.to_string(), &claims.to_string())?;
        validate(|_| Some(bundle), &Revocations::default(), &token, &audience[0], now)?;
        Ok(IssuedJwt { token, id: ticket.id().clone(), expires, key_id: self.key_id.clone() })
    }

    /// `header.claims.signature`, each part in base64url (RFC 7515 §7.1).
    pub(super) fn sign(&self, header: &str, claims: &str) -> Result<Zeroizing<String>, JwtIssueError> {
        let mut token = Zeroizing::new(String::with_capacity((header.len() + claims.len()) * 4 / 3 + 96));
        URL_SAFE_NO_PAD.encode_string(header, &mut token);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.sign_fixed(token.as_bytes());
        let signature = signature.map_err(|e| JwtIssueError::Signing(e.to_string()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

/// Whether these may be a token's audiences: at least one, none of them empty, all of them bounded.
pub fn check_audiences(audience: &[String]) -> Result<(), String> {
    if audience.is_empty() {
        return Err("a JWT-SVID needs an audience (JWT-SVID §3.2)".to_owned());
    }
    if audience.len() > MAX_AUDIENCES {
        return Err(format!(
            "{} audiences are too many, at most {MAX_AUDIENCES} are signed for",
            audience.len()
        ));
    }
    match audience.iter().find(|one| one.is_empty() || one.len() > MAX_AUDIENCE_BYTES) {
        Some(one) if one.is_empty() => Err("an audience is empty".to_owned()),
        Some(_) => Err(format!("an audience is longer than {MAX_AUDIENCE_BYTES} bytes")),
        None => Ok(()),
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssuedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedJwt")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
