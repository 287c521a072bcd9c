//! Tests of bundle documents and Bundle Maps: B-1 to B-7, X-10, X-11, J-9 and J-10, each by its label.

use serde_json::json;

use super::*;
use crate::fixture::{authority, bundle, east, jwt_bundle, jwt_key, west};

const P384: &str = "P-384";

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn x509_key(trust_domain: &TrustDomain) -> Value {
    let document = bundle(&[&authority(trust_domain)]).to_jwks(60);
    parsed(&document)["keys"][0].clone()
}

fn jwt_key_of(trust_domain: &TrustDomain) -> Value {
    let key = jwt_key(trust_domain);
    let document = jwt_bundle(&[&key]).to_jwt_jwks();
    parsed(&document)["keys"][0].clone()
}

fn read(document: Value) -> BundleDocument {
    Bundle::from_jwks(&east(), &document.to_string()).unwrap()
}

fn refused(document: Value) -> String {
    Bundle::from_jwks(&east(), &document.to_string()).unwrap_err().to_string()
}

/// Counts of X.509 and JWT authorities that are read from these keys.
fn counts(keys: Value) -> (usize, usize) {
    let read = read(json!({ "keys": keys }));
    (read.bundle.authorities.len(), read.bundle.jwt_authorities.len())
}

fn without(key: &Value, name: &str) -> Value {
    let mut key = key.clone();
    key.as_object_mut().unwrap().remove(name);
    key
}

fn with(key: &Value, name: &str, value: Value) -> Value {
    let mut key = key.clone();
    key[name] = value;
    key
}

#[test]
fn a_document_survives_being_written_and_read() {
    let (one, two) = (jwt_key(&east()), jwt_key(&east()));
    let mut written = jwt_bundle(&[&one, &two]);
    written.sequence = u64::MAX;
    let document = Bundle::from_jwks(&east(), &written.to_jwks(60)).unwrap();
    assert_eq!(document.ignored, Vec::<String>::new());
    assert_eq!(document.bundle.authorities, written.authorities);
    let spkis = |bundle: &Bundle| -> Vec<_> {
        bundle.jwt_authorities.iter().map(|a| (a.key_id.clone(), a.spki_der.clone())).collect()
    };
    assert_eq!(spkis(&document.bundle), spkis(&written));
    assert_eq!(document.sequence, Some(u64::MAX), "64 bits are kept (B-2)");
    assert_eq!(document.bundle.check(), Ok(()));
}

#[test]
fn b_1_unknown_parameters_of_the_set_are_allowed_and_none_is_needed() {
    let key = x509_key(&east());
    let read = read(json!({ "keys": [key], "example_parameter": { "a": [1] } }));
    assert_eq!(read.bundle.authorities.len(), 1);
    assert_eq!((read.sequence, read.refresh_hint, read.bundle.sequence), (None, None, 0));
}

#[test]
fn b_2_the_sequence_is_a_whole_number_of_64_bits() {
    assert_eq!(read(json!({ "keys": [], "spiffe_sequence": u64::MAX })).bundle.sequence, u64::MAX);
    for wrong in [json!("7"), json!(7.5), json!(-7)] {
        assert!(refused(json!({ "keys": [], "spiffe_sequence": wrong })).contains("cannot be read"));
    }
}

#[test]
fn b_3_the_refresh_hint_is_in_whole_seconds() {
    let hint = |value: Value| read(json!({ "keys": [], "spiffe_refresh_hint": value })).refresh_hint;
    assert_eq!(hint(json!(60)), Some(Duration::from_secs(60)));
    assert!(refused(json!({ "keys": [], "spiffe_refresh_hint": 1.5 })).contains("cannot be read"));
    let written = parsed(&bundle(&[&authority(&east())]).to_jwks(300));
    assert_eq!(written["spiffe_refresh_hint"], 300);
}

#[test]
fn b_4_keys_must_be_there_and_may_be_empty() {
    assert!(refused(json!({})).contains("keys"));
    assert!(refused(json!({ "keys": null })).contains("cannot be read"));
    let empty = read(json!({ "keys": [], "spiffe_sequence": 9 })).bundle;
    assert_eq!((empty.authorities.len(), empty.jwt_authorities.len()), (0, 0));
    assert_eq!(empty.check_foreign(), Ok(()), "everything is revoked: a good bundle");
    assert_eq!(empty.check(), Err(BundleError::Empty), "and none of a cluster of ours");
}

#[test]
fn b_4_an_empty_bundle_makes_every_svid_untrusted() {
    use crate::fixture::{NOW, REVIEWS, svid};
    use crate::verify::{Trust, Usage, VerifyError, verify};

    let authority = authority(&east());
    let svid = svid(&authority, REVIEWS, 1);
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    let mut trust = Trust::new([&bundle(&[&authority])], Default::default());
    assert!(verify(&trust, &chain, NOW, Usage::Client).is_ok());
    trust.set_bundle(&read(json!({ "keys": [] })).bundle);
    let error = verify(&trust, &chain, NOW, Usage::Client).unwrap_err();
    assert_eq!(error, VerifyError::UnknownAuthority(east()));
}

#[test]
fn b_4_keys_of_unknown_kind_or_use_are_ignored() {
    let (x509, jwt) = (x509_key(&east()), jwt_key_of(&east()));
    let strange = [
        with(&x509, "kty", json!("OKP")),
        with(&jwt, "kty", json!("oct")),
        with(&x509, "use", json!("sig")),
        with(&jwt, "use", json!("wit-svid")),
        json!("text"),
    ];
    let document =
        read(json!({ "keys": [strange[0], strange[1], strange[2], x509, strange[3], jwt, strange[4]] }));
    assert_eq!((document.bundle.authorities.len(), document.bundle.jwt_authorities.len()), (1, 1));
    assert_eq!(document.ignored.len(), strange.len(), "{:?}", document.ignored);
}

#[test]
fn b_5_kty_and_use_must_be_set_and_are_case_sensitive() {
    let (x509, jwt) = (x509_key(&east()), jwt_key_of(&east()));
    for name in ["kty", "use"] {
        assert_eq!(counts(json!([without(&x509, name), without(&jwt, name)])), (0, 0), "{name}");
    }
    assert_eq!(
        counts(json!([with(&x509, "use", json!("X509-SVID")), with(&jwt, "use", json!("JWT-svid"))])),
        (0, 0)
    );
    assert_eq!(counts(json!([with(&x509, "kty", json!("ec"))])), (0, 0));
    assert_eq!(counts(json!([x509, jwt])), (1, 1));
}

#[test]
fn b_6_a_document_is_read_for_one_trust_domain() {
    let document = json!({ "keys": [x509_key(&west())] });
    let read = read(document.clone());
    assert_eq!(read.bundle.trust_domain, east());
    assert_eq!(read.bundle.authorities, [], "an authority that is named after west is none of east's");
    let of_west = Bundle::from_jwks(&west(), &document.to_string()).unwrap();
    assert_eq!(of_west.bundle.authorities.len(), 1);
}

#[test]
fn b_7_a_bundle_map_holds_every_trust_domain_once() {
    let (of_east, of_west) = (jwt_bundle(&[&jwt_key(&east())]), bundle(&[&authority(&west())]));
    let map = bundle_map([&of_east, &of_west]);
    let read = parse_bundle_map(&map).unwrap();
    let domains: Vec<_> = read.iter().map(|d| d.bundle.trust_domain.clone()).collect();
    assert_eq!(domains, [east(), west()]);
    assert_eq!(read[0].bundle.jwt_authorities.len(), 1);
    assert_eq!(read[1].bundle.authorities, of_west.authorities);
    let inside = &parsed(&map)["trust_domains"]["east.example"];
    assert!(inside.get("spiffe_refresh_hint").is_none(), "a map has no refresh hints inside");
}

#[test]
fn b_7_a_name_that_is_there_twice_makes_the_map_void() {
    let twice = r#"{"trust_domains":{"east.example":{"keys":[]},"east.example":{"keys":[]}}}"#;
    assert!(parse_bundle_map(twice).unwrap_err().to_string().contains("twice"));
    let maps = r#"{"trust_domains":{},"trust_domains":{}}"#;
    assert!(parse_bundle_map(maps).unwrap_err().to_string().contains("duplicate"));
    for wrong in [
        "{}",
        "[]",
        r#"{"trust_domains":{"East Example":{"keys":[]}}}"#,
        r#"{"trust_domains":{"east.example":{}}}"#,
    ] {
        assert!(parse_bundle_map(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn b_7_a_refresh_hint_inside_a_map_is_ignored() {
    let map = r#"{"more":1,"trust_domains":{"east.example":{"keys":[],"spiffe_refresh_hint":5}}}"#;
    assert_eq!(parse_bundle_map(map).unwrap()[0].refresh_hint, None);
}

#[test]
fn x_10_an_x509_key_has_no_kid_and_one_certificate() {
    let key = x509_key(&east());
    assert_eq!(key["use"], "x509-svid");
    assert!(key.get("kid").is_none());
    assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
}

#[test]
fn x_11_keys_without_a_certificate_are_ignored_and_only_the_first_counts() {
    let (one, two) = (x509_key(&east()), x509_key(&east()));
    assert_eq!(
        counts(json!([without(&one, "x5c"), with(&one, "x5c", json!([])), with(&one, "x5c", json!([""]))])),
        (0, 0)
    );
    let both = with(&one, "x5c", json!([one["x5c"][0], two["x5c"][0]]));
    let read_both = read(json!({ "keys": [both] })).bundle;
    let alone = read(json!({ "keys": [one] })).bundle;
    assert_eq!(read_both, alone);
    let spoiled = with(&two, "x5c", json!([two["x5c"][0], "!"]));
    assert_eq!(counts(json!([spoiled])), (1, 0), "what comes after the first is not looked at");
}

#[test]
fn x_11_a_domain_without_x509_keys_has_no_x509_authorities() {
    assert_eq!(counts(json!([jwt_key_of(&east())])), (0, 1));
}

#[test]
fn j_9_a_jwt_key_has_its_use_and_a_kid() {
    let key = jwt_key_of(&east());
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("jwt-svid"), &json!("EC"), &json!("P-256")));
    assert_eq!(key["kid"].as_str().unwrap().len(), 64);
    assert!(key.get("x5c").is_none() && key.get("d").is_none());
    assert_eq!(counts(json!([without(&key, "kid")])), (0, 0));
    assert_eq!(counts(json!([with(&key, "kid", json!(""))])), (0, 0));
    assert_eq!(counts(json!([with(&key, "kid", json!("k".repeat(257)))])), (0, 0));
}

#[test]
fn j_10_the_use_decides_what_a_key_is_for() {
    let (x509, jwt) = (x509_key(&east()), jwt_key_of(&east()));
    let mut masked = with(&x509, "use", json!("jwt-svid"));
    masked["kid"] = json!("k");
    assert_eq!(counts(json!([masked])), (0, 1), "its certificate is not looked at");
    assert_eq!(counts(json!([with(&jwt, "use", json!("x509-svid"))])), (0, 0));
    let alone = parsed(&jwt_bundle(&[&jwt_key(&east())]).to_jwt_jwks());
    assert!(alone["keys"].as_array().unwrap().iter().all(|key| key["use"] == "jwt-svid"));
}

#[test]
fn every_kind_of_key_of_the_standard_is_read_and_written() {
    use aws_lc_rs::encoding::AsDer as _;

    let spki = |key: rcgen::KeyPair| {
        use rcgen::PublicKeyData as _;
        key.subject_public_key_info()
    };
    let curves =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ECDSA_P521_SHA512];
    let mut keys: Vec<Vec<u8>> = curves.map(|c| spki(rcgen::KeyPair::generate_for(c).unwrap())).into();
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let rsa = aws_lc_rs::signature::KeyPair::public_key(&rsa).as_der().unwrap();
    keys.push(rsa.as_ref().to_vec());
    for key in &keys {
        let jwk = to_jwk(key).unwrap();
        assert_eq!(from_jwk(&jwk).as_ref(), Ok(key), "{jwk:?}");
    }
    let ed25519 = spki(rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    assert_eq!(to_jwk(&ed25519), None);
}

#[test]
fn keys_that_cannot_be_sound_are_left_out() {
    let key = jwt_key_of(&east());
    let zero = json!("A".repeat(43));
    assert_eq!(counts(json!([with(&key, "x", zero.clone())])), (0, 0), "not on the curve");
    assert_eq!(counts(json!([with(&key, "crv", json!(P384))])), (0, 0));
    assert_eq!(counts(json!([with(&key, "x", json!("AA"))])), (0, 0));
    let small = json!({ "kty": "RSA", "use": "jwt-svid", "kid": "k", "n": "w".repeat(171), "e": "AQAB" });
    assert_eq!(counts(json!([small])), (0, 0), "1024 bits");
    let large = json!({ "kty": "RSA", "use": "jwt-svid", "kid": "k", "n": "w".repeat(200_000), "e": "AQAB" });
    assert_eq!(counts(json!([large])), (0, 0));
    assert_eq!(
        counts(json!([with(&key, "kid", json!("a")), with(&jwt_key_of(&east()), "kid", json!("a"))])),
        (0, 1),
        "one kid, two keys"
    );
}

#[test]
fn documents_are_bounded_before_work_is_done() {
    let long = " ".repeat(MAX_DOCUMENT_BYTES + 1);
    assert!(matches!(Bundle::from_jwks(&east(), &long), Err(BundleError::Document(_))));
    assert!(matches!(parse_bundle_map(&long), Err(BundleError::Document(_))));
    let many = json!({ "keys": vec![json!({}); MAX_DOCUMENT_KEYS + 1] });
    assert!(refused(many).contains("at most 512"));
    let key = jwt_key_of(&east());
    let many: Vec<_> = (0..=MAX_JWT_AUTHORITIES).map(|n| with(&key, "kid", json!(n.to_string()))).collect();
    assert!(refused(json!({ "keys": many })).contains("at most 64"));
}

#[test]
fn retired_jwt_authorities_are_given_to_nobody() {
    let (one, two) = (jwt_key(&east()), jwt_key(&east()));
    let mut bundle = jwt_bundle(&[&one, &two]);
    bundle.jwt_authorities[0].state = AuthorityState::Retired;
    let keys = parsed(&bundle.to_jwt_jwks())["keys"].clone();
    assert_eq!(keys.as_array().unwrap().len(), 1);
    assert_eq!(keys[0]["kid"], two.key_id());
}

#[test]
fn a_bundle_of_ours_is_checked_with_its_jwt_authorities() {
    let (one, two) = (jwt_key(&east()), jwt_key(&east()));
    let good = jwt_bundle(&[&one, &two]);
    assert_eq!(good.check(), Ok(()));
    let spoil = |spoil: fn(&mut Bundle)| {
        let mut bundle = good.clone();
        spoil(&mut bundle);
        bundle.check().unwrap_err()
    };
    assert!(matches!(
        spoil(|b| b.jwt_authorities[1].key_id = b.jwt_authorities[0].key_id.clone()),
        BundleError::KeyIdShared(_)
    ));
    assert!(matches!(spoil(|b| b.jwt_authorities[0].key_id.clear()), BundleError::Jwt { .. }));
    assert!(matches!(spoil(|b| b.jwt_authorities[0].spki_der.truncate(20)), BundleError::Jwt { .. }));
    let many =
        |b: &mut Bundle| b.jwt_authorities = vec![b.jwt_authorities[0].clone(); MAX_JWT_AUTHORITIES + 1];
    assert!(matches!(spoil(many), BundleError::TooManyJwt(65)));
}
