//! Headers: which are the mesh's own, which end at this hop, and how the caller is named to the app.

use std::net::IpAddr;

use hanse_federation::host::host_of;
pub use hanse_federation::reserved::is_reserved;
use hanse_identity::SpiffeId;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// On every response that the mesh made itself: `mesh`.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("x-hanse-answered-by");
pub const ANSWERED_BY_MESH: HeaderValue = HeaderValue::from_static("mesh");
/// Why it did.
pub const REASON: HeaderName = HeaderName::from_static("x-hanse-reason");
/// The cluster that served the request; towards the app that called.
pub const CLUSTER: HeaderName = HeaderName::from_static("x-hanse-cluster");
/// The tier of the ladder that it was in.
pub const TIER: HeaderName = HeaderName::from_static("x-hanse-tier");
/// Which service outside a request is for; towards the egress gateway that is to send it there.
pub const LEAVES: HeaderName = HeaderName::from_static("x-hanse-leaves");
/// Who called; towards the app that serves (Envoy's header and syntax).
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes the mesh's own headers, as they came from outside.
pub fn strip_reserved(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_reserved(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Removes a header in every spelling that some server folds into the same name.
pub fn remove_as_read(headers: &mut HeaderMap, as_read: &str) {
    let is_it = |name: &&HeaderName| {
        let letters = name.as_str().bytes().map(|b| if b.is_ascii_alphanumeric() { b } else { b'-' });
        letters.eq(as_read.bytes())
    };
    while let Some(name) = headers.keys().find(is_it).cloned() {
        headers.remove(name);
    }
}

/// What a client outside says of where it came from is its own invention: written anew, from what we have seen.
pub fn forwarded_for(headers: &mut HeaderMap, from: IpAddr, tls: bool) {
    let says = |name: &HeaderName| {
        // In every spelling that some server folds into the same name.
        let name = name.as_str().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        name.starts_with("x-forwarded-")
            || name.starts_with("x-envoy-")
            || matches!(name.as_str(), "forwarded" | "x-real-ip")
    };
    while let Some(name) = headers.keys().find(|name| says(name)).cloned() {
        headers.remove(name);
    }
    tell_client(headers, from, tls);
}

/// Where a client outside came from, as we have seen it.
pub fn tell_client(headers: &mut HeaderMap, from: IpAddr, tls: bool) {
    let address = HeaderValue::from_str(&from.to_string()).expect("an IP address is visible ASCII");
    headers.insert(FORWARDED_FOR, address);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if tls { "https" } else { "http" }));
}

/// Removes what ends at this hop (RFC 9110 §7.6.1), `Connection`'s nominees included.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of them: one look at each name costs less than seven at the table.
    if !headers.keys().any(may_end_here) {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    if headers.get_all(header::TE).iter().any(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// Whether it is one of those that `strip_hop_by_hop` knows by name.
fn may_end_here(name: &HeaderName) -> bool {
    match name.as_str().len() {
        2 => *name == header::TE,
        7 => *name == header::UPGRADE,
        10 => *name == header::CONNECTION || *name == KEEP_ALIVE,
        16 => *name == PROXY_CONNECTION,
        17 => *name == header::TRANSFER_ENCODING,
        _ => false,
    }
}

/// What the message wants its connection for, or agrees to: one protocol, which `Connection` names too.
pub fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut named = headers.get_all(header::UPGRADE).iter();
    let (protocol, None) = (named.next()?, named.next()) else { return None };
    let nominated = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    (nominated && may_upgrade_to(protocol)).then_some(protocol)
}

/// Whether it is one protocol's name, and not another form of HTTP or TLS: requests inside would be seen by no policy.
pub fn may_upgrade_to(protocol: &HeaderValue) -> bool {
    let Ok(text) = protocol.to_str() else { return false };
    let (name, version) = text.split_once('/').unwrap_or((text, "1"));
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let refused = ["h2c", "h2", "h3", "http", "tls"];
    is_token(name) && is_token(version) && !refused.iter().any(|refused| name.eq_ignore_ascii_case(refused))
}

/// Whether it is beyond doubt where the body ends and what the fields are called. Ask before hop-by-hop headers are gone. hyper settles most of it
/// itself; what it lets pass must not be settled otherwise by whoever comes after us (RFC 9112 §6.1, §6.3).
pub fn is_framing_plain(headers: &HeaderMap) -> bool {
    let (mut lengths, mut codings, mut chunked) = (0u32, 0u32, false);
    // A name comes as often as it has values.
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for (name, value) in headers {
        // HTTP/2 brings it malformed (RFC 9113 §8.2.1), and HTTP/1.1 trims it: the app would read another value than we compare.
        if blank(value.as_bytes().first()) || blank(value.as_bytes().last()) {
            return false;
        }
        if *name == header::CONTENT_LENGTH {
            lengths += 1;
        } else if *name == header::TRANSFER_ENCODING {
            codings += 1;
            chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else {
            let name = name.as_str();
            // An app that names its fields like variables of an environment (CGI, WSGI) reads these as the real ones.
            if name == "content_length" || name == "transfer_encoding" {
                return false;
            }
            // HTTP/2 brings it, the library allows it in names, and it is no character of them (RFC 9110 §5.1).
            if name.as_bytes().contains(&b'"') {
                return false;
            }
        }
    }
    match (lengths, codings) {
        (0 | 1, 0) => true,
        // Any other coding would have to be undone here, and is read as no coding at all by some.
        (0, 1) => chunked,
        _ => false,
    }
}

/// Whether a message is gRPC, of whatever encoding; gRPC-Web is not (gRPC over HTTP/2, "Requests").
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// `Cookie` as HTTP/1.1 wants it: HTTP/2 may have split it into crumbs (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The value of `x-forwarded-client-cert`. SPIFFE IDs and hex have no character that the syntax would quote.
pub fn client_cert(by: &SpiffeId, hash: &str, caller: &SpiffeId) -> HeaderValue {
    HeaderValue::from_str(&format!("By={by};Hash={hash};URI={caller}"))
        .expect("SPIFFE IDs and hex digits are visible ASCII")
}

/// Which host a request names: the target's authority, else the one Host header. `Err`: two that differ, or garbage.
pub fn authority<B>(request: &http::Request<B>) -> Result<Option<&str>, &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err("two Host headers"),
        (Some(host), None) => Some(host.to_str().map_err(|_| "a Host header that is not text")?),
        (None, None) => None,
    };
    Ok(request.uri().authority().map(http::uri::Authority::as_str).or(host))
}

/// Tells every value of a (lower-case) header as the app gets it: for `host` the authority, whatever a Host beside it says, as
/// a host in lower case, without a port and without the dot at its end. Other names of the same service are other values.
pub fn each_value<B>(request: &http::Request<B>, name: &str, tell: &mut dyn FnMut(&[u8])) {
    if name != header::HOST.as_str() {
        return request.headers().get_all(name).iter().for_each(|value| tell(value.as_bytes()));
    }
    if let Ok(Some(authority)) = authority(request) {
        match host_of(authority) {
            Some((host, _)) => tell(host.as_bytes()),
            // No host that could be compared, whatever the app makes of it: no text, which nothing allows and a Deny holds for.
            None => tell(b"\xff"),
        }
    }
}

#[cfg(test)]
mod tests;
