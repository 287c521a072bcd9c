//! Changes: facts. What applying a Command yields, what a View is folded from, what a watcher receives.

use hanse_identity::{
    Bundle, ClusterName, Crl, NodeName, Revocation, RevocationId, ServiceName, TrustDomain,
};
use serde::{Deserialize, Serialize};

use crate::catalog::{Endpoint, EndpointId, Gateway, GatewaySummary, Service, ServiceSummary};
use crate::policy::{PolicyDocument, PolicyKey};
use crate::view::Peer;

/// One fact about one cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    ServicePut(Service),
    ServiceGone(ServiceName),
    EndpointPut(Endpoint),
    EndpointGone(EndpointId),
    GatewayPut(Gateway),
    GatewayGone(NodeName),
    /// A joined cluster's own record; what it told us is kept.
    PeerPut(PeerRecord),
    /// The peer, what it told us, its bundle and the revocations of its trust domain.
    PeerGone(ClusterName),
    /// What a peer told us; already passed the import filter.
    PeerFact(ClusterName, PeerFact),
    BundlePut(Bundle),
    BundleGone(TrustDomain),
    /// An authority's newest revocation list; it goes with its authority.
    CrlPut(TrustDomain, Crl),
    PolicyPut(Box<PolicyDocument>),
    PolicyGone(PolicyKey),
    /// What an issuer of end users' tokens publishes: the id of the `KeySource`, and its JWK set.
    IssuerKeysPut(String, String),
    IssuerKeysGone(String),
    Revoked(Revocation),
    /// Lifted, or lapsed because nothing it could match is still valid.
    Unrevoked(RevocationId),
}

impl Change {
    /// Whether proxies and gateways are told: they enforce revocations themselves and have no use for lists.
    pub fn is_for_the_data_plane(&self) -> bool {
        !matches!(self, Self::CrlPut(..) | Self::PeerFact(_, PeerFact::Crl(_)))
    }
}

/// The part of a peer that our own cluster decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRecord {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    /// `host:port` of its control nodes, as it advertises them to us.
    pub endpoints: Vec<String>,
    /// The invite by which it was joined, for idempotence and rollback.
    pub invite: String,
    pub joined: hanse_identity::Timestamp,
}

/// One fact that a peer tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerFact {
    Service(ServiceSummary),
    ServiceGone(ServiceName),
    Gateways(Vec<GatewaySummary>),
    Endpoints(Vec<String>),
    Bundle(Bundle),
    /// The newest revocation list of an authority in its bundle.
    Crl(Crl),
    Revoked(Revocation),
    Unrevoked(RevocationId),
    /// All facts up to the peer's revision have been told; what was not named since `Begin` is gone.
    Synced(u64),
    /// A complete retelling starts.
    Begin,
}

impl From<&Peer> for PeerRecord {
    fn from(peer: &Peer) -> Self {
        peer.record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The written form is what control nodes store and peers of other versions read: it must not drift.
    #[test]
    fn changes_keep_their_written_form() {
        for text in [
            r#"{"serviceGone":"shop/reviews"}"#,
            r#"{"endpointGone":"reviews-1"}"#,
            r#"{"gatewayGone":"gateway-1"}"#,
            r#"{"peerPut":{"cluster":"east","trustDomain":"east.example","endpoints":["h:1"],"invite":"i","joined":5}}"#,
            r#"{"peerGone":"east"}"#,
            r#"{"peerFact":["east","begin"]}"#,
            r#"{"peerFact":["east",{"synced":7}]}"#,
            r#"{"peerFact":["east",{"serviceGone":"shop/reviews"}]}"#,
            r#"{"peerFact":["east",{"endpoints":["h:1"]}]}"#,
            r#"{"bundleGone":"east.example"}"#,
            r#"{"issuerKeysPut":["https://id.example/keys","{}"]}"#,
            r#"{"issuerKeysGone":"https://id.example/keys"}"#,
            r#"{"policyGone":{"kind":"HTTPRoute","name":"shop/reviews"}}"#,
        ] {
            let change: Change = crate::wire::decode("change", text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(crate::wire::encode(&change)).unwrap(), text);
        }
        for junk in [r#"{"serviceGone":"Shop"}"#, r#"{"peerGone":""}"#, r#"{"unknown":1}"#, "{}"] {
            assert!(crate::wire::decode::<Change>("change", junk.as_bytes()).is_err(), "{junk}");
        }
    }
}
