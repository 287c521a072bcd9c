//! Documents about what is outside the mesh: ExternalService, the TLS to it (BackendTLSPolicy of Gateway API v1, with its
//! certificates in the document), and MeshConfig, which says what becomes of names that nobody has described.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Label;

/// ExternalService.spec: a host outside the mesh, as the apps of this cluster name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalService {
    /// Host names, exact; without `addresses` only one, which DNS is asked for.
    pub hosts: Vec<String>,
    pub ports: Vec<ExternalPort>,
    /// Where it is; absent = what DNS says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether it may be at a loopback or link-local address, such as a host's metadata service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_local_addresses: bool,
    /// The service of the mesh whose proxies alone send requests there, in the document's namespace; absent = the caller's own
    /// does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<EgressRef>,
}

/// An egress gateway: a service whose proxies have no app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRef {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    pub kind: EgressKind,
    pub name: Label,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EgressKind {
    Service,
}

/// One port of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalPort {
    /// As our apps name it.
    pub port: u16,
    /// As it is there, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    pub protocol: ExternalProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExternalProtocol {
    Http,
    /// Bytes, TLS of the app's own among them.
    Tcp,
}

/// BackendTLSPolicy.spec: whom we take for the service outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsPolicy {
    pub target_refs: Vec<ExternalRef>,
    pub validation: TlsValidation,
}

/// The ExternalService that a policy is for, in the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalRef {
    pub group: String,
    pub kind: ExternalKind,
    pub name: Label,
}

/// The one kind that TLS is originated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalKind {
    ExternalService,
}

/// What its certificate has to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsValidation {
    /// The server name that is asked for; unless there are `subject_alt_names`, also whom the certificate has to name.
    pub hostname: String,
    /// Roots, PEM. Gateway API refers to ConfigMaps for them, which the embedded mode does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    #[serde(default, rename = "wellKnownCACertificates", skip_serializing_if = "Option::is_none")]
    pub well_known_ca_certificates: Option<WellKnownRoots>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// Roots that the proxy's host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WellKnownRoots {
    System,
}

/// A name that the certificate may have in place of `hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubjectAltName {
    #[serde(rename = "type")]
    pub kind: SubjectAltNameType,
    pub hostname: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubjectAltNameType {
    Hostname,
}

/// MeshConfig.spec: what holds for every proxy of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfig {
    pub outbound: OutboundMode,
    /// Whether AllowAny reaches loopback and link-local addresses too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_local_addresses: bool,
}

/// What becomes of a host that is neither a service nor an ExternalService.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}
