//! Tests of authorities: what their certificates say (ID-6, X-3 to X-6), and that a restored one is the same.

use super::*;
use crate::fixture::{DAY, HOUR, NOW, REVIEWS, authority, east, key, serial, svid, trust, west};
use crate::verify::{Usage, verify};
use rcgen::KeyPair;

#[test]
fn id_6_an_authority_carries_the_svid_of_the_bare_trust_domain() {
    let authority = authority(&east());
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    let names = x509::uri_names(&certificate).unwrap();
    assert_eq!(names, ["spiffe://east.example"]);
}

#[test]
fn x_4_an_authority_is_a_ca_that_lets_a_nested_issuer_stand_below_it_and_no_more() {
    let authority = authority(&east());
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    assert_eq!(x509::authority_path_length(&certificate), Some(Some(1)));
    assert!(authority.allows_nested());
    assert!(certificate.basic_constraints().unwrap().unwrap().critical);
}

#[test]
fn x_5_an_authority_has_no_name_constraints() {
    let authority = authority(&east());
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    assert!(certificate.name_constraints().unwrap().is_none());
}

#[test]
fn x_6_an_authority_signs_certificates_and_revocation_lists_and_nothing_else() {
    let authority = authority(&east());
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert!(usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature() && !usage.value.key_agreement());
}

#[test]
fn every_key_has_its_own_subject() {
    let (one, two) = (authority(&east()), authority(&east()));
    assert_ne!(one.certificate().subject, two.certificate().subject);
    let digits = &one.certificate().key_id.to_string()[..16];
    assert_eq!(one.certificate().subject, format!("CN=node-1 {digits},O=east.example"));
}

#[test]
fn the_longest_names_still_make_an_authority() {
    let trust_domain: TrustDomain = "a".repeat(255).parse().unwrap();
    let node = "n".repeat(63).parse().unwrap();
    let authority = Authority::create(&trust_domain, &node, key(), serial(1), NOW, HOUR).unwrap();
    let subject = &authority.certificate().subject;
    assert!(subject.split(',').all(|part| part.len() <= "CN=".len() + 64), "{subject}");
}

#[test]
fn validity_starts_five_minutes_ago() {
    let authority = Authority::create(&east(), &"n".parse().unwrap(), key(), serial(1), NOW, DAY).unwrap();
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    assert_eq!(x509::timestamp(certificate.validity().not_before), Some(NOW - Duration::from_secs(300)));
    assert_eq!(authority.certificate().not_after, NOW + DAY);
}

/// The same key, as if read from its file.
fn again(authority: &Authority) -> PrivateKey {
    PrivateKey::from_pkcs8(&authority.key().to_pkcs8().unwrap()).unwrap()
}

#[test]
fn a_restored_authority_signs_what_the_first_is_believed_for() {
    let first = authority(&east());
    let again = Authority::restore(&east(), again(&first), &first.certificate().der).unwrap();
    assert_eq!(again.certificate(), first.certificate());
    let svid = svid(&again, REVIEWS, 2);
    assert!(verify(&trust(&[&first]), &[&svid.chain[0]], NOW, Usage::Client).is_ok());
}

#[test]
fn a_key_of_another_authority_is_refused() {
    let (one, two) = (authority(&east()), authority(&east()));
    let mixed = Authority::restore(&east(), again(&one), &two.certificate().der);
    assert!(matches!(mixed, Err(AuthorityError::KeyMismatch)), "{mixed:?}");
    let foreign = Authority::restore(&west(), again(&one), &one.certificate().der);
    assert!(matches!(foreign, Err(AuthorityError::Certificate(_))), "{foreign:?}");
}

#[test]
fn only_p256_keys_become_authorities() {
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let refused = Authority::create(&east(), &"n".parse().unwrap(), p384, serial(1), NOW, DAY);
    assert!(matches!(refused, Err(AuthorityError::Key(_))), "{refused:?}");
}

#[test]
fn a_lifetime_beyond_what_x509_can_write_is_refused() {
    let refused = Authority::create(&east(), &"n".parse().unwrap(), key(), serial(1), NOW, 10_000_000 * DAY);
    assert!(matches!(refused, Err(AuthorityError::Certificate(_))), "{refused:?}");
}

#[test]
fn debug_shows_no_key() {
    let authority = authority(&east());
    let secret = crate::wire::to_hex(&authority.key().to_pkcs8().unwrap()[40..48]);
    let shown = format!("{authority:?}");
    assert!(shown.contains("certificate") && !shown.contains("key:") && !shown.contains(&secret));
}
