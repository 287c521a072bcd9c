//! Tests of revocations: by serial, by identity, lifted, lapsed, and said twice.

use std::time::Duration;

use super::*;
use crate::fixture::{HOUR, NOW, REVIEWS, authority, east, id, serial, svid, west};

fn revocation(number: u64, target: RevocationTarget) -> Revocation {
    Revocation::new(RevocationId { number, origin: east() }, target, Reason::KeyCompromise, NOW)
}

fn set(revocations: impl IntoIterator<Item = Revocation>) -> Revocations {
    let mut set = Revocations::default();
    revocations.into_iter().for_each(|r| set.insert(r));
    set
}

#[test]
fn a_serial_is_revoked_in_its_own_trust_domain_only() {
    let target = RevocationTarget::Serial(serial(2));
    let revocations = set([revocation(1, target)]);
    let hit = svid(&authority(&east()), REVIEWS, 2).facts;
    let other_serial = svid(&authority(&east()), REVIEWS, 3).facts;
    let other_domain = svid(&authority(&west()), "spiffe://west.example/a", 2).facts;
    assert_eq!(revocations.check(&hit).map(|r| r.id.number), Some(1));
    assert_eq!(revocations.check(&other_serial), None);
    assert_eq!(revocations.check(&other_domain), None);
    assert_eq!(revocations.of_identity(&hit.id), None);
}

#[test]
fn an_identity_is_revoked_whatever_its_serial() {
    let revocations = set([revocation(1, RevocationTarget::Identity(id(REVIEWS)))]);
    let authority = authority(&east());
    for number in [2, 3] {
        let facts = svid(&authority, REVIEWS, number).facts;
        assert_eq!(revocations.check(&facts).map(|r| r.id.number), Some(1));
        assert!(revocations.iter().all(|r| r.hits(&facts)));
    }
    assert!(revocations.of_identity(&id(REVIEWS)).is_some());
    assert_eq!(
        revocations.check(&svid(&authority, "spiffe://east.example/ns/shop/sa/review", 2).facts),
        None
    );
}

#[test]
fn lifting_one_of_two_leaves_the_other() {
    let facts = svid(&authority(&east()), REVIEWS, 2).facts;
    for target in [RevocationTarget::Identity(id(REVIEWS)), RevocationTarget::Serial(serial(2))] {
        let mut revocations = set([revocation(1, target.clone()), revocation(2, target)]);
        assert!(revocations.remove(&RevocationId { number: 2, origin: east() }).is_some());
        assert_eq!(revocations.check(&facts).map(|r| r.id.number), Some(1));
        assert!(revocations.remove(&RevocationId { number: 1, origin: east() }).is_some());
        assert_eq!(revocations.check(&facts), None);
        assert_eq!(revocations, Revocations::default());
        assert_eq!(revocations.remove(&RevocationId { number: 1, origin: east() }), None);
    }
}

#[test]
fn the_same_id_again_replaces() {
    let mut revocations = set([revocation(1, RevocationTarget::Identity(id(REVIEWS)))]);
    revocations.insert(revocation(1, RevocationTarget::Serial(serial(9))));
    assert_eq!(revocations.len(), 1);
    assert_eq!(revocations.of_identity(&id(REVIEWS)), None);
}

#[test]
fn only_an_identity_on_hold_can_be_lifted() {
    let mut held = revocation(1, RevocationTarget::Identity(id(REVIEWS)));
    assert!(!held.can_be_lifted());
    held.reason = Reason::Hold;
    assert!(held.can_be_lifted());
    held.target = RevocationTarget::Serial(serial(2));
    assert!(!held.can_be_lifted());
}

#[test]
fn a_revocation_lapses_when_nothing_it_could_hit_is_valid() {
    let mut ends = revocation(1, RevocationTarget::Serial(serial(2)));
    ends.expires = Some(NOW + HOUR);
    let stays = revocation(2, RevocationTarget::Identity(id(REVIEWS)));
    let revocations = set([ends.clone(), stays]);
    assert_eq!(revocations.lapsed(NOW + HOUR - Duration::from_millis(1)), []);
    assert_eq!(revocations.lapsed(NOW + HOUR), [ends.id]);
}

#[test]
fn documents_keep_the_indexes() {
    let revocations = set([
        revocation(1, RevocationTarget::Identity(id(REVIEWS))),
        revocation(2, RevocationTarget::Serial(serial(2))),
    ]);
    let text = serde_json::to_string(&revocations).unwrap();
    let again: Revocations = serde_json::from_str(&text).unwrap();
    assert_eq!(again, revocations);
    assert!(again.of_identity(&id(REVIEWS)).is_some());
}

#[test]
fn ids_and_reasons_are_written_as_they_are_read() {
    let text = "r-4711@east.example";
    assert_eq!(text.parse::<RevocationId>().unwrap().to_string(), text);
    for wrong in ["4711@east.example", "r-@east.example", "r-1@", "r-1", "r--1@east.example", "r-1@EAST"] {
        assert!(wrong.parse::<RevocationId>().is_err(), "{wrong:?}");
    }
    let all =
        [Reason::Unspecified, Reason::KeyCompromise, Reason::Superseded, Reason::Cessation, Reason::Hold];
    for reason in all {
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
    }
}

/// Every kind hits what it names and nothing beside it, with the index and without.
#[test]
fn every_kind_hits_its_own_and_nothing_else() {
    let (one, two, abroad) = (authority(&east()), authority(&east()), authority(&west()));
    let reviews = svid(&one, REVIEWS, 2).facts;
    let other = svid(&two, "spiffe://east.example/ns/shop/sa/ratings", 3).facts;
    let agent = svid(&two, "spiffe://east.example/hanse/agent/host-1", 4).facts;
    let node = svid(&two, "spiffe://east.example/hanse/node/east-1", 5).facts;
    let same_serial = svid(&abroad, "spiffe://west.example/a", 2).facts;
    let all = [&reviews, &other, &agent, &node, &same_serial];
    let plain = |target| revocation(1, target);
    let of_agent = Revocation {
        serials: [serial(2)].into(),
        ..plain(RevocationTarget::Agent("host-1".parse().unwrap()))
    };
    let of_node = Revocation {
        authorities: [one.certificate().key_id].into(),
        ..plain(RevocationTarget::Node("east-1".parse().unwrap()))
    };
    for (revocation, hit) in [
        (plain(RevocationTarget::Serial(serial(2))), vec![&reviews]),
        (plain(RevocationTarget::Identity(id(REVIEWS))), vec![&reviews]),
        (plain(RevocationTarget::Key(reviews.key_id)), vec![&reviews]),
        (of_agent, vec![&reviews, &agent]),
        (of_node, vec![&reviews, &node]),
        (plain(RevocationTarget::Cluster(west())), vec![&same_serial]),
        (plain(RevocationTarget::Cluster(east())), vec![&reviews, &other, &agent, &node]),
    ] {
        let indexed = set([revocation.clone()]);
        for facts in all {
            let expected = hit.contains(&facts);
            assert_eq!(revocation.hits(facts), expected, "{} {}", revocation.target, facts.id);
            assert_eq!(indexed.check(facts).is_some(), expected, "{} {}", revocation.target, facts.id);
        }
    }
}

#[test]
fn a_node_is_known_by_the_authority_at_the_end_of_the_chain_too() {
    let (one, two) = (authority(&east()), authority(&east()));
    let mut facts = svid(&one, REVIEWS, 2).facts;
    facts.authority_key_identifier = None;
    let target = RevocationTarget::Node("east-1".parse().unwrap());
    let key = one.certificate().key_id;
    let revocations = set([Revocation { authorities: [key].into(), ..revocation(1, target) }]);
    assert!(revocations.check(&facts).is_none(), "nothing in the certificate says who signed it");
    assert!(revocations.check_from(&facts, &[key]).is_some());
    assert!(revocations.check_from(&facts, &[two.certificate().key_id]).is_none());
    assert!(revocations.of_authority(&east(), key).is_some());
    assert!(revocations.of_authority(&west(), key).is_none());
}

/// Whatever another cluster lists, it can name only certificates of its own trust domain.
#[test]
fn what_one_domain_lists_does_not_reach_another() {
    let authority = authority(&east());
    let facts = svid(&authority, REVIEWS, 2).facts;
    let hostile = Revocation {
        id: RevocationId { number: 1, origin: west() },
        serials: [serial(2)].into(),
        authorities: [authority.certificate().key_id].into(),
        ..revocation(1, RevocationTarget::Key(facts.key_id))
    };
    assert!(!hostile.hits_from(&facts, &[authority.certificate().key_id]));
    let revocations = set([hostile.clone()]);
    assert!(revocations.check_from(&facts, &[authority.certificate().key_id]).is_none());
    assert!(revocations.of_key(&east(), facts.key_id).is_none());
    assert!(hostile.is_of(&west()) && !hostile.is_of(&east()));
    for foreign in [RevocationTarget::Identity(id(REVIEWS)), RevocationTarget::Cluster(west())] {
        assert!(!Revocation { target: foreign, ..hostile.clone() }.is_of(&west()));
    }
    let serials = (0..=MAX_SERIALS).map(|n| Serial::new(&(n as u32 + 1).to_be_bytes()).unwrap()).collect();
    assert!(!Revocation { serials, ..hostile }.is_of(&west()), "more than fits");
}

#[test]
fn a_reissued_identity_is_dead_up_to_the_watermark_and_alive_after_it() {
    let authority = authority(&east());
    let before = svid(&authority, REVIEWS, 2).facts;
    let mut ahead = before.clone();
    (ahead.serial, ahead.not_before) = (serial(3), NOW + HOUR);
    let target = RevocationTarget::Identity(id(REVIEWS));
    let reissued = Revocation { reissue: true, serials: [serial(3)].into(), ..revocation(1, target) };
    let revocations = set([reissued.clone()]);
    assert!(revocations.of_identity(&id(REVIEWS)).is_none(), "new ones are given");
    for dead in [&before, &ahead] {
        assert!(reissued.hits(dead) && revocations.check(dead).is_some(), "{}", dead.serial);
    }
    // A fresh one, from a node whose clock is a minute behind.
    let ticket = crate::grant::grant(
        &east(),
        &[crate::fixture::registration(REVIEWS)],
        &revocations,
        &crate::fixture::evidence(),
        &id(REVIEWS),
    );
    let request = crate::issue::certificate_request(&crate::fixture::key()).unwrap();
    let behind = NOW - Duration::from_secs(60);
    let fresh = crate::issue::issue(ticket.unwrap(), &request, &authority, serial(4), behind).unwrap().facts;
    assert!(!reissued.hits(&fresh) && revocations.check(&fresh).is_none(), "{}", fresh.not_before);
    assert!(fresh.not_before < NOW, "and valid for everybody else at once");
}

#[test]
fn nothing_is_issued_through_a_revoked_agent() {
    let revocations = set([revocation(1, RevocationTarget::Agent("host-1".parse().unwrap()))]);
    let registrations = [crate::fixture::registration(REVIEWS)];
    let refused =
        crate::grant::grant(&east(), &registrations, &revocations, &crate::fixture::evidence(), &id(REVIEWS));
    assert!(matches!(refused, Err(crate::grant::Refusal::Revoked { .. })), "{refused:?}");
}

#[test]
fn a_whole_cluster_is_silenced_and_comes_back() {
    let mut revocations = set([revocation(1, RevocationTarget::Cluster(west()))]);
    let name = id("spiffe://west.example/a");
    assert!(revocations.of_identity(&name).is_some() && revocations.of_cluster(&west()).is_some());
    assert!(revocations.of_cluster(&east()).is_none());
    revocations.remove(&RevocationId { number: 1, origin: east() });
    assert!(revocations.of_identity(&name).is_none() && revocations.of_cluster(&west()).is_none());
}

#[test]
fn what_is_written_by_an_older_version_is_read() {
    let old = r#"{"id":"r-7@east.example","target":{"identity":"spiffe://east.example/a"},"reason":"hold",
        "actor":"","at":5,"expires":null}"#;
    let read: Revocation = serde_json::from_str(old).unwrap();
    assert_eq!((read.closing, read.reissue, read.serials.len()), (Closing::Now, false, 0));
    let written = serde_json::to_value(&read).unwrap();
    for new in ["serials", "authorities", "reissue", "closing"] {
        assert!(written.get(new).is_none(), "{new} is left out where it says nothing");
    }
    for (closing, text) in [(Closing::After(30), r#"{"after":30}"#), (Closing::Never, r#""never""#)] {
        assert_eq!(serde_json::to_string(&closing).unwrap(), text);
        assert_eq!(serde_json::from_str::<Closing>(text).unwrap(), closing);
    }
}

#[test]
fn live_connections_are_left_what_the_order_says() {
    let later = NOW + Duration::from_secs(20);
    assert_eq!(Closing::Now.left(NOW, NOW), Some(Duration::ZERO));
    assert_eq!(Closing::After(30).left(NOW, later), Some(Duration::from_secs(10)));
    assert_eq!(Closing::After(30).left(NOW, NOW + HOUR), Some(Duration::ZERO));
    assert_eq!(Closing::Never.left(NOW, later), None);
}

/// The cost of a handshake does not grow with the list: a long list is looked up as fast as a short one.
#[test]
fn copies_share_what_they_hold() {
    let mut first = set((0..100).map(|n| revocation(n, RevocationTarget::Serial(serial(n as u8)))));
    let copy = first.clone();
    assert_eq!(first, copy);
    first.insert(revocation(500, RevocationTarget::Identity(id(REVIEWS))));
    assert_ne!(first, copy);
    assert!(copy.of_identity(&id(REVIEWS)).is_none() && first.of_identity(&id(REVIEWS)).is_some());
    first.remove(&RevocationId { number: 500, origin: east() });
    assert_eq!(first, copy);
}
