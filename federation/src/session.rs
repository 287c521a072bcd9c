//! The peer session: what one cluster tells another, resumed by revision, through an export and an import filter.
//!
//! The subscriber dials and says from where it wants to hear on (`resume`); the other side tells facts about itself,
//! each batch with its revision. A peer speaks only of its own trust domain and its own exports; anything else is
//! refused and counted, and the rest of the batch goes through. Control node endpoints are no part of a View: the
//! shell adds `PeerFact::Endpoints`.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::name::MemberRole;
use hanse_identity::{
    ClusterName, Crl, KeyId, RevocationId, RevocationTarget, ServiceName, SpiffeId, TrustDomain,
};
use serde::{Deserialize, Serialize};

use crate::catalog::{Endpoint, EndpointId, Gateway, GatewaySummary, ServiceSummary};
use crate::change::{Change, PeerFact};
use crate::view::View;

/// Subscriber → exporter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Up {
    /// First message: the exporter's revision up to which we have been told; 0 = everything.
    Resume { cluster: ClusterName, from: u64 },
    /// Committed on our side up to the exporter's revision.
    Applied { revision: u64 },
}

/// Exporter → subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Down {
    /// Facts of the exporter's revision; empty = a sign of life.
    Facts { revision: u64, facts: Vec<PeerFact> },
    /// We have removed you: forget us too.
    Left,
}

/// What the import filter refused, for the counter and the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportRefusal {
    #[error("{0} is no peer")]
    UnknownPeer(ClusterName),
    #[error("speaks of trust domain {0}, which is not its own")]
    ForeignTrustDomain(TrustDomain),
    #[error("revokes its cluster as a whole, which is for its neighbours to do")]
    WholeCluster,
    #[error("bundle: {0}")]
    Bundle(String),
    #[error("revocation list: {0}")]
    Crl(String),
    #[error("more than {0} services")]
    TooManyServices(usize),
    #[error("more than {0} revocations")]
    TooManyRevocations(usize),
    #[error("{0} is not the identity of a gateway")]
    NotAGateway(SpiffeId),
    #[error("{0:?} is not of the form host:port")]
    Address(String),
    #[error("more {0} than are remembered")]
    TooMany(&'static str),
    #[error("goes back from revision {known} to {told}")]
    WentBack { known: u64, told: u64 },
}

/// Most services that one peer may have us remember.
pub const MAX_IMPORTED_SERVICES: usize = 20_000;
/// Most revocations that one peer may have us remember.
pub const MAX_IMPORTED_REVOCATIONS: usize = 20_000;
/// Most serial numbers in the revocations that one peer may have us remember.
pub const MAX_IMPORTED_SERIALS: usize = 200_000;
/// Most bytes of names (identities, localities) that the services of one peer may have us remember.
pub const MAX_IMPORTED_BYTES: usize = 32 << 20;
/// Most bytes of revocation lists that one peer may have us remember.
pub const MAX_IMPORTED_CRL_BYTES: usize = 16 << 20;
/// Most identities of one imported service.
pub const MAX_IDENTITIES: usize = 64;
/// Most localities of one imported service.
pub const MAX_LOCALITIES: usize = 256;
/// Most gateways of one peer.
pub const MAX_GATEWAYS: usize = 256;
/// Most control node endpoints of one peer.
pub const MAX_ENDPOINTS: usize = 32;
/// Longest text (note, actor, locality) that a peer may have us remember, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;
/// Longest `host:port`, in bytes.
const MAX_ADDRESS_BYTES: usize = 253 + 1 + 5;

/// The subscriber's first message. A retelling that broke off is asked for again in whole: what was told after it
/// would otherwise be taken for all there is.
pub fn resume(view: &View, exporter: &ClusterName) -> Up {
    let from =
        view.peers.get(exporter).map_or(0, |peer| if peer.retelling.is_some() { 0 } else { peer.synced });
    Up::Resume { cluster: view.cluster.clone(), from }
}

/// Everything that `peer` may know, as facts between `Begin` and `Synced`: for a first contact or one too far behind.
pub fn tell_all(view: &View, peer: &ClusterName) -> Vec<PeerFact> {
    let mut facts = vec![PeerFact::Begin];
    facts.extend(view.bundles.get(&view.trust_domain).cloned().map(PeerFact::Bundle));
    facts.extend(own_crls(view).map(|crl| PeerFact::Crl(crl.clone())));
    facts.push(PeerFact::Gateways(gateways(view)));
    facts.extend(own_revocations(view).map(PeerFact::Revoked));
    facts.extend(summaries(view, None, peer).into_values().map(PeerFact::Service));
    facts.push(PeerFact::Synced(view.revision.0));
    facts
}

/// What `peer` is to be told of the Changes that lead from `before` to `view`, ended by `Synced`; empty if they are
/// none of its business, so that nothing has to be committed for them on its side.
pub fn tell(before: &View, view: &View, changes: &[Change], peer: &ClusterName) -> Vec<PeerFact> {
    let touched = Touched::of(before, view, changes);
    let mut facts = Vec::new();
    if touched.bundle
        && let Some(bundle) = view.bundles.get(&view.trust_domain)
        && before.bundles.get(&view.trust_domain) != Some(bundle)
    {
        facts.push(PeerFact::Bundle(bundle.clone()));
    }
    let newer = own_crls(view).filter(|crl| touched.crls.contains(&crl.authority));
    facts.extend(newer.map(|crl| PeerFact::Crl(crl.clone())));
    // Before the services, that nobody is sent to what is revoked.
    facts.extend(touched.revocations.iter().map(|id| match view.revocations.get(id) {
        Some(revocation) => PeerFact::Revoked(revocation.clone()),
        None => PeerFact::Unrevoked(id.clone()),
    }));
    if touched.gateways && gateways(before) != gateways(view) {
        facts.push(PeerFact::Gateways(gateways(view)));
    }
    facts.extend(service_facts(before, view, &touched.services, peer));
    if !facts.is_empty() {
        facts.push(PeerFact::Synced(view.revision.0));
    }
    facts
}

/// What Changes may have altered of that which peers are told.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceName>,
    gateways: bool,
    bundle: bool,
    crls: BTreeSet<KeyId>,
    revocations: BTreeSet<RevocationId>,
}

impl Touched {
    fn of(before: &View, view: &View, changes: &[Change]) -> Self {
        let own = &view.trust_domain;
        let mut touched = Self::default();
        for change in changes {
            match change {
                Change::ServicePut(service) => touched.service(&service.name),
                Change::ServiceGone(name) => touched.service(name),
                Change::EndpointPut(endpoint) => {
                    touched.endpoint(before, view, &endpoint.id);
                    // It may have come and gone within these Changes.
                    touched.services.extend(endpoint.services.iter().cloned());
                }
                Change::EndpointGone(id) => touched.endpoint(before, view, id),
                Change::GatewayPut(_) | Change::GatewayGone(_) => touched.gateways = true,
                Change::BundlePut(bundle) => touched.bundle |= bundle.trust_domain == *own,
                Change::BundleGone(trust_domain) => touched.bundle |= trust_domain == own,
                Change::CrlPut(trust_domain, crl) if trust_domain == own => {
                    touched.crls.insert(crl.authority);
                }
                Change::Revoked(revocation) if is_own(own, &revocation.id, revocation.trust_domain()) => {
                    touched.revocations.insert(revocation.id.clone());
                }
                Change::Unrevoked(id) if id.origin == *own => {
                    touched.revocations.insert(id.clone());
                }
                Change::CrlPut(..)
                | Change::Revoked(_)
                | Change::Unrevoked(_)
                | Change::PeerPut(_)
                | Change::PeerGone(_)
                | Change::PeerFact(..)
                | Change::PolicyPut(_)
                | Change::PolicyGone(_)
                | Change::IssuerKeysPut(..)
                | Change::IssuerKeysGone(_) => {}
            }
        }
        touched
    }

    fn service(&mut self, name: &ServiceName) {
        self.services.insert(name.clone());
    }

    fn endpoint(&mut self, before: &View, view: &View, id: &EndpointId) {
        for endpoint in [before, view].into_iter().filter_map(|v| v.endpoints.get(id)) {
            self.services.extend(endpoint.services.iter().cloned());
        }
    }
}

fn service_facts(
    before: &View,
    view: &View,
    touched: &BTreeSet<ServiceName>,
    peer: &ClusterName,
) -> Vec<PeerFact> {
    if touched.is_empty() {
        return Vec::new();
    }
    let old = summaries(before, Some(touched), peer);
    let mut new = summaries(view, Some(touched), peer);
    let fact = |name: &ServiceName| match (old.get(name), new.remove(name)) {
        (Some(old), Some(new)) if *old == new => None,
        (_, Some(new)) => Some(PeerFact::Service(new)),
        (Some(_), None) => Some(PeerFact::ServiceGone(name.clone())),
        (None, None) => None,
    };
    touched.iter().filter_map(fact).collect()
}

/// The export filter: summaries of the services (among `names`, if given) that `peer` may know of.
fn summaries(
    view: &View,
    names: Option<&BTreeSet<ServiceName>>,
    peer: &ClusterName,
) -> BTreeMap<ServiceName, ServiceSummary> {
    let exported = |name: &ServiceName| {
        let service = view.services.get(name)?;
        service.export.as_ref().filter(|export| export.covers(peer))?;
        let own = |id: &&SpiffeId| *id.trust_domain() == view.trust_domain;
        let identities = service.identities.iter().filter(own).cloned().collect();
        Some((name.clone(), ServiceSummary { name: name.clone(), identities, localities: BTreeMap::new() }))
    };
    let mut summaries: BTreeMap<_, _> = match names {
        Some(names) => names.iter().filter_map(exported).collect(),
        None => view.services.keys().filter_map(exported).collect(),
    };
    if summaries.is_empty() {
        return summaries;
    }
    // One pass over the endpoints, however many services there are.
    for endpoint in view.endpoints.values() {
        for name in &endpoint.services {
            if let Some(summary) = summaries.get_mut(name) {
                add(summary, endpoint);
            }
        }
    }
    summaries
}

fn add(summary: &mut ServiceSummary, endpoint: &Endpoint) {
    let weight = summary.localities.entry(endpoint.locality.to_string()).or_default();
    weight.endpoints = weight.endpoints.saturating_add(1);
    weight.weight = weight.weight.saturating_add(endpoint.weight);
    if endpoint.ready {
        weight.ready_endpoints = weight.ready_endpoints.saturating_add(1);
        weight.ready_weight = weight.ready_weight.saturating_add(endpoint.weight);
    }
}

/// This cluster's gateways as peers are told of them.
pub fn gateways(view: &View) -> Vec<GatewaySummary> {
    let summary = |gateway: &Gateway| GatewaySummary {
        name: gateway.name.clone(),
        identity: gateway.identity.clone(),
        locality: gateway.locality.clone(),
        tunnel: gateway.tunnel.clone(),
        ready: gateway.ready,
    };
    view.gateways.values().map(summary).collect()
}

fn own_crls(view: &View) -> impl Iterator<Item = &Crl> {
    view.crls.get(&view.trust_domain).into_iter().flat_map(BTreeMap::values)
}

fn own_revocations(view: &View) -> impl Iterator<Item = hanse_identity::Revocation> {
    let own = |r: &&hanse_identity::Revocation| is_own(&view.trust_domain, &r.id, r.trust_domain());
    view.revocations.iter().filter(own).cloned()
}

fn is_own(own: &TrustDomain, id: &RevocationId, target: &TrustDomain) -> bool {
    id.origin == *own && target == own
}

/// The import filter: the facts that `peer` may tell, and those refused.
pub fn admit(view: &View, peer: &ClusterName, facts: Vec<PeerFact>) -> (Vec<PeerFact>, Vec<ImportRefusal>) {
    let Some(known) = view.peers.get(peer) else {
        return (Vec::new(), vec![ImportRefusal::UnknownPeer(peer.clone())]);
    };
    let trust_domain = &known.record.trust_domain;
    // A join refuses this; a peer that shares our domain would speak of us.
    if *trust_domain == view.trust_domain {
        return (Vec::new(), vec![ImportRefusal::ForeignTrustDomain(trust_domain.clone())]);
    }
    let counted = |name: &ServiceName| known.retelling.as_ref().is_none_or(|r| r.services.contains(name));
    let remembered_bytes =
        known.services.values().filter(|summary| counted(&summary.name)).map(bytes_of).sum::<usize>();
    let theirs = view.revocations.iter().map(|r| &r.id).filter(|id| id.origin == *trust_domain);
    let mut filter = Filter {
        trust_domain,
        remembered: match &known.retelling {
            Some(retelling) => Remembered::Named(retelling.services.clone()),
            None => Remembered::Known { known: &known.services, added: BTreeSet::new() },
        },
        services: &known.services,
        bytes: remembered_bytes,
        revocations: match &known.retelling {
            Some(retelling) => retelling.revocations.clone(),
            None => theirs.cloned().collect(),
        },
        serials: view
            .revocations
            .iter()
            .filter(|r| r.id.origin == *trust_domain)
            .filter(|r| known.retelling.as_ref().is_none_or(|named| named.revocations.contains(&r.id)))
            .map(|r| r.serials.len())
            .sum(),
        bundle: view.bundles.get(trust_domain).cloned(),
        crls: match (&known.retelling, view.crls.get(trust_domain)) {
            (_, None) => BTreeMap::new(),
            (None, Some(crls)) => crls.clone(),
            (Some(retelling), Some(crls)) => {
                let named = crls.iter().filter(|(key, _)| retelling.crls.contains(key));
                named.map(|(key, crl)| (*key, crl.clone())).collect()
            }
        },
        synced: known.synced,
        retelling: known.retelling.is_some(),
        refusals: Vec::new(),
    };
    let mut admitted = Vec::with_capacity(facts.len());
    for fact in facts {
        match filter.check(fact) {
            Ok(fact) => admitted.push(fact),
            Err(refusal) => filter.refusals.push(refusal),
        }
    }
    (admitted, filter.refusals)
}

/// What the import filter has to remember from fact to fact.
struct Filter<'v> {
    trust_domain: &'v TrustDomain,
    remembered: Remembered<'v>,
    /// As they were before this batch.
    services: &'v BTreeMap<ServiceName, ServiceSummary>,
    /// Of names, in the services that count.
    bytes: usize,
    /// Those that count: in a retelling only what it names will be left.
    revocations: BTreeSet<RevocationId>,
    /// Of certificates, in the revocations that count.
    serials: usize,
    bundle: Option<hanse_identity::Bundle>,
    /// Those that count: in a retelling only what it names will be left.
    crls: BTreeMap<KeyId, Crl>,
    synced: u64,
    retelling: bool,
    refusals: Vec<ImportRefusal>,
}

/// The services that count towards the limit.
enum Remembered<'v> {
    Known {
        known: &'v BTreeMap<ServiceName, ServiceSummary>,
        added: BTreeSet<ServiceName>,
    },
    /// In a retelling only what it names will be left.
    Named(BTreeSet<ServiceName>),
}

impl Filter<'_> {
    fn check(&mut self, fact: PeerFact) -> Result<PeerFact, ImportRefusal> {
        match &fact {
            PeerFact::Begin => {
                self.retelling = true;
                self.remembered = Remembered::Named(BTreeSet::new());
                self.revocations.clear();
                self.crls.clear();
                (self.bytes, self.serials) = (0, 0);
            }
            PeerFact::Service(summary) => self.service(summary)?,
            PeerFact::ServiceGone(_) => {}
            PeerFact::Gateways(_) => return Ok(self.gateways(fact)),
            PeerFact::Endpoints(endpoints) => endpoints_fit(endpoints)?,
            PeerFact::Bundle(bundle) => self.bundle(bundle)?,
            PeerFact::Crl(crl) => self.crl(crl)?,
            PeerFact::Revoked(revocation) => {
                self.own(&revocation.id.origin)?;
                self.own(revocation.trust_domain())?;
                if !revocation.is_of(self.trust_domain) {
                    let whole = matches!(revocation.target, RevocationTarget::Cluster(_));
                    return Err(match whole {
                        true => ImportRefusal::WholeCluster,
                        false => ImportRefusal::TooMany("certificates in a revocation"),
                    });
                }
                let serials = self.serials + revocation.serials.len();
                if serials > MAX_IMPORTED_SERIALS {
                    return Err(ImportRefusal::TooMany("certificates in revocations"));
                }
                short("bytes of text in a revocation", [&revocation.note, &revocation.actor])?;
                let full = self.revocations.len() >= MAX_IMPORTED_REVOCATIONS;
                if full && !self.revocations.contains(&revocation.id) {
                    return Err(ImportRefusal::TooManyRevocations(MAX_IMPORTED_REVOCATIONS));
                }
                self.revocations.insert(revocation.id.clone());
                // One that is told again counts twice until the next batch: too much rather than too little.
                self.serials = serials;
            }
            PeerFact::Unrevoked(id) => {
                self.own(&id.origin)?;
                self.revocations.remove(id);
            }
            PeerFact::Synced(told) => {
                // Only a retelling may start anew, as after a restored backup.
                if *told < self.synced && !self.retelling {
                    return Err(ImportRefusal::WentBack { known: self.synced, told: *told });
                }
                (self.synced, self.retelling) = (*told, false);
            }
        }
        Ok(fact)
    }

    fn own(&self, trust_domain: &TrustDomain) -> Result<(), ImportRefusal> {
        let own = trust_domain == self.trust_domain;
        if own { Ok(()) } else { Err(ImportRefusal::ForeignTrustDomain(trust_domain.clone())) }
    }

    fn service(&mut self, summary: &ServiceSummary) -> Result<(), ImportRefusal> {
        summary.identities.iter().try_for_each(|id| self.own(id.trust_domain()))?;
        if summary.identities.len() > MAX_IDENTITIES {
            return Err(ImportRefusal::TooMany("identities of a service"));
        }
        if summary.localities.len() > MAX_LOCALITIES {
            return Err(ImportRefusal::TooMany("localities of a service"));
        }
        short("bytes in the name of a locality", summary.localities.keys())?;
        let counted = self.remembered.counts(&summary.name);
        let before = self.services.get(&summary.name).filter(|_| counted).map_or(0, bytes_of);
        // One that is told twice in a batch counts twice until the next: too much rather than too little.
        let bytes = self.bytes.saturating_sub(before) + bytes_of(summary);
        if bytes > MAX_IMPORTED_BYTES {
            return Err(ImportRefusal::TooMany("bytes of names"));
        }
        self.remembered.take_in(&summary.name)?;
        self.bytes = bytes;
        Ok(())
    }

    /// The gateways that may stand are let through; an empty list is told as such.
    fn gateways(&mut self, fact: PeerFact) -> PeerFact {
        let PeerFact::Gateways(mut gateways) = fact else { return fact };
        gateways.retain(|gateway| match self.gateway(gateway) {
            Ok(()) => true,
            Err(refusal) => {
                self.refusals.push(refusal);
                false
            }
        });
        if gateways.len() > MAX_GATEWAYS {
            gateways.truncate(MAX_GATEWAYS);
            self.refusals.push(ImportRefusal::TooMany("gateways"));
        }
        PeerFact::Gateways(gateways)
    }

    fn gateway(&self, gateway: &GatewaySummary) -> Result<(), ImportRefusal> {
        self.own(gateway.identity.trust_domain())?;
        if !gateway.identity.is_member(self.trust_domain, MemberRole::Gateway) {
            return Err(ImportRefusal::NotAGateway(gateway.identity.clone()));
        }
        short("bytes in the name of a locality", [&gateway.locality.region, &gateway.locality.zone])?;
        address(&gateway.tunnel)
    }

    fn bundle(&mut self, bundle: &hanse_identity::Bundle) -> Result<(), ImportRefusal> {
        self.own(&bundle.trust_domain)?;
        bundle.check().map_err(|e| ImportRefusal::Bundle(e.to_string()))?;
        if let Some(known) = &self.bundle {
            if bundle.sequence < known.sequence {
                let message = format!("goes back from sequence {} to {}", known.sequence, bundle.sequence);
                return Err(ImportRefusal::Bundle(message));
            }
            if bundle.sequence == known.sequence && bundle != known {
                let message = format!("has two contents with sequence {}", known.sequence);
                return Err(ImportRefusal::Bundle(message));
            }
        }
        self.crls.retain(|key, _| bundle.authorities.iter().any(|a| a.key_id == *key));
        self.bundle = Some(bundle.clone());
        Ok(())
    }

    /// Signed by an authority of the peer's own bundle, and not older than the one that is known.
    fn crl(&mut self, crl: &Crl) -> Result<(), ImportRefusal> {
        let refused = |why: String| ImportRefusal::Crl(why);
        let authorities = self.bundle.iter().flat_map(|bundle| &bundle.authorities);
        let authority = authorities.into_iter().find(|a| a.key_id == crl.authority);
        let authority = authority
            .ok_or_else(|| refused(format!("no authority of its bundle has key {}", crl.authority)))?;
        let others = self.crls.values().filter(|known| known.authority != crl.authority);
        if others.map(|known| known.der.len()).sum::<usize>() + crl.der.len() > MAX_IMPORTED_CRL_BYTES {
            return Err(ImportRefusal::TooMany("bytes of revocation lists"));
        }
        if let Some(known) = self.crls.get(&crl.authority) {
            if crl.number < known.number {
                return Err(refused(format!("goes back from number {} to {}", known.number, crl.number)));
            }
            if crl.number == known.number && crl != known {
                return Err(refused(format!("has two contents with number {}", known.number)));
            }
        }
        crl.check(authority).map_err(|e| refused(e.to_string()))?;
        self.crls.insert(crl.authority, crl.clone());
        Ok(())
    }
}

/// Of names, in one service.
fn bytes_of(summary: &ServiceSummary) -> usize {
    let identities = summary.identities.iter().map(|id| id.trust_domain().as_str().len() + id.path().len());
    identities.chain(summary.localities.keys().map(String::len)).sum()
}

impl Remembered<'_> {
    fn counts(&self, name: &ServiceName) -> bool {
        match self {
            Self::Known { known, .. } => known.contains_key(name),
            Self::Named(named) => named.contains(name),
        }
    }

    fn take_in(&mut self, name: &ServiceName) -> Result<(), ImportRefusal> {
        let count = match self {
            Self::Known { known, .. } if known.contains_key(name) => return Ok(()),
            Self::Known { known, added } => {
                added.insert(name.clone());
                known.len() + added.len()
            }
            Self::Named(named) => {
                named.insert(name.clone());
                named.len()
            }
        };
        if count <= MAX_IMPORTED_SERVICES {
            return Ok(());
        }
        match self {
            Self::Known { added: names, .. } | Self::Named(names) => names.remove(name),
        };
        Err(ImportRefusal::TooManyServices(MAX_IMPORTED_SERVICES))
    }
}

fn endpoints_fit(endpoints: &[String]) -> Result<(), ImportRefusal> {
    if endpoints.len() > MAX_ENDPOINTS {
        return Err(ImportRefusal::TooMany("endpoints"));
    }
    endpoints.iter().try_for_each(|endpoint| address(endpoint))
}

/// Whether a text from a peer is a `host:port` that can be dialled.
pub(crate) fn address(text: &str) -> Result<(), ImportRefusal> {
    let host = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    let good = text.len() <= MAX_ADDRESS_BYTES
        && text.rsplit_once(':').is_some_and(|(name, port)| {
            !name.is_empty() && name.bytes().all(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if good { Ok(()) } else { Err(ImportRefusal::Address(text.chars().take(80).collect())) }
}

fn short<'t>(what: &'static str, texts: impl IntoIterator<Item = &'t String>) -> Result<(), ImportRefusal> {
    let fits = texts.into_iter().all(|text| text.len() <= MAX_TEXT_BYTES);
    if fits { Ok(()) } else { Err(ImportRefusal::TooMany(what)) }
}

#[cfg(test)]
mod tests;
