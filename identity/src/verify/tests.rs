//! Tests of verification: ID-7, X-1, X-3, X-8 and X-9 with hostile chains, and revocation.

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::*;
use crate::authority::AuthorityState;
use crate::fixture::{
    DAY, HOUR, NOW, REVIEWS, authority, bundle, east, extension, handmade, handmade_bundle, id, key,
    leaf_params, root_params, serial, sign, spoiled, svid, trust, uri, west,
};
use crate::revocation::{Reason, Revocation, RevocationTarget};

fn check(trust: &Trust, chain: &[&[u8]]) -> Result<VerifiedCaller, VerifyError> {
    let client = verify(trust, chain, NOW, Usage::Client);
    assert_eq!(client, verify(trust, chain, NOW, Usage::Server), "both sides are held to the same rules");
    client
}

fn revoke(number: u64, target: RevocationTarget) -> Revocation {
    Revocation::new(RevocationId { number, origin: east() }, target, Reason::Hold, NOW)
}

#[test]
fn a_good_svid_is_believed() {
    let authority = authority(&east());
    let svid = svid(&authority, REVIEWS, 2);
    let caller = check(&trust(&[&authority]), &[&svid.chain[0]]).unwrap();
    assert_eq!(caller.id(), &id(REVIEWS));
    assert_eq!(caller.facts(), &svid.facts);
    assert_eq!(caller.authorities(), [authority.certificate().key_id]);
}

#[test]
fn any_authority_of_the_trust_domain_will_do() {
    let (one, two, three) = (authority(&east()), authority(&east()), authority(&east()));
    let trust = Trust::new([&bundle(&[&one, &two, &three])], Revocations::default());
    for authority in [&one, &two, &three] {
        assert!(check(&trust, &[&svid(authority, REVIEWS, 2).chain[0]]).is_ok());
    }
}

#[test]
fn nothing_shown_is_no_caller() {
    assert_eq!(check(&Trust::default(), &[]), Err(VerifyError::NoCertificate));
}

/// The name and the key are under the signature: no byte of a certificate can change unnoticed.
#[test]
fn id_7_every_byte_is_signed() {
    let authority = authority(&east());
    let trust = trust(&[&authority]);
    let good = svid(&authority, REVIEWS, 2).chain.remove(0);
    for place in 0..good.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut der = good.clone();
            der[place] ^= flip;
            for usage in [Usage::Client, Usage::Server] {
                let believed = verify(&trust, &[&der], NOW, usage);
                assert!(believed.is_err(), "byte {place} ^ {flip:#x}: {believed:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check(&Trust::default(), &[&bytes]).is_err());
    }
}

#[test]
fn id_7_a_changed_name_breaks_the_signature() {
    let authority = authority(&east());
    let mut der = svid(&authority, REVIEWS, 2).chain.remove(0);
    let at = der.windows(7).position(|window| window == b"reviews").unwrap();
    der[at..at + 7].copy_from_slice(b"ratings");
    assert_eq!(SvidFacts::parse(&der).unwrap().id, id("spiffe://east.example/ns/shop/sa/ratings"));
    assert_eq!(check(&trust(&[&authority]), &[&der]), Err(VerifyError::UnknownAuthority(east())));
}

#[test]
fn x_1_several_uri_names_are_refused_though_well_signed() {
    let (one, two) = (authority(&east()), authority(&west()));
    let names = [REVIEWS, "spiffe://west.example/ns/shop/sa/reviews"];
    let der = sign(&leaf_params(&names), &one.issuer);
    assert_eq!(check(&trust(&[&one, &two]), &[&der]), Err(SvidError::UriNames(2).into()));
}

#[test]
fn x_3_an_authority_is_never_a_caller() {
    let authority = authority(&east());
    let refused = check(&trust(&[&authority]), &[&authority.certificate().der]);
    assert!(matches!(refused, Err(VerifyError::NotAnSvid(_))), "{refused:?}");
}

#[test]
fn x_3_a_trust_domain_vouches_for_its_own_names_only() {
    let (ours, theirs) = (authority(&east()), authority(&west()));
    let trust = trust(&[&ours, &theirs]);
    let forged = sign(&leaf_params(&[REVIEWS]), &theirs.issuer);
    assert_eq!(check(&trust, &[&forged]), Err(VerifyError::UnknownAuthority(east())));
    assert_eq!(
        check(&trust, &[&forged, &theirs.certificate().der]),
        Err(VerifyError::UnknownAuthority(east()))
    );
}

#[test]
fn x_8_strangers_are_refused() {
    let (ours, stranger) = (authority(&east()), authority(&east()));
    let svid = svid(&stranger, REVIEWS, 2);
    let unknown = Err(VerifyError::UnknownAuthority(east()));
    assert_eq!(check(&trust(&[&ours]), &[&svid.chain[0]]), unknown);
    assert_eq!(
        check(&trust(&[&ours]), &[&svid.chain[0], &stranger.certificate().der]),
        unknown,
        "its root sent along"
    );
    let elsewhere = check(&trust(&[&authority(&west())]), &[&svid.chain[0]]);
    assert_eq!(elsewhere, Err(VerifyError::UnknownTrustDomain(east())));
}

#[test]
fn x_8_a_stranger_with_our_authoritys_name_is_refused() {
    let (root, _) = handmade(root_params(&east()));
    let (_, impostor) = handmade(root_params(&east()));
    let trust = Trust::new([&handmade_bundle(&east(), &[&root])], Revocations::default());
    let forged = sign(&leaf_params(&[REVIEWS]), &impostor);
    assert_eq!(check(&trust, &[&forged]), Err(VerifyError::UnknownAuthority(east())));
}

#[test]
fn x_8_time_is_checked() {
    let authority = authority(&east());
    let trust = trust(&[&authority]);
    let svid = svid(&authority, REVIEWS, 2);
    let at = |now| verify(&trust, &[&svid.chain[0]], now, Usage::Client);
    assert!(at(svid.facts.not_before).is_ok());
    assert!(at(svid.facts.not_after - std::time::Duration::from_secs(1)).is_ok());
    assert_eq!(at(svid.facts.not_before - std::time::Duration::from_secs(1)), Err(VerifyError::Expired));
    assert_eq!(at(svid.facts.not_after + std::time::Duration::from_secs(1)), Err(VerifyError::Expired));
}

#[test]
fn x_8_an_expired_or_future_root_is_not_believed() {
    let window = |from: Timestamp, to: Timestamp| {
        let mut params = root_params(&east());
        params.not_before = x509::date_time(from).unwrap();
        params.not_after = x509::date_time(to).unwrap();
        let (root, issuer) = handmade(params);
        let trust = Trust::new([&handmade_bundle(&east(), &[&root])], Revocations::default());
        check(&trust, &[&sign(&leaf_params(&[REVIEWS]), &issuer)])
    };
    assert!(window(NOW - DAY, NOW + DAY).is_ok());
    assert_eq!(window(NOW - DAY, NOW - HOUR), Err(VerifyError::Expired));
    assert!(window(NOW - DAY, NOW).is_ok(), "both ends belong to it (RFC 5280 §4.1.2.5)");
    let second = std::time::Duration::from_secs(1);
    assert_eq!(window(NOW - DAY, NOW - second), Err(VerifyError::Expired));
    assert_eq!(window(NOW + second, NOW + DAY), Err(VerifyError::Expired));
    assert_eq!(window(NOW + HOUR, NOW + DAY), Err(VerifyError::Expired));
}

#[test]
fn x_8_a_leaf_signs_no_leaf() {
    let authority = authority(&east());
    let key = key();
    let mut params = leaf_params(&[REVIEWS]);
    params.distinguished_name.push(DnType::CommonName, "reviews");
    let leaf = params.signed_by(&key, &authority.issuer).unwrap();
    let forged = sign(&leaf_params(&["spiffe://east.example/hanse/admin/evil"]), &Issuer::new(params, key));
    let refused = check(&trust(&[&authority]), &[&forged, leaf.der()]);
    assert!(matches!(refused, Err(VerifyError::Path(_) | VerifyError::UnknownAuthority(_))), "{refused:?}");
}

/// A root without path length, an intermediate below it, and a leaf below that.
fn with_intermediate(
    root: CertificateParams,
    spoil: impl FnOnce(&mut CertificateParams),
) -> Result<VerifiedCaller, VerifyError> {
    let (root_der, root_issuer) = handmade(root);
    let mut params = root_params(&east());
    params.distinguished_name.push(DnType::CommonName, "between");
    spoil(&mut params);
    let key = KeyPair::generate().unwrap();
    let between = params.signed_by(&key, &root_issuer).unwrap();
    let leaf = sign(&leaf_params(&[REVIEWS]), &Issuer::new(params, key));
    let trust = Trust::new([&handmade_bundle(&east(), &[&root_der])], Revocations::default());
    check(&trust, &[&leaf, between.der()])
}

#[test]
fn x_8_an_intermediate_is_believed_where_the_root_allows_it() {
    assert!(with_intermediate(root_params(&east()), |_| {}).is_ok());
    let mut narrow = root_params(&east());
    narrow.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let refused = with_intermediate(narrow, |_| {});
    assert_eq!(refused, Err(VerifyError::Path("an authority allows fewer authorities below it".to_owned())));
}

#[test]
fn x_6_an_intermediate_may_sign_certificates() {
    let refused = with_intermediate(root_params(&east()), |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(
        refused,
        Err(VerifyError::Path(
            "an intermediate: its key usage lacks keyCertSign (X509-SVID §4.3)".to_owned()
        ))
    );
    let refused = with_intermediate(root_params(&east()), |p| p.key_usages.clear());
    assert!(matches!(refused, Err(VerifyError::Path(_))), "{refused:?}");
}

#[test]
fn x_3_an_intermediate_that_signs_leaves_has_its_trust_domain_as_its_name() {
    let other =
        with_intermediate(root_params(&east()), |p| p.subject_alt_names = vec![uri("spiffe://west.example")]);
    let rule = "an intermediate: its URI name is not the bare trust domain (X509-SVID §3.2)";
    assert_eq!(other, Err(VerifyError::Path(rule.to_owned())));
    let nameless = with_intermediate(root_params(&east()), |p| p.subject_alt_names.clear());
    let rule =
        "an intermediate: it signed the leaf but does not have its trust domain's name (X509-SVID §3.2)";
    assert_eq!(nameless, Err(VerifyError::Path(rule.to_owned())));
}

/// A user's own root (RSA, P-384 or P-256, no URI name), a node's intermediate below it, and its leaf.
#[test]
fn x_3_a_root_of_ones_own_house_vouches_through_a_named_intermediate() {
    let roots = [
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        key(),
    ];
    for root_key in roots {
        let mut root = root_params(&east());
        root.subject_alt_names.clear();
        let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
        let root_id = handmade_bundle(&east(), &[&root_der]).authorities[0].key_id;
        let root = Issuer::new(root, root_key);
        let mut node = root_params(&east());
        node.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        node.distinguished_name.push(DnType::CommonName, "node-1");
        node.use_authority_key_identifier_extension = true;
        let node_key = key();
        let node_id = x509::key_id(&rcgen::PublicKeyData::subject_public_key_info(&node_key));
        let between = node.signed_by(&node_key, &root).unwrap();
        let leaf = sign(&leaf_params(&[REVIEWS]), &Issuer::new(node, node_key));
        let trust = Trust::new([&handmade_bundle(&east(), &[&root_der])], Revocations::default());
        let caller = check(&trust, &[&leaf, between.der()]).unwrap();
        assert_eq!(caller.authorities(), [node_id, root_id]);
        assert!(check(&trust, &[&leaf, between.der(), &root_der]).is_ok(), "the root sent along");
        assert!(check(&trust, &[&leaf, &root_der, between.der()]).is_ok(), "in another order");
        assert_eq!(check(&trust, &[&leaf]), Err(VerifyError::UnknownAuthority(east())));
    }
}

#[test]
fn x_8_an_unknown_critical_extension_is_refused() {
    let authority = authority(&east());
    let strange = |critical| {
        spoiled(&authority, |p| p.custom_extensions.push(extension(&[1, 2, 3, 4], critical, b"\x05\x00")))
    };
    assert!(check(&trust(&[&authority]), &[&strange(false)]).is_ok());
    let refused = check(&trust(&[&authority]), &[&strange(true)]);
    assert!(matches!(refused, Err(VerifyError::NotAnSvid(SvidError::Malformed(_)))), "{refused:?}");
}

#[test]
fn x_9_well_signed_leaves_outside_the_profile_are_refused() {
    let authority = authority(&east());
    let trust = trust(&[&authority]);
    type Spoil = fn(&mut CertificateParams);
    let hostile: [(&str, Spoil); 6] = [
        ("cA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("keyCertSign", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("cRLSign", |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
        ("root path", |p| p.subject_alt_names = vec![uri("spiffe://east.example")]),
        ("no key usage", |p| p.key_usages.clear()),
        ("scheme", |p| p.subject_alt_names = vec![uri("https://east.example/a")]),
    ];
    assert!(check(&trust, &[&spoiled(&authority, |_| {})]).is_ok());
    for (what, spoil) in hostile {
        let refused = check(&trust, &[&spoiled(&authority, spoil)]);
        assert!(matches!(refused, Err(VerifyError::NotAnSvid(_))), "{what}: {refused:?}");
    }
}

#[test]
fn long_chains_and_large_certificates_are_refused_before_any_work() {
    let authority = authority(&east());
    let trust = trust(&[&authority]);
    let leaf = svid(&authority, REVIEWS, 2).chain.remove(0);
    let root = authority.certificate().der.as_slice();
    assert!(check(&trust, &[&leaf, root, root, root]).is_ok());
    let long = check(&trust, &[&leaf, root, root, root, root]);
    assert_eq!(long, Err(SvidError::ChainLength(5).into()));
    let large = vec![0; MAX_CERTIFICATE_BYTES + 1];
    for chain in [[large.as_slice(), root], [leaf.as_slice(), large.as_slice()]] {
        let refused = check(&trust, &chain);
        assert!(matches!(refused, Err(VerifyError::NotAnSvid(SvidError::Malformed(_)))), "{refused:?}");
    }
}

#[test]
fn a_root_at_the_end_of_the_chain_is_ignored() {
    let (ours, stranger) = (authority(&east()), authority(&east()));
    let svid = svid(&ours, REVIEWS, 2);
    for root in [&ours, &stranger] {
        let caller = check(&trust(&[&ours]), &[&svid.chain[0], &root.certificate().der]).unwrap();
        assert_eq!(caller.authorities(), [ours.certificate().key_id]);
    }
}

#[test]
fn retired_authorities_and_unreadable_ones_are_left_out() {
    let (one, two) = (authority(&east()), authority(&east()));
    let mut bundle = bundle(&[&one, &two]);
    let caller =
        check(&Trust::new([&bundle], Revocations::default()), &[&svid(&one, REVIEWS, 2).chain[0]]).unwrap();
    bundle.authorities[0].state = AuthorityState::Retired;
    bundle
        .authorities
        .push(crate::bundle::AuthorityCertificate { der: b"garbage".to_vec(), ..two.certificate().clone() });
    let trust = Trust::new([&bundle], Revocations::default());
    let unknown = Err(VerifyError::UnknownAuthority(east()));
    assert_eq!(check(&trust, &[&svid(&one, REVIEWS, 2).chain[0]]), unknown);
    assert!(check(&trust, &[&svid(&two, REVIEWS, 2).chain[0]]).is_ok());
    assert_eq!(caller.still_believed(&trust, NOW), Err(VerifyError::UnknownAuthority(east())));
}

#[test]
fn a_bundle_replaces_the_one_before() {
    let (one, two) = (authority(&east()), authority(&east()));
    let mut trust = trust(&[&one]);
    trust.set_bundle(&bundle(&[&two]));
    assert!(trust.knows(&east()) && !trust.knows(&west()));
    assert!(check(&trust, &[&svid(&one, REVIEWS, 2).chain[0]]).is_err());
    assert!(check(&trust, &[&svid(&two, REVIEWS, 2).chain[0]]).is_ok());
}

#[test]
fn revoked_by_serial_and_by_identity() {
    let authority = authority(&east());
    let (revoked, other) = (svid(&authority, REVIEWS, 2), svid(&authority, REVIEWS, 3));
    let mut by_serial = trust(&[&authority]);
    by_serial.revocations.insert(revoke(1, RevocationTarget::Serial(serial(2))));
    let refusal =
        VerifyError::Revoked { id: id(REVIEWS), revocation: RevocationId { number: 1, origin: east() } };
    assert_eq!(check(&by_serial, &[&revoked.chain[0]]), Err(refusal.clone()));
    assert!(check(&by_serial, &[&other.chain[0]]).is_ok());

    let mut by_identity = trust(&[&authority]);
    by_identity.revocations.insert(revoke(1, RevocationTarget::Identity(id(REVIEWS))));
    for svid in [&revoked, &other] {
        assert_eq!(check(&by_identity, &[&svid.chain[0]]), Err(refusal.clone()));
    }
    by_identity.revocations.remove(&RevocationId { number: 1, origin: east() });
    assert!(check(&by_identity, &[&revoked.chain[0]]).is_ok(), "lifted");
}

#[test]
fn live_connections_are_asked_again() {
    let authority = authority(&east());
    let mut trust = trust(&[&authority]);
    let svid = svid(&authority, REVIEWS, 2);
    let caller = check(&trust, &[&svid.chain[0]]).unwrap();
    assert_eq!(caller.still_believed(&trust, NOW), Ok(()));
    assert_eq!(caller.still_believed(&trust, svid.facts.not_after), Err(VerifyError::Expired));
    assert_eq!(caller.still_believed(&Trust::default(), NOW), Err(VerifyError::UnknownTrustDomain(east())));
    trust.revocations.insert(revoke(4, RevocationTarget::Identity(id(REVIEWS))));
    let refused = caller.still_believed(&trust, NOW);
    assert!(matches!(refused, Err(VerifyError::Revoked { .. })), "{refused:?}");
}

mod domains;
mod hostile;
mod mutation;
