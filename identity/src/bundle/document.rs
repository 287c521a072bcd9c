//! Bundle documents: JWK sets as SPIFFE Trust Domain and Bundle §4 has them, and Bundle Maps (§5.1.1), written and read.
//!
//! What a stranger writes is bounded before it is parsed. Keys of a kind that is not known are ignored, as the
//! standard demands, and so are those that cannot be believed: what is left is believed, and nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::jwk::{from_jwk, to_jwk};
use super::{AuthorityCertificate, Bundle, BundleError, MAX_AUTHORITIES, MAX_JWT_AUTHORITIES};
use crate::authority::AuthorityState;
use crate::jwt::JwtAuthority;
use crate::name::TrustDomain;
use crate::svid::MAX_CERTIFICATE_BYTES;
use crate::x509;

/// Largest bundle document (or Bundle Map) that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Most keys of a document that are looked at, the ignored ones included.
pub const MAX_DOCUMENT_KEYS: usize = 512;
/// Most trust domains of a Bundle Map.
pub const MAX_MAP_DOMAINS: usize = 1024;

/// `use` of X509-SVID §6.1 and JWT-SVID §6.1; case-sensitive.
const USE_X509: &str = "x509-svid";
const USE_JWT: &str = "jwt-svid";

/// A bundle as it was read from a document, with what the document says beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleDocument {
    /// Its `sequence` is the document's, 0 if it has none.
    pub bundle: Bundle,
    /// `spiffe_sequence`, if the document has one.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how often its owner suggests to look again.
    pub refresh_hint: Option<Duration>,
    /// Why a key was left out, one line each; unknown kinds and uses among them.
    pub ignored: Vec<String>,
}

/// The set's parameters that are known; others may be there (B-1).
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

impl Bundle {
    /// The SPIFFE bundle document (RFC 7517 JWK set): X.509 authorities with `use` = `x509-svid`, JWT authorities with
    /// `use` = `jwt-svid`. Neither holds a retired one.
    pub fn to_jwks(&self, refresh_hint_seconds: u64) -> String {
        self.document(self.x509_jwks().chain(self.jwt_jwks()), Some(refresh_hint_seconds)).to_string()
    }

    /// The document with the JWT authorities alone, as the Workload API gives it (SPIFFE Workload API §6.2.2).
    pub fn to_jwt_jwks(&self) -> String {
        self.document(self.jwt_jwks(), None).to_string()
    }

    fn document(&self, keys: impl Iterator<Item = Value>, refresh_hint_seconds: Option<u64>) -> Value {
        let mut document = Map::new();
        document.insert("keys".to_owned(), keys.collect());
        document.insert("spiffe_sequence".to_owned(), self.sequence.into());
        if let Some(seconds) = refresh_hint_seconds {
            document.insert("spiffe_refresh_hint".to_owned(), seconds.into());
        }
        Value::Object(document)
    }

    /// Without `kid`, and `x5c` has exactly the one certificate (X509-SVID §6.1).
    fn x509_jwks(&self) -> impl Iterator<Item = Value> {
        self.trusted().filter_map(|authority| {
            let certificate = x509::parse(&authority.der).ok()?;
            let mut jwk = to_jwk(certificate.public_key().raw)?;
            jwk.insert("use".to_owned(), USE_X509.into());
            jwk.insert("x5c".to_owned(), vec![STANDARD.encode(&authority.der)].into());
            Some(Value::Object(jwk))
        })
    }

    fn jwt_jwks(&self) -> impl Iterator<Item = Value> {
        self.trusted_jwt().filter_map(|authority| {
            let mut jwk = to_jwk(&authority.spki_der)?;
            jwk.insert("use".to_owned(), USE_JWT.into());
            jwk.insert("kid".to_owned(), authority.key_id.as_str().into());
            Some(Value::Object(jwk))
        })
    }

    /// Reads a bundle document of `trust_domain`. A document does not name its trust domain: whoever fetched it knows.
    ///
    /// No keys at all is a good document: everything is revoked (§4.1.3).
    pub fn from_jwks(trust_domain: &TrustDomain, text: &str) -> Result<BundleDocument, BundleError> {
        bounded(text)?;
        let set: JwkSet = serde_json::from_str(text).map_err(|e| BundleError::Document(e.to_string()))?;
        BundleDocument::read(trust_domain, set)
    }
}

impl BundleDocument {
    fn read(trust_domain: &TrustDomain, set: JwkSet) -> Result<Self, BundleError> {
        if set.keys.len() > MAX_DOCUMENT_KEYS {
            let why = format!("it has {} keys, at most {MAX_DOCUMENT_KEYS} are read", set.keys.len());
            return Err(BundleError::Document(why));
        }
        let mut read = Self {
            bundle: Bundle::new(trust_domain.clone(), set.spiffe_sequence.unwrap_or(0), Vec::new()),
            sequence: set.spiffe_sequence,
            refresh_hint: set.spiffe_refresh_hint.map(Duration::from_secs),
            ignored: Vec::new(),
        };
        for (index, key) in set.keys.iter().enumerate() {
            if let Err(why) = read.take(key) {
                read.ignored.push(format!("key {index}: {why}"));
            }
        }
        if read.bundle.authorities.len() > MAX_AUTHORITIES {
            return Err(BundleError::TooMany(read.bundle.authorities.len()));
        }
        if read.bundle.jwt_authorities.len() > MAX_JWT_AUTHORITIES {
            return Err(BundleError::TooManyJwt(read.bundle.jwt_authorities.len()));
        }
        Ok(read)
    }

    /// Takes one key in, or says why not.
    fn take(&mut self, key: &Value) -> Result<(), String> {
        let key = key.as_object().ok_or("it is not a JSON object")?;
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        match text("kty").ok_or("it has no kty (SPIFFE Trust Domain and Bundle §4.2.1)")? {
            "EC" | "RSA" => {}
            other => return Err(format!("its kty {:?} is not known", shortened(other))),
        }
        match text("use").ok_or("it has no use (SPIFFE Trust Domain and Bundle §4.2.2)")? {
            USE_X509 => self.take_x509(key),
            USE_JWT => self.take_jwt(key),
            other => Err(format!("its use {:?} is not known", shortened(other))),
        }
    }

    /// Only the first value of `x5c` counts, and nothing else of the key: it is in the certificate (X509-SVID §6.2).
    fn take_x509(&mut self, key: &Map<String, Value>) -> Result<(), String> {
        let first =
            key.get("x5c").and_then(Value::as_array).and_then(|chain| chain.first()).and_then(Value::as_str);
        let first =
            first.filter(|text| !text.is_empty()).ok_or("it has no certificate in x5c (X509-SVID §6.2)")?;
        if first.len() > MAX_CERTIFICATE_BYTES * 2 {
            return Err("its certificate is too large".to_owned());
        }
        let der = STANDARD.decode(first).map_err(|_| "its x5c is not base64 (RFC 7517 §4.7)")?;
        let authority =
            AuthorityCertificate::parse(&der, &self.bundle.trust_domain).map_err(|e| e.to_string())?;
        if !self.bundle.authorities.contains(&authority) {
            self.bundle.authorities.push(authority);
        }
        Ok(())
    }

    fn take_jwt(&mut self, key: &Map<String, Value>) -> Result<(), String> {
        let key_id = key.get("kid").and_then(Value::as_str).ok_or("it has no kid (JWT-SVID §6.1)")?;
        let authority = JwtAuthority {
            key_id: key_id.to_owned(),
            spki_der: from_jwk(key)?,
            not_after: None,
            state: AuthorityState::Active,
        };
        authority.check().map_err(|e| e.to_string())?;
        let known = &mut self.bundle.jwt_authorities;
        match known.iter().find(|other| other.key_id == authority.key_id) {
            None => known.push(authority),
            Some(same) if *same == authority => {}
            Some(_) => return Err(format!("another key has the kid {:?}", shortened(key_id))),
        }
        Ok(())
    }
}

/// A Bundle Map (SPIFFE Trust Domain and Bundle §5.1.1) of several trust domains' bundles, without refresh hints:
/// inside a map they have no meaning.
pub fn bundle_map<'b>(bundles: impl IntoIterator<Item = &'b Bundle>) -> String {
    let bundles: BTreeMap<&TrustDomain, &Bundle> =
        bundles.into_iter().map(|b| (&b.trust_domain, b)).collect();
    let domains: Map<String, Value> = bundles
        .into_iter()
        .map(|(domain, bundle)| {
            (domain.to_string(), bundle.document(bundle.x509_jwks().chain(bundle.jwt_jwks()), None))
        })
        .collect();
    serde_json::json!({ "trust_domains": domains }).to_string()
}

/// Reads a Bundle Map. A trust domain that is there twice makes the whole map void; refresh hints are ignored.
pub fn parse_bundle_map(text: &str) -> Result<Vec<BundleDocument>, BundleError> {
    bounded(text)?;
    let map: BundleMap = serde_json::from_str(text).map_err(|e| BundleError::Document(e.to_string()))?;
    let read = |(domain, set): (TrustDomain, JwkSet)| {
        BundleDocument::read(&domain, JwkSet { spiffe_refresh_hint: None, ..set })
    };
    map.trust_domains.into_iter().map(read).collect()
}

/// The bundles of a map, in the order of the text; serde's own maps would let the last of two equal names win.
struct BundleMap {
    trust_domains: Vec<(TrustDomain, JwkSet)>,
}

impl<'de> Deserialize<'de> for BundleMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outer;
        impl<'de> Visitor<'de> for Outer {
            type Value = BundleMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a SPIFFE bundle map")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<BundleMap, M::Error> {
                let mut trust_domains = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "trust_domains" {
                        map.next_value::<IgnoredAny>()?;
                    } else if trust_domains.replace(map.next_value::<Domains>()?).is_some() {
                        return Err(M::Error::duplicate_field("trust_domains"));
                    }
                }
                let Domains(trust_domains) =
                    trust_domains.ok_or_else(|| M::Error::missing_field("trust_domains"))?;
                Ok(BundleMap { trust_domains })
            }
        }
        deserializer.deserialize_map(Outer)
    }
}

struct Domains(Vec<(TrustDomain, JwkSet)>);

impl<'de> Deserialize<'de> for Domains {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inner;
        impl<'de> Visitor<'de> for Inner {
            type Value = Domains;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bundles by the name of their trust domain")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Domains, M::Error> {
                let (mut seen, mut domains) = (BTreeSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    let domain: TrustDomain = name.parse().map_err(M::Error::custom)?;
                    if !seen.insert(domain.clone()) {
                        return Err(M::Error::custom(format_args!("trust domain {domain} is there twice")));
                    }
                    if seen.len() > MAX_MAP_DOMAINS {
                        return Err(M::Error::custom(format_args!(
                            "it has more than {MAX_MAP_DOMAINS} trust domains"
                        )));
                    }
                    domains.push((domain, map.next_value()?));
                }
                Ok(Domains(domains))
            }
        }
        deserializer.deserialize_map(Inner)
    }
}

pub(super) fn bounded(text: &str) -> Result<(), BundleError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        let why = format!("it has {} bytes, at most {MAX_DOCUMENT_BYTES} are read", text.len());
        return Err(BundleError::Document(why));
    }
    Ok(())
}

/// A stranger's text, short enough for an error and a log line.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
