//! The kinds of documents: their names, their API groups, and how a person may write them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{GATEWAY_API_VERSION, HANSE_API_VERSION};

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    BackendPolicy,
    AccessPolicy,
    FaultInjection,
    RateLimit,
    RequestAuthentication,
    ExternalService,
    #[serde(rename = "BackendTLSPolicy")]
    BackendTlsPolicy,
    MeshConfig,
    Gateway,
    PeerAuthentication,
    ReferenceGrant,
}

impl PolicyKind {
    pub const ALL: [PolicyKind; 15] = [
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::BackendPolicy,
        Self::AccessPolicy,
        Self::FaultInjection,
        Self::RateLimit,
        Self::RequestAuthentication,
        Self::ExternalService,
        Self::BackendTlsPolicy,
        Self::MeshConfig,
        Self::Gateway,
        Self::PeerAuthentication,
        Self::ReferenceGrant,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::BackendPolicy => "BackendPolicy",
            Self::AccessPolicy => "AccessPolicy",
            Self::FaultInjection => "FaultInjection",
            Self::RateLimit => "RateLimit",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ExternalService => "ExternalService",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::MeshConfig => "MeshConfig",
            Self::Gateway => "Gateway",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::BackendTlsPolicy
            | Self::Gateway
            | Self::ReferenceGrant => GATEWAY_API_VERSION,
            _ => HANSE_API_VERSION,
        }
    }

    /// Its API group.
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// Whether a document of that version is read. ReferenceGrant was v1beta1 for years, with the same fields, and most are
    /// written so; told again they are v1.
    pub fn reads(self, api_version: &str) -> bool {
        api_version == self.api_version()
            || (self == Self::ReferenceGrant && api_version == "gateway.networking.k8s.io/v1beta1")
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let singular = match lower.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => lower.strip_suffix('s').unwrap_or(&lower).to_owned(),
        };
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(&singular)).ok_or_else(|| {
            format!("{text:?} is no kind of policy; known: {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

impl std::fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
