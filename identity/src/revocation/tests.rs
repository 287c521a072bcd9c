//! Tests of revocations: by serial, by identity, lifted, lapsed, and said twice.

use std::time::Duration;

use super::*;
use crate::fixture::{HOUR, NOW, REVIEWS, authority, east, id, serial, svid, west};

fn revocation(number: u64, target: RevocationTarget) -> Revocation {
    Revocation {
        id: RevocationId { number, origin: east() },
        target,
        reason: Reason::KeyCompromise,
        note: String::new(),
        actor: "spiffe://east.example/hanse/admin/ann".to_owned(),
        at: NOW,
        expires: None,
    }
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
