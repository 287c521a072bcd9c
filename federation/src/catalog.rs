//! The catalog: services, their endpoints, gateways and exports, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hanse_identity::{ClusterName, NodeName, ServiceName, SpiffeId};
use serde::{Deserialize, Serialize};

/// Where something runs. Empty strings = not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub zone: String,
}

/// A service of this cluster. Exists as long as it has endpoints or an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub name: ServiceName,
    /// Who may answer for it: a caller refuses any other identity.
    pub identities: BTreeSet<SpiffeId>,
    /// Offered to peers, if at all.
    #[serde(default)]
    pub export: Option<Export>,
}

/// To whom a service is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Export {
    Everyone,
    Only(BTreeSet<ClusterName>),
}

impl Export {
    pub fn covers(&self, peer: &ClusterName) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only(peers) => peers.contains(peer),
        }
    }
}

/// A proxy's name: one endpoint per proxy, however many services it serves.
pub type EndpointId = NodeName;

/// One instance, reached through its own proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub id: EndpointId,
    pub services: BTreeSet<ServiceName>,
    pub identity: SpiffeId,
    /// The proxy's inbound listener: mutual TLS.
    pub address: SocketAddr,
    pub locality: Locality,
    /// Relative share of traffic among endpoints of its tier; 1 to 1000.
    pub weight: u32,
    /// What the proxy says of its app.
    pub ready: bool,
    pub session: Session,
}

/// One gateway of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    pub name: NodeName,
    pub identity: SpiffeId,
    pub locality: Locality,
    /// Where proxies of this cluster reach it (SNI passthrough, towards other clusters).
    pub passthrough: SocketAddr,
    /// Where other clusters reach its tunnel listener: `host:port`, as advertised.
    pub tunnel: String,
    pub ready: bool,
    pub session: Session,
}

/// Which stream vouches for an endpoint or gateway. A withdrawal that names an older one is void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// A life of the process; a later one has a higher number (`presence`).
    pub incarnation: u64,
    /// Grows with every announcement of that life.
    pub sequence: u64,
    /// The control node that holds the stream.
    pub node: NodeName,
}

/// What a proxy or gateway says of itself, complete, when it connects and when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    pub name: NodeName,
    pub incarnation: u64,
    pub sequence: u64,
    pub locality: Locality,
    pub ready: bool,
    pub serves: Serves,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Serves {
    /// A proxy: its services must be among those its registration allows.
    #[serde(rename_all = "camelCase")]
    Services { services: BTreeSet<ServiceName>, inbound: SocketAddr, weight: u32 },
    /// A proxy in front of a client only.
    Nothing,
    #[serde(rename_all = "camelCase")]
    Gateway { passthrough: SocketAddr, tunnel: String },
}

/// What a peer tells of one exported service: a summary, not its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSummary {
    pub name: ServiceName,
    /// All of the peer's trust domain.
    pub identities: BTreeSet<SpiffeId>,
    /// Ready weight and total weight by locality.
    pub localities: BTreeMap<String, LocalityWeight>,
}

/// Weights of the endpoints in one locality (`region/zone`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityWeight {
    pub endpoints: u32,
    pub ready_endpoints: u32,
    pub weight: u32,
    pub ready_weight: u32,
}

/// What a peer tells of one of its gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySummary {
    pub name: NodeName,
    pub identity: SpiffeId,
    pub locality: Locality,
    /// `host:port`, as advertised to us.
    pub tunnel: String,
    pub ready: bool,
}

impl Session {
    /// The incarnation of no process: a registration with an address vouches for the endpoint.
    pub const REGISTERED: u64 = 0;

    /// The session of an endpoint that a registration stands for; `agent` is the one that it names.
    pub fn of_registration(agent: NodeName) -> Self {
        Self { incarnation: Self::REGISTERED, sequence: 0, node: agent }
    }

    /// Whether no stream vouches, so that the end of one means nothing.
    pub fn is_of_registration(&self) -> bool {
        self.incarnation == Self::REGISTERED
    }
}

impl ServiceSummary {
    /// A stranger wrote the numbers: sums saturate.
    pub fn ready_weight(&self) -> u32 {
        self.localities.values().fold(0, |sum, l| sum.saturating_add(l.ready_weight))
    }

    pub fn weight(&self) -> u32 {
        self.localities.values().fold(0, |sum, l| sum.saturating_add(l.weight))
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.region, self.zone)
    }
}

impl std::str::FromStr for Locality {
    type Err = std::convert::Infallible;

    /// `region/zone` or `region`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (region, zone) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self { region: region.to_owned(), zone: zone.to_owned() })
    }
}
