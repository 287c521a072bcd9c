//! Staleness: how old what we know of revocations may become, and what follows when it is older. Pure: the time is given.
//!
//! By default nothing follows but a metric: whoever can silence the control nodes must not be able to stop the mesh, and a
//! request never waits for them. `deny-new` is for those who fear a stolen key more than an outage: no new handshake while
//! nobody could tell us of a revocation. Live connections stay in either case, what is on them has been let in before.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hanse_identity::Timestamp;

/// Control nodes give a sign of life every second, and a stream that has ended is replaced within some: a bound below this
/// would be passed in normal operation.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// Of `--revocation-staleness`, as text.
pub const DEFAULT_BOUND: &str = "30s";

/// What becomes of new handshakes when what is known is older than the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnStale {
    /// They go on: by what was known last
    #[default]
    Allow,
    /// None is made, to us or by us, until a control node has been heard again
    DenyNew,
}

/// The value of `--revocation-staleness`: a bound that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(pub Duration);

/// The policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness {
    pub bound: Duration,
    pub on_stale: OnStale,
}

/// How old what is known is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh {
        age: Duration,
    },
    Stale {
        age: Duration,
        bound: Duration,
    },
    /// No control node has been heard since the start.
    Unheard,
}

/// Why there is no new handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no new connections while revocations may have been missed: {0}")]
pub struct Stale(pub Freshness);

impl Default for Staleness {
    fn default() -> Self {
        let bound = DEFAULT_BOUND.parse::<Bound>().map_or(SHORTEST, |bound| bound.0);
        Self { bound, on_stale: OnStale::Allow }
    }
}

impl Staleness {
    /// `heard`: when a control node last said something, on whatever stream; zero = never.
    pub fn judge(&self, heard: Timestamp, now: Timestamp) -> Freshness {
        if heard == Timestamp::default() {
            return Freshness::Unheard;
        }
        let (age, bound) = (now.since(heard), self.bound);
        if age <= bound { Freshness::Fresh { age } } else { Freshness::Stale { age, bound } }
    }

    /// Whether a new handshake may be made.
    pub fn admit(&self, freshness: Freshness) -> Result<(), Stale> {
        match (self.on_stale, freshness) {
            (OnStale::Allow, _) | (OnStale::DenyNew, Freshness::Fresh { .. }) => Ok(()),
            (OnStale::DenyNew, stale) => Err(Stale(stale)),
        }
    }
}

impl Freshness {
    /// Since a control node was last heard; none if never.
    pub fn age(&self) -> Option<Duration> {
        match self {
            Self::Fresh { age } | Self::Stale { age, .. } => Some(*age),
            Self::Unheard => None,
        }
    }

    pub fn is_stale(&self) -> bool {
        !matches!(self, Self::Fresh { .. })
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh { age } => write!(f, "a control node was heard {} s ago", age.as_secs()),
            Self::Stale { age, bound } => {
                let (age, bound) = (age.as_secs(), bound.as_secs());
                write!(f, "stale, no control node was heard for {age} s, the bound is {bound} s")
            }
            Self::Unheard => f.write_str("stale, no control node has been heard yet"),
        }
    }
}

impl FromStr for Bound {
    type Err = String;

    /// Whole seconds, minutes or hours: `30s`, `5m`, `1h`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time such as 30s, 5m or 1h");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
        let bound = Duration::from_secs(seconds);
        if bound < SHORTEST {
            return Err(format!("at least {} s: shorter silences are normal", SHORTEST.as_secs()));
        }
        Ok(Self(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARD: Timestamp = Timestamp(1_000_000);

    fn policy(on_stale: OnStale) -> Staleness {
        Staleness { bound: Duration::from_secs(30), on_stale }
    }

    #[test]
    fn what_is_known_is_stale_when_the_bound_has_passed_and_fresh_again_at_contact() {
        let deny = policy(OnStale::DenyNew);
        let at = |heard, seconds| deny.judge(heard, HEARD + Duration::from_secs(seconds));
        assert_eq!(at(HEARD, 0), Freshness::Fresh { age: Duration::ZERO });
        assert_eq!(at(HEARD, 30), Freshness::Fresh { age: Duration::from_secs(30) });
        let stale = at(HEARD, 31);
        assert_eq!(stale, Freshness::Stale { age: Duration::from_secs(31), bound: deny.bound });
        let refusal = deny.admit(stale).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "no new connections while revocations may have been missed: stale, no control node was heard for 31 s, the bound is 30 s"
        );
        // A control node is heard, a second passes.
        assert_eq!(deny.admit(at(HEARD + Duration::from_secs(31), 32)), Ok(()));
        // A clock that was set back makes nothing stale.
        assert!(!deny.judge(HEARD, Timestamp(1)).is_stale());
    }

    #[test]
    fn by_default_the_mesh_goes_on_and_says_so() {
        let allow = Staleness::default();
        assert_eq!((allow.on_stale, allow.bound), (OnStale::Allow, Duration::from_secs(30)));
        let stale = allow.judge(HEARD, HEARD + Duration::from_secs(3600));
        assert!(stale.is_stale() && allow.admit(stale).is_ok());
        assert_eq!(stale.age(), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn who_has_never_heard_a_control_node_knows_of_no_revocation() {
        let never = policy(OnStale::DenyNew).judge(Timestamp(0), HEARD);
        assert_eq!((never, never.age()), (Freshness::Unheard, None));
        assert!(policy(OnStale::DenyNew).admit(never).is_err());
        assert!(policy(OnStale::Allow).admit(never).is_ok());
    }

    #[test]
    fn bounds_are_read_and_no_shorter_than_a_normal_silence() {
        assert_eq!("30s".parse(), Ok(Bound(Duration::from_secs(30))));
        assert_eq!("5m".parse(), Ok(Bound(Duration::from_secs(300))));
        assert_eq!("1h".parse(), Ok(Bound(Duration::from_secs(3600))));
        for bad in ["", "30", "s", "4s", "0s", "1d", "500ms", "99999999999999999999s", "9999999999999999999h"]
        {
            assert!(bad.parse::<Bound>().is_err(), "{bad}");
        }
    }
}
