//! Tests of bundles: who is an authority, and the documents that others read.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

use super::*;
use crate::fixture::{authority, bundle, east, extension, handmade, key, root_params, spoiled, uri, west};

fn refused(spoil: impl FnOnce(&mut CertificateParams)) -> BundleError {
    let mut params = root_params(&east());
    spoil(&mut params);
    let (der, _) = handmade(params);
    AuthorityCertificate::parse(&der, &east()).unwrap_err()
}

fn rule(error: BundleError) -> &'static str {
    match error {
        BundleError::NotAnAuthority(trust_domain, rule) if trust_domain == east() => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_root_is_read() {
    let (der, _) = handmade(root_params(&east()));
    let read = AuthorityCertificate::parse(&der, &east()).unwrap();
    assert_eq!(read.state, AuthorityState::Active);
    assert_eq!(read.subject, "CN=handmade");
}

#[test]
fn x_3_an_authority_has_its_trust_domain_as_its_name_and_no_path() {
    let bare = "its URI name is not the bare trust domain (X509-SVID §3.2)";
    assert_eq!(rule(refused(|p| p.subject_alt_names = vec![uri("spiffe://east.example/ca")])), bare);
    assert_eq!(rule(refused(|p| p.subject_alt_names = vec![uri("spiffe://west.example")])), bare);
    assert_eq!(rule(refused(|p| p.subject_alt_names.push(uri("spiffe://west.example")))), bare);
    assert_eq!(rule(refused(|p| p.subject_alt_names = vec![uri("https://ca.east.example")])), bare);
}

#[test]
fn x_3_a_root_of_ones_own_house_may_have_no_uri_name() {
    let mut params = root_params(&east());
    params.subject_alt_names.clear();
    let (nameless, _) = handmade(params.clone());
    assert!(AuthorityCertificate::parse(&nameless, &east()).is_ok());
    params.subject_alt_names = vec![rcgen::SanType::DnsName("ca.east.example".try_into().unwrap())];
    assert!(AuthorityCertificate::parse(&handmade(params).0, &east()).is_ok());
}

#[test]
fn x_4_an_authority_says_ca() {
    let ca = "its basic constraints do not say cA (X509-SVID §4.1)";
    assert_eq!(rule(refused(|p| p.is_ca = IsCa::ExplicitNoCa)), ca);
    assert_eq!(rule(refused(|p| p.is_ca = IsCa::NoCa)), ca);
}

#[test]
fn x_6_an_authority_has_a_critical_key_usage_with_key_cert_sign() {
    assert_eq!(
        rule(refused(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign])),
        "its key usage lacks keyCertSign (X509-SVID §4.3)"
    );
    assert_eq!(rule(refused(|p| p.key_usages.clear())), "it has no key usage (X509-SVID §4.3)");
    let not_critical = refused(|p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(&[2, 5, 29, 15], false, &[0x03, 0x02, 0x01, 0x06]));
    });
    assert_eq!(rule(not_critical), "its key usage is not critical (X509-SVID §4.3)");
}

#[test]
fn an_authority_is_self_signed() {
    let authority = authority(&east());
    let cross_signed = spoiled(&authority, |p| {
        let root = root_params(&east());
        p.subject_alt_names = root.subject_alt_names;
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = root.key_usages;
    });
    let error = AuthorityCertificate::parse(&cross_signed, &east()).unwrap_err();
    assert_eq!(rule(error), "it is not self-signed");

    // The same subject, another key's signature.
    let (_, issuer) = handmade(root_params(&east()));
    let forged = root_params(&east()).signed_by(&key(), &issuer).unwrap();
    let error = AuthorityCertificate::parse(forged.der(), &east()).unwrap_err();
    assert_eq!(rule(error), "it is not signed with its own key");

    assert_eq!(
        rule(refused(|p| p.distinguished_name = rcgen::DistinguishedName::new())),
        "its subject is empty"
    );
}

fn root_of(key: &KeyPair) -> Result<AuthorityCertificate, BundleError> {
    AuthorityCertificate::parse(root_params(&east()).self_signed(key).unwrap().der(), &east())
}

#[test]
fn an_authority_has_a_p256_p384_or_rsa_key() {
    let on_curve = |curve| KeyPair::generate_for(curve).unwrap();
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
    assert!(root_of(&on_curve(&rcgen::PKCS_ECDSA_P256_SHA256)).is_ok());
    assert!(root_of(&on_curve(&rcgen::PKCS_ECDSA_P384_SHA384)).is_ok());
    assert!(root_of(&rsa(rcgen::RsaKeySize::_2048)).is_ok());
    for other in [&rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_ED25519] {
        let refused = rule(root_of(&on_curve(other)).unwrap_err());
        assert_eq!(refused, "its key is not ECDSA P-256 or P-384 (named, uncompressed) nor RSA");
    }
}

#[test]
fn x_8_an_authority_is_as_rfc_5280_says() {
    let strange = refused(|p| p.custom_extensions.push(extension(&[1, 2, 3, 4], true, &[5, 0])));
    assert!(matches!(strange, BundleError::Certificate(_)), "{strange:?}");
    let shrugged = refused(|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(extension(&[2, 5, 29, 19], false, &[0x30, 3, 1, 1, 0xff]));
    });
    assert_eq!(rule(shrugged), "its basic constraints are not critical (RFC 5280 §4.2.1.9)");
    let zero = refused(|p| p.serial_number = Some(vec![0u8].into()));
    assert_eq!(rule(zero), "its serial number is not 1 to 20 bytes and positive");
    let policies = refused(|p| {
        p.custom_extensions.push(extension(&[2, 5, 29, 36], false, &[0x30, 3, 0x80, 1, 0]));
    });
    assert_eq!(rule(policies), "it constrains certificate policies, and nothing here processes them");
}

#[test]
fn bytes_after_the_end_and_oversize_are_refused() {
    let (mut der, _) = handmade(root_params(&east()));
    der.push(0);
    assert!(matches!(AuthorityCertificate::parse(&der, &east()), Err(BundleError::Certificate(_))));
    let large = refused(|p| p.custom_extensions.push(extension(&[1, 2, 3], false, &[0; 17 * 1024])));
    assert!(matches!(large, BundleError::Certificate(_)), "{large:?}");
}

#[test]
fn check_reads_every_authority_again() {
    let (one, two) = (authority(&east()), authority(&east()));
    let good = bundle(&[&one, &two]);
    assert_eq!(good.check(), Ok(()));

    let mut retired = good.clone();
    retired.authorities[0].state = AuthorityState::Retired;
    assert_eq!(retired.check(), Ok(()));

    let mut wrong_pin = good.clone();
    wrong_pin.authorities[0].key_id = two.certificate().key_id;
    assert!(matches!(wrong_pin.check(), Err(BundleError::NotAnAuthority(..))));

    let mut longer = good.clone();
    longer.authorities[1].not_after = longer.authorities[1].not_after + std::time::Duration::from_secs(1);
    assert!(matches!(longer.check(), Err(BundleError::NotAnAuthority(..))));

    let foreign = Bundle { trust_domain: west(), ..good.clone() };
    assert!(matches!(foreign.check(), Err(BundleError::NotAnAuthority(..))));

    let twice = Bundle { authorities: vec![one.certificate().clone(); 2], ..good.clone() };
    assert_eq!(twice.check(), Err(BundleError::SubjectShared(one.certificate().subject.clone())));

    let many = Bundle { authorities: vec![one.certificate().clone(); MAX_AUTHORITIES + 1], ..good.clone() };
    assert_eq!(many.check(), Err(BundleError::TooMany(MAX_AUTHORITIES + 1)));

    let empty = Bundle { authorities: Vec::new(), ..good };
    assert_eq!(empty.check(), Err(BundleError::Empty));
}

#[test]
fn retired_authorities_are_given_to_nobody() {
    let (one, two) = (authority(&east()), authority(&east()));
    let mut bundle = bundle(&[&one, &two]);
    assert_eq!(bundle.to_pem().matches("BEGIN CERTIFICATE").count(), 2);
    bundle.authorities[0].state = AuthorityState::Retired;
    assert_eq!(bundle.to_pem(), *to_pem("CERTIFICATE", &two.certificate().der));
    assert_eq!(bundle.pins(), [two.certificate().key_id]);
    let jwks: serde_json::Value = serde_json::from_str(&bundle.to_jwks(60)).unwrap();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn x_10_a_bundle_document_has_one_certificate_per_key() {
    let authority = authority(&east());
    let bundle = Bundle { sequence: 42, ..bundle(&[&authority]) };
    let jwks: serde_json::Value = serde_json::from_str(&bundle.to_jwks(60)).unwrap();
    assert_eq!(jwks["spiffe_sequence"], 42);
    assert_eq!(jwks["spiffe_refresh_hint"], 60);
    let key = &jwks["keys"][0];
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&"x509-svid".into(), &"EC".into(), &"P-256".into()));
    assert!(key.get("kid").is_none());
    assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    let der = STANDARD.decode(key["x5c"][0].as_str().unwrap()).unwrap();
    assert_eq!(der, authority.certificate().der);
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let certificate = x509::parse(&der).unwrap();
    let point = x509::p256_point(certificate.public_key()).unwrap();
    assert_eq!([coordinate("x"), coordinate("y")].concat(), point[1..]);
}

#[test]
fn x_10_keys_of_every_kind_are_written() {
    let kinds = [
        (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), "EC", ["crv", "x", "y"]),
        (
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
            "RSA",
            ["n", "e", "kty"],
        ),
    ];
    for (key, kind, members) in kinds {
        let authorities = vec![root_of(&key).unwrap()];
        let bundle = Bundle::new(east(), 1, authorities);
        let jwks: serde_json::Value = serde_json::from_str(&bundle.to_jwks(60)).unwrap();
        let jwk = &jwks["keys"][0];
        assert_eq!((&jwk["kty"], &jwk["use"]), (&kind.into(), &"x509-svid".into()));
        assert!(members.iter().all(|member| jwk[*member].is_string()), "{jwk}");
    }
}

#[test]
fn bundles_survive_their_own_document() {
    let bundle = bundle(&[&authority(&east())]);
    let text = serde_json::to_string(&bundle).unwrap();
    assert_eq!(serde_json::from_str::<Bundle>(&text).unwrap(), bundle);
}

#[test]
fn subjects_are_written_as_rfc_4514_says() {
    let mut params = root_params(&east());
    params.distinguished_name.push(rcgen::DnType::OrganizationName, " a,b+c=\"d\\ ");
    let (der, _) = handmade(params);
    let read = AuthorityCertificate::parse(&der, &east()).unwrap();
    assert_eq!(read.subject, "O=\\ a\\,b\\+c\\=\\\"d\\\\\\ ,CN=handmade");
}
