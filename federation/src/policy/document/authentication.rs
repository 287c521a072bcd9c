//! RequestAuthentication as documents write it: whose tokens of end users a workload believes. Field names are Istio's where
//! it has the field. Plain data.

use serde::{Deserialize, Serialize};

use super::TargetRef;
use crate::policy::value::PolicyDuration;
use crate::stranger::EndpointUrl;

/// RequestAuthentication.spec: for the services of its own namespace. A request without a token goes on without an end user;
/// one with a token that is not believed does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthentication {
    /// Services, by the workloads that serve them: all that such a workload serves is covered.
    pub target_refs: Vec<TargetRef>,
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    /// `iss` of its tokens, to the letter.
    pub issuer: String,
    /// A token is for one of them; any if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Its keys, a JWK set; or else where they are: exactly one of these three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Where the issuer publishes them. The cluster's leader fetches them, and every proxy has them from the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<EndpointUrl>,
    /// A file beside the document, which `hanse policy apply` sends along; what is kept is its content, as `jwks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<String>,
    /// Roots (PEM) of whoever answers at `jwks_uri`; those of the control node's system if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_roots: Option<String>,
    /// How often they are fetched; `DEFAULT_REFRESH` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_refresh: Option<PolicyDuration>,
    /// Where tokens are looked for; `Authorization: Bearer` if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<JwtHeader>,
    /// Whether the app gets the token too.
    #[serde(default)]
    pub forward_original_token: bool,
    /// What the app is told of the token. A header of that name from outside is removed, token or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtHeader {
    pub name: String,
    /// What is before the token, as `Bearer ` with its space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}
