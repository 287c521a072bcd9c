//! Tests of issuing: what an SVID says comes from the ticket and the authority, never from the request.

use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, KeyPair};

use super::*;
use crate::fixture::{
    DAY, HOUR, NOW, REVIEWS, authority, east, extension, id, key, root_params, serial, trust, uri, west,
};
use crate::grant::{MAX_LIFETIME, Ticket};
use crate::svid::SvidError;
use crate::verify::{Usage, verify};

fn ticket(name: &str, lifetime: Duration) -> Ticket {
    Ticket { id: id(name), lifetime, not_after: None, watermark: None }
}

fn request() -> Vec<u8> {
    certificate_request(&key()).unwrap()
}

#[test]
fn an_issued_svid_is_believed() {
    let authority = authority(&east());
    let issued = issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW).unwrap();
    assert_eq!(issued.chain.len(), 1);
    assert_eq!(issued.facts.serial, serial(3));
    assert_eq!(issued.facts.not_before, NOW - BACKDATED);
    assert_eq!(issued.facts.not_after, NOW + HOUR);
    let caller = verify(&trust(&[&authority]), &[&issued.chain[0]], NOW, Usage::Client).unwrap();
    assert_eq!(caller.facts(), &issued.facts);
}

#[test]
fn x_2_an_issued_svid_has_no_subject_and_critical_names() {
    let authority = authority(&east());
    let issued = issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW).unwrap();
    let certificate = x509::parse(&issued.chain[0]).unwrap();
    assert!(certificate.subject().iter_rdn().next().is_none());
    assert_eq!(x509::uri_names(&certificate).unwrap(), [REVIEWS]);
    assert!(certificate.subject_alternative_name().unwrap().unwrap().critical);
}

#[test]
fn x_6_x_7_an_issued_svid_authenticates_both_ways_and_does_nothing_else() {
    let authority = authority(&east());
    let issued = issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW).unwrap();
    let certificate = x509::parse(&issued.chain[0]).unwrap();
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
}

#[test]
fn what_a_request_asks_for_is_ignored() {
    let authority = authority(&east());
    let key = key();
    let mut evil = CertificateParams::default();
    evil.distinguished_name.push(DnType::CommonName, "root");
    evil.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    evil.subject_alt_names =
        vec![uri("spiffe://east.example/hanse/admin/evil"), uri("spiffe://west.example/x")];
    evil.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    evil.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    evil.custom_extensions = vec![extension(&[1, 2, 3, 4], true, b"\x05\x00")];
    let request = evil.serialize_request(&key).unwrap();
    let issued = issue(ticket(REVIEWS, HOUR), request.der(), &authority, serial(3), NOW).unwrap();
    assert_eq!(issued.facts.id, id(REVIEWS));
    let plain = issue(ticket(REVIEWS, HOUR), &certificate_request(&key).unwrap(), &authority, serial(3), NOW);
    let (with, without) = (x509::parse(&issued.chain[0]).unwrap(), plain.unwrap().chain.remove(0));
    assert_eq!(with.tbs_certificate.as_ref(), x509::parse(&without).unwrap().tbs_certificate.as_ref());
}

#[test]
fn a_request_without_possession_of_its_key_is_refused() {
    let authority = authority(&east());
    let (mine, theirs) = (request(), request());
    // Their key under my signature: swap the public point, which both requests have at the same place.
    let point = |der: &[u8]| {
        let (_, request) = X509CertificationRequest::from_der(der).unwrap();
        request.certification_request_info.subject_pki.subject_public_key.data.to_vec()
    };
    let (my_point, their_point) = (point(&mine), point(&theirs));
    let at = mine.windows(my_point.len()).position(|window| window == my_point).unwrap();
    let mut stolen = mine;
    stolen[at..at + their_point.len()].copy_from_slice(&their_point);
    let refused = issue(ticket(REVIEWS, HOUR), &stolen, &authority, serial(3), NOW);
    assert_eq!(refused.unwrap_err(), IssueError::Csr("it is not signed with the key it asks for".to_owned()));
}

#[test]
fn only_p256_keys_are_certified() {
    let authority = authority(&east());
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let request = certificate_request(&KeyPair::generate_for(algorithm).unwrap()).unwrap();
        let refused = issue(ticket(REVIEWS, HOUR), &request, &authority, serial(3), NOW);
        assert_eq!(refused.unwrap_err(), IssueError::KeyType);
    }
}

#[test]
fn requests_are_bounded_and_whole() {
    let authority = authority(&east());
    let mut trailing = request();
    trailing.push(0);
    let mut cut = request();
    cut.truncate(40);
    for bytes in [vec![0x30; MAX_CSR_BYTES + 1], Vec::new(), b"garbage".to_vec(), trailing, cut] {
        let refused = issue(ticket(REVIEWS, HOUR), &bytes, &authority, serial(3), NOW);
        assert!(matches!(refused, Err(IssueError::Csr(_))), "{refused:?}");
    }
}

#[test]
fn an_svid_never_outlives_its_authority() {
    let node = "n".parse().unwrap();
    let authority = Authority::create(&east(), &node, key(), serial(1), NOW, HOUR).unwrap();
    let issued = issue(ticket(REVIEWS, MAX_LIFETIME), &request(), &authority, serial(3), NOW).unwrap();
    assert_eq!(issued.facts.not_after, NOW + HOUR);
    let late = issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW + DAY);
    assert_eq!(late.unwrap_err(), IssueError::AuthorityExpired(NOW + HOUR));
}

#[test]
fn only_an_active_authority_signs_and_only_its_own_trust_domain() {
    let mut authority = authority(&east());
    let foreign = issue(ticket("spiffe://west.example/a", HOUR), &request(), &authority, serial(3), NOW);
    assert_eq!(foreign.unwrap_err(), IssueError::ForeignTrustDomain(east()));
    for state in [AuthorityState::Prepared, AuthorityState::Tainted, AuthorityState::Retired] {
        authority.set_state(state);
        let refused = issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW);
        assert_eq!(refused.unwrap_err(), IssueError::AuthorityNotActive(state));
    }
    authority.set_state(AuthorityState::Active);
    assert!(issue(ticket(REVIEWS, HOUR), &request(), &authority, serial(3), NOW).is_ok());
}

#[test]
fn recheck_notices_what_does_not_fit() {
    let (one, two) = (authority(&east()), authority(&east()));
    let key = key();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let template = |name: &str, number| Template {
        spki: spki.clone(),
        id: id(name),
        serial: serial(number),
        key_id: x509::key_id(&spki),
        not_before: NOW,
        not_after: NOW + HOUR,
    };
    let der = sign(&template(REVIEWS, 3), &one).unwrap();
    assert!(recheck(&template(REVIEWS, 3), &der, &one).is_ok());
    for other in [template(REVIEWS, 4), template("spiffe://east.example/a", 3)] {
        assert_eq!(
            recheck(&other, &der, &one),
            Err(IssueError::Recheck("it says something else".to_owned()))
        );
    }
    let shorter = Template { not_after: NOW + HOUR / 2, ..template(REVIEWS, 3) };
    assert!(recheck(&shorter, &der, &one).is_err());
    let other_key = Template { key_id: two.certificate().key_id, ..template(REVIEWS, 3) };
    assert!(recheck(&other_key, &der, &one).is_err());
    let other_issuer = recheck(&template(REVIEWS, 3), &der, &two).unwrap_err();
    assert_eq!(other_issuer, IssueError::Recheck("the issuer's name is not the authority's".to_owned()));
    let root = recheck(&template(REVIEWS, 3), &one.certificate().der, &one).unwrap_err();
    let profile = SvidFacts::parse(&one.certificate().der).unwrap_err();
    assert!(matches!(profile, SvidError::Profile(_)));
    assert_eq!(root, IssueError::Recheck(profile.to_string()));
}

#[test]
fn x_3_another_trust_domains_authority_cannot_be_restored_as_ours() {
    let key = key();
    let der = root_params(&west()).self_signed(&key).unwrap();
    let key = || crate::PrivateKey::from_pkcs8(key.serialized_der()).unwrap();
    assert!(Authority::restore(&east(), key(), der.der()).is_err());
    assert!(Authority::restore(&west(), key(), der.der()).is_ok());
}
