//! Joining: how often it may be tried. Whoever has one good token or certificate may otherwise fill the log, and every
//! attempt costs signatures.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hanse_identity::rate::{Rate, Rates};
use prometheus_client::metrics::counter::Counter;
use tonic::Status;

/// Attempts from one address, whatever comes of them: many hosts may be behind one.
pub const PER_SOURCE: Rate = Rate { capacity: 300, per_second: 10.0, remembered: 4096 };
/// Attempts with one token or certificate that get as far as the log. An agent that joins makes one, a cluster two or three,
/// and one more for each answer that was lost.
pub const PER_PROOF: Rate = Rate { capacity: 30, per_second: 0.1, remembered: 4096 };

/// What has been tried lately.
pub struct JoinRates {
    sources: Mutex<Rates<IpAddr>>,
    proofs: Mutex<Rates<String>>,
    pub refused: Counter,
}

impl Default for JoinRates {
    fn default() -> Self {
        let (sources, proofs) = (Mutex::new(Rates::new(PER_SOURCE)), Mutex::new(Rates::new(PER_PROOF)));
        Self { sources, proofs, refused: Counter::default() }
    }
}

impl JoinRates {
    /// Before anything is looked at.
    pub fn from(&self, source: IpAddr) -> Result<(), Status> {
        self.take(&self.sources, network(source), "from this address")
    }

    /// Before anything is proposed: `proof` is the invite, or the certificate's fingerprint.
    pub fn with(&self, proof: &str) -> Result<(), Status> {
        self.take(&self.proofs, proof.to_owned(), "with this proof")
    }

    fn take<K: Ord>(&self, rates: &Mutex<Rates<K>>, who: K, what: &str) -> Result<(), Status> {
        let taken = rates.lock().unwrap_or_else(PoisonError::into_inner).take(who, 1, Instant::now());
        taken.map_err(|wait| {
            self.refused.inc();
            let seconds = wait.max(Duration::from_secs(1)).as_secs_f64().ceil();
            Status::resource_exhausted(format!("too many joins {what}: come again in {seconds} s"))
        })
    }
}

/// Who has one address of IPv6 has 2^64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_too_often_is_told_when_to_come_again() {
        let rates = JoinRates::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..PER_SOURCE.capacity {
            rates.from(one).unwrap();
        }
        // Some credit may have come back since the first.
        let refused = (0..PER_SOURCE.capacity).find_map(|_| rates.from(one).err()).unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.message(), "too many joins from this address: come again in 1 s");
        rates.from(other).unwrap();
        for _ in 0..PER_PROOF.capacity {
            rates.with("i-1").unwrap();
        }
        let refused = rates.with("i-1").unwrap_err();
        assert!(refused.message().ends_with("with this proof: come again in 10 s"), "{refused:?}");
        rates.with("i-2").unwrap();
        assert_eq!(rates.refused.get(), 2);
    }

    #[test]
    fn the_addresses_of_one_network_are_one_source() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_ne!(of("2001:db8:1:3::6"), of("2001:db8:1:2::6"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
