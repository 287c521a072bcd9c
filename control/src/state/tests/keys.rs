//! What nodes publish of their keys: authorities, revocation lists, keys of JWT-SVIDs.

use super::*;

#[test]
fn authorities_of_nodes_are_published() {
    let mut log = Log::new();
    let publish =
        |node: &str, certificate| Command::AuthorityPublish { node: name(node), certificate, rotation: None };
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
    log.done(Command::AuthorityPublish {
        node: name("east-1"),
        certificate: certificate.clone(),
        rotation: None,
    });
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
    log.done(Command::AuthorityPublish {
        node: name("east-1"),
        certificate: self::authority(11),
        rotation: None,
    });
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
