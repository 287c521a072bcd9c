//! Lists that are made and read back, lists that are not to be believed, and what goes out with a bundle.

use rcgen::{CrlDistributionPoint, CrlIssuingDistributionPoint};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::*;
use crate::fixture::{DAY, HOUR, NOW, REVIEWS, authority, bundle, east, serial, svid, west};
use crate::grant::MAX_LIFETIME;
use crate::revocation::{Revocation, RevocationId};

fn entry(reason: Reason) -> CrlEntry {
    CrlEntry { at: NOW - HOUR, reason }
}

fn revocation(number: u64, origin: &TrustDomain, target: RevocationTarget, reason: Reason) -> Revocation {
    Revocation::new(
        RevocationId { number, origin: origin.clone() },
        target,
        reason,
        NOW - Duration::from_millis(500),
    )
}

fn params(authority: &Authority) -> CertificateRevocationListParams {
    let certificate = x509::parse(&authority.certificate().der).unwrap();
    let key_identifier = x509::subject_key_identifier(&certificate).unwrap().to_vec();
    CertificateRevocationListParams {
        this_update: x509::date_time(NOW).unwrap(),
        next_update: x509::date_time(NOW + DAY).unwrap(),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::PreSpecified(key_identifier),
    }
}

#[test]
fn a_list_says_what_it_was_made_of() {
    let east_1 = authority(&east());
    let reasons =
        [Reason::Unspecified, Reason::KeyCompromise, Reason::Superseded, Reason::Cessation, Reason::Hold];
    let revoked: BTreeMap<Serial, CrlEntry> =
        reasons.into_iter().zip(1..).map(|(reason, n)| (serial(n), entry(reason))).collect();
    for number in [0, 1, 127, 128, 65_536, u64::MAX] {
        let crl = Crl::sign(&east_1, number, &revoked, NOW).unwrap();
        assert_eq!((crl.number, crl.authority), (number, east_1.certificate().key_id));
        assert_eq!(crl.entries().unwrap(), revoked);
        assert!(crl.lists(&revoked) && !crl.lists(&BTreeMap::new()));
        assert_eq!(crl.check(east_1.certificate()), Ok(()));
        let list = read(&crl.der).unwrap();
        assert_eq!(x509::timestamp(list.last_update()), Some(NOW - BACKDATED));
        assert_eq!(crl.next_update, NOW + LIFETIME);
        assert!(list.extensions().iter().all(|e| !e.critical));
    }
    let empty = Crl::sign(&east_1, 1, &BTreeMap::new(), NOW).unwrap();
    assert_eq!(empty.entries().unwrap(), BTreeMap::new());
    assert!(empty.to_pem().starts_with("-----BEGIN X509 CRL-----\n"));
}

#[test]
fn a_list_outlives_everything_that_its_authority_has_signed() {
    let crl = Crl::sign(&authority(&east()), 1, &BTreeMap::new(), NOW).unwrap();
    // Down since the last moment before it would have been made anew, with an SVID signed just then.
    let last_svid_ends = crl.renew_at() + MAX_LIFETIME;
    assert!(last_svid_ends + DAY < crl.next_update);
}

/// rustls-webpki is a stranger to rcgen: it accepts the list, finds what is in it, and nothing else.
#[test]
fn a_stranger_reads_the_list() {
    let east_1 = authority(&east());
    let (revoked, other) = (svid(&east_1, REVIEWS, 5), svid(&east_1, REVIEWS, 6));
    let listed = BTreeMap::from([(revoked.facts.serial.clone(), entry(Reason::KeyCompromise))]);
    let crl = Crl::sign(&east_1, 9, &listed, NOW).unwrap();
    let list: CertRevocationList<'_> = OwnedCertRevocationList::from_der(&crl.der).unwrap().into();
    assert!(list.find_serial(revoked.facts.serial.as_bytes()).unwrap().is_some());
    assert!(list.find_serial(other.facts.serial.as_bytes()).unwrap().is_none());
}

#[test]
fn a_list_of_another_authority_or_a_changed_one_is_refused() {
    let (east_1, east_2) = (authority(&east()), authority(&east()));
    let crl = Crl::sign(&east_1, 1, &BTreeMap::new(), NOW).unwrap();
    assert!(matches!(crl.check(east_2.certificate()), Err(CrlError::Profile(_))));
    for claim in [
        Crl { number: 2, ..crl.clone() },
        Crl { authority: east_2.certificate().key_id, ..crl.clone() },
        Crl { next_update: NOW, ..crl.clone() },
    ] {
        assert!(claim.check(east_1.certificate()).is_err(), "{claim:?}");
    }
    // Whatever byte is changed: it cannot be read, or it is not signed.
    for at in 0..crl.der.len() {
        let mut der = crl.der.to_vec();
        der[at] ^= 1;
        assert!(
            Crl::parse(&der, east_1.certificate()).is_err(),
            "byte {at} of {}",
            crate::wire::to_hex(&crl.der)
        );
    }
    let mut longer = crl.der.to_vec();
    longer.push(0);
    assert!(matches!(Crl::parse(&longer, east_1.certificate()), Err(CrlError::Malformed(_))));
    assert!(matches!(Crl::parse(&[], east_1.certificate()), Err(CrlError::Malformed(_))));
    let huge = vec![0x30; MAX_CRL_BYTES + 1];
    assert_eq!(Crl::parse(&huge, east_1.certificate()), Err(CrlError::TooLarge(huge.len())));
}

#[test]
fn lists_that_verifiers_read_in_different_ways_are_refused() {
    let east_1 = authority(&east());
    let parse = |params: &CertificateRevocationListParams| {
        Crl::parse(params.signed_by(&east_1.issuer).unwrap().der(), east_1.certificate())
    };
    assert!(parse(&params(&east_1)).is_ok());
    let uris = vec!["http://east.example/crl".to_owned()];
    let sharded = CertificateRevocationListParams {
        issuing_distribution_point: Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris },
            scope: None,
        }),
        ..params(&east_1)
    };
    assert!(matches!(parse(&sharded), Err(CrlError::Profile(_))));
    let other_key = CertificateRevocationListParams {
        key_identifier_method: KeyIdMethod::PreSpecified(vec![1; 20]),
        ..params(&east_1)
    };
    assert!(matches!(parse(&other_key), Err(CrlError::Profile(_))));
    let long_number =
        CertificateRevocationListParams { crl_number: SerialNumber::from_slice(&[1; 9]), ..params(&east_1) };
    assert!(matches!(parse(&long_number), Err(CrlError::Profile(_))));
}

#[test]
fn an_authority_that_may_not_sign_lists_signs_none() {
    let mut params = crate::fixture::root_params(&east());
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let (der, _) = crate::fixture::handmade(params);
    let certificate = AuthorityCertificate::parse(&der, &east()).unwrap();
    let crl = Crl::sign(&authority(&east()), 1, &BTreeMap::new(), NOW).unwrap();
    assert!(crl.check(&certificate).is_err());
}

#[test]
fn a_huge_list_keeps_what_was_revoked_last_and_stays_readable() {
    let east_1 = authority(&east());
    let revoked: BTreeMap<Serial, CrlEntry> = (0..MAX_ENTRIES as u64 + 500)
        .map(|n| {
            let mut bytes = [0xff; 16];
            bytes[1..9].copy_from_slice(&n.to_be_bytes());
            let at = NOW - DAY + Duration::from_secs(n);
            (Serial::from_random(bytes), CrlEntry { at, reason: Reason::KeyCompromise })
        })
        .collect();
    let crl = Crl::sign(&east_1, 1, &revoked, NOW).unwrap();
    let listed = crl.entries().unwrap();
    assert_eq!(listed.len(), MAX_ENTRIES);
    assert!(listed.values().all(|e| e.at >= NOW - DAY + Duration::from_secs(500)));
    assert!(crl.lists(&revoked), "or it would be made anew for ever");
    assert!(crl.der.len() <= MAX_CRL_BYTES, "{} bytes", crl.der.len());
}

#[test]
fn serials_of_the_own_trust_domain_are_listed_once() {
    let mut revocations = Revocations::default();
    let of = |n| RevocationTarget::Serial(serial(n));
    revocations.insert(revocation(3, &east(), of(1), Reason::KeyCompromise));
    revocations.insert(revocation(4, &east(), of(1), Reason::Superseded));
    revocations.insert(revocation(5, &west(), of(2), Reason::KeyCompromise));
    let listed = revoked_serials(&revocations, &east());
    let second = Timestamp::from_seconds((NOW - Duration::from_millis(500)).seconds());
    let expected = CrlEntry { at: second, reason: Reason::KeyCompromise };
    assert_eq!(listed, BTreeMap::from([(serial(1), expected)]));
    assert_eq!(Crl::sign(&authority(&east()), 5, &listed, NOW).unwrap().entries().unwrap(), listed);
}

#[test]
fn lists_go_out_for_every_signing_authority_or_not_at_all() {
    let (east_1, mut east_2) = (authority(&east()), authority(&east()));
    let crl_of = |a: &Authority| Crl::sign(a, 1, &BTreeMap::new(), NOW).unwrap();
    let key = |a: &Authority| a.certificate().key_id;
    let (first, second) = (crl_of(&east_1), crl_of(&east_2));

    let both = bundle(&[&east_1, &east_2]);
    assert_eq!(with_crls(&both, None).missing, [key(&east_1), key(&east_2)]);
    let one = BTreeMap::from([(key(&east_1), first.clone())]);
    let incomplete = with_crls(&both, Some(&one));
    assert_eq!((incomplete.authorities.len(), incomplete.crls.len()), (2, 0));
    assert_eq!(incomplete.missing, [key(&east_2)]);
    let all = BTreeMap::from([(key(&east_1), first.clone()), (key(&east_2), second.clone())]);
    assert_eq!(with_crls(&both, Some(&all)).crls, [&first, &second]);

    // One that has signed nothing yet does not keep the others' lists back; one that is retired is gone altogether.
    east_2.set_state(AuthorityState::Prepared);
    let prepared = bundle(&[&east_1, &east_2]);
    let told = with_crls(&prepared, Some(&one));
    assert_eq!((told.authorities.len(), told.crls.len(), told.missing.len()), (2, 1, 0));
    east_2.set_state(AuthorityState::Retired);
    let retired = bundle(&[&east_1, &east_2]);
    let told = with_crls(&retired, Some(&all));
    assert_eq!((told.authorities.len(), told.crls), (1, vec![&first]));
}

#[test]
fn the_written_form_is_read_back() {
    let crl = Crl::sign(&authority(&east()), 7, &BTreeMap::new(), NOW).unwrap();
    let text = serde_json::to_string(&crl).unwrap();
    assert!(text.contains(r#""number":7,"nextUpdate":"#), "{text}");
    assert_eq!(serde_json::from_str::<Crl>(&text).unwrap(), crl);
}
