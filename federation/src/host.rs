//! Host names of services: what the Host header (or `:authority`, or a tunnel's CONNECT) says, read in one place.
//!
//! `reviews.shop.svc.clusterset.local` (any exporting cluster, local first), `reviews.shop.svc.cluster.local`
//! (this cluster; may fail over by policy), and the short form `reviews.shop` (as clusterset). Everything else,
//! addresses and userinfo included, is not ours; the text comes from strangers, so its length is bounded first.

use std::borrow::Cow;

use hanse_identity::ServiceName;

/// How far a name reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    ClusterSet,
    Cluster,
    /// Out of the mesh: an ExternalService.
    External,
    /// No name of a host: a Gateway, as the parent of routes.
    Gateway,
}

/// A service as a host name means it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceHost {
    pub service: ServiceName,
    pub reach: Reach,
}

/// Longest authority that is looked at: a DNS name (253), its trailing dot, and `:65535`.
const MAX_AUTHORITY_BYTES: usize = 253 + 1 + 6;

impl Reach {
    /// The label that tells the two apart: `….svc.<zone>.local`.
    const fn zone(self) -> &'static str {
        match self {
            Self::ClusterSet => "clusterset",
            Self::Cluster => "cluster",
            Self::External => "external",
            Self::Gateway => "gateway",
        }
    }
}

impl ServiceHost {
    /// Reads a Host header or authority: port dropped, case folded, one trailing dot allowed. `None`: not ours.
    pub fn parse(authority: &str) -> Option<Self> {
        if authority.len() > MAX_AUTHORITY_BYTES {
            return None;
        }
        let host = without_port(authority)?;
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        let reach = match (labels.next(), labels.next(), labels.next(), labels.next()) {
            (None, ..) if !is_number(namespace) => Reach::ClusterSet,
            (Some("svc"), Some("clusterset"), Some("local"), None) => Reach::ClusterSet,
            (Some("svc"), Some("cluster"), Some("local"), None) => Reach::Cluster,
            _ => return None,
        };
        // The names' own rules refuse what is left: empty labels, `@`, brackets, anything but a DNS label.
        ServiceName::new(namespace, name).ok().map(|service| Self { service, reach })
    }

    /// `reviews.shop.svc.clusterset.local` or `….svc.cluster.local`.
    pub fn to_host(&self) -> String {
        format!("{}.{}.svc.{}.local", self.service.name(), self.service.namespace(), self.reach.zone())
    }
}

/// Any host that an authority names, in lower case and without a trailing dot, and its port. `None`: neither a DNS name nor
/// an IP address (IPv6 in brackets).
pub fn host_of(authority: &str) -> Option<(Cow<'_, str>, Option<u16>)> {
    if authority.len() > MAX_AUTHORITY_BYTES {
        return None;
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((_, inside)) if inside.ends_with(']') => (authority, None),
        Some((host, port)) => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|port: &u16| digits && *port > 0)?))
        }
        None => (authority, None),
    };
    if let Some(literal) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return literal.parse::<std::net::Ipv6Addr>().is_ok().then_some((Cow::Borrowed(host), port));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = |label: &str| {
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inside)
    };
    let lower = match host.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    };
    (host.len() <= 253 && host.split('.').all(fits)).then_some((lower, port))
}

/// The part before `:port`; `None` if what follows the colon is no port.
fn without_port(authority: &str) -> Option<&str> {
    let Some((host, port)) = authority.split_once(':') else { return Some(authority) };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    (digits && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(host)
}

/// A name whose last label is a number is an IPv4 address to everyone else (`10.1`, WHATWG URL §3.5).
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests;
