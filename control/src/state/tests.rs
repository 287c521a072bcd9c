//! Every Command and every refusal, on a State made by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_federation::PeerFact;
use hanse_federation::catalog::{
    Announcement, Export, GatewaySummary, Locality, Serves, ServiceSummary, Session,
};
use hanse_federation::join::Offer;
use hanse_federation::policy::document::{BackendPolicy, HttpRoute, PolicySpec};
use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicyKind};
use hanse_identity::token::Admits;
use hanse_identity::{
    AuthorityCertificate, AuthorityState, JwtAuthority, KeyId, Reason, Revocation, RevocationId,
    RevocationTarget, Serial, ServiceName,
};

use super::*;
use crate::command::Told;

mod duties;
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
                remembered: VecDeque::new(),
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
fn a_service_has_the_identities_of_its_registrations() {
    let mut log = Log::new();
    let changes = log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    assert!(matches!(&changes[..], [Change::ServicePut(s)] if s.identities.contains(&id(REVIEWS))));
    log.already(register(REVIEWS, "host-1", &["shop/reviews"]));
    // The same identity on another host adds nothing to the service.
    assert!(log.done(register(REVIEWS, "host-2", &["shop/reviews"])).is_empty());
    log.done(register(RATINGS, "host-1", &["shop/reviews", "shop/ratings"]));
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities.len(), 2);
    // It stays as long as one host has it.
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities.len(), 2);
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-2").into() });
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities, BTreeSet::from([id(RATINGS)]));
    // Nothing keeps it any more.
    let changes = log.done(register(RATINGS, "host-1", &["shop/ratings"]));
    assert_eq!(changes, vec![Change::ServiceGone(service("shop/reviews"))]);
    log.not_found(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
}

#[test]
fn an_identity_is_not_mistaken_for_one_that_starts_alike() {
    let mut log = Log::new();
    log.done(register("spiffe://east.example/ns/shop/sa/reviews-v2", "host-1", &["shop/reviews"]));
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
}

#[test]
fn registrations_are_checked() {
    let mut log = Log::new();
    log.not_allowed(register("spiffe://west.example/ns/shop/sa/x", "host-1", &[]));
    log.not_allowed(register("spiffe://east.example/hanse/node/east-1", "host-1", &[]));
    log.not_allowed(register("spiffe://east.example/hanse/other/x", "host-1", &[]));
    log.invalid(register("spiffe://east.example", "host-1", &[]));
    log.invalid(register("spiffe://east.example/hanse/gateway/gateway-1", "host-1", &["shop/reviews"]));
    log.done(register("spiffe://east.example/hanse/gateway/gateway-1", "host-1", &[]));
    let mut bare = registration(REVIEWS, "host-1", &[]);
    bare.selectors.clear();
    log.invalid(Command::WorkloadRegister { registration: bare });
    let mut many = registration(REVIEWS, "host-1", &[]);
    many.services = (0..=MAX_PER_REGISTRATION).map(|i| service(&format!("shop/s{i}"))).collect();
    log.limit(Command::WorkloadRegister { registration: many });
}

#[test]
fn endpoints_come_and_go_with_their_sessions() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews", "shop/reviews-v1"]));
    let changes = log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    assert!(matches!(&changes[..], [Change::EndpointPut(e)] if e.session == session((1, 1), "east-1")));
    log.already(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    log.done(announce("reviews-1", REVIEWS, (1, 3), &["shop/reviews", "shop/reviews-v1"]));
    log.already(announce("reviews-1", REVIEWS, (1, 2), &["shop/reviews"]));
    // The same words over another node's stream: that one is alive now.
    log.done(announce_via("east-2", "reviews-1", REVIEWS, (1, 3), serves(&["shop/reviews"])));
    log.already(withdraw("reviews-1", (1, 3)));
    assert!(log.state.view.endpoints.contains_key(&name("reviews-1")));
    // Another life of the process counts from the start.
    log.done(announce("reviews-1", REVIEWS, (2, 1), &["shop/reviews"]));
    log.already(withdraw("reviews-1", (1, 3)));
    let changes = log.done(withdraw("reviews-1", (2, 1)));
    assert_eq!(changes, vec![Change::EndpointGone(name("reviews-1"))]);
    assert!(log.state.view.services.contains_key(&service("shop/reviews")), "its registration keeps it");
    log.already(withdraw("reviews-1", (2, 1)));
}

#[test]
fn announcements_are_checked() {
    let mut log = Log::new();
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.done(register(RATINGS, "host-1", &["shop/ratings"]));
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews", "shop/ratings"]));
    log.not_allowed(announce(
        "reviews-1",
        "spiffe://west.example/ns/shop/sa/reviews",
        (1, 1),
        &["shop/reviews"],
    ));
    let none = Serves::Services {
        services: services(&["shop/reviews"]),
        inbound: "127.0.0.1:9000".parse().unwrap(),
        weight: 0,
    };
    log.invalid(announce_via("east-1", "reviews-1", REVIEWS, (1, 1), none));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    // The name is taken as long as its owner has it.
    log.not_allowed(announce("reviews-1", RATINGS, (9, 9), &["shop/ratings"]));
    log.not_allowed(announce_via("east-1", "reviews-1", RATINGS, (9, 9), Serves::Nothing));
    log.done(withdraw("reviews-1", (1, 1)));
    log.done(announce("reviews-1", RATINGS, (9, 9), &["shop/ratings"]));
    let mut long = announcement("reviews-2", (1, 1), serves(&["shop/reviews"]));
    long.locality.zone = "z".repeat(MAX_TEXT_BYTES + 1);
    let (announcement, identity) = (Box::new(long), id(REVIEWS));
    log.invalid(Command::Announce { announcement, identity, node: name("east-1") });
}

#[test]
fn one_who_serves_nothing_any_more_has_no_endpoint() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.already(announce_via("east-1", "client-1", REVIEWS, (1, 1), Serves::Nothing));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    let changes = log.done(announce_via("east-1", "reviews-1", REVIEWS, (1, 2), Serves::Nothing));
    assert_eq!(changes, vec![Change::EndpointGone(name("reviews-1"))]);
}

#[test]
fn what_a_registration_no_longer_allows_is_no_longer_served() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/a", "shop/b"]));
    log.done(announce("p-1", REVIEWS, (1, 1), &["shop/a", "shop/b"]));
    log.done(announce("p-2", REVIEWS, (1, 1), &["shop/b"]));
    log.done(register(REVIEWS, "host-1", &["shop/a"]));
    assert_eq!(log.state.view.endpoints[&name("p-1")].services, services(&["shop/a"]));
    assert!(!log.state.view.endpoints.contains_key(&name("p-2")));
    assert!(!log.state.view.services.contains_key(&service("shop/b")));
}

#[test]
fn a_gateway_speaks_only_for_itself() {
    let mut log = Log::new();
    let own = "spiffe://east.example/hanse/gateway/gateway-1";
    log.not_allowed(gateway("gateway-2", own, (1, 1)));
    log.not_allowed(gateway("gateway-1", REVIEWS, (1, 1)));
    log.not_allowed(gateway("gateway-1", "spiffe://west.example/hanse/gateway/gateway-1", (1, 1)));
    log.done(gateway("gateway-1", own, (1, 1)));
    log.already(gateway("gateway-1", own, (1, 1)));
    let passthrough = "127.0.0.1:15443".parse().unwrap();
    let nowhere = Serves::Gateway { passthrough, tunnel: "nowhere".into() };
    log.invalid(announce_via("east-1", "gateway-1", own, (1, 2), nowhere));
    log.done(withdraw("gateway-1", (1, 1)));
    assert!(log.state.view.gateways.is_empty());
}

#[test]
fn exports_are_for_services_that_exist() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    let export = |name: &str, to| Command::Export { service: service(name), to };
    let what = log.not_found(export("shop/revews", Export::Everyone));
    assert!(what.contains("shop/reviews"), "{what}");
    log.invalid(export("shop/reviews", Export::Only(BTreeSet::new())));
    log.invalid(export("shop/reviews", Export::Only(BTreeSet::from([east()]))));
    let unexport = || Command::Unexport { service: service("shop/reviews") };
    log.already(unexport());
    log.done(export("shop/reviews", Export::Everyone));
    log.already(export("shop/reviews", Export::Everyone));
    log.done(export("shop/reviews", Export::Only(BTreeSet::from([west()]))));
    // The export alone keeps the service, without identities.
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
    assert!(log.state.view.services[&service("shop/reviews")].identities.is_empty());
    assert_eq!(log.done(unexport()), vec![Change::ServiceGone(service("shop/reviews"))]);
    log.not_found(unexport());
}

#[test]
fn policies_are_applied_all_or_none() {
    let mut log = Log::new();
    log.already(Command::PolicyApply { documents: Vec::new() });
    log.done(Command::PolicyApply { documents: vec![route("shop/a")] });
    let key = |kind, text| PolicyKey { kind, name: service(text) };
    assert_eq!(log.state.view.policies[&key(PolicyKind::HttpRoute, "shop/a")].created, NOW);
    log.now = NOW + Duration::from_secs(5);
    log.already(Command::PolicyApply { documents: vec![route("shop/a")] });
    log.invalid(Command::PolicyApply { documents: vec![route("shop/b"), route("shop/b")] });
    let backend = policy("shop/a", PolicySpec::BackendPolicy(BackendPolicy::default()));
    log.done(Command::PolicyApply { documents: vec![route("shop/a"), backend] });
    assert_eq!(log.state.view.policies.len(), 2);
    let keys = vec![key(PolicyKind::HttpRoute, "shop/a"), key(PolicyKind::HttpRoute, "shop/zz")];
    log.not_found(Command::PolicyDelete { keys });
    assert_eq!(log.state.view.policies.len(), 2);
    log.done(Command::PolicyDelete { keys: vec![key(PolicyKind::HttpRoute, "shop/a")] });
    assert_eq!(log.state.view.policies.len(), 1);
}

#[test]
fn a_revocation_silences_who_it_names() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    let (result, changes) = log.run(revoke_identity(REVIEWS, Reason::KeyCompromise));
    let revocation = own_revocation(log.index);
    assert_eq!(result, Ok(Answer::Revoked(revocation.clone())));
    assert!(matches!(&changes[..], [Change::Revoked(_), Change::EndpointGone(_)]));
    let known = log.state.view.revocations.get(&revocation).unwrap();
    assert_eq!((known.expires, known.at), (None, NOW));
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 2), &["shop/reviews"]));
    // The same again is the same one.
    let (again, changes) = log.run(revoke_identity(REVIEWS, Reason::Unspecified));
    assert_eq!((again, changes.len()), (Ok(Answer::Revoked(revocation.clone())), 0));
    log.precondition(Command::Lift { id: revocation });
}

#[test]
fn a_hold_can_be_lifted_and_made_worse() {
    let mut log = Log::new();
    log.run(revoke_identity(REVIEWS, Reason::Hold)).0.unwrap();
    let hold = own_revocation(log.index);
    let (again, _) = log.run(revoke_identity(REVIEWS, Reason::Hold));
    assert_eq!(again, Ok(Answer::Revoked(hold.clone())));
    let (worse, _) = log.run(revoke_identity(REVIEWS, Reason::KeyCompromise));
    assert_eq!(worse, Ok(Answer::Revoked(own_revocation(log.index))));
    log.done(Command::Lift { id: hold.clone() });
    log.not_found(Command::Lift { id: hold });
    assert_eq!(log.state.view.revocations.len(), 1);
}

#[test]
fn serials_lapse_and_identities_do_not() {
    let mut log = Log::new();
    let soon = NOW + Duration::from_secs(10);
    log.invalid(revoke_serial(5, Some(NOW)));
    log.run(revoke_serial(5, Some(soon))).0.unwrap();
    let serial = own_revocation(log.index);
    log.run(revoke_identity(REVIEWS, Reason::Superseded)).0.unwrap();
    let identity = own_revocation(log.index);
    let lapse = || Command::Lapse { ids: vec![serial.clone(), identity.clone(), own_revocation(99)] };
    log.already(lapse());
    log.now = soon;
    assert_eq!(log.done(lapse()), vec![Change::Unrevoked(serial.clone())]);
    log.precondition(Command::Lift { id: identity.clone() });
    let target = RevocationTarget::Serial(Serial::new(&[6]).unwrap());
    log.invalid(Command::Revoke {
        target,
        reason: Reason::Hold,
        note: String::new(),
        expires: None,
        reissue: false,
        closing: Default::default(),
    });
    let target = RevocationTarget::Identity(id(RATINGS));
    let note = "n".repeat(MAX_TEXT_BYTES + 1);
    log.invalid(Command::Revoke {
        target,
        reason: Reason::Hold,
        note,
        expires: None,
        reissue: false,
        closing: Default::default(),
    });
}

#[test]
fn a_foreign_identity_can_only_be_held() {
    let mut log = Log::new();
    let foreign = "spiffe://west.example/ns/shop/sa/x";
    log.not_found(revoke_identity(foreign, Reason::Hold));
    log.done(add("i-1", "west"));
    log.not_allowed(revoke_identity(foreign, Reason::KeyCompromise));
    let (result, _) = log.run(revoke_identity(foreign, Reason::Hold));
    assert_eq!(result, Ok(Answer::Revoked(own_revocation(log.index))));
    let hold = own_revocation(log.index);
    log.done(Command::Lift { id: hold });
}

#[test]
fn an_agent_joins_once_per_invite() {
    let mut log = Log::new();
    let made = invite("i-1", Admits::Agent(name("host-1")));
    log.done(Command::InviteCreate { invite: made.clone() });
    log.already(Command::InviteCreate { invite: made.clone() });
    let another = Invite { public_key: "other".into(), ..made };
    log.precondition(Command::InviteCreate { invite: another });
    let join =
        |invite: &str, hash: &str| Command::AgentJoin { invite: invite.into(), request_hash: hash.into() };
    log.not_found(join("i-9", "h"));
    log.done(join("i-1", "h"));
    assert_eq!(log.state.private.agents[&name("host-1")].id, id("spiffe://east.example/hanse/agent/host-1"));
    log.already(join("i-1", "h"));
    log.precondition(join("i-1", "other"));
    log.done(Command::InviteCreate { invite: invite("i-2", Admits::Cluster(west())) });
    log.not_allowed(join("i-2", "h"));
    log.done(Command::InviteCreate { invite: invite("i-3", Admits::Agent(name("host-3"))) });
    log.now = NOW + Duration::from_secs(600);
    log.precondition(join("i-3", "h"));
    // Who used it in time is still answered.
    log.already(join("i-1", "h"));
}

#[test]
fn a_revoked_host_does_not_join() {
    let mut log = Log::new();
    log.done(Command::InviteCreate { invite: invite("i-1", Admits::Agent(name("host-1"))) });
    log.run(revoke_identity("spiffe://east.example/hanse/agent/host-1", Reason::KeyCompromise)).0.unwrap();
    log.not_allowed(Command::AgentJoin { invite: "i-1".into(), request_hash: "h".into() });
}

#[test]
fn invites_are_checked_and_forgotten_in_time() {
    let mut log = Log::new();
    log.invalid(Command::InviteCreate { invite: invite("i-1", Admits::Cluster(east())) });
    log.invalid(Command::InviteCreate { invite: invite("", Admits::Cluster(west())) });
    let late = Invite { expires: NOW, ..invite("i-1", Admits::Cluster(west())) };
    log.invalid(Command::InviteCreate { invite: late });
    for i in 0..MAX_INVITES {
        log.done(Command::InviteCreate { invite: invite(&format!("i-{i}"), Admits::Cluster(west())) });
    }
    log.limit(Command::InviteCreate { invite: invite("one-more", Admits::Cluster(west())) });
    log.now = NOW + Duration::from_secs(600) + peers::INVITE_GRACE;
    let fresh =
        Invite { expires: log.now + Duration::from_secs(1), ..invite("fresh", Admits::Cluster(west())) };
    log.done(Command::InviteCreate { invite: fresh });
    assert_eq!(log.state.private.invites.len(), 1);
}

#[test]
fn a_peer_is_accepted_once_and_can_be_undone() {
    let mut log = Log::new();
    log.not_found(accept("i-1", "h", "west"));
    log.done(Command::InviteCreate { invite: invite("i-1", Admits::Cluster(west())) });
    log.not_allowed(accept("i-1", "h", "south"));
    let changes = log.done(accept("i-1", "h", "west"));
    assert!(matches!(
        &changes[..],
        [Change::PeerPut(_), Change::BundlePut(_), Change::PeerFact(_, PeerFact::Gateways(_))]
    ));
    assert_eq!(log.state.view.peers[&west()].gateways, vec![summary("west")]);
    log.already(accept("i-1", "h", "west"));
    log.precondition(accept("i-1", "other", "west"));
    // Rollback of that join only; afterwards the token is good again.
    let undo = |invite: &str| Command::PeerRemove { cluster: west(), only_invite: Some(invite.into()) };
    log.already(undo("i-2"));
    log.done(undo("i-1"));
    assert!(log.state.view.peers.is_empty() && log.state.view.bundles.len() == 1);
    log.already(undo("i-1"));
    log.done(accept("i-1", "other", "west"));
}

#[test]
fn a_used_invite_brings_no_peer_back() {
    let mut log = Log::new();
    log.done(Command::InviteCreate { invite: invite("i-1", Admits::Cluster(west())) });
    log.done(accept("i-1", "h", "west"));
    log.done(Command::PeerRemove { cluster: west(), only_invite: None });
    log.precondition(accept("i-1", "h", "west"));
    // Nor does undoing a join that was completed make its token good again.
    log.done(Command::InviteCreate { invite: invite("i-2", Admits::Cluster(west())) });
    log.done(accept("i-2", "h", "west"));
    log.done(told(vec![PeerFact::Begin, PeerFact::Synced(7)]));
    log.done(Command::PeerRemove { cluster: west(), only_invite: Some("i-2".into()) });
    log.precondition(accept("i-2", "h", "west"));
    log.precondition(accept("i-2", "other", "west"));
}

#[test]
fn a_deposed_leader_does_not_take_back_what_the_next_one_has_heard() {
    let mut log = Log::new();
    log.done(add("i-1", "west"));
    let follows = |log: &Log| Some(Told::of(&log.state.view.peers[&west()]));
    let facts = |facts, follows| Command::PeerFacts { cluster: west(), facts, follows };
    let (old, first) = (follows(&log), vec![PeerFact::Begin, PeerFact::Synced(50)]);
    log.done(facts(vec![PeerFact::Begin, PeerFact::Synced(100)], old));
    log.precondition(facts(first, old));
    assert_eq!(log.state.view.peers[&west()].synced, 100);
    let now = follows(&log);
    log.done(facts(vec![PeerFact::Synced(101)], now));
    // A retelling that is under way is another standing than before it.
    let now = follows(&log);
    log.done(facts(vec![PeerFact::Begin], now));
    log.precondition(facts(vec![PeerFact::Synced(101)], now));
}

#[test]
fn what_peers_have_told_does_not_keep_a_cluster_from_revoking() {
    let mut log = Log::new();
    log.done(add("i-1", "west"));
    let theirs = |number| {
        Revocation::new(
            RevocationId { number, origin: td("west.example") },
            RevocationTarget::Serial(Serial::new(&[1]).unwrap()),
            Reason::KeyCompromise,
            NOW,
        )
    };
    (0..MAX_REVOCATIONS as u64).for_each(|number| log.state.view.revocations.insert(theirs(number)));
    let (result, _) = log.run(revoke_identity(REVIEWS, Reason::Hold));
    assert!(matches!(result, Ok(Answer::Revoked(_))), "{result:?}");
    log.limit(told(vec![PeerFact::Revoked(theirs(MAX_REVOCATIONS as u64))]));
}

#[test]
fn an_expired_invite_admits_nobody() {
    let mut log = Log::new();
    log.done(Command::InviteCreate { invite: invite("i-1", Admits::Cluster(west())) });
    log.now = NOW + Duration::from_secs(600);
    log.precondition(accept("i-1", "h", "west"));
}

#[test]
fn a_peer_that_clashes_is_not_added() {
    let mut log = Log::new();
    log.done(add("i-1", "west"));
    log.already(add("i-1", "west"));
    log.precondition(add("i-2", "west"));
    log.invalid(add("i-3", "east"));
    let refuse = |log: &mut Log, change: &dyn Fn(&mut Offer)| {
        let mut offer = offer_of("south");
        change(&mut offer);
        let command = Command::PeerAdd { invite: "i-4".into(), offer: Box::new(offer) };
        log.refused(command)
    };
    assert!(matches!(refuse(&mut log, &|o| o.trust_domain = td("west.example")), Refusal::Precondition(_)));
    assert!(matches!(refuse(&mut log, &|o| o.trust_domain = td("east.example")), Refusal::Invalid(_)));
    assert!(matches!(refuse(&mut log, &|o| o.bundle.trust_domain = td("east.example")), Refusal::Invalid(_)));
    assert!(matches!(refuse(&mut log, &|o| o.bundle.authorities.clear()), Refusal::Invalid(_)));
    assert!(matches!(refuse(&mut log, &|o| o.endpoints.clear()), Refusal::Invalid(_)));
    assert!(matches!(refuse(&mut log, &|o| o.gateways = vec![summary("east")]), Refusal::Invalid(_)));
    log.not_found(Command::PeerRemove { cluster: "south".parse().unwrap(), only_invite: None });
    log.done(Command::PeerRemove { cluster: west(), only_invite: None });
}

#[test]
fn a_peer_speaks_only_of_itself() {
    let mut log = Log::new();
    log.not_found(told(vec![PeerFact::Begin]));
    log.done(add("i-1", "west"));
    let own = ServiceSummary {
        name: service("shop/reviews"),
        identities: BTreeSet::from([id("spiffe://west.example/ns/shop/sa/reviews")]),
        localities: BTreeMap::new(),
    };
    let stolen = ServiceSummary { identities: BTreeSet::from([id(REVIEWS)]), ..own.clone() };
    let bundle = Bundle::new(td("east.example"), 99, vec![authority(66)]);
    let revocation = |origin: &str, target| {
        Revocation::new(RevocationId { number: 5, origin: td(origin) }, target, Reason::KeyCompromise, NOW)
    };
    let theirs = RevocationTarget::Identity(id("spiffe://west.example/ns/shop/sa/x"));
    let changes = log.done(told(vec![
        PeerFact::Begin,
        PeerFact::Service(own),
        PeerFact::Service(stolen),
        PeerFact::Gateways(vec![summary("east")]),
        PeerFact::Bundle(bundle),
        PeerFact::Revoked(revocation("west.example", theirs.clone())),
        PeerFact::Revoked(revocation("east.example", theirs)),
        PeerFact::Revoked(revocation("west.example", RevocationTarget::Identity(id(REVIEWS)))),
        PeerFact::Unrevoked(own_revocation(1)),
        PeerFact::Synced(17),
    ]));
    assert_eq!(changes.len(), 4, "{changes:?}");
    let view = &log.state.view;
    assert_eq!(view.peers[&west()].synced, 17);
    assert_eq!(view.bundles[&td("east.example")].sequence, 1);
    assert!(view.revocations.of_identity(&id(REVIEWS)).is_none());
    assert!(
        view.peers[&west()].services[&service("shop/reviews")].identities.iter().all(|i| *i != id(REVIEWS))
    );
    log.not_allowed(Command::Lift { id: RevocationId { number: 5, origin: td("west.example") } });
}

#[test]
fn authorities_of_nodes_are_published() {
    let mut log = Log::new();
    let publish = |node: &str, certificate| Command::AuthorityPublish { node: name(node), certificate };
    log.not_found(publish("east-9", authority(9)));
    log.already(publish("east-1", authority(1)));
    log.done(publish("east-1", authority(11)));
    let bundle = &log.state.view.bundles[&td("east.example")];
    assert_eq!((bundle.sequence, bundle.authorities.len()), (2, 4));
    let tainted = AuthorityCertificate { state: AuthorityState::Tainted, ..authority(11) };
    log.done(publish("east-1", tainted));
    assert_eq!(log.state.view.bundles[&td("east.example")].authorities.len(), 4);
    let twin = AuthorityCertificate { subject: authority(2).subject, ..authority(12) };
    log.precondition(publish("east-1", twin));
}

#[test]
fn lists_are_published_by_whoever_holds_the_authoritys_key_and_never_go_back() {
    let mut log = Log::new();
    let make = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let lifetime = Duration::from_secs(3600);
        let serial = Serial::from_random([9; 16]);
        hanse_identity::Authority::create(&td("east.example"), &name("east-1"), key, serial, NOW, lifetime)
            .unwrap()
    };
    let (own, other) = (make(), make());
    let list = |authority: &hanse_identity::Authority, number| {
        hanse_identity::Crl::sign(authority, number, &BTreeMap::new(), NOW).unwrap()
    };
    let publish = |crl: &hanse_identity::Crl| Command::CrlPublish { crl: crl.clone() };
    log.not_found(publish(&list(&own, 5)));
    let certificate = own.certificate().clone();
    log.done(Command::AuthorityPublish { node: name("east-1"), certificate: certificate.clone() });
    let (old, new) = (list(&own, 5), list(&own, 6));
    assert_eq!(log.done(publish(&new)), [Change::CrlPut(td("east.example"), new.clone())]);
    log.already(publish(&new));
    log.precondition(publish(&old));
    let foreign = hanse_identity::Crl { authority: certificate.key_id, ..list(&other, 7) };
    assert!(matches!(log.run(publish(&foreign)).0, Err(Refusal::Invalid(_))));
    let claimed = hanse_identity::Crl { number: 8, ..new.clone() };
    assert!(matches!(log.run(publish(&claimed)).0, Err(Refusal::Invalid(_))));
    assert_eq!(log.state.view.crls[&td("east.example")], BTreeMap::from([(certificate.key_id, new)]));

    // It goes with its authority.
    let mut bundle = log.state.view.bundles[&td("east.example")].clone();
    bundle.authorities.retain(|a| a.key_id != certificate.key_id);
    let mut view = log.state.view.clone();
    view.apply(&Change::BundlePut(bundle));
    assert!(view.crls.is_empty());
}

#[test]
fn f_1_keys_of_jwt_svids_are_published_once_and_taken_out_when_they_have_ended() {
    let mut log = Log::new();
    let key = || {
        let key = rcgen::KeyPair::generate().unwrap();
        hanse_identity::JwtKey::new(&td("east.example"), key.try_into().unwrap())
    };
    let publish = |node: &str, authority: &JwtAuthority| Command::JwtAuthorityPublish {
        node: name(node),
        authority: authority.clone(),
    };
    let (first, end) = (key(), NOW + Duration::from_secs(100));
    let authority = first.authority(end);
    log.not_found(publish("east-9", &authority));
    log.invalid(publish("east-1", &JwtAuthority { key_id: "mine".to_owned(), ..authority.clone() }));
    log.invalid(publish("east-1", &JwtAuthority { spki_der: vec![0; 91], ..authority.clone() }));
    log.invalid(publish("east-1", &JwtAuthority { state: AuthorityState::Tainted, ..authority.clone() }));
    log.invalid(publish("east-1", &JwtAuthority { not_after: None, ..authority.clone() }));
    log.invalid(publish("east-1", &first.authority(NOW)));
    log.done(publish("east-1", &authority));
    log.already(publish("east-1", &authority));
    log.already(publish("east-1", &first.authority(end + Duration::from_secs(1))));
    let own = td("east.example");
    let bundle = &log.state.view.bundles[&own];
    assert_eq!((bundle.sequence, bundle.authorities.len()), (2, 3));
    assert_eq!(bundle.jwt_authorities, [authority]);

    // X.509 authorities come and go beside them.
    log.done(Command::AuthorityPublish { node: name("east-1"), certificate: self::authority(11) });
    assert_eq!(log.state.view.bundles[&own].jwt_authorities.len(), 1);

    log.now = end;
    let second = key().authority(end + Duration::from_secs(100));
    log.done(publish("east-2", &second));
    assert_eq!(log.state.view.bundles[&own].jwt_authorities, [second]);
    for _ in 1..hanse_identity::bundle::MAX_JWT_AUTHORITIES {
        log.done(publish("east-3", &key().authority(end + Duration::from_secs(100))));
    }
    log.limit(publish("east-3", &key().authority(end + Duration::from_secs(100))));
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
