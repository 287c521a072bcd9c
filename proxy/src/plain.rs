//! Callers in plain text, the pure part: what a connection's first bytes begin, and what is behind the port that was dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hanse_identity::Timestamp;

use crate::connections::{Cause, Order};

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

/// Why a connection is ended by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// Its port takes mutual TLS only.
    Strict,
    /// We ourselves are not believed any more.
    Ours(Cause),
}

/// Bytes that are looked at.
pub const LOOKED_AT: usize = 6;

/// A record of type handshake, version 3.x, with a ClientHello in it (RFC 8446 §5.1, §4). Which x, and how long it says that it
/// is, is nobody's to judge but who reads TLS: what a gateway passes on as a ClientHello must be none of plain text here.
pub fn begins(first: &[u8]) -> Begins {
    let fits = |(at, byte): (usize, &u8)| match at {
        0 => *byte == 0x16,
        1 => *byte == 3,
        5 => *byte == 1,
        _ => true,
    };
    match first.iter().enumerate().take(LOOKED_AT).all(fits) {
        false => Begins::Plain,
        true if first.len() < LOOKED_AT => Begins::More,
        true => Begins::Tls,
    }
}

/// Longest time until an open connection is asked about again: the clock by which a port closes may be set, and a host may sleep.
pub const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// The same while a revocation of our own leaves it some time.
const ASKED_AGAIN_LEAVING: Duration = Duration::from_secs(1);

/// Whether a connection may stay, and when to ask again at the latest. `until`: of its port, while that is open; `own`: what our
/// standing makes of it, with an SVID that ends at `not_after`.
pub fn stays(
    until: Option<Timestamp>,
    own: Order,
    not_after: Timestamp,
    now: Timestamp,
) -> Result<Duration, Over> {
    let until = until.ok_or(Over::Strict)?;
    let again = match own {
        Order::Close(cause) => return Err(Over::Ours(cause)),
        Order::Leave(_) => ASKED_AGAIN_LEAVING,
        Order::Stay => ASKED_AGAIN,
    };
    Ok(again.min(until.left(now)).min(not_after.left(now)))
}

impl Over {
    /// Label of `hanse_connections_closed_total`, and of `hanse_refused_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Ours(cause) => cause.label(),
        }
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
        for at in [0, 1, 5] {
            let mut other = hello;
            other[at] = 0xff;
            assert_eq!(begins(&other), Begins::Plain, "{at}");
        }
        for plain in [&b"GET / HTTP/1.1"[..], b"PRI * HTTP/2.0", b"*1\r\n", b"\0", b"\x16\x01"] {
            assert_eq!(begins(plain), Begins::Plain);
        }
    }

    #[test]
    fn an_open_connection_is_asked_about_every_minute_at_least() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let asked = |until, own, ends| stays(Some(now + until), own, now + ends, now);
        assert_eq!(asked(90 * day, Order::Stay, day), Ok(Duration::from_secs(60)));
        assert_eq!(asked(3 * second, Order::Stay, day), Ok(3 * second));
        assert_eq!(asked(day, Order::Stay, 5 * second), Ok(5 * second));
        assert_eq!(asked(day, Order::Leave(Cause::Expired), day), Ok(second));
        assert_eq!(asked(day, Order::Close(Cause::Expired), day), Err(Over::Ours(Cause::Expired)));
        assert_eq!(stays(None, Order::Stay, now + day, now), Err(Over::Strict));
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
