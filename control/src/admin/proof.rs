//! The proof in a receipt: what agents saw that showed revoked certificates of theirs. Pure: from what they say.

use hanse_identity::proof::{Attempt, HandshakeOutcome};
use hanse_identity::{NodeName, RevocationId};
use serde::{Deserialize, Serialize};

use crate::io::census::Subscriber;

/// Most attempts that a receipt names; those that matter most come first.
pub const MAX_TRIED: usize = 64;

/// Whether listeners of the mesh refuse what is revoked, seen by somebody who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    pub state: ProofState,
    /// Certificates that it hits and whose keys agents held when it reached them.
    pub held: u64,
    pub tried: Vec<Tried>,
}

/// In the order of what has to be known first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProofState {
    /// A listener believed a revoked certificate when it was shown last.
    Accepted,
    /// Somebody has a certificate with its key, and is about to say.
    UnderWay,
    /// Wherever there was an answer it was a refusal.
    Refused,
    /// Somebody has one, and nobody answered.
    NoAnswer,
    /// No agent that is believed has one with its key.
    #[default]
    NotHeld,
}

/// One attempt, and who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    pub agent: NodeName,
    #[serde(flatten)]
    pub attempt: Attempt,
}

impl Proof {
    /// Of one revocation, from what the agents of its own cluster say. An agent that is gone says nothing more: what it had
    /// under way is left out.
    pub fn of(id: &RevocationId, subscribers: &[Subscriber]) -> Self {
        let mut proof = Self::default();
        for subscriber in subscribers {
            for told in subscriber.proofs.iter().filter(|told| told.revocation == *id) {
                proof.held += u64::from(told.held);
                let lost = |a: &&Attempt| a.outcome == HandshakeOutcome::UnderWay && !subscriber.connected;
                let attempts = told.attempts.iter().filter(|a| !lost(a)).cloned();
                proof.tried.extend(attempts.map(|attempt| Tried { agent: subscriber.name.clone(), attempt }));
            }
        }
        proof.tried.sort_by_key(|tried| state(&tried.attempt.outcome));
        proof.state = match proof.tried.first() {
            Some(tried) => state(&tried.attempt.outcome),
            None if proof.held > 0 => ProofState::NoAnswer,
            None => ProofState::NotHeld,
        };
        proof.tried.truncate(MAX_TRIED);
        proof
    }

    /// Whether nothing speaks against the receipt, and nothing more is about to be said.
    pub fn allows(&self) -> bool {
        !matches!(self.state, ProofState::Accepted | ProofState::UnderWay)
    }
}

fn state(outcome: &HandshakeOutcome) -> ProofState {
    match outcome {
        HandshakeOutcome::Accepted => ProofState::Accepted,
        HandshakeOutcome::UnderWay => ProofState::UnderWay,
        HandshakeOutcome::Refused { .. } => ProofState::Refused,
        HandshakeOutcome::NoAnswer { .. } => ProofState::NoAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Receipt, SubscriberKind, part_of};
    use hanse_identity::proof::{DoorKind, HeldProof};
    use hanse_identity::{Serial, SpiffeId, Timestamp};

    fn id() -> RevocationId {
        "r-10@east.example".parse().unwrap()
    }

    fn attempt(cluster: &str, outcome: HandshakeOutcome) -> Attempt {
        Attempt {
            serial: Serial::from_random([7; 16]),
            id: "spiffe://east.example/ns/shop/sa/ratings".parse().unwrap(),
            cluster: cluster.parse().unwrap(),
            kind: DoorKind::Gateway,
            door: "gateway-1".parse().unwrap(),
            at: Timestamp(1),
            outcome,
        }
    }

    fn agent(name: &str, connected: bool, held: u32, attempts: Vec<Attempt>) -> Subscriber {
        let identity: SpiffeId = format!("spiffe://east.example/hanse/agent/{name}").parse().unwrap();
        let of_another =
            HeldProof { revocation: "r-9@east.example".parse().unwrap(), held: 9, attempts: vec![] };
        Subscriber {
            name: name.parse().unwrap(),
            kind: SubscriberKind::Agent,
            identity,
            node: "east-1".parse().unwrap(),
            applied: 10,
            closed: Default::default(),
            connected,
            seen: Timestamp(1),
            version: String::new(),
            refused: None,
            sds: Default::default(),
            outgoing: Default::default(),
            remote: None,
            serial: None,
            proofs: vec![of_another, HeldProof { revocation: id(), held, attempts }],
        }
    }

    fn refused() -> HandshakeOutcome {
        HandshakeOutcome::Refused { alert: "CertificateRevoked".to_owned() }
    }

    fn no_answer() -> HandshakeOutcome {
        HandshakeOutcome::NoAnswer { why: "refused to be reached".to_owned() }
    }

    fn receipt(agents: Vec<Subscriber>) -> Receipt {
        let proof = Proof::of(&id(), &agents);
        let part = part_of("east".parse().unwrap(), &id(), Some(10), agents, Default::default());
        Receipt::new(id(), vec![part]).with_proof(proof)
    }

    #[test]
    fn a_receipt_is_not_complete_while_a_listener_accepts_what_is_revoked() {
        let one = vec![attempt("east", refused()), attempt("west", HandshakeOutcome::Accepted)];
        let other = vec![attempt("east", refused())];
        let receipt = receipt(vec![agent("a", true, 1, one), agent("b", true, 2, other)]);
        assert!(!receipt.complete && receipt.parts.iter().all(|part| part.complete()));
        assert_eq!((receipt.proof.state, receipt.proof.held), (ProofState::Accepted, 3));
        assert_eq!(receipt.proof.tried[0].attempt.cluster.as_str(), "west", "the worst comes first");
        assert_eq!(receipt.proof.tried.len(), 3);
    }

    #[test]
    fn it_is_complete_when_all_that_answered_refused_or_nobody_has_a_key() {
        let tried = vec![attempt("west", no_answer()), attempt("east", refused())];
        let told = receipt(vec![agent("a", true, 1, tried)]);
        assert!(told.complete);
        assert_eq!(told.proof.state, ProofState::Refused);
        let told = receipt(vec![agent("a", true, 1, vec![attempt("west", no_answer())])]);
        assert!(told.complete);
        assert_eq!(told.proof.state, ProofState::NoAnswer);
        assert_eq!(receipt(vec![agent("a", true, 0, vec![])]).proof.state, ProofState::NotHeld);
        assert_eq!(receipt(vec![agent("a", true, 1, vec![])]).proof.state, ProofState::NoAnswer);
    }

    #[test]
    fn what_is_under_way_is_waited_for_unless_the_agent_is_gone() {
        let tried = || vec![attempt("east", HandshakeOutcome::UnderWay)];
        let told = receipt(vec![agent("a", true, 1, tried())]);
        assert_eq!((told.complete, told.proof.state), (false, ProofState::UnderWay));
        let told = receipt(vec![agent("a", false, 1, tried())]);
        assert_eq!((told.complete, told.proof.state), (true, ProofState::NoAnswer));
    }
}
