//! One trust domain cannot speak for another (threat T2), and paths are searched within bounds.

use super::*;
use crate::fixture::handmade_bundle as bundle_of;

const THEIRS: &str = "spiffe://west.example/ns/shop/sa/reviews";

/// A root of a trust domain with the name `common`, and what signs with it.
fn root_of(trust_domain: &TrustDomain, common: &str) -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let mut params = root_params(trust_domain);
    params.distinguished_name.push(DnType::CommonName, common);
    handmade(params)
}

/// A certificate for the key of `below` that `above` signed, as `edit` makes it.
fn cross_signed(
    below: &Issuer<'static, KeyPair>,
    above: &Issuer<'static, KeyPair>,
    trust_domain: &TrustDomain,
    edit: impl FnOnce(&mut CertificateParams),
) -> Vec<u8> {
    let mut params = root_params(trust_domain);
    params.use_authority_key_identifier_extension = true;
    edit(&mut params);
    params.signed_by(below.key(), above).unwrap().der().to_vec()
}

fn named(common: &'static str) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.distinguished_name.push(DnType::CommonName, common)
}

#[test]
fn x_3_neither_domain_speaks_for_the_other() {
    let (east_root, east_key) = root_of(&east(), "east");
    let (west_root, west_key) = root_of(&west(), "west");
    let trust = Trust::new(
        [&bundle_of(&east(), &[&east_root]), &bundle_of(&west(), &[&west_root])],
        Revocations::default(),
    );
    for (name, domain, right, wrong, root) in [
        (REVIEWS, east(), &east_key, &west_key, &west_root),
        (THEIRS, west(), &west_key, &east_key, &east_root),
    ] {
        assert!(check(&trust, &[&sign(&leaf_params(&[name]), right)]).is_ok());
        let forged = sign(&leaf_params(&[name]), wrong);
        assert_eq!(check(&trust, &[&forged]), Err(VerifyError::UnknownAuthority(domain.clone())));
        assert_eq!(check(&trust, &[&forged, root]), Err(VerifyError::UnknownAuthority(domain)));
    }
}

#[test]
fn x_3_a_refreshed_bundle_changes_one_domain_only() {
    let (east_root, east_key) = root_of(&east(), "east");
    let (west_root, west_key) = root_of(&west(), "west");
    let mut trust = Trust::new([&bundle_of(&east(), &[&east_root])], Revocations::default());
    trust.set_bundle(&bundle_of(&west(), &[&west_root]));
    let forged = sign(&leaf_params(&[REVIEWS]), &west_key);
    assert_eq!(check(&trust, &[&forged]), Err(VerifyError::UnknownAuthority(east())));
    // Even a bundle that claims another domain's root gives nothing for its names.
    let stolen = AuthorityCertificateOf(&east_root).claimed_by(&west());
    trust.set_bundle(&stolen);
    let theirs = sign(&leaf_params(&[THEIRS]), &east_key);
    assert_eq!(check(&trust, &[&theirs]), Err(VerifyError::UnknownAuthority(west())));
}

/// A root that says it is one domain's, in the bundle of another.
struct AuthorityCertificateOf<'d>(&'d [u8]);

impl AuthorityCertificateOf<'_> {
    fn claimed_by(&self, trust_domain: &TrustDomain) -> Bundle {
        let honest = bundle_of(&east(), &[self.0]);
        Bundle { trust_domain: trust_domain.clone(), ..honest }
    }
}

/// East has signed west's root, as a meeting of two PKIs often goes: west still speaks for no name of east.
#[test]
fn x_3_a_cross_signed_root_speaks_for_its_own_domain_only() {
    let (east_root, east_key) = root_of(&east(), "east");
    let (west_root, west_key) = root_of(&west(), "west");
    let trust = Trust::new(
        [&bundle_of(&east(), &[&east_root]), &bundle_of(&west(), &[&west_root])],
        Revocations::default(),
    );
    let forged = sign(&leaf_params(&[REVIEWS]), &west_key);
    let theirs = cross_signed(&west_key, &east_key, &west(), named("west"));
    let refused = check(&trust, &[&forged, &theirs]);
    assert!(
        matches!(&refused, Err(VerifyError::Path(rule)) if rule.contains("bare trust domain")),
        "{refused:?}"
    );
    // And if east has forgotten to say whose root it signs.
    let nameless = cross_signed(&west_key, &east_key, &west(), |p| {
        named("west")(p);
        p.subject_alt_names.clear();
    });
    let refused = check(&trust, &[&forged, &nameless]);
    assert!(
        matches!(&refused, Err(VerifyError::Path(rule)) if rule.contains("does not have")),
        "{refused:?}"
    );
    // West's own names go on being west's, with the cross certificate sent along and in either place.
    let own = sign(&leaf_params(&[THEIRS]), &west_key);
    for chain in [vec![&own], vec![&own, &theirs], vec![&own, &nameless], vec![&own, &nameless, &west_root]] {
        let chain: Vec<&[u8]> = chain.into_iter().map(Vec::as_slice).collect();
        assert!(check(&trust, &chain).is_ok());
    }
}

/// Two trust domains below one root of a house: each through its own intermediate, and not through the other's.
#[test]
fn x_3_a_root_that_two_domains_share_keeps_them_apart() {
    let mut params = root_params(&east());
    params.subject_alt_names.clear();
    let (root, root_key) = handmade(params);
    let trust =
        Trust::new([&bundle_of(&east(), &[&root]), &bundle_of(&west(), &[&root])], Revocations::default());
    let node = |trust_domain: &TrustDomain| {
        let mut params = root_params(trust_domain);
        params.distinguished_name.push(DnType::CommonName, trust_domain.as_str());
        let key = key();
        let der = params.signed_by(&key, &root_key).unwrap().der().to_vec();
        (der, Issuer::new(params, key))
    };
    let ((east_der, east_key), (west_der, west_key)) = (node(&east()), node(&west()));
    assert!(check(&trust, &[&sign(&leaf_params(&[REVIEWS]), &east_key), &east_der]).is_ok());
    assert!(check(&trust, &[&sign(&leaf_params(&[THEIRS]), &west_key), &west_der]).is_ok());
    assert!(check(&trust, &[&sign(&leaf_params(&[REVIEWS]), &west_key), &west_der]).is_err());
    assert!(check(&trust, &[&sign(&leaf_params(&[THEIRS]), &east_key), &east_der]).is_err());
    assert!(check(&trust, &[&sign(&leaf_params(&[REVIEWS]), &west_key), &west_der, &east_der]).is_err());
}

/// Several certificates of one name with other keys: the right one is found by its key identifier, wherever it is.
#[test]
fn x_8_authorities_of_one_name_are_told_apart_by_their_keys() {
    let (root, root_key) = root_of(&east(), "root");
    let trust = Trust::new([&bundle_of(&east(), &[&root])], Revocations::default());
    let between: Vec<_> = (0..3)
        .map(|_| {
            let mut params = root_params(&east());
            params.distinguished_name.push(DnType::CommonName, "between");
            let key = key();
            let der = params.signed_by(&key, &root_key).unwrap().der().to_vec();
            (der, Issuer::new(params, key))
        })
        .collect();
    for (_, signer) in &between {
        let leaf = sign(&leaf_params(&[REVIEWS]), signer);
        assert!(check(&trust, &[&leaf, &between[0].0, &between[1].0, &between[2].0]).is_ok());
    }
    // Without an identifier, two candidates are tried and no third.
    let mut params = leaf_params(&[REVIEWS]);
    params.use_authority_key_identifier_extension = false;
    let leaf = sign(&params, &between[2].1);
    assert!(check(&trust, &[&leaf, &between[1].0, &between[2].0]).is_ok());
    let all = check(&trust, &[&leaf, &between[0].0, &between[1].0, &between[2].0]);
    assert_eq!(all, Err(VerifyError::UnknownAuthority(east())));
}

#[test]
fn x_8_an_authority_that_two_others_vouch_for_is_found_through_either() {
    let (old_root, old_key) = root_of(&east(), "old");
    let (new_root, new_key) = root_of(&east(), "new");
    let mut params = root_params(&east());
    params.distinguished_name.push(DnType::CommonName, "between");
    params.use_authority_key_identifier_extension = true;
    let key = key();
    let by_old = params.signed_by(&key, &old_key).unwrap().der().to_vec();
    let by_new = params.signed_by(&key, &new_key).unwrap().der().to_vec();
    let leaf = sign(&leaf_params(&[REVIEWS]), &Issuer::new(params, key));
    for roots in [vec![&old_root], vec![&new_root], vec![&old_root, &new_root]] {
        let roots: Vec<&[u8]> = roots.into_iter().map(Vec::as_slice).collect();
        let trust = Trust::new([&bundle_of(&east(), &roots)], Revocations::default());
        assert!(check(&trust, &[&leaf, &by_old, &by_new]).is_ok());
        assert!(check(&trust, &[&leaf, &by_new, &by_old]).is_ok());
    }
}

/// Circles and self-issued authorities lead nowhere, and quickly.
#[test]
fn x_8_circles_lead_nowhere() {
    let (root, _) = root_of(&east(), "root");
    let trust = Trust::new([&bundle_of(&east(), &[&root])], Revocations::default());
    let (_, one) = root_of(&east(), "one");
    let (_, two) = root_of(&east(), "two");
    let one_by_two = cross_signed(&one, &two, &east(), named("one"));
    let two_by_one = cross_signed(&two, &one, &east(), named("two"));
    let (own, _) = root_of(&east(), "one");
    let leaf = sign(&leaf_params(&[REVIEWS]), &one);
    for chain in [
        vec![&leaf, &one_by_two, &two_by_one],
        vec![&leaf, &one_by_two, &one_by_two, &one_by_two],
        vec![&leaf, &own, &own],
    ] {
        let chain: Vec<&[u8]> = chain.into_iter().map(Vec::as_slice).collect();
        assert!(check(&trust, &chain).is_err());
    }
}

#[test]
fn x_5_constraints_that_nobody_compares_are_refused() {
    let constrained = |content: &'static [u8]| {
        with_intermediate(root_params(&east()), |p| {
            p.custom_extensions.push(extension(&[2, 5, 29, 30], true, content));
        })
    };
    let uri = constrained(b"\x30\x12\xa0\x10\x30\x0e\x86\x0ceast.example");
    assert!(matches!(&uri, Err(VerifyError::Path(rule)) if rule.contains("X509-SVID §4.2")), "{uri:?}");
    let empty = constrained(b"\x30\x00");
    assert!(matches!(&empty, Err(VerifyError::Path(rule)) if rule.contains("empty")), "{empty:?}");
    let many: &'static [u8] = {
        let base = b"\x30\x0e\x82\x0ceast.example".repeat(33);
        let list = [&[0xa0, 0x82, (base.len() >> 8) as u8, base.len() as u8][..], &base].concat();
        [&[0x30, 0x82, (list.len() >> 8) as u8, list.len() as u8][..], &list].concat().leak()
    };
    let many = constrained(many);
    assert!(matches!(&many, Err(VerifyError::Path(rule)) if rule.contains("more than 32")), "{many:?}");
    // What is compared is kept: the leaf has no DNS name that this could forbid.
    assert!(constrained(b"\x30\x12\xa0\x10\x30\x0e\x82\x0ceast.example").is_ok());
}
