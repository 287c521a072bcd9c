//! What is outside the mesh, as the request path asks it: which ExternalService a host name means, and where it may be.
//!
//! Pure: compiled once per View and worker. What DNS says comes from the proxy, and is held against `is_local` here: a name
//! whose owner has it point at the caller's own host, or at the metadata service of its cloud, leads nowhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use hanse_identity::ServiceName;

use super::document::edge::{
    BackendTlsPolicy, ExternalPort, ExternalProtocol, ExternalService, MeshConfig, OutboundMode,
};
use super::document::{PolicyDocument, PolicySpec};
use crate::addresses::is_virtual;
use crate::host::{Reach, ServiceHost, host_of};
use crate::view::View;

/// Everything outside that the documents of one View know.
#[derive(Debug, Default)]
pub struct Externals {
    by_host: HashMap<String, Arc<External>>,
    by_name: BTreeMap<ServiceName, Arc<External>>,
    /// Of services, here and at peers, and of documents.
    namespaces: HashSet<String>,
    /// What becomes of hosts that are not among them.
    pub config: MeshConfig,
}

/// One service outside, with the TLS that is spoken to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub name: ServiceName,
    pub spec: ExternalService,
    pub tls: Option<BackendTlsPolicy>,
}

impl Externals {
    pub fn build(view: &View) -> Self {
        let mut documents: Vec<&PolicyDocument> = view.policies.values().collect();
        // The older wins a host that two name, a service that two are for, and the configuration.
        documents.sort_by_key(|document| (document.created, document.kind(), &document.name));
        let mut all = Self { config: config(&documents), ..Self::default() };
        for document in &documents {
            let PolicySpec::ExternalService(spec) = &document.spec else { continue };
            let tls = documents.iter().find_map(|other| match &other.spec {
                PolicySpec::BackendTlsPolicy(policy) if is_for(policy, other, document) => {
                    Some(policy.clone())
                }
                _ => None,
            });
            let external = Arc::new(External { name: document.name.clone(), spec: spec.clone(), tls });
            for host in &spec.hosts {
                all.by_host.entry(host.to_ascii_lowercase()).or_insert_with(|| Arc::clone(&external));
            }
            all.by_name.insert(document.name.clone(), external);
        }
        let services = view.services.keys().chain(view.peers.values().flat_map(|peer| peer.services.keys()));
        let named = services.chain(documents.iter().map(|document| &document.name));
        all.namespaces = named.map(|name| name.namespace().to_owned()).collect();
        all
    }

    /// Whether anything of the mesh has a name in it.
    pub fn is_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn get(&self, name: &ServiceName) -> Option<&Arc<External>> {
        self.by_name.get(name)
    }

    /// The service that an authority names. A service of the mesh that has the same name goes first: see `ServiceHost`.
    pub fn find(&self, authority: &str) -> Option<&Arc<External>> {
        if self.is_empty() {
            return None;
        }
        let (host, _) = host_of(authority)?;
        self.by_host.get(host.as_ref())
    }
}

impl External {
    /// A host that no document names, where the configuration lets apps go anywhere.
    pub fn passthrough(authority: &str, protocol: ExternalProtocol, config: MeshConfig) -> Option<Self> {
        if config.outbound != OutboundMode::AllowAny {
            return None;
        }
        let (host, port) = host_of(authority)?;
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let port = ExternalPort { port: port.unwrap_or(80), target_port: None, protocol };
        let spec = ExternalService {
            hosts: vec![host.into_owned()],
            ports: vec![port],
            addresses: literal.into_iter().collect(),
            allow_local_addresses: config.allow_local_addresses,
            via: None,
        };
        Some(Self { name: passthrough_name(), spec, tls: None })
    }

    pub fn host(&self) -> ServiceHost {
        ServiceHost { service: self.name.clone(), reach: Reach::External }
    }

    /// The service of the mesh through whose proxies alone requests leave for it.
    pub fn via(&self) -> Option<ServiceName> {
        let via = self.spec.via.as_ref()?;
        let named = ServiceName::new(self.name.namespace(), via.name.as_str());
        Some(named.expect("labels make a service name"))
    }

    /// The name that DNS is asked for; `None` where the addresses are known.
    pub fn asks_dns(&self) -> Option<&str> {
        self.spec.addresses.is_empty().then(|| self.spec.hosts.first().map(String::as_str)).flatten()
    }

    /// Those of the addresses that it may be at.
    pub fn allowed(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let allowed = |address: &&IpAddr| self.spec.allow_local_addresses || !is_local(**address);
        addresses.iter().filter(allowed).copied().collect()
    }

    /// The port there for what a route has `chosen`, or else an authority asks for. Where neither names one that is 80, if
    /// there is that, else the first of the protocol.
    pub fn port(
        &self,
        chosen: Option<u16>,
        authority: Option<&str>,
        protocol: ExternalProtocol,
    ) -> Option<u16> {
        let named = || authority.and_then(host_of).filter(|(host, _)| self.answers_to(host));
        let mut ports = self.spec.ports.iter().filter(|port| port.protocol == protocol);
        let port = match chosen.or_else(|| named().and_then(|(_, port)| port)) {
            Some(wanted) => ports.find(|port| port.port == wanted),
            None => ports.clone().find(|port| port.port == 80).or_else(|| ports.next()),
        };
        port.map(|port| port.target_port.unwrap_or(port.port))
    }

    /// Whether it goes by that name.
    pub fn answers_to(&self, host: &str) -> bool {
        self.spec.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

/// By what name requests are told of that go to no documented service; Istio's word.
pub fn passthrough_name() -> ServiceName {
    ServiceName::new("outside", "passthrough").expect("two DNS labels are a service's name")
}

fn config(documents: &[&PolicyDocument]) -> MeshConfig {
    let oldest = documents.iter().find_map(|document| match &document.spec {
        PolicySpec::MeshConfig(config) => Some(*config),
        _ => None,
    });
    oldest.unwrap_or_default()
}

fn is_for(policy: &BackendTlsPolicy, document: &PolicyDocument, external: &PolicyDocument) -> bool {
    document.name.namespace() == external.name.namespace()
        && policy.target_refs.iter().any(|target| target.name.as_str() == external.name.name())
}

/// Whether an address means the host that dials it, or a place that only this host can see: loopback, link-local (cloud
/// metadata), unspecified, multicast, broadcast, and the same written as IPv6.
pub fn is_local(address: IpAddr) -> bool {
    /// Where AWS has its metadata in IPv6.
    const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    /// Where GCP has it.
    const GCP_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    // Transparent mode routes these to this host.
    if is_virtual(address) {
        return true;
    }
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                // "This network" (RFC 791): connects to the host itself.
                || v4.octets()[0] == 0
                // Metadata of Alibaba Cloud and of Azure.
                || matches!(v4.octets(), [100, 100, 100, 200] | [168, 63, 129, 16])
        }
        IpAddr::V6(v6) => {
            let within = v6.to_ipv4_mapped().or_else(|| embedded(v6));
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.segments()[0] & 0xffc0 == 0xfe80
                || v6 == EC2_METADATA
                || v6 == GCP_METADATA
                || within.is_some_and(|v4| is_local(IpAddr::V4(v4)))
        }
    }
}

/// The IPv4 address that a translator (64:ff9b::/96, RFC 6052) or 6to4 (2002::/16) makes of it.
fn embedded(address: Ipv6Addr) -> Option<std::net::Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| std::net::Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b, [c, d, e, f]) {
        (0x64, 0xff9b, [0, 0, 0, 0]) => Some(v4(g, h)),
        (0x2002, ..) => Some(v4(b, c)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
