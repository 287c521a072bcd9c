//! Callers in plain text, the pure part: what a connection's first bytes begin, and what is behind the port that was dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What first bytes are the beginning of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// A ClientHello.
    Tls,
    /// Anything else.
    Plain,
    /// They could still be either.
    More,
}

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The app's requests.
    Requests,
    /// A port of the services that is plain TCP, by its number there, and where the app takes it.
    Stream(u16, SocketAddr),
    /// Nothing of ours.
    Nothing,
}

/// Bytes that are looked at.
pub const LOOKED_AT: usize = 6;

/// A record of type handshake, version 3.x, with a ClientHello in it (RFC 8446 §5.1, §4).
pub fn begins(first: &[u8]) -> Begins {
    let fits = |(at, byte): (usize, &u8)| match at {
        0 => *byte == 0x16,
        1 => *byte == 3,
        2 => *byte <= 4,
        5 => *byte == 1,
        _ => true,
    };
    match first.iter().enumerate().take(LOOKED_AT).all(fits) {
        false => Begins::Plain,
        true if first.len() < LOOKED_AT => Begins::More,
        true => Begins::Tls,
    }
}

/// `dialled`: the port that the caller meant; `inbound`: our own, where requests come in whatever the app's port is, unless it
/// was declared to be plain TCP.
pub fn door(
    dialled: u16,
    inbound: u16,
    app: Option<SocketAddr>,
    tcp_ports: &BTreeMap<u16, SocketAddr>,
) -> Door {
    if let Some(app) = tcp_ports.get(&dialled) {
        return Door::Stream(dialled, *app);
    }
    if dialled == inbound || app.is_some_and(|app| app.port() == dialled) {
        return Door::Requests;
    }
    let behind = tcp_ports.iter().find(|(_, app)| app.port() == dialled);
    behind.map_or(Door::Nothing, |(port, app)| Door::Stream(*port, *app))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hello_is_told_from_all_else_by_six_bytes() {
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1];
        assert_eq!(begins(&hello), Begins::Tls);
        for there in 0..LOOKED_AT {
            assert_eq!(begins(&hello[..there]), Begins::More, "{there}");
        }
        for at in [0, 1, 2, 5] {
            let mut other = hello;
            other[at] = 0xff;
            assert_eq!(begins(&other), Begins::Plain, "{at}");
        }
        for plain in [&b"GET / HTTP/1.1"[..], b"PRI * HTTP/2.0", b"*1\r\n", b"\0", b"\x16\x01"] {
            assert_eq!(begins(plain), Begins::Plain);
        }
    }

    #[test]
    fn a_port_leads_to_what_was_declared_and_nowhere_else() {
        let app: SocketAddr = "127.0.0.1:9080".parse().unwrap();
        let redis: SocketAddr = "127.0.0.1:16379".parse().unwrap();
        let tcp = BTreeMap::from([(6379, redis)]);
        let to = |dialled| door(dialled, 15006, Some(app), &tcp);
        assert_eq!(to(15006), Door::Requests);
        assert_eq!(to(9080), Door::Requests);
        assert_eq!(to(6379), Door::Stream(6379, redis));
        assert_eq!(to(16379), Door::Stream(6379, redis));
        assert_eq!(to(22), Door::Nothing);
        assert_eq!(door(9080, 15006, None, &tcp), Door::Nothing);
        assert_eq!(door(6379, 6379, None, &tcp), Door::Stream(6379, redis));
    }
}
