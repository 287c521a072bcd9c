//! Revocations: whom they silence, what can be lifted, what lapses.

use super::*;

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
