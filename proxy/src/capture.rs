//! Captured connections, the pure part: where one was going before the kernel turned it to us, and what is spoken on it.

use std::net::SocketAddr;
use std::sync::Arc;

use hanse_federation::addresses::{Addresses, is_virtual};
use hanse_federation::host::ServiceHost;

/// Where a captured connection was going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A port of a service, by the virtual address that our DNS gave for it.
    Service(Arc<ServiceHost>, u16),
    /// Out of the mesh.
    Elsewhere(SocketAddr),
    /// To us: somebody dialled this very listener, and following that would never end.
    Ourselves,
    /// A virtual address that nobody has, or not any more.
    Nobody,
}

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
    /// Anything else: it is carried and not read.
    Tcp,
    /// Too few to say.
    More,
}

/// Ports whose clients wait until the server speaks, so that there is nothing to tell by: FTP, SSH, SMTP, POP3, IMAP,
/// submission, MySQL, Galera.
pub const OPAQUE_PORTS: [u16; 8] = [21, 22, 25, 110, 143, 587, 3306, 4444];
/// Bytes that are looked at.
pub const SNIFFED_BYTES: usize = 32;
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// `original`: by SO_ORIGINAL_DST; `local`: the listener's own.
pub fn destination(addresses: Option<&Addresses>, original: SocketAddr, local: SocketAddr) -> Destination {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let original = canonical(original);
    if original == canonical(local) {
        return Destination::Ourselves;
    }
    if !is_virtual(original.ip()) {
        return Destination::Elsewhere(original);
    }
    match addresses.and_then(|addresses| addresses.at(original.ip())) {
        Some(host) => Destination::Service(Arc::clone(host), original.port()),
        None => Destination::Nobody,
    }
}

/// HTTP/2 by its preface, HTTP/1 by a method and what a target begins with: `GET key` is no request, but redis or memcached.
pub fn spoken(first: &[u8]) -> Spoken {
    let preface = &PREFACE[..first.len().min(PREFACE.len())];
    if first.starts_with(preface) {
        return if preface.len() == PREFACE.len() { Spoken::Http2 } else { Spoken::More };
    }
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    let method = first.iter().take_while(|byte| is_method(byte)).count();
    match (first.get(method), first.get(method + 1)) {
        (None, _) if method < SNIFFED_BYTES => Spoken::More,
        (Some(b' '), None) if method > 0 && method + 1 < SNIFFED_BYTES => Spoken::More,
        (Some(b' '), Some(b'/' | b'*' | b'h' | b'H')) if method > 0 => Spoken::Http1,
        _ => Spoken::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hanse_federation::catalog::Service;
    use hanse_federation::{Change, View};

    use super::*;

    #[test]
    fn a_virtual_address_leads_to_its_service_and_none_of_ours_to_ourselves() {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let name: hanse_identity::ServiceName = "shop/redis".parse().unwrap();
        let service = Service { name, identities: BTreeSet::default(), export: None };
        view.apply(&Change::ServicePut(service));
        let addresses = Addresses::default().next(&view).unwrap();
        let redis = ServiceHost::parse("redis.shop").unwrap();
        let pair = addresses.of(&redis).unwrap();
        let local: SocketAddr = "127.0.0.1:15001".parse().unwrap();
        let to = |original: SocketAddr| destination(Some(&addresses), original, local);
        let service = Destination::Service(Arc::new(redis), 6379);
        assert_eq!(to((pair.v4, 6379).into()), service);
        assert_eq!(to((pair.v6, 6379).into()), service);
        assert_eq!(to((pair.v4.to_ipv6_mapped(), 6379).into()), service);
        assert_eq!(destination(None, (pair.v4, 6379).into(), local), Destination::Nobody);
        assert_eq!(to("240.240.0.0:80".parse().unwrap()), Destination::Nobody);
        let elsewhere: SocketAddr = "192.0.2.1:443".parse().unwrap();
        assert_eq!(to(elsewhere), Destination::Elsewhere(elsewhere));
        assert_eq!(to("[::ffff:192.0.2.1]:443".parse().unwrap()), Destination::Elsewhere(elsewhere));
        assert_eq!(to(local), Destination::Ourselves);
        assert_eq!(to("[::ffff:127.0.0.1]:15001".parse().unwrap()), Destination::Ourselves);
    }

    #[test]
    fn http_is_told_from_what_only_looks_like_it() {
        for (first, expected) in [
            ("GET / HTTP/1.1\r\n", Spoken::Http1),
            ("OPTIONS * HTTP/1.1\r\n", Spoken::Http1),
            ("POST http://reviews.shop/ HTTP/1.1\r\n", Spoken::Http1),
            ("VERSION-CONTROL /", Spoken::Http1),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Spoken::Http2),
            ("PRI * HTTP/1.1", Spoken::Http1),
            ("P", Spoken::More),
            ("PRI", Spoken::More),
            ("GET", Spoken::More),
            ("GET ", Spoken::More),
            ("", Spoken::More),
            ("GET key\r\n", Spoken::Tcp),
            ("PING\r\n", Spoken::Tcp),
            ("*1\r\n$4\r\nPING\r\n", Spoken::Tcp),
            ("\u{16}\u{3}\u{1}", Spoken::Tcp),
            ("\0\0\0\u{8}", Spoken::Tcp),
            (" /", Spoken::Tcp),
            ("CONNECT {\"verbose\":false}", Spoken::Tcp),
            ("THISISNOMETHODBUTAVERYLONGWORDINDEED", Spoken::Tcp),
        ] {
            let first = &first.as_bytes()[..first.len().min(SNIFFED_BYTES)];
            assert_eq!(spoken(first), expected, "{}", String::from_utf8_lossy(first));
        }
    }
}
