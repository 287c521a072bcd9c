//! `trust federate` and `trust federation …`: foreign trust domains and how fresh what is kept of them is.

use hanse_federation::stranger::{EndpointUrl, Federation, Profile};
use hanse_identity::{Bundle, KeyId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

/// Begins a relationship, or changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationPutRequest {
    pub federation: Federation,
    /// The domain's bundle as a SPIFFE bundle document (JWK set), by which the first fetch is authenticated. It takes the
    /// place of what is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

/// All relationships, or one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationListRequest {
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
}

/// Fetches the bundle now, on the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationRefreshRequest {
    pub trust_domain: TrustDomain,
}

/// Ends the relationship: its bundle is deleted and fetched no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationDeleteRequest {
    pub trust_domain: TrustDomain,
}

/// A foreign trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationItem {
    pub trust_domain: TrustDomain,
    pub url: EndpointUrl,
    pub profile: Profile,
    pub since: Timestamp,
    pub state: FederationState,
    /// `spiffe_sequence` of the bundle that is kept; 0: its owner does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Public keys of the X.509 authorities that are kept.
    pub authorities: Vec<KeyId>,
    /// Key IDs of the JWT authorities that are kept.
    pub jwt_authorities: Vec<String>,
    /// When the content of what is kept last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// When it was last confirmed or replaced by a fetch, as far as the nodes that answered remember.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<Timestamp>,
    /// When the last fetch was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempted: Option<Timestamp>,
    /// Why the last fetch came to nothing, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_seconds: Option<u64>,
    /// Keys of the document that could not be used, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FederationState {
    /// There is no bundle yet.
    Waiting,
    /// The last fetch succeeded.
    Fresh,
    /// The last fetch failed; the last good bundle is served.
    Stale,
    /// There is a bundle, and no node remembers a fetch yet.
    Kept,
}

impl FederationPutRequest {
    /// The bundle that came along, read as that of the relationship's trust domain.
    pub fn read_bundle(&self) -> Result<Option<Bundle>, hanse_identity::bundle::BundleError> {
        let read = self.bundle.as_ref().map(|text| Bundle::from_jwks(&self.federation.trust_domain, text));
        Ok(read.transpose()?.map(|document| document.bundle))
    }
}
