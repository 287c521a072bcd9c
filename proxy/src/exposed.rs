//! Whether the app can be reached past its proxy: who listens on its port on another address than loopback.
//!
//! Pure: the kernel's tables in, addresses out. It is a warning and no bar: what closes the port is an address of the
//! app's own on loopback, or a firewall.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Addresses that are not loopback on which somebody in this network namespace listens at `port`. `tables` is what
/// `/proc/net/tcp` and `/proc/net/tcp6` say; `own` are the proxy's own listeners.
pub fn listening_beyond_loopback(port: u16, tables: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let listening = tables.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        if state == LISTEN { address(local) } else { None }
    });
    let beyond = |at: &SocketAddr| at.port() == port && !at.ip().to_canonical().is_loopback();
    let mut found: Vec<_> = listening.filter(|at| beyond(at) && !own.contains(at)).collect();
    found.sort();
    found.dedup();
    found
}

/// `0100007F:1F90`: words as this machine has them in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = ip.get(8 * at..8 * at + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for at in 0..4 {
                octets[4 * at..4 * at + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> String {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        read("/proc/net/tcp") + &read("/proc/net/tcp6")
    }

    #[test]
    fn t20_an_app_that_listens_beyond_loopback_is_seen() {
        let loopback = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = loopback.local_addr().unwrap().port();
        assert_eq!(listening_beyond_loopback(port, &tables(), &[]), []);
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let at = everywhere.local_addr().unwrap();
        assert_eq!(listening_beyond_loopback(at.port(), &tables(), &[]), [at]);
        assert_eq!(listening_beyond_loopback(at.port(), &tables(), &[at]), [], "the proxy's own");
        drop(everywhere);
        assert_eq!(listening_beyond_loopback(at.port(), &tables(), &[]), []);
        // Not every machine has IPv6.
        if let Ok(everywhere) = std::net::TcpListener::bind("[::]:0") {
            let at = everywhere.local_addr().unwrap();
            assert_eq!(listening_beyond_loopback(at.port(), &tables(), &[]), [at]);
        }
        assert_eq!(listening_beyond_loopback(80, "garbage\n a b c d\n0: zz:00 x 0A\n", &[]), []);
    }
}
