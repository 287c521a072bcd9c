//! Invites, the agents and clusters that join by them, and what a peer may say.

use super::*;

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
    log.now = NOW + Duration::from_secs(600) + crate::state::peers::INVITE_GRACE;
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
fn a_neighbour_that_is_revoked_is_not_waited_for_by_a_rotation() {
    let mut log = Log::new();
    log.done(add("i-1", "west"));
    assert_eq!(crate::admin::waited_for(&log.state).count(), 1);
    let target = RevocationTarget::Cluster(td("west.example"));
    let (note, closing) = (String::new(), Default::default());
    let hold = Command::Revoke { target, reason: Reason::Hold, note, expires: None, reissue: false, closing };
    log.run(hold).0.unwrap();
    assert_eq!(crate::admin::waited_for(&log.state).count(), 0);
}
