//! Virtual addresses: one IPv4 and one IPv6 address for each host name of the mesh, which no host has. A connection of a
//! program that knows nothing of a mesh tells by its destination which name the program had asked the DNS for.
//!
//! An address is a hash of the name, so that every worker and the next life of a proxy come to the same. Where two names
//! come to the same address the one that has it keeps it, and the other takes the next of its own; in a new table names of
//! this cluster come first, then all in the order of the alphabet.

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
        let known = names(view);
        if known == self.known && !self.known.is_empty() {
            return None;
        }
        let gone = self.names.len() - self.known.len();
        let mut next = if gone > MAX_GONE { self.of_known() } else { self.clone() };
        let (own, others): (Vec<_>, Vec<_>) =
            known.iter().partition(|host| view.services.contains_key(&host.service));
        for host in own.into_iter().chain(others) {
            if next.names.len() < MAX_NAMES && !next.names.contains_key(host) {
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

    /// Without those that are gone.
    fn of_known(&self) -> Self {
        let mut kept = Self { known: self.known.clone(), ..Self::default() };
        for (host, pair) in self.names.iter().filter(|(host, _)| self.known.contains(host.as_ref())) {
            kept.insert(Arc::clone(host), *pair);
        }
        kept
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

/// Names that a program may ask for: `clusterset.local` of whatever any cluster serves, `cluster.local` of what this one
/// does, and what routes are for although nothing of that name is served.
fn names(view: &View) -> BTreeSet<ServiceHost> {
    let host = |service: &ServiceName, reach| ServiceHost { service: service.clone(), reach };
    let own = view.services.keys();
    let peers = view.peers.values().flat_map(|peer| peer.services.keys());
    let everywhere = own.clone().chain(peers).map(|service| host(service, Reach::ClusterSet));
    let here = own.map(|service| host(service, Reach::Cluster));
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
    everywhere.chain(here).chain(routed).collect()
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
