//! Documents about agents that have joined.

use std::net::SocketAddr;

use hanse_identity::host::Naming;
use hanse_identity::{HostCertificate, HostTrust, NodeName, RevocationId, Serial, SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

/// All agents, or one; the one has to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentListRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<NodeName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentItem {
    pub agent: NodeName,
    pub id: SpiffeId,
    pub state: AgentStanding,
    pub joined: Timestamp,
    pub connected: bool,
    /// The control node that holds its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// From where it is connected, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// When a control node heard of it last; not known for long after it has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// The certificate that it shows, or the one that lives longest of those that it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Timestamp>,
    pub registrations: usize,
    /// Identities that have a live certificate through it.
    pub workloads: Vec<AgentWorkload>,
    /// The revocation because of which its name is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned: Option<RevocationId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evicted: Option<Timestamp>,
    /// The host's certificate by which it joined; else it was with a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<HostCertificate>,
    /// Until when such a certificate may make it once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Timestamp>,
}

/// How an agent stands with its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentStanding {
    Connected,
    /// It has no stream, and may come back.
    Gone,
    /// It has no stream and no certificate that lives: it has to prove its host anew.
    Expired,
    /// It was put out: it needs a new join token, or leave to show its host's certificate once more.
    Evicted,
    /// Its name is refused until the ban ends.
    Banned,
}

impl AgentStanding {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Gone => "gone",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Banned => "banned",
        }
    }
}

/// An identity that an agent serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentWorkload {
    pub id: SpiffeId,
    pub certificates: usize,
    /// When the last of them ends.
    pub not_after: Timestamp,
}

/// Puts an agent out; with a new join token it may come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentEvictRequest {
    pub agent: NodeName,
    #[serde(default)]
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evicted {
    pub revision: u64,
    /// The revocation of what it was given; `None` = it was out already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<RevocationId>,
}

/// Ends the ban of an agent; it has to join anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentUnbanRequest {
    pub agent: NodeName,
}

/// Lets an agent that is there, or was put out, join once more by its host's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentAllowRequest {
    pub agent: NodeName,
    pub ttl_seconds: u64,
}

/// Which authorities of the user's own PKI may vouch for hosts, in place of those that could before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTrustSetRequest {
    /// Their certificates, PEM.
    pub pem: String,
    pub naming: Naming,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTrustShowRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTrustShown {
    pub meta: Meta,
    /// None: no certificate attests a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<HostTrust>,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// No certificate attests a host any more; agents that have joined stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTrustDeleteRequest {}
