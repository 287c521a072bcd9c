//! Proof by a handshake: whoever holds a revoked certificate with its key shows it to listeners of the mesh, and says what
//! became of it. Plain data: who can be asked, and what they did.

use serde::{Deserialize, Serialize};

use crate::name::{ClusterName, NodeName, SpiffeId};
use crate::revocation::RevocationId;
use crate::svid::Serial;
use crate::time::Timestamp;

/// Most revocations of which one agent keeps and tells what its attempts came to.
pub const MAX_PROOFS: usize = 128;
/// Most attempts that one agent tells of one revocation.
pub const MAX_ATTEMPTS: usize = 64;
/// Longest text about one attempt, in bytes.
pub const MAX_WHY_BYTES: usize = 200;

/// What kind of listener it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DoorKind {
    /// The inbound listener of a proxy.
    Proxy,
    /// The tunnel listener of a gateway.
    Gateway,
}

/// A listener that believes SVIDs, and how it is reached from a host of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Door {
    pub cluster: ClusterName,
    pub kind: DoorKind,
    pub name: NodeName,
    /// Who has to answer there: what anybody else says is no proof.
    pub identity: SpiffeId,
    /// `host:port` to dial: its own, or that of a gateway of ours which passes on by the server name.
    pub address: String,
    pub server_name: String,
}

/// What an agent found out about one revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldProof {
    pub revocation: RevocationId,
    /// Certificates which the revocation hits and whose keys the agent held.
    pub held: u32,
    pub attempts: Vec<Attempt>,
}

/// One certificate, shown to one kind of listener of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    pub serial: Serial,
    pub id: SpiffeId,
    pub cluster: ClusterName,
    pub kind: DoorKind,
    /// Which listener it was last.
    pub door: NodeName,
    /// When this outcome was seen, by the agent's clock.
    pub at: Timestamp,
    #[serde(flatten)]
    pub outcome: HandshakeOutcome,
}

/// What became of a handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum HandshakeOutcome {
    /// No answer yet.
    UnderWay,
    /// The listener did not take the certificate, and said so by this alert of TLS.
    Refused { alert: String },
    /// The listener went on as with anybody whom it believes.
    Accepted,
    /// Nothing can be said: it was not reached, or did not answer.
    NoAnswer { why: String },
}

impl DoorKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Gateway => "gateway",
        }
    }
}

impl HeldProof {
    /// Cut to the size that is taken: what an agent says is somebody else's text.
    pub fn bounded(mut self) -> Self {
        self.attempts.truncate(MAX_ATTEMPTS);
        for attempt in &mut self.attempts {
            if let HandshakeOutcome::Refused { alert: text } | HandshakeOutcome::NoAnswer { why: text } =
                &mut attempt.outcome
            {
                *text = shortened(text);
            }
        }
        self
    }
}

/// The beginning of a text, as long as it may be.
pub fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_WHY_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_is_cut_to_the_size_that_is_taken() {
        let attempt = Attempt {
            serial: Serial::from_random([7; 16]),
            id: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
            cluster: "east".parse().unwrap(),
            kind: DoorKind::Gateway,
            door: "gateway-1".parse().unwrap(),
            at: Timestamp(1),
            outcome: HandshakeOutcome::NoAnswer { why: "é".repeat(MAX_WHY_BYTES) },
        };
        let attempts = vec![attempt; MAX_ATTEMPTS + 1];
        let revocation: RevocationId = "r-1@east.example".parse().unwrap();
        let proof = HeldProof { revocation, held: 1, attempts }.bounded();
        assert_eq!(proof.attempts.len(), MAX_ATTEMPTS);
        let HandshakeOutcome::NoAnswer { why } = &proof.attempts[0].outcome else {
            panic!("another outcome")
        };
        assert_eq!(why.len(), MAX_WHY_BYTES);
        let json = serde_json::to_value(&proof.attempts[0]).unwrap();
        assert_eq!((&json["outcome"], &json["kind"]), (&"noAnswer".into(), &"gateway".into()));
        assert_eq!(serde_json::from_value::<Attempt>(json).unwrap(), proof.attempts[0]);
    }
}
