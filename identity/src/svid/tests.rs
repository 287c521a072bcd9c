//! Tests of SVID parsing: the leaf rules, each by its label.

use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::*;
use crate::fixture::{
    BASIC_CONSTRAINTS, HOUR, KEY_USAGE, NOW, REVIEWS, SUBJECT_ALTERNATIVE_NAME, authority, east, extension,
    id, key, leaf_params, raw_uris, serial, sign, spoiled, svid, uri,
};

fn parse_spoiled(spoil: impl FnOnce(&mut rcgen::CertificateParams)) -> Result<SvidFacts, SvidError> {
    SvidFacts::parse(&spoiled(&authority(&east()), spoil))
}

fn rule(result: Result<SvidFacts, SvidError>) -> &'static str {
    match result {
        Err(SvidError::Profile(rule)) => rule,
        other => panic!("{other:?}"),
    }
}

/// By their types: nothing can be read back from memory that was freed.
#[test]
fn private_keys_are_wiped_when_they_are_dropped() {
    fn wiped(_: &impl zeroize::ZeroizeOnDrop) {}
    let svid = svid(&authority(&east()), REVIEWS, 9);
    wiped(&svid.key);
    wiped(&svid.key_pem());
    let local = crate::PrivateKey::local(key()).unwrap();
    let written = local.to_pkcs8().unwrap();
    wiped(&written);
    assert!(!written.is_empty());
}

#[test]
fn facts_are_what_the_certificate_says() {
    let authority = authority(&east());
    let facts = svid(&authority, REVIEWS, 9).facts;
    assert_eq!(facts.id, id(REVIEWS));
    assert_eq!(facts.serial, serial(9));
    assert_eq!(facts.not_after, NOW + HOUR);
    let key_identifier = &authority.certificate().key_id.to_string()[..40];
    assert_eq!(facts.authority_key_identifier.as_deref(), Some(key_identifier));
}

#[test]
fn x_1_exactly_one_uri_san() {
    let authority = authority(&east());
    let none = SvidFacts::parse(&sign(&leaf_params(&[]), &authority.issuer));
    assert_eq!(none, Err(SvidError::UriNames(0)));
    let two = ["spiffe://east.example/a", "spiffe://west.example/b"];
    let two = SvidFacts::parse(&sign(&leaf_params(&two), &authority.issuer));
    assert_eq!(two, Err(SvidError::UriNames(2)));
    let twice = SvidFacts::parse(&sign(&leaf_params(&[REVIEWS, REVIEWS]), &authority.issuer));
    assert_eq!(twice, Err(SvidError::UriNames(2)));
    let web = parse_spoiled(|p| p.subject_alt_names.push(uri("https://east.example/")));
    assert_eq!(web, Err(SvidError::UriNames(2)));
}

#[test]
fn x_1_other_kinds_of_names_are_allowed() {
    let facts = parse_spoiled(|p| {
        p.subject_alt_names.push(SanType::DnsName("reviews.shop".try_into().unwrap()));
        p.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    });
    assert_eq!(facts.unwrap().id, id(REVIEWS));
}

#[test]
fn x_1_names_in_two_extensions_or_unreadable_are_refused() {
    let second = raw_uris(&[b"spiffe://east.example/b"]);
    let twice =
        parse_spoiled(|p| p.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, true, &second)));
    assert!(matches!(twice, Err(SvidError::Malformed(_))), "{twice:?}");
    for uris in [&[b"spiffe://east.example/\xff".as_slice()][..], &[REVIEWS.as_bytes(), b"\xff\xfe"]] {
        let unreadable = parse_spoiled(|p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, true, &raw_uris(uris)));
        });
        assert!(matches!(unreadable, Err(SvidError::Malformed(_))), "{unreadable:?}");
    }
}

#[test]
fn x_2_a_leaf_has_a_path() {
    let bare = parse_spoiled(|p| p.subject_alt_names = vec![uri("spiffe://east.example")]);
    assert_eq!(rule(bare), "its SPIFFE ID has no path (X509-SVID §3.1)");
    let slash = parse_spoiled(|p| p.subject_alt_names = vec![uri("spiffe://east.example/")]);
    assert!(matches!(slash, Err(SvidError::Name(_))), "{slash:?}");
}

#[test]
fn x_2_without_a_subject_the_names_are_critical() {
    let not_critical = parse_spoiled(|p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(extension(
            SUBJECT_ALTERNATIVE_NAME,
            false,
            &raw_uris(&[REVIEWS.as_bytes()]),
        ));
    });
    assert!(rule(not_critical).starts_with("its subject is empty"));
    let with_subject = parse_spoiled(|p| p.distinguished_name.push(DnType::CommonName, "reviews"));
    assert_eq!(with_subject.unwrap().id, id(REVIEWS));
}

#[test]
fn x_4_a_leaf_is_not_a_ca() {
    let ca = parse_spoiled(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(rule(ca), "its basic constraints say cA (X509-SVID §4.1)");
    assert!(parse_spoiled(|p| p.is_ca = IsCa::NoCa).is_ok());
    // cA: not a boolean. A parser that shrugs would take this for "no basic constraints".
    let unreadable = parse_spoiled(|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x04, 0x01, 0xff]));
    });
    assert!(matches!(unreadable, Err(SvidError::Malformed(_))), "{unreadable:?}");
}

#[test]
fn x_6_a_leaf_has_a_critical_key_usage_with_digital_signature() {
    assert_eq!(rule(parse_spoiled(|p| p.key_usages.clear())), "it has no key usage (X509-SVID §4.3)");
    let agreement = parse_spoiled(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert_eq!(rule(agreement), "its key usage lacks digitalSignature (X509-SVID §4.3)");
    let not_critical = parse_spoiled(|p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(KEY_USAGE, false, &[0x03, 0x02, 0x07, 0x80]));
    });
    assert_eq!(rule(not_critical), "its key usage is not critical (X509-SVID §4.3)");
}

#[test]
fn x_6_a_leaf_signs_neither_certificates_nor_revocation_lists() {
    for extra in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let signs = parse_spoiled(|p| p.key_usages.push(extra));
        assert_eq!(rule(signs), "its key usage has keyCertSign or cRLSign (X509-SVID §4.3)");
    }
}

#[test]
fn x_7_extended_key_usage_has_both_if_it_is_there() {
    for only in [
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::Any,
    ] {
        let one = parse_spoiled(|p| p.extended_key_usages = vec![only]);
        assert_eq!(rule(one), "its extended key usage lacks serverAuth or clientAuth (X509-SVID §4.4)");
    }
    assert!(parse_spoiled(|p| p.extended_key_usages.clear()).is_ok());
}

#[test]
fn x_9_names_that_are_no_spiffe_ids_are_refused() {
    let hostile = [
        "https://east.example/ns/shop/sa/reviews",
        "spiffe://east.example/ns/shop/sa/reviews\0.evil",
        "spiffe://east.example/ns/shop/sa/%72eviews",
        "spiffe://east.example/ns/shop/../sa/reviews",
        "spiffe://east.example/ns/shop/sa/reviews/",
        "spiffe://east.example//ns",
        "spiffe://EAST.example/ns/shop/sa/reviews",
        "SPIFFE://east.example/ns/shop/sa/reviews",
        "spiffe://me@east.example/a",
        "spiffe://east.example:80/a",
        "spiffe://east.example/a?b",
        "spiffe://east.example/a#b",
        " spiffe://east.example/a",
    ];
    for name in hostile {
        let refused = parse_spoiled(|p| p.subject_alt_names = vec![uri(name)]);
        assert!(matches!(refused, Err(SvidError::Name(_))), "{name:?}: {refused:?}");
    }
}

#[test]
fn serials_are_positive_and_bounded() {
    let zero = parse_spoiled(|p| p.serial_number = Some(vec![0u8].into()));
    assert_eq!(rule(zero), "its serial number is not 1 to 20 bytes and positive");
    let long = parse_spoiled(|p| p.serial_number = Some(vec![1u8; 21].into()));
    assert_eq!(rule(long), "its serial number is not 1 to 20 bytes and positive");
    assert_eq!(Serial::new(&[]), None);
    assert_eq!(Serial::new(&[0, 0]), None);
    assert_eq!(Serial::new(&[0, 5]).unwrap().as_bytes(), [5]);
    assert_eq!("0A:ff".parse::<Serial>().unwrap().to_string(), "0aff");
    assert!(Serial::from_random([0; 16]).as_bytes()[0] & 0x80 == 0);
}

#[test]
fn oversized_and_trailing_bytes_are_refused() {
    let large = parse_spoiled(|p| p.custom_extensions.push(extension(&[1, 2, 3], false, &[0; 17 * 1024])));
    assert!(matches!(large, Err(SvidError::Malformed(_))), "{large:?}");
    let mut der = svid(&authority(&east()), REVIEWS, 2).chain.remove(0);
    der.push(0);
    assert!(matches!(SvidFacts::parse(&der), Err(SvidError::Malformed(_))));
    assert!(matches!(SvidFacts::parse(&[]), Err(SvidError::Malformed(_))));
}

#[test]
fn a_key_belongs_to_its_leaf() {
    let svid = svid(&authority(&east()), REVIEWS, 2);
    let stranger = Zeroizing::new(key().serialize_der());
    assert_eq!(Svid::new(svid.chain.clone(), stranger).unwrap_err(), SvidError::KeyMismatch);
    let garbage = Zeroizing::new(b"garbage".to_vec());
    assert_eq!(Svid::new(svid.chain.clone(), garbage).unwrap_err(), SvidError::Key);
    assert_eq!(Svid::new(Vec::new(), svid.key.clone()).unwrap_err(), SvidError::NoCertificate);
    let long = vec![svid.chain[0].clone(); MAX_CHAIN + 1];
    assert_eq!(Svid::new(long, svid.key.clone()).unwrap_err(), SvidError::ChainLength(MAX_CHAIN + 1));
}

#[test]
fn pem_is_read_as_it_was_written() {
    let authority = authority(&east());
    let mut svid = svid(&authority, REVIEWS, 2);
    svid.chain.push(authority.certificate().der.clone());
    let again = Svid::from_pem(&svid.chain_pem(), &svid.key_pem()).unwrap();
    assert_eq!(
        (again.facts, again.chain, again.key),
        (svid.facts.clone(), svid.chain.clone(), svid.key.clone())
    );
    assert!(svid.chain_pem().lines().all(|line| line.len() <= 64));
    assert_eq!(Svid::from_pem(&svid.chain_pem(), &svid.chain_pem()).unwrap_err(), SvidError::Key);
    assert_eq!(Svid::from_pem("", &svid.key_pem()).unwrap_err(), SvidError::NoCertificate);
    let long = svid.chain_pem().repeat(1000);
    assert_eq!(Svid::from_pem(&long, &svid.key_pem()).unwrap_err(), SvidError::ChainLength(MAX_CHAIN + 1));
}

#[test]
fn debug_shows_no_key() {
    let svid = svid(&authority(&east()), REVIEWS, 2);
    let shown = format!("{svid:?}");
    assert!(shown.contains("reviews") && !shown.contains("chain") && !shown.contains("key:"));
}
