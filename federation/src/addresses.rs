//! Virtual addresses: one IPv4 and one IPv6 address for each host name of the mesh, which no host has. A connection of a
//! program that knows nothing of a mesh tells by its destination which name the program had asked the DNS for.
//!
//! An address is a hash of the name, so that every worker and the next life of a proxy come to the same. Where two names
//! come to the same address the one that has it keeps it, and the other takes the next of its own; in a new table names of
//! this cluster come first, then all in the order of the alphabet. A full table has room for names of this cluster: those
//! that are gone go, and then peers' names, of which there may be any number.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hanse_identity::ServiceName;

use crate::View;
use crate::choose::stable_hash;
use crate::host::{Reach, ServiceHost};
use crate::policy::document::PolicySpec;
use crate::policy::refers_to;

/// `240.240.0.0/12`, of the block that RFC 1112 reserves and nobody routes.
pub const V4_NETWORK: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 0);
pub const V4_PREFIX: u8 = 12;
/// `fd68:616e:7365::/48`: unique local addresses (RFC 4193); "hanse" where the random number goes, the same everywhere.
pub const V6_NETWORK: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x616e, 0x7365, 0, 0, 0, 0, 0);
pub const V6_PREFIX: u8 = 48;
/// Names that have addresses; further ones have none. An eighth of the IPv4 range, so that a free one is found at once.
pub const MAX_NAMES: usize = 1 << 17;
/// Names that are gone and keep their addresses, so that nobody who still has one in a cache reaches another service.
const MAX_GONE: usize = 4096;

/// Both addresses of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// Who has which address.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    names: HashMap<Arc<ServiceHost>, Pair>,
    v4: HashMap<Ipv4Addr, Arc<ServiceHost>>,
    v6: HashMap<Ipv6Addr, Arc<ServiceHost>>,
    /// Those that exist; the others are gone.
    known: BTreeSet<ServiceHost>,
}

impl Addresses {
    /// The table for this View, which keeps what `self` has given. `None`: it would be the same.
    pub fn next(&self, view: &View) -> Option<Self> {
        self.within(view, MAX_NAMES)
    }

    fn within(&self, view: &View, most: usize) -> Option<Self> {
        let own = own_names(view);
        let peers = view.peers.values().flat_map(|peer| peer.services.keys());
        let others: BTreeSet<_> = peers
            .map(|service| host(service, Reach::ClusterSet))
            .filter(|host| !own.contains(host))
            .collect();
        if own.len() + others.len() == self.known.len()
            && !self.known.is_empty()
            && own.iter().chain(&others).all(|host| self.known.contains(host))
        {
            return None;
        }
        let gone = self.names.keys().filter(|host| !self.known.contains(host.as_ref())).count();
        let mut next = if gone > MAX_GONE { self.only(&self.known) } else { self.clone() };
        let known: BTreeSet<_> = own.iter().chain(&others).cloned().collect();
        let new = own.iter().filter(|host| !next.names.contains_key(*host)).count();
        if next.names.len() + new > most {
            next = next.only(&known);
            let too_many = (next.names.len() + new).saturating_sub(most);
            let held: Vec<_> = others.iter().rev().filter(|host| next.names.contains_key(*host)).collect();
            held.into_iter().take(too_many).for_each(|host| next.take(host));
        }
        for host in own.iter().chain(&others) {
            if next.names.len() < most && !next.names.contains_key(host) {
                next.give(Arc::new(host.clone()));
            }
        }
        next.known = known;
        Some(next)
    }

    /// The addresses of a name that exists.
    pub fn of(&self, host: &ServiceHost) -> Option<Pair> {
        self.known.contains(host).then(|| self.names.get(host).copied()).flatten()
    }

    /// Who has an address, if that name exists.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<ServiceHost>> {
        let host = match address {
            IpAddr::V4(v4) => self.v4.get(&v4),
            IpAddr::V6(v6) => self.v6.get(&v6),
        };
        host.filter(|host| self.known.contains(host.as_ref()))
    }

    /// Every name that exists, with its addresses.
    pub fn all(&self) -> impl Iterator<Item = (&ServiceHost, Pair)> {
        self.known.iter().filter_map(|host| Some((host, *self.names.get(host)?)))
    }

    /// Whether any name of a service of that namespace exists.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.known.iter().any(|host| host.service.namespace() == namespace)
    }

    /// Of all names these.
    fn only(&self, known: &BTreeSet<ServiceHost>) -> Self {
        let mut kept = Self::default();
        for (host, pair) in self.names.iter().filter(|(host, _)| known.contains(host.as_ref())) {
            kept.insert(Arc::clone(host), *pair);
        }
        kept
    }

    fn take(&mut self, host: &ServiceHost) {
        if let Some(pair) = self.names.remove(host) {
            self.v4.remove(&pair.v4);
            self.v6.remove(&pair.v6);
        }
    }

    fn give(&mut self, host: Arc<ServiceHost>) {
        let name = host.to_host();
        let v4 = (0..).map(|attempt| v4_of(&name, attempt)).find(|v4| !self.v4.contains_key(v4));
        let v6 = (0..).map(|attempt| v6_of(&name, attempt)).find(|v6| !self.v6.contains_key(v6));
        let (Some(v4), Some(v6)) = (v4, v6) else { return };
        self.insert(host, Pair { v4, v6 });
    }

    fn insert(&mut self, host: Arc<ServiceHost>, pair: Pair) {
        self.v4.insert(pair.v4, Arc::clone(&host));
        self.v6.insert(pair.v6, Arc::clone(&host));
        self.names.insert(host, pair);
    }
}

/// Whether an address is of the ranges that virtual addresses are from; an IPv4 address in IPv6 clothes too.
pub fn is_virtual(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits() >> (32 - V4_PREFIX) == V4_NETWORK.to_bits() >> (32 - V4_PREFIX),
        IpAddr::V6(v6) => v6.to_bits() >> (128 - V6_PREFIX) == V6_NETWORK.to_bits() >> (128 - V6_PREFIX),
    }
}

fn host(service: &ServiceName, reach: Reach) -> ServiceHost {
    ServiceHost { service: service.clone(), reach }
}

/// Names that a program may ask for by the word of this cluster alone: `clusterset.local` and `cluster.local` of what it
/// serves, and what its routes are for although nothing of that name is served. Beside them there is `clusterset.local` of
/// what peers serve.
fn own_names(view: &View) -> BTreeSet<ServiceHost> {
    let served = view.services.keys();
    let served =
        served.flat_map(|service| [Reach::ClusterSet, Reach::Cluster].map(|reach| host(service, reach)));
    let routed = view.policies.values().flat_map(|document| {
        let parents = match &document.spec {
            PolicySpec::HttpRoute(route) => route.parent_refs.as_slice(),
            PolicySpec::GrpcRoute(route) => &route.parent_refs,
            PolicySpec::TcpRoute(route) => &route.parent_refs,
            PolicySpec::TlsRoute(route) => &route.parent_refs,
            _ => &[],
        };
        let namespace = document.name.namespace();
        parents.iter().flat_map(move |parent| {
            let named = [Reach::ClusterSet, Reach::Cluster].map(|r| host(&parent.service(namespace), r));
            named.into_iter().filter(move |host| refers_to(parent, namespace, host))
        })
    });
    served.chain(routed).collect()
}

/// The first bits of a hash, without the number of the network itself.
fn v4_of(name: &str, attempt: u32) -> Ipv4Addr {
    let bits = 32 - u32::from(V4_PREFIX);
    let offset = hash(name, "v4", attempt) >> (64 - bits);
    let offset = u32::try_from(offset).expect("fewer than 32 bits are left").max(1);
    Ipv4Addr::from_bits(V4_NETWORK.to_bits() | offset)
}

fn v6_of(name: &str, attempt: u32) -> Ipv6Addr {
    let offset = u128::from(hash(name, "v6", attempt)).max(1);
    Ipv6Addr::from_bits(V6_NETWORK.to_bits() | offset)
}

fn hash(name: &str, family: &str, attempt: u32) -> u64 {
    stable_hash(format!("{family}/{attempt}/{name}").as_bytes())
}

#[cfg(test)]
mod tests;
