//! Commands about the catalog: what proxies and gateways announce, and what is exported.

use std::collections::{BTreeMap, BTreeSet};

use hanse_federation::Change;
use hanse_federation::catalog::{Announcement, Endpoint, Export, Gateway, Serves, Service, Session};
use hanse_identity::name::MemberRole;
use hanse_identity::{NodeName, ServiceName, SpiffeId};

use super::{
    Decision, MAX_ENDPOINTS, MAX_GATEWAYS, MAX_SERVICES_PER_ENDPOINT, MAX_TEXT_BYTES, State, already,
    bounded, done, not_found,
};
use crate::command::Refusal;

impl State {
    pub(super) fn announce(&self, said: &Announcement, identity: &SpiffeId, node: &NodeName) -> Decision {
        let here = &self.view.trust_domain;
        if identity.trust_domain() != here {
            return Err(Refusal::NotAllowed(format!("{identity} is not of trust domain {here}")));
        }
        if let Some(revocation) = self.view.revocations.of_identity(identity) {
            return Err(Refusal::NotAllowed(format!("{identity} is revoked by {}", revocation.id)));
        }
        if said.locality.region.len().max(said.locality.zone.len()) > MAX_TEXT_BYTES {
            return Err(Refusal::Invalid(format!("a region or zone is longer than {MAX_TEXT_BYTES} bytes")));
        }
        let session = Session { incarnation: said.incarnation, sequence: said.sequence, node: node.clone() };
        if session.is_of_registration() {
            return Err(Refusal::Invalid(format!("incarnation {} is no process's", session.incarnation)));
        }
        match &said.serves {
            Serves::Services { services, inbound, weight } if !services.is_empty() => {
                if self.is_stale_endpoint(&said.name, identity, &session)? {
                    return already();
                }
                self.may_serve(identity, services)?;
                if !(1..=1000).contains(weight) {
                    return Err(Refusal::Invalid(format!("weight {weight} is not between 1 and 1000")));
                }
                self.put_endpoint(Endpoint {
                    id: said.name.clone(),
                    services: services.clone(),
                    identity: identity.clone(),
                    address: *inbound,
                    locality: said.locality.clone(),
                    weight: *weight,
                    ready: said.ready,
                    session,
                })
            }
            Serves::Services { .. } | Serves::Nothing => {
                if self.is_stale_endpoint(&said.name, identity, &session)? {
                    return already();
                }
                let before = self.view.endpoints.get(&said.name);
                done(before.map(|e| self.endpoint_gone(e)).unwrap_or_default())
            }
            Serves::Gateway { passthrough, tunnel } => {
                let wanted = SpiffeId::member(here, MemberRole::Gateway, &said.name);
                if *identity != wanted {
                    return Err(Refusal::NotAllowed(format!(
                        "gateway {} must be {wanted}, not {identity}",
                        said.name
                    )));
                }
                check_host_port("the tunnel address", tunnel)?;
                let before = self.view.gateways.get(&said.name);
                if before.is_some_and(|g| is_stale(&g.session, &session)) {
                    return already();
                }
                if before.is_none() {
                    bounded("gateways", self.view.gateways.len(), MAX_GATEWAYS)?;
                }
                done(vec![Change::GatewayPut(Gateway {
                    name: said.name.clone(),
                    identity: identity.clone(),
                    locality: said.locality.clone(),
                    passthrough: *passthrough,
                    tunnel: tunnel.clone(),
                    ready: said.ready,
                    session,
                })])
            }
        }
    }

    /// Whether a newer announcement is known. A name that is taken by another identity is refused.
    fn is_stale_endpoint(
        &self,
        name: &NodeName,
        identity: &SpiffeId,
        session: &Session,
    ) -> Result<bool, Refusal> {
        let Some(before) = self.view.endpoints.get(name) else { return Ok(false) };
        if before.identity != *identity {
            let owner = &before.identity;
            return Err(Refusal::NotAllowed(format!(
                "the name {name} is taken by {owner}, {identity} may not have it"
            )));
        }
        if before.session.is_of_registration() {
            return Err(Refusal::NotAllowed(format!(
                "the name {name} is of {identity} as it is registered, with an address"
            )));
        }
        Ok(is_stale(&before.session, session))
    }

    fn may_serve(&self, identity: &SpiffeId, services: &BTreeSet<ServiceName>) -> Result<(), Refusal> {
        if services.len() > MAX_SERVICES_PER_ENDPOINT {
            return Err(Refusal::Limit(format!("{MAX_SERVICES_PER_ENDPOINT} services per proxy")));
        }
        let allowed = self.allowed_services(identity);
        match services.iter().find(|s| !allowed.contains(*s)) {
            None => Ok(()),
            Some(service) => {
                Err(Refusal::NotAllowed(format!("no registration lets {identity} serve {service}")))
            }
        }
    }

    fn allowed_services(&self, identity: &SpiffeId) -> BTreeSet<&ServiceName> {
        self.registrations_of(identity).flat_map(|r| &r.services).collect()
    }

    fn put_endpoint(&self, endpoint: Endpoint) -> Decision {
        let before = self.view.endpoints.get(&endpoint.id);
        if before.is_none() {
            bounded("endpoints", self.view.endpoints.len(), MAX_ENDPOINTS)?;
        }
        let id = endpoint.id.clone();
        let left: Vec<ServiceName> =
            before.map(|b| b.services.difference(&endpoint.services).cloned().collect()).unwrap_or_default();
        let mut changes = vec![Change::EndpointPut(endpoint)];
        for service in left {
            changes.extend(self.service_gone_without(&service, &id));
        }
        done(changes)
    }

    /// An endpoint goes, and with it the services that nothing else keeps.
    pub(super) fn endpoint_gone(&self, endpoint: &Endpoint) -> Vec<Change> {
        let mut changes = vec![Change::EndpointGone(endpoint.id.clone())];
        changes.extend(endpoint.services.iter().filter_map(|s| self.service_gone_without(s, &endpoint.id)));
        changes
    }

    /// A Service entry stays as long as it has a registration, an export or an endpoint. The first two are looked
    /// at first: they say yes for nearly all, and asking the endpoints means walking over them.
    fn service_gone_without(&self, service: &ServiceName, endpoint: &NodeName) -> Option<Change> {
        let entry = self.view.services.get(service)?;
        let kept = !entry.identities.is_empty()
            || entry.export.is_some()
            || self.view.endpoints_of(service).any(|e| e.id != *endpoint);
        (!kept).then(|| Change::ServiceGone(service.clone()))
    }

    /// Void if another session has announced itself since.
    pub(super) fn withdraw(&self, name: &NodeName, session: &Session) -> Decision {
        let mut changes = Vec::new();
        if let Some(endpoint) = self.view.endpoints.get(name).filter(|e| e.session == *session) {
            changes.extend(self.endpoint_gone(endpoint));
        }
        if self.view.gateways.get(name).is_some_and(|g| g.session == *session) {
            changes.push(Change::GatewayGone(name.clone()));
        }
        done(changes)
    }

    pub(super) fn export(&self, service: &ServiceName, to: &Export) -> Decision {
        let entry = self.service(service)?;
        if let Export::Only(clusters) = to {
            if clusters.is_empty() {
                return Err(Refusal::Invalid("an export names at least one cluster, or everyone".into()));
            }
            if clusters.contains(&self.view.cluster) {
                return Err(Refusal::Invalid(format!("{} is this cluster itself", self.view.cluster)));
            }
        }
        if entry.export.as_ref() == Some(to) {
            return already();
        }
        done(vec![Change::ServicePut(Service { export: Some(to.clone()), ..entry.clone() })])
    }

    pub(super) fn unexport(&self, service: &ServiceName) -> Decision {
        let entry = self.service(service)?;
        if entry.export.is_none() {
            return already();
        }
        let kept = !entry.identities.is_empty() || self.view.endpoints_of(service).next().is_some();
        done(vec![match kept {
            true => Change::ServicePut(Service { export: None, ..entry.clone() }),
            false => Change::ServiceGone(service.clone()),
        }])
    }

    fn service(&self, service: &ServiceName) -> Result<&Service, Refusal> {
        let services = &self.view.services;
        services.get(service).ok_or_else(|| not_found("service", service, services.keys()))
    }

    /// What follows when a registration stops naming `removed`, unless another one of the identity still does: the
    /// services lose the identity, and its endpoints lose the services.
    pub(super) fn no_longer_allowed(&self, id: &SpiffeId, removed: &BTreeSet<ServiceName>) -> Vec<Change> {
        let allowed = self.allowed_services(id);
        let lost: BTreeSet<&ServiceName> = removed.iter().filter(|s| !allowed.contains(s)).collect();
        if lost.is_empty() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let mut endpoints_left: BTreeMap<&ServiceName, usize> = BTreeMap::new();
        for endpoint in self.view.endpoints.values() {
            let keeps = |s: &&ServiceName| endpoint.identity != *id || !lost.contains(s);
            let kept: BTreeSet<ServiceName> = endpoint.services.iter().filter(keeps).cloned().collect();
            for service in endpoint.services.iter().filter(|s| lost.contains(s) && kept.contains(*s)) {
                *endpoints_left.entry(service).or_default() += 1;
            }
            if kept.is_empty() {
                changes.push(Change::EndpointGone(endpoint.id.clone()));
            } else if kept.len() < endpoint.services.len() {
                changes.push(Change::EndpointPut(Endpoint { services: kept, ..endpoint.clone() }));
            }
        }
        for service in lost {
            let Some(entry) = self.view.services.get(service) else { continue };
            let mut entry = entry.clone();
            entry.identities.remove(id);
            let kept = !entry.identities.is_empty()
                || entry.export.is_some()
                || endpoints_left.contains_key(service);
            changes.push(match kept {
                true => Change::ServicePut(entry),
                false => Change::ServiceGone(service.clone()),
            });
        }
        changes
    }

    /// Endpoints and gateways of an identity, gone: nobody should be sent there any more.
    pub(super) fn silenced(&self, id: &SpiffeId) -> Vec<Change> {
        let endpoints = self.view.endpoints.values().filter(|e| e.identity == *id);
        let gateways = self.view.gateways.values().filter(|g| g.identity == *id);
        let mut changes: Vec<Change> = endpoints.map(|e| Change::EndpointGone(e.id.clone())).collect();
        changes.extend(gateways.map(|g| Change::GatewayGone(g.name.clone())));
        changes
    }
}

pub(super) fn empty_service(name: &ServiceName) -> Service {
    Service { name: name.clone(), identities: BTreeSet::new(), export: None }
}

/// Of an earlier life, or not newer in the same one. The same announcement over another node's stream is newer: that
/// stream is the one that lives.
fn is_stale(known: &Session, said: &Session) -> bool {
    let (known_at, said_at) = ((known.incarnation, known.sequence), (said.incarnation, said.sequence));
    said_at < known_at || (said_at == known_at && said.node == known.node)
}

pub(super) fn check_host_port(what: &str, address: &str) -> Result<(), Refusal> {
    let fits = address.len() <= 255
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0));
    if fits { Ok(()) } else { Err(Refusal::Invalid(format!("{what} {address:?} is not HOST:PORT"))) }
}
