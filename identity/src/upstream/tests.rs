//! Tests of authorities under a root of the user's own house: what they sign is believed by the root alone.

use std::time::Duration;

use rcgen::{DnType, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, SignatureAlgorithm};

use super::*;
use crate::authority::Authority;
use crate::bundle::Bundle;
use crate::fixture::{DAY, NOW, REVIEWS, authority, east, key, serial, svid, trust, west};
use crate::revocation::Revocations;
use crate::verify::{Trust, Usage, VerifyError, verify};

struct Root {
    certificate: String,
    key: String,
}

/// A root as a company's own tools make it: no SPIFFE ID, its own subject.
fn root(algorithm: &'static SignatureAlgorithm, constraints: BasicConstraints) -> Root {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::OrganizationName, "Kontor & Söhne");
    params.distinguished_name.push(DnType::CommonName, "Root of our own");
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(serial(77).as_bytes()));
    params.not_before = x509::date_time(NOW - 10 * DAY).unwrap();
    params.not_after = x509::date_time(NOW + 100 * DAY).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Root { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn upstream(root: &Root) -> Upstream {
    Upstream::from_pem(&east(), root.certificate.as_bytes(), root.key.as_bytes()).unwrap()
}

fn below(upstream: &Upstream) -> Authority {
    let key = PrivateKey::local(key()).unwrap();
    let made = upstream.sign(&"node-1".parse().unwrap(), &key, serial(5), NOW, 365 * DAY).unwrap();
    Authority::restore_below(&east(), key, made, upstream.certificate().clone()).unwrap()
}

fn trusting(upstream: &Upstream) -> Trust {
    let bundle = Bundle::new(east(), 1, vec![upstream.certificate().clone()]);
    bundle.check().unwrap();
    Trust::new([&bundle], Revocations::default())
}

#[test]
fn what_an_authority_below_a_root_signs_is_believed_by_the_root() {
    let kinds: [&'static SignatureAlgorithm; 3] =
        [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256];
    for algorithm in kinds {
        let upstream = upstream(&root(algorithm, BasicConstraints::Unconstrained));
        let authority = below(&upstream);
        let svid = svid(&authority, REVIEWS, 2);
        assert_eq!(svid.chain.len(), 2, "leaf and intermediate; the root is in the bundle");
        let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
        let trust = trusting(&upstream);
        let caller = verify(&trust, &chain, NOW, Usage::Client).unwrap();
        assert_eq!(caller.id().to_string(), REVIEWS);
        let leaf_alone = verify(&trust, &chain[..1], NOW, Usage::Client);
        assert_eq!(leaf_alone, Err(VerifyError::UnknownAuthority(east())));
    }
}

#[test]
fn x_3_it_is_of_the_bare_trust_domain_and_lets_stand_below_it_what_the_root_allows() {
    let upstream = upstream(&root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Constrained(1)));
    let authority = below(&upstream);
    let intermediate = authority.intermediate().unwrap();
    let certificate = x509::parse(&intermediate.der).unwrap();
    assert_eq!(x509::uri_names(&certificate).unwrap(), ["spiffe://east.example"]);
    assert_eq!(x509::authority_path_length(&certificate), Some(Some(0)));
    assert_eq!(authority.certificate(), upstream.certificate(), "the bundle has the root");
    assert_eq!(intermediate.not_after, NOW + 100 * DAY, "never beyond the root");
    assert_eq!(intermediate.key_id, authority.key().id());
    let svid = svid(&authority, REVIEWS, 2);
    assert!(svid.facts.authority_key_identifier.is_some());
    for roomy in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(2)] {
        let authority = below(&self::upstream(&root(&PKCS_ECDSA_P256_SHA256, roomy)));
        let certificate = x509::parse(&authority.intermediate().unwrap().der).unwrap();
        assert_eq!(x509::authority_path_length(&certificate), Some(Some(1)), "a nested issuer and no more");
    }
}

#[test]
fn roots_and_keys_that_do_not_fit_are_refused() {
    let (one, two) = (
        root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained),
        root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained),
    );
    let refused = |certificate: &str, key: &str| {
        Upstream::from_pem(&east(), certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    };
    assert!(refused(&one.certificate, &two.key).contains("does not belong"));
    assert!(refused("garbage", &one.key).contains("PEM"));
    assert!(refused(&one.certificate, "garbage").contains("PEM"));
    let ends = root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Constrained(0));
    assert!(refused(&ends.certificate, &ends.key).contains("path length 0"));
    let named = authority(&west());
    let pem = crate::wire::to_pem("CERTIFICATE", &named.certificate().der);
    assert!(refused(&pem, &one.key).contains("URI name"), "a root of another trust domain");
    let expired = upstream(&one).sign(
        &"node-1".parse().unwrap(),
        &PrivateKey::local(key()).unwrap(),
        serial(5),
        NOW + 101 * DAY,
        Duration::from_secs(60),
    );
    assert!(expired.unwrap_err().to_string().contains("expired"));
}

#[test]
fn an_intermediate_is_taken_only_with_its_own_root_and_key() {
    let upstream_1 = upstream(&root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained));
    let upstream_2 = upstream(&root(&PKCS_ECDSA_P256_SHA256, BasicConstraints::Unconstrained));
    let made = below(&upstream_1).intermediate().unwrap().clone();
    let other_key = PrivateKey::local(key()).unwrap();
    let mixed = Authority::restore_below(&east(), other_key, made.clone(), upstream_1.certificate().clone());
    assert!(matches!(mixed, Err(AuthorityError::KeyMismatch)), "{mixed:?}");
    assert!(Intermediate::parse(&made.der, &east(), upstream_1.certificate()).is_ok());
    assert!(Intermediate::parse(&made.der, &east(), upstream_2.certificate()).is_err(), "another root");
    assert!(Intermediate::parse(&made.der, &west(), upstream_1.certificate()).is_err(), "another domain");
    let own = authority(&east());
    let svid = svid(&own, REVIEWS, 2);
    assert!(verify(&trust(&[&own]), &[&svid.chain[0]], NOW, Usage::Client).is_ok());
}
