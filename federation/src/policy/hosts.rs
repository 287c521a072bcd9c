//! Which hosts something is for, as Gateway API has it: one, all below a domain, or any. A host here is what a Host header or
//! the server name of a ClientHello says.

use std::cmp::Reverse;

/// The more precise is the smaller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hosts {
    One(String),
    /// All that end in it; it begins with a dot. The longer is the more precise.
    Below(Reverse<usize>, String),
    Any,
}

impl Hosts {
    /// `*.` at the beginning stands for one label or more; `None` is any host.
    pub(super) fn of(hostname: Option<&str>) -> Self {
        let Some(hostname) = hostname else { return Self::Any };
        let hostname = hostname.to_ascii_lowercase();
        match hostname.strip_prefix('*') {
            Some(suffix) => Self::Below(Reverse(suffix.len()), suffix.to_owned()),
            None => Self::One(hostname),
        }
    }

    /// `host` is in lower case.
    pub(super) fn has(&self, host: &str) -> bool {
        match self {
            Self::One(own) => own == host,
            Self::Below(_, suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }

    /// The hosts that both are for.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, both) | (both, Self::Any) => Some(both.clone()),
            (Self::One(host), all) | (all, Self::One(host)) => all.has(host).then(|| Self::One(host.clone())),
            (Self::Below(_, a), Self::Below(_, b)) if a.ends_with(b.as_str()) => Some(self.clone()),
            (Self::Below(_, a), Self::Below(_, b)) if b.ends_with(a.as_str()) => Some(other.clone()),
            _ => None,
        }
    }
}
