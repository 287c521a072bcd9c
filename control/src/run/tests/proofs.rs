//! Proof by a handshake, from an agent's word to the receipt.

use hanse_identity::proof::{Attempt, DoorKind, HandshakeOutcome, HeldProof};
use hanse_identity::wire::AgentState;
use hanse_identity::wire::issue::{AgentDown, AgentUp};

use super::*;
use crate::admin::{ProofState, Receipt};

/// An agent that says what it is told to say.
struct Agent {
    up: mpsc::Sender<AgentUp>,
    down: Streaming<AgentDown>,
}

impl Agent {
    async fn connect(cluster: &Cluster, svid: &Svid) -> Self {
        let link = dial_as(cluster, svid).await;
        let mut grpc = tonic::client::Grpc::new(link.channel).max_decoding_message_size(64 << 20);
        grpc.ready().await.unwrap();
        let (up, ups) = mpsc::channel(16);
        let codec = tonic_prost::ProstCodec::<AgentUp, AgentDown>::default();
        let path = ::http::uri::PathAndQuery::from_static("/hanse.issue.v1.Issue/WatchAgent");
        let down = grpc.streaming(Request::new(ReceiverStream::new(ups)), path, codec).await.unwrap();
        Self { up, down: down.into_inner() }
    }

    async fn state(&mut self, so: impl Fn(&AgentState) -> bool) -> AgentState {
        let heard = async {
            loop {
                let down = self.down.message().await.unwrap().expect("the stream goes on");
                let state: AgentState = decode("state", &down.state).unwrap();
                if so(&state) {
                    return state;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the state comes")
    }

    async fn say(&self, revision: u64, proof: Option<&HeldProof>) {
        let proofs = proof.map(|proof| encode(&[proof])).unwrap_or_default();
        let up =
            AgentUp { applied_revision: revision, known_revision: revision, proofs, ..AgentUp::default() };
        self.up.send(up).await.unwrap();
    }
}

fn attempt(svid: &Svid, outcome: HandshakeOutcome) -> Attempt {
    Attempt {
        serial: svid.facts.serial.clone(),
        id: svid.facts.id.clone(),
        cluster: "east".parse().unwrap(),
        kind: DoorKind::Gateway,
        door: "gateway-1".parse().unwrap(),
        at: now(),
        outcome,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_believed_somewhere_keeps_the_receipt_from_being_complete() {
    let east = found("east", 3).await;
    let client = east.client().await;
    let svid = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let reviews = workload(&east, &client, &svid, &id, &["shop/reviews"]).await;
    let (mut gateway, _listening) = gateway(&east, &client, &svid).await;
    let mut agent = Agent::connect(&east, &svid).await;
    let target = RevocationTarget::Serial(reviews.facts.serial.clone());
    let revoked = client.call(&RevokeRequest::new(target, Reason::KeyCompromise)).await.unwrap();
    let state = agent.state(|state| state.revocations.get(&revoked.id).is_some()).await;
    let [door] = &state.doors[..] else { panic!("{:?}", state.doors) };
    assert_eq!((door.cluster.as_str(), door.name.as_str()), ("east", "gateway-1"));
    gateway.until("the revocation", 0, |view| view.revocations.get(&revoked.id).is_some()).await;

    let status = RevokeStatusRequest { id: revoked.id.clone() };
    let receipt = async |wanted: ProofState| -> Receipt {
        eventually_asked("a receipt with that proof", || async {
            let receipt = client.call(&status).await.unwrap();
            let complete = receipt.parts.iter().all(|part| part.complete());
            (complete && receipt.proof.state == wanted).then_some(receipt)
        })
        .await
    };
    let mut proof = HeldProof {
        revocation: revoked.id.clone(),
        held: 1,
        attempts: vec![attempt(&reviews, HandshakeOutcome::UnderWay)],
    };
    agent.say(state.revision, Some(&proof)).await;
    assert!(!receipt(ProofState::UnderWay).await.complete);
    proof.attempts[0].outcome = HandshakeOutcome::Accepted;
    agent.say(state.revision, Some(&proof)).await;
    let told = receipt(ProofState::Accepted).await;
    assert!(!told.complete);
    assert_eq!(told.proof.tried[0].agent.as_str(), "host-1");
    // What is not said anew stands.
    agent.say(state.revision + 1, None).await;
    proof.attempts[0].outcome = HandshakeOutcome::Refused { alert: "CertificateRevoked".to_owned() };
    let listed = client.call(&RevokeListRequest {}).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    assert!(!receipt(ProofState::Accepted).await.complete);
    agent.say(state.revision + 1, Some(&proof)).await;
    assert!(receipt(ProofState::Refused).await.complete);
    let shown = client.call(&RevokeShowRequest { id: revoked.id.clone() }).await.unwrap();
    assert_eq!(shown.receipt.proof.state, ProofState::Refused);

    // The word of who has been put out since proves nothing.
    let ban = RevokeRequest::new(RevocationTarget::Agent("host-1".parse().unwrap()), Reason::KeyCompromise);
    client.call(&ban).await.unwrap();
    assert_eq!(receipt(ProofState::NotHeld).await.proof.held, 0);
    east.stop().await;
}
