//! Strangers: foreign trust domains whose bundles are fetched from a bundle endpoint (SPIFFE Federation) or set by hand, and
//! the rules of fetching: what a relationship is, which URLs are dialled, how often, and which of two bundles is the newer one.
//!
//! A stranger is no peer: nothing is exported to it, no proxy or gateway believes its SVIDs, and its bundle is handed
//! only to agents, for workloads that are registered to federate with it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hanse_identity::{Bundle, SpiffeId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

/// How often a bundle is fetched whose owner gives no hint (Federation §4.1, Trust Domain and Bundle §6.1).
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(300);
/// Whatever the hint says, not more often than this, and not more seldom than that.
pub const SHORTEST_INTERVAL: Duration = Duration::from_secs(5);
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// How often our own bundle should be fetched, as its document suggests.
pub const OWN_REFRESH_HINT: Duration = Duration::from_secs(60);
/// How long a new authority of ours is in the bundle before it signs, where strangers fetch that: three times the hint
/// (Federation §4.1). Nobody can ask them whether they have it.
pub const OWN_OVERLAP: Duration = Duration::from_secs(3 * OWN_REFRESH_HINT.as_secs());
/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 2048;
/// Largest PEM of roots that a relationship may bring, in bytes.
pub const MAX_ROOTS_BYTES: usize = 64 << 10;
/// Redirects that are followed in one fetch.
pub const MAX_REDIRECTS: usize = 3;

/// A relationship: whose bundle, from where, and how whoever answers there is authenticated. Three parameters that are
/// given explicitly and never guessed from one another (Federation §5.1, §7.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Federation {
    pub trust_domain: TrustDomain,
    pub url: EndpointUrl,
    pub profile: Profile,
}

/// Federation §5.2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A certificate of the web, for the host of the URL. `roots` (PEM) in place of those of the system.
    HttpsWeb {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        roots: Option<String>,
    },
    /// An X509-SVID of exactly this ID, under the bundle of its trust domain.
    HttpsSpiffe {
        #[serde(rename = "endpointSpiffeId")]
        endpoint_id: SpiffeId,
    },
}

/// A foreign trust domain: the relationship with it, if there is one, and its bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stranger {
    /// None: its bundle is set by hand, and nothing is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<Federation>,
    /// When it was first told of; tells the relationship from an earlier one with the same trust domain.
    pub since: Timestamp,
    /// The newest bundle that was accepted. Without one, nobody of that domain is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Bundle>,
    /// When its content last changed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
}

/// What a fetched bundle is to the one that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// To be stored.
    Newer,
    /// The one that is kept.
    Same,
}

/// Why a fetched bundle is not taken; the one that is kept goes on being served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    #[error(
        "its sequence {fetched} is lower than {kept}, which is kept: an old bundle is being served (if the domain was set up anew: end the relationship and begin it again)"
    )]
    LowerSequence { kept: u64, fetched: u64 },
    #[error("it has the sequence {0} of the bundle that is kept, and other keys")]
    SameSequence(u64),
}

/// `https://host[:port][/path]`, without user information and fragment (Federation §5.2.1.1, §5.2.2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointUrl {
    text: String,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Starts with `/`; the query is part of it.
    path: String,
}

/// Why a text is no URL that is fetched from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a URL that is fetched from: {rule}")]
pub struct UrlError {
    url: String,
    rule: &'static str,
}

/// When to fetch again, by the hint of the newest bundle (Federation §4.1).
pub fn interval(hint: Option<Duration>) -> Duration {
    hint.unwrap_or(DEFAULT_INTERVAL).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// Which of two bundles of one trust domain is newer, by sequence (Federation §4.2). A sequence of 0 says nothing: a
/// domain that does not count is taken at its word, one that has begun to count may not stop.
pub fn compare(kept: Option<&Bundle>, fetched: &Bundle) -> Result<Freshness, Stale> {
    let Some(kept) = kept else { return Ok(Freshness::Newer) };
    if fetched.sequence < kept.sequence {
        return Err(Stale::LowerSequence { kept: kept.sequence, fetched: fetched.sequence });
    }
    match (same_keys(kept, fetched), fetched.sequence == kept.sequence) {
        (true, true) => Ok(Freshness::Same),
        (false, true) if kept.sequence != 0 => Err(Stale::SameSequence(kept.sequence)),
        _ => Ok(Freshness::Newer),
    }
}

/// Whether two bundles of one trust domain have the same keys, in whatever order: a JWK set has none, and SPIRE writes its
/// JWT authorities in another one each time.
fn same_keys(one: &Bundle, other: &Bundle) -> bool {
    fn same<T: PartialEq>(one: &[T], other: &[T]) -> bool {
        one.len() == other.len() && one.iter().all(|key| other.contains(key))
    }
    same(&one.authorities, &other.authorities) && same(&one.jwt_authorities, &other.jwt_authorities)
}

impl Stranger {
    /// The trust domain under whose bundle the endpoint itself is authenticated, if it is by a bundle.
    pub fn endpoint_domain(&self) -> Option<&TrustDomain> {
        match &self.federation.as_ref()?.profile {
            Profile::HttpsSpiffe { endpoint_id } => Some(endpoint_id.trust_domain()),
            Profile::HttpsWeb { .. } => None,
        }
    }
}

impl Profile {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::HttpsWeb { .. } => "https_web",
            Self::HttpsSpiffe { .. } => "https_spiffe",
        }
    }
}

impl EndpointUrl {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and port as they were written: what the `host` header says.
    pub fn authority(&self) -> &str {
        let rest = self.text.strip_prefix("https://").unwrap_or(&self.text);
        rest.split(['/', '?']).next().unwrap_or_default()
    }

    /// Where a redirect leads. Only to another URL that could have been configured (§5.2.1.3): never away from https.
    pub fn redirected(&self, location: &str) -> Result<Self, UrlError> {
        match location {
            _ if location.starts_with("//") => format!("https:{location}").parse(),
            _ if location.starts_with('/') => format!("https://{}{location}", self.authority()).parse(),
            _ => location.parse(),
        }
    }
}

impl FromStr for EndpointUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let err = |rule| Err(UrlError { url: text.chars().take(200).collect(), rule });
        if text.len() > MAX_URL_BYTES {
            return err("it is longer than 2048 bytes");
        }
        if !text.bytes().all(|b| {
            b.is_ascii_graphic()
                && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        }) {
            return err("it has a character that a URL does not have");
        }
        let Some(rest) = text.strip_prefix("https://") else { return err("its scheme is not https") };
        if text.contains('#') {
            return err("it has a fragment");
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return err("it has user information");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => match bracketed.split_once(']') {
                Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
                _ => return err("what is in brackets is no IPv6 address"),
            },
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':').map(str::parse) {
            None if port.is_empty() => 443,
            Some(Ok(port)) if port != 0 => port,
            _ => return err("its port is not a number from 1 to 65535"),
        };
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || host.len() > 255 || !host.bytes().all(named) {
            return err("its host is neither a name nor an address");
        }
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        Ok(Self { text: text.to_owned(), host: host.to_owned(), port, path })
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({})", self.text)
    }
}

impl Serialize for EndpointUrl {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
