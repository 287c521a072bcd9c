//! End users: the RequestAuthentications of a workload, compiled, and what becomes of a request's token. Pure.
//!
//! At most one token is believed per request. One that is there and not believed stops the request, whoever its issuer: an
//! AccessPolicy decides what needs a token at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hanse_identity::jwt::user::{JwkSet, Unverified, UserJwtError, UserToken};
use hanse_identity::tls::outside::roots_id;
use hanse_identity::{ServiceName, Timestamp};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::document::authentication::{JwtRule, RequestAuthentication};
use super::document::{PolicyDocument, PolicySpec};
use super::value::PolicyDuration;
use crate::reserved::same_spelling;
use crate::stranger::EndpointUrl;
use crate::view::View;

/// The rules of one workload.
#[derive(Debug, Default)]
pub struct AuthenticationTable {
    /// What it was made of, and the sets that were fetched for it, by their sources' ids.
    documents: Vec<RequestAuthentication>,
    fetched: BTreeMap<String, String>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    issuer: String,
    audiences: Vec<String>,
    /// None that could be read, or none yet: nobody is believed.
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
    #[error("the keys of the token's issuer have not been fetched yet")]
    NoKeys,
    #[error("no RequestAuthentication names the token's issuer")]
    UnknownIssuer,
    #[error(transparent)]
    Token(#[from] UserJwtError),
}

/// Where issuers publish their keys: whoever writes a document decides whom to believe there, for that document alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeySource {
    pub url: EndpointUrl,
    /// PEM; those of the control node's system if absent.
    pub roots: Option<String>,
}

/// Between two fetches of one set, unless its documents say otherwise. Keys should be published longer than that before
/// they sign.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(300);

impl KeySource {
    /// Of a rule that has its keys from somewhere.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        Some(Self { url: rule.jwks_uri.clone()?, roots: rule.jwks_roots.clone() })
    }

    /// The URL, and a digest of the roots where they are the document's own: who believes others gets another set. A URL
    /// of ours has no fragment, so no two sources have one id.
    pub fn id(&self) -> String {
        match &self.roots {
            None => self.url.to_string(),
            Some(roots) => format!("{}#{}", self.url, roots_id(roots)),
        }
    }

    /// All that the View's documents name, and how often each is fetched: as often as whoever wants it most.
    pub fn all(view: &View) -> BTreeMap<Self, Duration> {
        Self::named(view.policies.values())
    }

    /// The same of any documents.
    pub fn named<'d>(documents: impl IntoIterator<Item = &'d PolicyDocument>) -> BTreeMap<Self, Duration> {
        let mut all = BTreeMap::new();
        for document in documents {
            let PolicySpec::RequestAuthentication(spec) = &document.spec else { continue };
            for rule in &spec.jwt_rules {
                let every = rule.jwks_refresh.map_or(DEFAULT_REFRESH, PolicyDuration::get);
                if let Some(source) = Self::of(rule) {
                    all.entry(source)
                        .and_modify(|least: &mut Duration| *least = every.min(*least))
                        .or_insert(every);
                }
            }
        }
        all
    }
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
        let named = || documents.iter().flat_map(|document| &document.jwt_rules);
        let fetched: BTreeMap<String, String> = named()
            .filter_map(KeySource::of)
            .filter_map(|source| view.issuer_keys.get_key_value(&source.id()))
            .map(|(id, jwks)| (id.clone(), jwks.clone()))
            .collect();
        if documents == before.documents && fetched == before.fetched {
            return Arc::clone(before);
        }
        let rules = named().map(|rule| Rule::compile(rule, &fetched)).collect();
        Arc::new(Self { documents, fetched, rules })
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
            let keys = rule.keys.as_ref().ok_or(Unauthenticated::NoKeys)?;
            let token = Unverified::read(token)?.verify(keys, &rule.audiences, now)?;
            believed.get_or_insert(EndUser { token, rules: Vec::new() }).rules.push(index);
        }
        believed.ok_or(Unauthenticated::UnknownIssuer)
    }

    /// The request's headers as everybody behind here sees them: claims from the token and from nobody else.
    pub fn rewrite(&self, headers: &mut HeaderMap, user: Option<(&Place, &EndUser)>) {
        let outputs = self.rules.iter().flat_map(|rule| &rule.outputs);
        for (_, output) in outputs {
            let forged = |name: &&HeaderName| same_spelling(name.as_str(), output.as_str());
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
    fn compile(rule: &JwtRule, fetched: &BTreeMap<String, String>) -> Self {
        let source = KeySource::of(rule);
        let jwks = rule.jwks.as_ref().or_else(|| fetched.get(&source?.id()));
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
            keys: jwks.and_then(|jwks| JwkSet::parse(jwks).ok()),
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
