//! End users: the RequestAuthentications of a workload, compiled, and what becomes of a request's token. Pure.
//!
//! At most one token is believed per request. One that is there and not believed stops the request, whoever its issuer: an
//! AccessPolicy decides what needs a token at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use hanse_identity::jwt::user::{JwkSet, Unverified, UserJwtError, UserToken};
use hanse_identity::{ServiceName, Timestamp};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::document::PolicySpec;
use super::document::authentication::{JwtRule, RequestAuthentication};
use crate::view::View;

/// The rules of one workload.
#[derive(Debug, Default)]
pub struct AuthenticationTable {
    /// What it was made of.
    documents: Vec<RequestAuthentication>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    issuer: String,
    audiences: Vec<String>,
    /// None that could be read: nobody is believed. Validation has refused it long before.
    keys: Option<JwkSet>,
    places: Vec<Place>,
    forward: bool,
    outputs: Vec<(String, HeaderName)>,
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    header: HeaderName,
    prefix: String,
}

/// A token that was believed, and by which rule.
#[derive(Debug)]
pub struct EndUser {
    pub token: UserToken,
    /// All that are of its issuer and its place: each has believed it.
    rules: Vec<usize>,
}

/// Why a request does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("the request has more than one token")]
    Several,
    #[error("the token is not text")]
    NotText,
    #[error("no RequestAuthentication names the token's issuer")]
    UnknownIssuer,
    #[error(transparent)]
    Token(#[from] UserJwtError),
}

/// Longest value of a header that is made of a claim.
const MAX_VALUE_BYTES: usize = 4096;

impl AuthenticationTable {
    /// The documents for any of these services, which one workload serves. `before`, if they say the same.
    pub fn build(view: &View, services: &BTreeSet<ServiceName>, before: &Arc<Self>) -> Arc<Self> {
        let documents: Vec<RequestAuthentication> = view
            .policies
            .values()
            .filter_map(|document| {
                let PolicySpec::RequestAuthentication(spec) = &document.spec else { return None };
                let namespace = document.name.namespace();
                let meant =
                    spec.target_refs.iter().any(|target| services.contains(&target.service(namespace)));
                meant.then(|| spec.clone())
            })
            .collect();
        if documents == before.documents {
            return Arc::clone(before);
        }
        let rules = documents.iter().flat_map(|document| &document.jwt_rules).map(Rule::compile).collect();
        Arc::new(Self { documents, rules })
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The request's token and where it is, unread.
    pub fn token<'h>(&self, headers: &'h HeaderMap) -> Result<Option<(&Place, &'h str)>, Unauthenticated> {
        let mut found: Option<(&Place, &str)> = None;
        for place in self.rules.iter().flat_map(|rule| &rule.places) {
            if found.is_some_and(|(other, _)| other == place) {
                continue;
            }
            for value in headers.get_all(&place.header) {
                let Some(token) = place.token(value)? else { continue };
                if found.is_some() {
                    return Err(Unauthenticated::Several);
                }
                found = Some((place, token));
            }
        }
        Ok(found)
    }

    /// Believes a token that was found at `place`, by the rules of its issuer: where several documents have one, every one
    /// of them, so that none makes another's audiences void.
    pub fn verify(&self, place: &Place, token: &str, now: Timestamp) -> Result<EndUser, Unauthenticated> {
        let issuer = Unverified::read(token)?.issuer().unwrap_or_default().to_owned();
        let of = |(_, rule): &(usize, &Rule)| rule.issuer == issuer && rule.places.contains(place);
        let mut believed: Option<EndUser> = None;
        for (index, rule) in self.rules.iter().enumerate().filter(of) {
            let keys = rule.keys.as_ref().ok_or(UserJwtError::UnknownKey)?;
            let token = Unverified::read(token)?.verify(keys, &rule.audiences, now)?;
            believed.get_or_insert(EndUser { token, rules: Vec::new() }).rules.push(index);
        }
        believed.ok_or(Unauthenticated::UnknownIssuer)
    }

    /// The request's headers as everybody behind here sees them: claims from the token and from nobody else.
    pub fn rewrite(&self, headers: &mut HeaderMap, user: Option<(&Place, &EndUser)>) {
        let outputs = self.rules.iter().flat_map(|rule| &rule.outputs);
        for (_, output) in outputs {
            let forged = |name: &&HeaderName| folded(name.as_str()).eq(folded(output.as_str()));
            while let Some(name) = headers.keys().find(forged).cloned() {
                headers.remove(name);
            }
        }
        let Some((place, user)) = user else { return };
        let rules = || user.rules.iter().map(|index| &self.rules[*index]);
        if !rules().all(|rule| rule.forward) {
            headers.remove(&place.header);
        }
        for (claim, header) in rules().flat_map(|rule| &rule.outputs) {
            if let Some(value) = user.token.claims.get(claim).and_then(as_header) {
                headers.insert(header.clone(), value);
            }
        }
    }
}

/// A name as servers read it that make variables of headers: letter case and punctuation are gone.
fn folded(name: &str) -> impl Iterator<Item = u8> + '_ {
    name.bytes().map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'-' })
}

/// What a claim says, as texts: one, several, or none that a header or a policy could hold.
pub fn texts(claim: &Value) -> Vec<String> {
    match claim {
        Value::String(text) => vec![text.clone()],
        Value::Bool(truth) => vec![truth.to_string()],
        Value::Number(number) => vec![number.to_string()],
        Value::Array(many) => many.iter().filter(|one| !one.is_array()).flat_map(texts).collect(),
        Value::Null | Value::Object(_) => Vec::new(),
    }
}

fn as_header(claim: &Value) -> Option<HeaderValue> {
    let text = texts(claim).join(",");
    let plain = !text.is_empty() && text.len() <= MAX_VALUE_BYTES;
    // Not `from_str`: that lets through what only some read alike.
    let plain = plain && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if plain { HeaderValue::from_str(&text).ok() } else { None }
}

impl Rule {
    fn compile(rule: &JwtRule) -> Self {
        let mut places: Vec<Place> = rule
            .from_headers
            .iter()
            .filter_map(|from| {
                // Its letters have no case: one that differs in it is the same place.
                let prefix = from.prefix.clone().unwrap_or_default().to_ascii_lowercase();
                Some(Place { header: from.name.parse().ok()?, prefix })
            })
            .collect();
        if rule.from_headers.is_empty() {
            places.push(Place { header: AUTHORIZATION, prefix: "bearer ".to_owned() });
        }
        let output = |o: &super::document::authentication::ClaimToHeader| {
            Some((o.claim.clone(), o.header.parse::<HeaderName>().ok()?))
        };
        Self {
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.clone(),
            keys: JwkSet::parse(&rule.jwks).ok(),
            places,
            forward: rule.forward_original_token,
            outputs: rule.output_claim_to_headers.iter().filter_map(output).collect(),
        }
    }
}

impl Place {
    /// What is behind the prefix, whose letters have no case (RFC 9110 §11.1).
    fn token<'h>(&self, value: &'h HeaderValue) -> Result<Option<&'h str>, Unauthenticated> {
        let begins = |bytes: &[u8]| {
            bytes.get(..self.prefix.len()).is_some_and(|b| b.eq_ignore_ascii_case(self.prefix.as_bytes()))
        };
        if !begins(value.as_bytes()) {
            // The scheme alone is a token too, and none that is believed.
            let scheme = self.prefix.trim_end().as_bytes();
            let alone = !scheme.is_empty() && value.as_bytes().eq_ignore_ascii_case(scheme);
            return Ok(alone.then_some(""));
        }
        let text = value.to_str().map_err(|_| Unauthenticated::NotText)?;
        Ok(Some(text[self.prefix.len()..].trim()))
    }
}
