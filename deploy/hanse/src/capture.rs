//! Capture, the pure part: from what is wanted to the one nftables table that does it, and what the kernel's tables of
//! sockets tell of who listens.
//!
//! The table is replaced whole in one transaction. Its chains are read from top to bottom: what returns is left alone.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::str::FromStr;

use hanse_federation::addresses::{V4_NETWORK, V4_PREFIX, V6_NETWORK, V6_PREFIX};
use serde::{Deserialize, Serialize};

/// The one table that is ours, as nft names it.
pub const TABLE: &str = "inet hanse";

/// What is to be captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The proxy's user and others whose connections are left alone.
    pub spared_uids: BTreeSet<u32>,
    pub outbound: Option<Outbound>,
    pub dns: Option<Dns>,
    pub inbound: Option<Inbound>,
}

/// Connections to elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    pub port: u16,
    /// Not only those to virtual addresses.
    pub all: bool,
    pub exclude_ports: Vec<Ports>,
    pub exclude_networks: Vec<Network>,
}

/// Questions to name servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    pub port: u16,
    /// Users that run a name server of this host: its own questions would come back to it.
    pub spared_uids: BTreeSet<u32>,
}

/// Connections from other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    pub port: u16,
    pub app_ports: Vec<Ports>,
}

/// A port, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    first: u16,
    last: u16,
}

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A socket of /proc/net/tcp or udp.
struct Socket {
    port: u16,
    listens: bool,
    uid: u32,
}

impl Plan {
    /// What cannot be meant.
    pub fn check(&self) -> Result<(), String> {
        if self.outbound.is_none() && self.dns.is_none() && self.inbound.is_none() {
            return Err(
                "nothing is to be captured: give --capture-port, --dns-port or --inbound-port".to_owned()
            );
        }
        let own = [
            self.outbound.as_ref().map(|outbound| outbound.port),
            self.dns.as_ref().map(|dns| dns.port),
            self.inbound.as_ref().map(|inbound| inbound.port),
        ];
        let own: Vec<u16> = own.into_iter().flatten().collect();
        if own.iter().collect::<BTreeSet<_>>().len() != own.len() {
            return Err("--capture-port, --dns-port and --inbound-port are three different ports".to_owned());
        }
        let app_ports = self.inbound.iter().flat_map(|inbound| &inbound.app_ports);
        for ports in app_ports {
            if let Some(port) = own.iter().find(|port| ports.contain(**port)) {
                return Err(format!("--app-port {ports} has {port} in it, which is the proxy's own"));
            }
        }
        Ok(())
    }

    /// What `nft -f -` is given: in place of whatever our table was.
    pub fn ruleset(&self) -> String {
        let mut text = format!("{REMOVE}table {TABLE} {{\n");
        let chains = [self.outbound_chain(), self.inbound_chain(), self.input_chain(), self.output_chain()];
        text += &chains.into_iter().flatten().collect::<Vec<_>>().join("\n");
        text + "}\n"
    }

    fn outbound_chain(&self) -> Option<String> {
        if self.outbound.is_none() && self.dns.is_none() {
            return None;
        }
        let mut chain = Chain::new("outbound", "type nat hook output priority -100; policy accept;");
        for uid in &self.spared_uids {
            chain.rule(format_args!("meta skuid {uid} return"));
        }
        if let Some(dns) = &self.dns {
            for transport in ["udp", "tcp"] {
                for uid in &dns.spared_uids {
                    chain.rule(format_args!("meta skuid {uid} {transport} dport 53 return"));
                }
                chain.rule(format_args!("{transport} dport 53 redirect to :{}", dns.port));
            }
        }
        if let Some(outbound) = &self.outbound {
            let redirect = format!("redirect to :{}", outbound.port);
            chain.rule(format_args!("meta l4proto tcp ip daddr {V4_NETWORK}/{V4_PREFIX} {redirect}"));
            chain.rule(format_args!("meta l4proto tcp ip6 daddr {V6_NETWORK}/{V6_PREFIX} {redirect}"));
            if outbound.all {
                // What stays on this host is the app's own affair.
                chain.rule(format_args!("oifname \"lo\" return"));
                for ports in &outbound.exclude_ports {
                    chain.rule(format_args!("tcp dport {ports} return"));
                }
                for network in &outbound.exclude_networks {
                    chain.rule(format_args!("{} daddr {network} return", network.family()));
                }
                chain.rule(format_args!("meta l4proto tcp {redirect}"));
            }
        }
        Some(chain.end())
    }

    fn inbound_chain(&self) -> Option<String> {
        let inbound = self.inbound.as_ref()?;
        let mut chain = Chain::new("inbound", "type nat hook prerouting priority -100; policy accept;");
        chain.rule(format_args!("iifname \"lo\" return"));
        for ports in &inbound.app_ports {
            // What only passes through this host is not for its app.
            chain.rule(format_args!("fib daddr type local tcp dport {ports} redirect to :{}", inbound.port));
        }
        Some(chain.end())
    }

    /// What was redirected has another port by now. What has not, because its connection is older than the table, because
    /// somebody's rules spare it, or because it is no TCP, does not get to the app. Answers to what this host asked from a
    /// port that it was given at random, which may be one of these, are no such thing.
    fn input_chain(&self) -> Option<String> {
        let inbound = self.inbound.as_ref()?;
        let mut chain = Chain::new("input", "type filter hook input priority 0; policy accept;");
        chain.rule(format_args!("iifname \"lo\" return"));
        // What no connection is known of is no answer.
        chain.rule(format_args!("ct direction reply return"));
        for ports in &inbound.app_ports {
            chain.rule(format_args!("tcp dport {ports} reject with tcp reset"));
            chain.rule(format_args!("meta l4proto {{ udp, udplite, sctp, dccp }} th dport {ports} drop"));
        }
        Some(chain.end())
    }

    /// A connection of TCP that is older than the table is known by whichever side sends first: where that is the app, what
    /// comes in would pass for answers.
    fn output_chain(&self) -> Option<String> {
        let inbound = self.inbound.as_ref()?;
        let mut chain = Chain::new("output", "type filter hook output priority 0; policy accept;");
        chain.rule(format_args!("oifname \"lo\" return"));
        for ports in &inbound.app_ports {
            chain.rule(format_args!("ct state new,untracked tcp sport {ports} tcp flags & syn == 0 drop"));
        }
        Some(chain.end())
    }
}

/// What `nft -f -` is given to have nothing of ours, whether there was anything or not.
pub const REMOVE: &str = "add table inet hanse\ndelete table inet hanse\n";

struct Chain(String);

impl Chain {
    fn new(name: &str, hook: &str) -> Self {
        Self(format!("\tchain {name} {{\n\t\t{hook}\n"))
    }

    fn rule(&mut self, rule: fmt::Arguments<'_>) {
        writeln!(self.0, "\t\t{rule}").expect("a text takes what is written to it");
    }

    fn end(self) -> String {
        self.0 + "\t}\n"
    }
}

/// The ranges of virtual addresses: family as `ip` takes it, network, and the address to come from.
pub fn routes() -> [(&'static str, String, &'static str); 2] {
    [
        ("-4", format!("{V4_NETWORK}/{V4_PREFIX}"), "127.0.0.1"),
        ("-6", format!("{V6_NETWORK}/{V6_PREFIX}"), "::1"),
    ]
}

/// Whose name servers listen on this host, by /proc/net/udp and udp6.
pub fn name_servers(udp: &str) -> BTreeSet<u32> {
    bound(udp, 53)
}

/// Who has a port of UDP, by /proc/net/udp and udp6.
pub fn bound(udp: &str, port: u16) -> BTreeSet<u32> {
    sockets(udp).filter(|socket| socket.port == port).map(|socket| socket.uid).collect()
}

/// Who listens on a port, by /proc/net/tcp and tcp6.
pub fn listeners(tcp: &str, port: u16) -> BTreeSet<u32> {
    sockets(tcp).filter(|socket| socket.listens && socket.port == port).map(|socket| socket.uid).collect()
}

/// The lines that are understood (proc_pid_net(5)): `sl local_address rem_address st tx:rx tr:tm retrnsmt uid …`.
fn sockets(table: &str) -> impl Iterator<Item = Socket> {
    const LISTEN: &str = "0A";
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        Some(Socket {
            port: u16::from_str_radix(port, 16).ok()?,
            listens: *fields.get(3)? == LISTEN,
            uid: fields.get(7)?.parse().ok()?,
        })
    })
}

impl Ports {
    fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no port, and no FIRST-LAST");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let read = |text: &str| text.parse().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (first, last) = (read(first)?, read(last)?);
        if first <= last { Ok(Self { first, last }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Network {
    /// As nft names it.
    fn family(self) -> &'static str {
        if self.address.is_ipv4() { "ip" } else { "ip6" }
    }
}

impl FromStr for Network {
    type Err = String;

    /// `10.0.0.0/8`, `fd00::/8`, or one address.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address or network such as 10.0.0.0/8");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.map_or(Ok(bits), str::parse).map_err(|_| wrong())?;
        let number = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        if prefix > bits {
            return Err(wrong());
        }
        if number.checked_shl(u32::from(prefix)).unwrap_or(0) != 0 {
            return Err(format!("{text:?} has bits after the first {prefix}: what network is meant?"));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Ports {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests;
