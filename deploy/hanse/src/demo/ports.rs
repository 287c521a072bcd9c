//! Free ports, chosen outside the range from which the kernel takes the source ports of outgoing connections,
//! so that a process that was killed finds its port free when it is started again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Lowest port that is tried.
const LOWEST: u16 = 10_000;
/// How many ports are tried before giving up.
const ATTEMPTS: usize = 4096;

/// Ports that are held, so that nobody takes them, until the process they are for is about to start.
#[derive(Debug, Default)]
pub struct Ports {
    held: Vec<TcpListener>,
    next: u16,
}

impl Ports {
    /// Starts somewhere at random, so that two demos seldom try the same ports.
    pub fn new() -> Self {
        let mut seed = [0; 2];
        // If there is no randomness, the bind below still tells who is first.
        let _ = aws_lc_rs::rand::fill(&mut seed);
        Self { held: Vec::new(), next: u16::from_le_bytes(seed) }
    }

    /// A free port of 127.0.0.1, held from now on.
    pub fn reserve(&mut self) -> anyhow::Result<SocketAddr> {
        let highest = first_ephemeral().max(LOWEST + 1000);
        let width = highest - LOWEST;
        for _ in 0..ATTEMPTS {
            self.next = self.next.wrapping_add(1);
            let port = LOWEST + self.next % width;
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                let address = listener.local_addr()?;
                self.held.push(listener);
                return Ok(address);
            }
        }
        anyhow::bail!("no free port between {LOWEST} and {highest} on 127.0.0.1")
    }

    /// Gives up these ports: the process that is to listen there starts now.
    pub fn release(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let released: Vec<_> = addresses.into_iter().collect();
        self.held.retain(|l| l.local_addr().is_ok_and(|a| !released.contains(&a)));
    }
}

/// Where the kernel's own choice of ports begins.
fn first_ephemeral() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_ports_differ_and_are_free_after_release() {
        let mut ports = Ports::new();
        let (a, b) = (ports.reserve().unwrap(), ports.reserve().unwrap());
        assert_ne!(a, b);
        assert!(TcpListener::bind(a).is_err());
        ports.release([a]);
        assert!(TcpListener::bind(a).is_ok());
        assert!(TcpListener::bind(b).is_err());
    }
}
