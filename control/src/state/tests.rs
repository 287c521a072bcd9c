//! Every Command and every refusal, on a State made by hand: the log that runs them, what they are made of, and what is
//! true of all of them. Beside it one file per subject.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_federation::PeerFact;
use hanse_federation::catalog::{
    Announcement, Export, GatewaySummary, Locality, Serves, ServiceSummary, Session,
};
use hanse_federation::join::Offer;
use hanse_federation::policy::document::{HttpRoute, PolicySpec};
use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicyKind};
use hanse_identity::token::Admits;
use hanse_identity::{
    AuthorityCertificate, AuthorityState, JwtAuthority, KeyId, Reason, Revocation, RevocationId,
    RevocationTarget, Serial, ServiceName,
};

use super::*;
use crate::command::Told;

mod bundles;
mod catalog;
mod downstream;
mod duties;
mod keys;
mod peers;
mod revocations;
mod strangers;

const NOW: Timestamp = Timestamp(1_000_000);

/// A State and its log: every Command gets the next index and an id of its own.
struct Log {
    state: State,
    index: u64,
    now: Timestamp,
}

impl Log {
    fn new() -> Self {
        let nodes = (1..=3).map(node).collect();
        Self { state: State::founded(east(), td("east.example"), nodes), index: FOUNDING_INDEX, now: NOW }
    }

    fn run(&mut self, command: Command) -> (Result<Answer, Refusal>, Vec<Change>) {
        self.index += 1;
        let id = 1_000 + self.index;
        let proposal = Proposal {
            id,
            now: self.now,
            actor: "spiffe://east.example/hanse/admin/a".into(),
            certificate: None,
            command,
        };
        let before = self.state.clone();
        let kept = audit::subject(&proposal.command).is_some();
        let (outcome, changes) = self.state.apply(self.index, &proposal);
        // Whatever is tried here leaves its row, or is one of the few kinds that leave none.
        let row = self.state.private.audit.newest().next().filter(|row| row.revision == self.index);
        assert_eq!(row.is_some(), kept, "{:?}", proposal.command);
        assert!(row.is_none_or(|row| row.actor == proposal.actor && row.at == self.now));
        assert_eq!(outcome.revision, self.index);
        assert_eq!(self.state.view.revision, Revision(self.index));
        // The View is the fold of the Changes, and a refusal changes nothing but the revision.
        let mut folded = before.view.clone();
        folded.advance(Revision(self.index), &changes);
        assert_eq!(folded, self.state.view);
        if outcome.result.is_err() || outcome.result == Ok(Answer::Already) {
            assert!(changes.is_empty());
            let without = |s: &State| Private {
                remembered: Shared::default(),
                audit: audit::AuditTrail::default(),
                ..s.private.clone()
            };
            assert_eq!(without(&before), without(&self.state));
        }
        (outcome.result, changes)
    }

    fn done(&mut self, command: Command) -> Vec<Change> {
        let (result, changes) = self.run(command);
        assert_eq!(result, Ok(Answer::Done));
        changes
    }

    fn already(&mut self, command: Command) {
        assert_eq!(self.run(command).0, Ok(Answer::Already));
    }

    fn refused(&mut self, command: Command) -> Refusal {
        self.run(command).0.unwrap_err()
    }

    fn not_allowed(&mut self, command: Command) {
        let refusal = self.refused(command);
        assert!(matches!(refusal, Refusal::NotAllowed(_)), "{refusal:?}");
    }

    fn invalid(&mut self, command: Command) {
        let refusal = self.refused(command);
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal:?}");
    }

    fn precondition(&mut self, command: Command) {
        let refusal = self.refused(command);
        assert!(matches!(refusal, Refusal::Precondition(_)), "{refusal:?}");
    }

    fn not_found(&mut self, command: Command) -> String {
        match self.refused(command) {
            Refusal::NotFound { what } => what,
            other => panic!("{other:?}"),
        }
    }

    fn limit(&mut self, command: Command) {
        let refusal = self.refused(command);
        assert!(matches!(refusal, Refusal::Limit(_)), "{refusal:?}");
    }
}

fn east() -> ClusterName {
    "east".parse().unwrap()
}

fn west() -> ClusterName {
    "west".parse().unwrap()
}

fn td(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn service(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn services(names: &[&str]) -> BTreeSet<ServiceName> {
    names.iter().map(|n| service(n)).collect()
}

fn authority(number: u8) -> AuthorityCertificate {
    AuthorityCertificate {
        der: vec![number],
        key_id: KeyId([number; 32]),
        subject: format!("CN=authority-{number}"),
        not_after: Timestamp(u64::MAX),
        state: AuthorityState::Active,
    }
}

fn node(raft_id: u64) -> NodeRecord {
    NodeRecord {
        raft_id,
        name: name(&format!("east-{raft_id}")),
        address: format!("127.0.0.1:{}", 7000 + raft_id),
        peer_address: format!("127.0.0.1:{}", 7000 + raft_id),
        intermediate: None,
        authority: authority(u8::try_from(raft_id).unwrap()),
    }
}

const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";
const RATINGS: &str = "spiffe://east.example/ns/shop/sa/ratings";

fn registration(identity: &str, agent: &str, names: &[&str]) -> Registration {
    let selector = "unix:uid:1000".parse().unwrap();
    Registration { services: services(names), ..Registration::new(id(identity), name(agent), [selector]) }
}

fn register(identity: &str, agent: &str, names: &[&str]) -> Command {
    Command::WorkloadRegister { registration: registration(identity, agent, names) }
}

fn announcement(proxy: &str, life: (u64, u64), serves: Serves) -> Announcement {
    Announcement {
        name: name(proxy),
        incarnation: life.0,
        sequence: life.1,
        locality: Locality::default(),
        ready: true,
        serves,
    }
}

fn serves(names: &[&str]) -> Serves {
    Serves::Services { services: services(names), inbound: "127.0.0.1:9000".parse().unwrap(), weight: 100 }
}

fn announce(proxy: &str, identity: &str, life: (u64, u64), names: &[&str]) -> Command {
    announce_via("east-1", proxy, identity, life, serves(names))
}

fn announce_via(node: &str, proxy: &str, identity: &str, life: (u64, u64), serves: Serves) -> Command {
    let announcement = Box::new(announcement(proxy, life, serves));
    Command::Announce { announcement, identity: id(identity), node: name(node) }
}

fn gateway(gateway: &str, identity: &str, life: (u64, u64)) -> Command {
    let passthrough = "127.0.0.1:15443".parse().unwrap();
    let serves = Serves::Gateway { passthrough, tunnel: "gw.east:15008".into() };
    announce_via("east-1", gateway, identity, life, serves)
}

fn session(life: (u64, u64), node: &str) -> Session {
    Session { incarnation: life.0, sequence: life.1, node: name(node) }
}

fn withdraw(proxy: &str, life: (u64, u64)) -> Command {
    Command::Withdraw { name: name(proxy), session: session(life, "east-1") }
}

fn revoke_identity(identity: &str, reason: Reason) -> Command {
    let target = RevocationTarget::Identity(id(identity));
    Command::Revoke {
        target,
        reason,
        note: "test".into(),
        expires: Some(NOW + Duration::from_secs(60)),
        reissue: false,
        closing: Default::default(),
    }
}

fn revoke_serial(number: u8, expires: Option<Timestamp>) -> Command {
    let target = RevocationTarget::Serial(Serial::new(&[number]).unwrap());
    Command::Revoke {
        target,
        reason: Reason::KeyCompromise,
        note: String::new(),
        expires,
        reissue: false,
        closing: Default::default(),
    }
}

fn own_revocation(number: u64) -> RevocationId {
    RevocationId { number, origin: td("east.example") }
}

fn invite(invite: &str, admits: Admits) -> Invite {
    let expires = NOW + Duration::from_secs(600);
    Invite { id: invite.into(), admits, public_key: "key".into(), made: NOW, expires, used_by: None }
}

fn offer_of(cluster: &str) -> Offer {
    let trust_domain = td(&format!("{cluster}.example"));
    Offer {
        cluster: cluster.parse().unwrap(),
        bundle: Bundle::new(trust_domain.clone(), 4, vec![authority(40)]),
        endpoints: vec!["127.0.0.1:8001".into()],
        gateways: vec![summary(cluster)],
        clock: NOW,
        version: "0.1.0".into(),
        trust_domain,
    }
}

fn summary(cluster: &str) -> GatewaySummary {
    GatewaySummary {
        name: name("gateway-1"),
        identity: id(&format!("spiffe://{cluster}.example/hanse/gateway/gateway-1")),
        locality: Locality::default(),
        tunnel: "gw.west:15008".into(),
        ready: true,
    }
}

fn accept(invite: &str, hash: &str, cluster: &str) -> Command {
    Command::PeerAccept {
        invite: invite.into(),
        request_hash: hash.into(),
        offer: Box::new(offer_of(cluster)),
    }
}

fn add(invite: &str, cluster: &str) -> Command {
    Command::PeerAdd { invite: invite.into(), offer: Box::new(offer_of(cluster)) }
}

fn told(facts: Vec<PeerFact>) -> Command {
    Command::PeerFacts { cluster: west(), facts, follows: None }
}

fn policy(policy: &str, spec: PolicySpec) -> PolicyDocument {
    PolicyDocument { name: service(policy), created: Timestamp(0), spec }
}

fn route(text: &str) -> PolicyDocument {
    policy(text, PolicySpec::HttpRoute(HttpRoute::default()))
}

#[test]
fn a_founded_cluster_has_its_nodes_and_their_authorities() {
    let log = Log::new();
    assert_eq!(log.state.view.revision, Revision(1));
    let bundle = &log.state.view.bundles[&td("east.example")];
    assert_eq!(bundle.sequence, 1);
    assert_eq!(bundle.authorities.len(), 3);
    let shuffled = vec![node(3), node(1), node(2)];
    assert_eq!(State::founded(east(), td("east.example"), shuffled), log.state);
}

#[test]
fn a_proposal_is_applied_once() {
    let mut log = Log::new();
    let command = revoke_identity(REVIEWS, Reason::KeyCompromise);
    let proposal = Proposal { id: 7, now: NOW, actor: String::new(), certificate: None, command };
    let (first, changes) = log.state.apply(2, &proposal);
    assert_eq!(changes.len(), 1);
    let (again, changes) = log.state.apply(3, &proposal);
    assert_eq!(again, first);
    assert!(changes.is_empty());
    assert_eq!(log.state.view.revision, Revision(3));
    assert_eq!(log.state.private.remembered.len(), 1);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut log = Log::new();
    for _ in 0..REMEMBERED_PROPOSALS + 10 {
        log.already(Command::Lapse { ids: Vec::new() });
    }
    assert_eq!(log.state.private.remembered.len(), REMEMBERED_PROPOSALS);
}

#[test]
fn a_state_is_read_back_and_damage_is_seen() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    log.done(add("i-1", "west"));
    log.done(Command::PolicyApply { documents: vec![route("shop/a")] });
    log.run(revoke_identity(RATINGS, Reason::Hold)).0.unwrap();
    let bytes = snapshot::encode(&log.state);
    assert_eq!(snapshot::decode(&bytes).unwrap(), log.state);
    for position in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.to_vec();
        damaged[position] ^= 0x10;
        assert!(snapshot::decode(&damaged).is_err(), "a flipped bit in byte {position} went unseen");
    }
    assert!(snapshot::decode(&bytes[..bytes.len() - 1]).is_err());
    assert!(snapshot::decode(&[]).is_err());
    let newer = String::from_utf8(bytes.to_vec()).unwrap().replacen("hanse-state 1", "hanse-state 2", 1);
    assert_eq!(snapshot::decode(newer.as_bytes()), Err(snapshot::SnapshotError::Format(2)));
}

#[test]
fn slips_of_the_pen_are_near_and_other_names_are_not() {
    let known = [service("shop/reviews"), service("shop/ratings"), service("bank/ledger")];
    let near = |wanted: &str| not_found("service", &service(wanted), known.iter()).to_string();
    assert_eq!(near("shop/review"), "service shop/review (near: shop/reviews) does not exist");
    assert_eq!(near("mail/inbox"), "service mail/inbox does not exist");
}
