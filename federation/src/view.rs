//! The View: what one cluster knows at a Revision, folded from Changes by one function, `apply`.
//!
//! Control nodes, proxies and gateways run this very code. A snapshot is a serialised View.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::{
    Bundle, ClusterName, Crl, KeyId, NodeName, RevocationId, Revocations, ServiceName, SpiffeId, TrustDomain,
};
use serde::{Deserialize, Serialize};

use crate::catalog::{Endpoint, EndpointId, Gateway, GatewaySummary, Service, ServiceSummary};
use crate::change::{Change, PeerFact, PeerRecord};
use crate::policy::{PolicyDocument, PolicyKey};

/// A cluster's Raft log index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The state of one cluster that everyone in it may know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub revision: Revision,
    pub services: BTreeMap<ServiceName, Service>,
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    pub gateways: BTreeMap<NodeName, Gateway>,
    pub peers: BTreeMap<ClusterName, Peer>,
    /// Own and peers', never merged.
    pub bundles: BTreeMap<TrustDomain, Bundle>,
    /// The newest revocation list of each authority in `bundles`. Proxies and gateways are sent none: they have the
    /// revocations themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub crls: BTreeMap<TrustDomain, BTreeMap<KeyId, Crl>>,
    /// Written as a list: a document names itself.
    #[serde(with = "policies_as_list")]
    pub policies: BTreeMap<PolicyKey, PolicyDocument>,
    /// Keys of issuers of end users' tokens that were fetched, by the ids of their sources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub issuer_keys: BTreeMap<String, String>,
    pub revocations: Revocations,
}

/// A joined cluster: our record of it, and what it told us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub record: PeerRecord,
    pub state: PeerState,
    /// The peer's own revision up to which we have been told.
    pub synced: u64,
    pub services: BTreeMap<ServiceName, ServiceSummary>,
    pub gateways: Vec<GatewaySummary>,
    /// Named since `Begin` and until `Synced`, while a retelling is under way.
    #[serde(default)]
    pub retelling: Option<Retelling>,
}

/// What a peer has named in a retelling so far: what it has not named at its end is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retelling {
    pub services: BTreeSet<ServiceName>,
    pub revocations: BTreeSet<RevocationId>,
    #[serde(default)]
    pub crls: BTreeSet<KeyId>,
}

/// Whether a peer has ever been heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerState {
    /// Committed, nothing heard yet.
    Joining,
    /// Told us everything at least once.
    Joined,
}

impl View {
    /// The empty View of a cluster.
    pub fn new(cluster: ClusterName, trust_domain: TrustDomain) -> Self {
        Self {
            cluster,
            trust_domain,
            revision: Revision(0),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            gateways: BTreeMap::new(),
            peers: BTreeMap::new(),
            bundles: BTreeMap::new(),
            crls: BTreeMap::new(),
            policies: BTreeMap::new(),
            issuer_keys: BTreeMap::new(),
            revocations: Revocations::default(),
        }
    }

    /// Folds in all Changes of one revision. A revision that is not newer is ignored: a View never goes back.
    pub fn advance(&mut self, revision: Revision, changes: &[Change]) -> bool {
        if revision <= self.revision {
            return false;
        }
        changes.iter().for_each(|change| self.apply(change));
        self.revision = revision;
        true
    }

    /// Folds in one Change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::ServicePut(service) => {
                self.services.insert(service.name.clone(), service.clone());
            }
            Change::ServiceGone(name) => {
                self.services.remove(name);
            }
            Change::EndpointPut(endpoint) => {
                self.endpoints.insert(endpoint.id.clone(), endpoint.clone());
            }
            Change::EndpointGone(id) => {
                self.endpoints.remove(id);
            }
            Change::GatewayPut(gateway) => {
                self.gateways.insert(gateway.name.clone(), gateway.clone());
            }
            Change::GatewayGone(name) => {
                self.gateways.remove(name);
            }
            Change::PeerPut(record) => match self.peers.get_mut(&record.cluster) {
                Some(peer) => peer.record = record.clone(),
                None => {
                    self.peers.insert(record.cluster.clone(), Peer::new(record.clone()));
                }
            },
            Change::PeerGone(cluster) => self.forget_peer(cluster),
            Change::PeerFact(cluster, fact) => self.apply_peer_fact(cluster, fact),
            Change::BundlePut(bundle) => self.put_bundle(bundle),
            Change::BundleGone(trust_domain) => self.forget_bundle(trust_domain),
            Change::CrlPut(trust_domain, crl) => self.put_crl(trust_domain, crl),
            Change::PolicyPut(document) => {
                self.policies.insert(document.key(), (**document).clone());
            }
            Change::PolicyGone(key) => {
                self.policies.remove(key);
            }
            Change::IssuerKeysPut(source, jwks) => {
                self.issuer_keys.insert(source.clone(), jwks.clone());
            }
            Change::IssuerKeysGone(source) => {
                self.issuer_keys.remove(source);
            }
            Change::Revoked(revocation) => self.revocations.insert(revocation.clone()),
            Change::Unrevoked(id) => {
                self.revocations.remove(id);
            }
        }
    }

    /// A bundle, and with an authority that is no longer in it goes its revocation list.
    fn put_bundle(&mut self, bundle: &Bundle) {
        self.bundles.insert(bundle.trust_domain.clone(), bundle.clone());
        let lasting = |key: &KeyId| bundle.authorities.iter().any(|a| a.key_id == *key);
        self.retain_crls(&bundle.trust_domain, lasting);
    }

    fn forget_bundle(&mut self, trust_domain: &TrustDomain) {
        self.bundles.remove(trust_domain);
        self.crls.remove(trust_domain);
    }

    /// Only of an authority in the bundle: nothing else would ever take it away again.
    fn put_crl(&mut self, trust_domain: &TrustDomain, crl: &Crl) {
        let of_bundle = |b: &Bundle| b.authorities.iter().any(|a| a.key_id == crl.authority);
        if !self.bundles.get(trust_domain).is_some_and(of_bundle) {
            return;
        }
        self.crls.entry(trust_domain.clone()).or_default().insert(crl.authority, crl.clone());
    }

    fn retain_crls(&mut self, trust_domain: &TrustDomain, lasting: impl Fn(&KeyId) -> bool) {
        if let Some(crls) = self.crls.get_mut(trust_domain) {
            crls.retain(|key, _| lasting(key));
            if crls.is_empty() {
                self.crls.remove(trust_domain);
            }
        }
    }

    fn forget_peer(&mut self, cluster: &ClusterName) {
        let Some(peer) = self.peers.remove(cluster) else { return };
        let trust_domain = peer.record.trust_domain;
        self.forget_bundle(&trust_domain);
        let theirs: Vec<_> =
            self.revocations.iter().filter(|r| r.id.origin == trust_domain).map(|r| r.id.clone()).collect();
        for id in theirs {
            self.revocations.remove(&id);
        }
    }

    fn apply_peer_fact(&mut self, cluster: &ClusterName, fact: &PeerFact) {
        let Some(peer) = self.peers.get_mut(cluster) else { return };
        match fact {
            PeerFact::Service(summary) => {
                if let Some(named) = &mut peer.retelling {
                    named.services.insert(summary.name.clone());
                }
                peer.services.insert(summary.name.clone(), summary.clone());
            }
            PeerFact::ServiceGone(name) => {
                peer.services.remove(name);
            }
            PeerFact::Gateways(gateways) => peer.gateways.clone_from(gateways),
            PeerFact::Endpoints(endpoints) => peer.record.endpoints.clone_from(endpoints),
            PeerFact::Bundle(bundle) if bundle.trust_domain == peer.record.trust_domain => {
                self.put_bundle(bundle);
            }
            PeerFact::Crl(crl) => {
                if let Some(named) = &mut peer.retelling {
                    named.crls.insert(crl.authority);
                }
                let trust_domain = peer.record.trust_domain.clone();
                self.put_crl(&trust_domain, crl);
            }
            PeerFact::Revoked(revocation) if revocation.is_of(&peer.record.trust_domain) => {
                if let Some(named) = &mut peer.retelling {
                    named.revocations.insert(revocation.id.clone());
                }
                self.revocations.insert(revocation.clone());
            }
            PeerFact::Unrevoked(id) if id.origin == peer.record.trust_domain => {
                self.revocations.remove(id);
            }
            // The import filter has let none of these through; a peer has no say over names outside its own domain.
            PeerFact::Bundle(_) | PeerFact::Revoked(_) | PeerFact::Unrevoked(_) => {}
            PeerFact::Begin => peer.retelling = Some(Retelling::default()),
            PeerFact::Synced(revision) => {
                if let Some(named) = peer.retelling.take() {
                    peer.services.retain(|name, _| named.services.contains(name));
                    // Lifted while nothing could be heard.
                    let origin = &peer.record.trust_domain;
                    let ids = self.revocations.iter().map(|r| &r.id);
                    let lifted = ids.filter(|id| id.origin == *origin && !named.revocations.contains(*id));
                    for id in lifted.cloned().collect::<Vec<_>>() {
                        self.revocations.remove(&id);
                    }
                    let origin = origin.clone();
                    (peer.synced, peer.state) = (*revision, PeerState::Joined);
                    self.retain_crls(&origin, |key| named.crls.contains(key));
                    return;
                }
                peer.synced = *revision;
                peer.state = PeerState::Joined;
            }
        }
    }

    /// Ready and not ready endpoints of a service of this cluster.
    pub fn endpoints_of<'v>(&'v self, service: &'v ServiceName) -> impl Iterator<Item = &'v Endpoint> {
        self.endpoints.values().filter(move |e| e.services.contains(service))
    }

    /// The peer that a trust domain belongs to.
    pub fn peer_of(&self, trust_domain: &TrustDomain) -> Option<&Peer> {
        self.peers.values().find(|p| p.record.trust_domain == *trust_domain)
    }

    /// What a verifier in this cluster believes in.
    pub fn trust(&self) -> hanse_identity::Trust {
        hanse_identity::Trust::new(self.bundles.values(), self.revocations.clone())
    }

    /// Whether a caller of that identity may use this service of ours: everyone at home, and those abroad to
    /// whose cluster it is exported. Default deny between clusters.
    pub fn may_call(&self, caller: &SpiffeId, service: &ServiceName) -> bool {
        if *caller.trust_domain() == self.trust_domain {
            return true;
        }
        let Some(peer) = self.peer_of(caller.trust_domain()) else { return false };
        let export = self.services.get(service).and_then(|s| s.export.as_ref());
        export.is_some_and(|e| e.covers(&peer.record.cluster))
    }
}

impl Peer {
    pub fn new(record: PeerRecord) -> Self {
        Self {
            record,
            state: PeerState::Joining,
            synced: 0,
            services: BTreeMap::new(),
            gateways: Vec::new(),
            retelling: None,
        }
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

mod policies_as_list {
    use super::{BTreeMap, PolicyDocument, PolicyKey};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        policies: &BTreeMap<PolicyKey, PolicyDocument>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(policies.values())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<PolicyKey, PolicyDocument>, D::Error> {
        let documents = Vec::<PolicyDocument>::deserialize(deserializer)?;
        Ok(documents.into_iter().map(|d| (d.key(), d)).collect())
    }
}

#[cfg(test)]
mod tests;
