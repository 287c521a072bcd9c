//! Server names of the mesh's own TLS: written and read in this one file, ≤ 253 bytes by construction, reversible.
//!
//! A gateway in passthrough mode routes by these names without decrypting anything:
//! `<gateway>.gateway.<cluster>.hanse` (towards a peer's tunnel listener) and
//! `<service>.<namespace>.service.<cluster>.hanse` (a workload's inbound, end to end).

use hanse_identity::{ClusterName, NodeName, ServiceName};

/// Where a TLS connection wants to go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sni {
    Gateway { gateway: NodeName, cluster: ClusterName },
    Service { service: ServiceName, cluster: ClusterName },
}

/// Longest DNS name in text form, without the final dot (RFC 1035 §2.3.4).
const MAX_NAME_BYTES: usize = 253;

impl Sni {
    /// At most 4 × 63 + 20 bytes would exceed a DNS name; names too long are refused here, not truncated.
    pub fn to_name(&self) -> Option<String> {
        let name = match self {
            Self::Gateway { gateway, cluster } => format!("{gateway}.gateway.{cluster}.hanse"),
            Self::Service { service, cluster } => {
                format!("{}.{}.service.{cluster}.hanse", service.name(), service.namespace())
            }
        };
        (name.len() <= MAX_NAME_BYTES).then_some(name)
    }

    /// Reads a server name; `None` for anything that `to_name` would not have written.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() > MAX_NAME_BYTES {
            return None;
        }
        // The number of labels tells the two forms apart, whatever the labels say.
        let mut labels = name.strip_suffix(".hanse")?.split('.');
        let parts = (labels.next(), labels.next(), labels.next(), labels.next(), labels.next());
        match parts {
            (Some(gateway), Some("gateway"), Some(cluster), None, None) => {
                Some(Self::Gateway { gateway: gateway.parse().ok()?, cluster: cluster.parse().ok()? })
            }
            (Some(service), Some(namespace), Some("service"), Some(cluster), None) => {
                let service = ServiceName::new(namespace, service).ok()?;
                Some(Self::Service { service, cluster: cluster.parse().ok()? })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
