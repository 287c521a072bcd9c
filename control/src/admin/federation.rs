//! `trust federate`, `trust federation …` and `trust bundle set|delete`: foreign trust domains, and how fresh what is kept
//! of them is.

use hanse_federation::stranger::{EndpointUrl, Federation, Profile};
use hanse_identity::{Bundle, KeyId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::state::strangers::Dependents;

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

/// Sets the bundle of a foreign trust domain by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleSetRequest {
    pub trust_domain: TrustDomain,
    /// A SPIFFE bundle document (JWK set), or certificates in PEM.
    pub bundle: String,
    /// It may have a lower sequence than what is kept, or the same and other keys.
    #[serde(default)]
    pub allow_lower_sequence: bool,
    /// Say what would be kept, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is kept now, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleSet {
    /// The log index at which it is in force; none of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// False: it is kept already.
    pub changed: bool,
    pub trust_domain: TrustDomain,
    pub sequence: u64,
    pub authorities: Vec<KeyId>,
    pub jwt_authorities: Vec<String>,
    /// Keys of the document that cannot be used, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// From where it is going to be fetched anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<EndpointUrl>,
}

/// Deletes the bundle of a foreign trust domain, and with it the relationship, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleDeleteRequest {
    pub trust_domain: TrustDomain,
    /// What becomes of registrations that federate with it.
    pub registrations: Dependents,
}

/// A foreign trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationItem {
    pub trust_domain: TrustDomain,
    /// None: its bundle is set by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<EndpointUrl>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
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
    /// An administrator has set the bundle, and there is no endpoint to fetch it from.
    ByHand,
}

impl FederationPutRequest {
    /// The bundle that came along, read as that of the relationship's trust domain.
    pub fn read_bundle(&self) -> Result<Option<Bundle>, hanse_identity::bundle::BundleError> {
        let read = self.bundle.as_ref().map(|text| Bundle::from_jwks(&self.federation.trust_domain, text));
        Ok(read.transpose()?.map(|document| document.bundle))
    }
}
