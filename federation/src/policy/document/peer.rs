//! PeerAuthentication as documents write it: ports of a workload that take callers without an identity, and until when.
//! Plain data.

use std::time::Duration;

use hanse_identity::Timestamp;
use serde::{Deserialize, Serialize};

use super::TargetRef;
use crate::policy::moment::Moment;

/// Longest time that a port may be open, from when the document was last changed.
pub const MAX_PERMISSIVE: Duration = Duration::from_secs(90 * 24 * 3600);

/// PeerAuthentication.spec: for the services of its own namespace. Nothing but what is said here takes plain text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// Services, by the workloads that serve them: a port of such a workload is one port, whatever is called there.
    pub target_refs: Vec<TargetRef>,
    pub ports: Vec<PortMode>,
}

/// One port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMode {
    /// As callers dial it: the sidecar's inbound port, or one of the app's that is captured for it.
    pub port: u16,
    pub mode: PeerMode,
    /// From then on mutual TLS only.
    pub until: Moment,
}

/// Strict is what no document has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMode {
    /// Mutual TLS, and plain text of callers that have no identity.
    Permissive,
}

impl PeerAuthentication {
    /// When a port of a document that was last changed at `created` is closed, whatever it says.
    pub fn closes(port: &PortMode, created: Timestamp) -> Timestamp {
        port.until.get().min(created + MAX_PERMISSIVE)
    }

    /// When the last of them is.
    pub fn ends(&self, created: Timestamp) -> Timestamp {
        self.ports.iter().map(|port| Self::closes(port, created)).max().unwrap_or(created)
    }

    /// What is wrong with the ends, seen from `now`: the index of the port, and a sentence.
    pub fn trouble(&self, now: Timestamp) -> Option<(usize, String)> {
        self.ports.iter().enumerate().find_map(|(index, port)| {
            let until = port.until;
            if until.get() <= now {
                return Some((index, format!("{until} has passed")));
            }
            let longest = now + MAX_PERMISSIVE;
            let days = MAX_PERMISSIVE.as_secs() / 86_400;
            (until.get() > longest).then(|| (index, format!("{until} is more than {days} days ahead")))
        })
    }
}
