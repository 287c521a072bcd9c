//! Tests of JWT-SVIDs: J-1 to J-7 and J-9, each by its label, and what a hostile token meets.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::bundle::Bundle;
use crate::fixture::{DAY, HOUR, NOW, REVIEWS, east, evidence, id, jwt_bundle, jwt_key, registration, west};
use crate::grant::{Registration, Ticket, grant};
use crate::revocation::{Reason, Revocation, RevocationId, RevocationTarget, Revocations};

const AUDIENCE: &str = "spiffe://east.example/ns/shop/sa/ratings";

fn ticket_for(seconds: u64) -> Ticket {
    let registrations = [Registration { ttl_seconds: seconds, ..registration(REVIEWS) }];
    grant(&east(), &registrations, &Revocations::default(), &evidence(), &id(REVIEWS)).unwrap()
}

fn ticket() -> Ticket {
    ticket_for(3600)
}

fn audience() -> Vec<String> {
    vec![AUDIENCE.to_owned()]
}

fn believed(bundle: &Bundle, token: &str) -> Result<ValidJwt, JwtError> {
    validate(|_| Some(bundle), &Revocations::default(), token, AUDIENCE, NOW)
}

/// A token with this header and these claims, signed with a published key whatever they say.
struct Forge {
    key: JwtKey,
    bundle: Bundle,
}

impl Forge {
    fn new() -> Self {
        let key = jwt_key(&east());
        let bundle = jwt_bundle(&[&key]);
        Self { key, bundle }
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.key.key_id(), "typ": "JWT" })
    }

    fn claims() -> Value {
        json!({ "sub": REVIEWS, "aud": [AUDIENCE], "iat": NOW.seconds(), "exp": NOW.seconds() + 300 })
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        self.key.sign(&header.to_string(), &claims.to_string()).unwrap().to_string()
    }

    fn with_header(&self, name: &str, value: Value) -> Result<ValidJwt, JwtError> {
        let mut header = self.header();
        header[name] = value;
        believed(&self.bundle, &self.token(&header, &Self::claims()))
    }

    fn with_claim(&self, name: &str, value: Value) -> Result<ValidJwt, JwtError> {
        let mut claims = Self::claims();
        claims[name] = value;
        believed(&self.bundle, &self.token(&self.header(), &claims))
    }

    fn without_claim(&self, name: &str) -> JwtError {
        let mut claims = Self::claims();
        claims.as_object_mut().unwrap().remove(name);
        believed(&self.bundle, &self.token(&self.header(), &claims)).unwrap_err()
    }
}

fn decoded(token: &str, part: usize) -> Value {
    let part = token.split('.').nth(part).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn what_is_issued_is_believed() {
    let key = jwt_key(&east());
    let bundle = jwt_bundle(&[&jwt_key(&east()), &key]);
    let issued = key.issue(ticket(), &bundle, &audience(), None, NOW).unwrap();
    let valid = believed(&bundle, &issued.token).unwrap();
    assert_eq!((&valid.id, valid.expires), (&id(REVIEWS), NOW + DEFAULT_JWT_LIFETIME));
    assert_eq!((valid.audience, valid.issued), (audience(), Some(NOW)));
    assert_eq!(valid.claims["sub"], REVIEWS);
}

#[test]
fn j_1_a_token_is_a_compact_jws_and_nothing_else() {
    let key = jwt_key(&east());
    let bundle = jwt_bundle(&[&key]);
    let token = key.issue(ticket(), &bundle, &audience(), None, NOW).unwrap().token.to_string();
    assert_eq!(token.split('.').count(), 3);
    let parts: Vec<&str> = token.split('.').collect();
    let json_serialization = json!({ "payload": parts[1], "protected": parts[0], "signature": parts[2] });
    let wrong = [
        String::new(),
        parts[0].to_owned(),
        parts[..2].join("."),
        format!("{token}.more"),
        format!("{token}=="),
        format!(" {token}"),
        token.replacen('.', "..", 1),
        json_serialization.to_string(),
    ];
    for wrong in wrong {
        assert!(matches!(believed(&bundle, &wrong), Err(JwtError::Shape(_))), "{wrong}");
    }
}

#[test]
fn j_2_only_alg_kid_and_typ_are_headers() {
    let forge = Forge::new();
    let issued = forge.key.issue(ticket(), &forge.bundle, &audience(), None, NOW).unwrap();
    let header = decoded(&issued.token, 0);
    let names: Vec<&String> = header.as_object().unwrap().keys().collect();
    assert_eq!(names, ["alg", "kid", "typ"]);
    for (name, value) in [
        ("jwk", json!({})),
        ("jku", json!("https://east.example/keys")),
        ("x5c", json!([])),
        ("x5u", json!("https://east.example")),
        ("crit", json!(["exp"])),
        ("cty", json!("JWT")),
        ("private", json!(1)),
    ] {
        assert!(matches!(forge.with_header(name, value), Err(JwtError::Header(_))), "{name}");
    }
    let twice = r#"{"alg":"ES256","alg":"none","kid":"k"}"#;
    let twice = forge.key.sign(twice, &Forge::claims().to_string()).unwrap();
    assert!(matches!(believed(&forge.bundle, &twice), Err(JwtError::Header(_))));
}

#[test]
fn j_3_none_hs_and_eddsa_are_rejected() {
    let forge = Forge::new();
    for alg in ["none", "None", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "", "RSA-OAEP"] {
        assert_eq!(forge.with_header("alg", json!(alg)).unwrap_err(), JwtError::Algorithm(alg.to_owned()));
    }
    let unsigned = forge.token(&json!({ "alg": "none", "kid": forge.key.key_id() }), &Forge::claims());
    let unsigned = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    assert!(matches!(believed(&forge.bundle, &unsigned), Err(JwtError::Algorithm(_))));
}

#[test]
fn j_3_the_algorithm_must_fit_the_key() {
    let forge = Forge::new();
    for alg in ["ES384", "ES512", "RS256", "PS512"] {
        assert_eq!(forge.with_header("alg", json!(alg)).unwrap_err(), JwtError::WrongKey, "{alg}");
    }
}

#[test]
fn j_3_every_algorithm_of_the_standard_is_verified() {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _};

    fn with<'s>(
        alg: &'s str,
        spki: &[u8],
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> (&'s str, Result<ValidJwt, JwtError>) {
        let key = JwtAuthority {
            key_id: "k".to_owned(),
            spki_der: spki.to_vec(),
            not_after: None,
            state: AuthorityState::Active,
        };
        assert_eq!(key.check(), Ok(()));
        let bundle = Bundle { jwt_authorities: vec![key], ..Bundle::new(east(), 1, Vec::new()) };
        let parts = [json!({ "alg": alg, "kid": "k" }), Forge::claims()]
            .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = parts.join(".");
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(sign(signed.as_bytes())));
        (alg, believed(&bundle, &token))
    }

    let random = SystemRandom::new();
    let mut results = Vec::new();
    for (alg, signing) in [
        ("ES256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        ("ES384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ("ES512", &signature::ECDSA_P521_SHA512_FIXED_SIGNING),
    ] {
        let key = EcdsaKeyPair::generate(signing).unwrap();
        let spki = key.public_key().as_der().unwrap();
        results.push(with(alg, spki.as_ref(), |m| key.sign(&random, m).unwrap().as_ref().to_vec()));
    }
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let spki = rsa.public_key().as_der().unwrap();
    for (alg, padding) in [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ] {
        results.push(with(alg, spki.as_ref(), |message| {
            let mut signature = vec![0; rsa.public_modulus_len()];
            rsa.sign(padding, &random, message, &mut signature).unwrap();
            signature
        }));
    }
    for (alg, result) in &results {
        assert_eq!(result.as_ref().map(|valid| &valid.id), Ok(&id(REVIEWS)), "{alg}");
    }
    assert_eq!(results.len(), 9);
}

#[test]
fn j_4_typ_is_jwt_or_jose_if_it_is_set() {
    let forge = Forge::new();
    assert!(forge.with_header("typ", json!("JWT")).is_ok());
    assert!(forge.with_header("typ", json!("JOSE")).is_ok());
    assert!(forge.with_header("typ", Value::Null).is_ok());
    for typ in ["jwt", "wit+jwt", "at+jwt", ""] {
        assert_eq!(forge.with_header("typ", json!(typ)).unwrap_err(), JwtError::Type(typ.to_owned()));
    }
}

#[test]
fn j_5_sub_is_a_workloads_spiffe_id() {
    let forge = Forge::new();
    assert!(matches!(forge.without_claim("sub"), JwtError::Subject(_)));
    for sub in [
        json!("reviews"),
        json!("spiffe://east.example"),
        json!("spiffe://east.example/ns//reviews"),
        json!("spiffe://east.example/a?b"),
        json!("https://east.example/reviews"),
        json!([REVIEWS]),
        Value::Null,
    ] {
        assert!(matches!(forge.with_claim("sub", sub.clone()), Err(JwtError::Subject(_))), "{sub}");
    }
}

#[test]
fn j_5_the_key_is_of_the_trust_domain_that_sub_names() {
    let forge = Forge::new();
    let token = forge.token(
        &forge.header(),
        &json!({ "sub": "spiffe://west.example/a", "aud": [AUDIENCE], "exp": NOW.seconds() + 9 }),
    );
    let unknown = JwtError::UnknownTrustDomain(west());
    let none = Revocations::default();
    assert_eq!(validate(|_| None, &none, &token, AUDIENCE, NOW).unwrap_err(), unknown);
    // Even if whoever asks hands out another domain's bundle.
    assert_eq!(validate(|_| Some(&forge.bundle), &none, &token, AUDIENCE, NOW).unwrap_err(), unknown);
    let of_west = jwt_bundle(&[&jwt_key(&west())]);
    let error = validate(|_| Some(&of_west), &none, &token, AUDIENCE, NOW).unwrap_err();
    assert_eq!(error, JwtError::UnknownAuthority(west()));
}

#[test]
fn j_6_aud_is_there_and_names_the_validator() {
    let forge = Forge::new();
    assert!(matches!(forge.without_claim("aud"), JwtError::Claims(_)));
    for wrong in [json!([]), json!(7), json!([7]), Value::Null] {
        assert!(matches!(forge.with_claim("aud", wrong.clone()), Err(JwtError::Claims(_))), "{wrong}");
    }
    for other in [json!("other"), json!(["other", ""]), json!([AUDIENCE.to_uppercase()])] {
        assert_eq!(forge.with_claim("aud", other).unwrap_err(), JwtError::Audience);
    }
    assert!(forge.with_claim("aud", json!(AUDIENCE)).is_ok(), "one value need not be a list");
    assert!(forge.with_claim("aud", json!(["other", AUDIENCE])).is_ok());
    let token =
        forge.token(&forge.header(), &json!({ "sub": REVIEWS, "aud": [""], "exp": NOW.seconds() + 9 }));
    let error = validate(|_| Some(&forge.bundle), &Revocations::default(), &token, "", NOW).unwrap_err();
    assert_eq!(error, JwtError::Audience, "a validator without a name believes nothing");
}

#[test]
fn j_6_nothing_is_signed_without_an_audience() {
    let key = jwt_key(&east());
    let bundle = jwt_bundle(&[&key]);
    for wrong in [
        vec![],
        vec![String::new()],
        vec!["a".repeat(MAX_AUDIENCE_BYTES + 1)],
        vec!["a".to_owned(); MAX_AUDIENCES + 1],
    ] {
        let error = key.issue(ticket(), &bundle, &wrong, None, NOW).unwrap_err();
        assert!(matches!(error, JwtIssueError::Audience(_)), "{wrong:?}");
    }
}

#[test]
fn j_7_exp_is_there_and_the_expired_is_rejected() {
    let forge = Forge::new();
    assert!(matches!(forge.without_claim("exp"), JwtError::Claims(_)));
    for wrong in [json!("soon"), json!(-1), json!(1e30), Value::Null] {
        assert!(matches!(forge.with_claim("exp", wrong.clone()), Err(JwtError::Claims(_))), "{wrong}");
    }
    let leeway = LEEWAY.as_secs();
    let at = |seconds: u64| forge.with_claim("exp", json!(seconds));
    assert_eq!(at(NOW.seconds() - leeway).unwrap_err(), JwtError::Expired(NOW - LEEWAY));
    assert!(at(NOW.seconds() - leeway + 1).is_ok());
    assert!(
        forge.with_claim("exp", json!(NOW.seconds() as f64 + 9.5)).is_ok(),
        "a NumericDate may have a fraction"
    );
}

#[test]
fn tokens_from_the_future_are_not_believed_yet() {
    let forge = Forge::new();
    let later = NOW.seconds() + LEEWAY.as_secs() + 1;
    for name in ["nbf", "iat"] {
        assert!(matches!(forge.with_claim(name, json!(later)), Err(JwtError::NotYetValid(_))), "{name}");
        assert!(forge.with_claim(name, json!(later - 1)).is_ok(), "{name}");
        assert!(matches!(forge.with_claim(name, json!("now")), Err(JwtError::Claims(_))), "{name}");
    }
}

#[test]
fn lifetimes_are_bounded() {
    let key = jwt_key(&east());
    let bundle = jwt_bundle(&[&key]);
    let lifetime = |wanted: Option<Duration>, registered| {
        key.issue(ticket_for(registered), &bundle, &audience(), wanted, NOW).unwrap().expires.since(NOW)
    };
    assert_eq!(lifetime(None, 86_400), DEFAULT_JWT_LIFETIME);
    assert_eq!(lifetime(Some(Duration::ZERO), 86_400), MIN_JWT_LIFETIME);
    assert_eq!(lifetime(Some(DAY), 86_400), MAX_JWT_LIFETIME);
    assert_eq!(lifetime(None, 60), Duration::from_secs(60), "never longer than the identity's own SVIDs");
    let late = NOW + 30 * DAY - Duration::from_secs(20);
    let issued = key.issue(ticket(), &bundle, &audience(), None, late).unwrap();
    assert_eq!(issued.expires, NOW + 30 * DAY, "never beyond the key's end");
}

#[test]
fn j_9_the_kid_names_the_key() {
    let forge = Forge::new();
    assert_eq!(forge.with_header("kid", json!("other")).unwrap_err(), JwtError::UnknownAuthority(east()));
    assert_eq!(forge.with_header("kid", json!("")).unwrap_err(), JwtError::NoKeyId);
    let without = forge.token(&json!({ "alg": "ES256" }), &Forge::claims());
    assert_eq!(believed(&forge.bundle, &without).unwrap_err(), JwtError::NoKeyId);
    // Another key of the same domain: its kid, not its signature.
    let both = jwt_bundle(&[&forge.key, &jwt_key(&east())]);
    let kid = json!(both.jwt_authorities[1].key_id);
    let mut header = forge.header();
    header["kid"] = kid;
    assert_eq!(believed(&both, &forge.token(&header, &Forge::claims())).unwrap_err(), JwtError::Signature);
}

#[test]
fn f_1_a_key_signs_only_once_it_is_published_and_while_it_is_active() {
    let key = jwt_key(&east());
    let issue = |bundle: &Bundle, now| key.issue(ticket(), bundle, &audience(), None, now).unwrap_err();
    assert_eq!(issue(&jwt_bundle(&[&jwt_key(&east())]), NOW), JwtIssueError::NotPublished);
    let mut bundle = jwt_bundle(&[&key]);
    for state in [AuthorityState::Prepared, AuthorityState::Tainted, AuthorityState::Retired] {
        bundle.jwt_authorities[0].state = state;
        assert_eq!(issue(&bundle, NOW), JwtIssueError::NotActive(state));
    }
    bundle.jwt_authorities[0].state = AuthorityState::Active;
    assert_eq!(issue(&bundle, NOW + 30 * DAY), JwtIssueError::Expired(NOW + 30 * DAY));
    // The same kid with another key is not this key.
    bundle.jwt_authorities[0].spki_der = jwt_key(&east()).authority(NOW + DAY).spki_der;
    assert_eq!(issue(&bundle, NOW), JwtIssueError::NotPublished);
    let of_west = jwt_key(&west());
    let foreign = of_west.issue(ticket(), &jwt_bundle(&[&of_west]), &audience(), None, NOW).unwrap_err();
    assert_eq!(foreign, JwtIssueError::ForeignTrustDomain(west()));
}

#[test]
fn a_retired_or_expired_key_is_not_believed() {
    let forge = Forge::new();
    let token = forge.token(&forge.header(), &Forge::claims());
    assert!(believed(&forge.bundle, &token).is_ok());
    let mut bundle = forge.bundle.clone();
    bundle.jwt_authorities[0].state = AuthorityState::Tainted;
    assert!(believed(&bundle, &token).is_ok(), "on its way out, and still believed");
    bundle.jwt_authorities[0].state = AuthorityState::Retired;
    assert_eq!(believed(&bundle, &token).unwrap_err(), JwtError::UnknownAuthority(east()));
    let mut bundle = forge.bundle.clone();
    bundle.jwt_authorities[0].not_after = Some(NOW);
    assert_eq!(believed(&bundle, &token).unwrap_err(), JwtError::UnknownAuthority(east()));
}

#[test]
fn a_revoked_identity_is_refused_whatever_its_token_says() {
    let forge = Forge::new();
    let token = forge.token(&forge.header(), &Forge::claims());
    let revocation = Revocation::new(
        RevocationId { number: 7, origin: east() },
        RevocationTarget::Identity(id(REVIEWS)),
        Reason::KeyCompromise,
        NOW - HOUR,
    );
    let mut revocations = Revocations::default();
    revocations.insert(revocation);
    let error = validate(|_| Some(&forge.bundle), &revocations, &token, AUDIENCE, NOW).unwrap_err();
    let number = |error| match error {
        JwtError::Revoked { id: who, revocation } => (who, revocation.number),
        other => panic!("{other:?}"),
    };
    assert_eq!(number(error), (id(REVIEWS), 7));
}

/// Given new SVIDs, its old tokens are dead, and one that is signed in the very second of the order is not.
#[test]
fn a_reissued_identitys_older_tokens_are_refused_and_new_ones_believed() {
    let forge = Forge::new();
    let ordered = NOW + Duration::from_millis(300);
    let revocation = Revocation {
        reissue: true,
        ..Revocation::new(
            RevocationId { number: 8, origin: east() },
            RevocationTarget::Identity(id(REVIEWS)),
            Reason::KeyCompromise,
            ordered,
        )
    };
    let mut revocations = Revocations::default();
    revocations.insert(revocation);
    let checked = |token: &str, now| validate(|_| Some(&forge.bundle), &revocations, token, AUDIENCE, now);
    let dated = |iat: Option<u64>| {
        let mut claims = Forge::claims();
        claims.as_object_mut().unwrap().remove("iat");
        iat.into_iter().for_each(|iat| claims["iat"] = json!(iat));
        forge.token(&forge.header(), &claims)
    };
    for old in [Some(NOW.seconds() - 60), Some(NOW.seconds()), None] {
        let refused = checked(&dated(old), ordered + Duration::from_secs(1)).unwrap_err();
        assert!(matches!(refused, JwtError::Revoked { .. }), "iat {old:?}: {refused:?}");
    }
    assert!(checked(&dated(Some(NOW.seconds() + 1)), ordered + Duration::from_secs(1)).is_ok());
    // Another identity's tokens are as good as before.
    let other = "spiffe://east.example/ns/shop/sa/ratings";
    let mut claims = Forge::claims();
    claims["sub"] = json!(other);
    assert!(checked(&forge.token(&forge.header(), &claims), ordered).is_ok());

    // What is issued from now on is dated so that it is believed, also where the issuer's clock is behind.
    for issuer in [ordered, NOW - Duration::from_secs(5)] {
        let ticket =
            grant(&east(), &[registration(REVIEWS)], &revocations, &evidence(), &id(REVIEWS)).unwrap();
        let issued = forge.key.issue(ticket, &forge.bundle, &audience(), None, issuer).unwrap();
        let valid = checked(&issued.token, ordered).unwrap();
        assert_eq!(valid.issued.unwrap().seconds(), NOW.seconds() + 1);
    }
}

#[test]
fn a_changed_token_is_not_believed() {
    let forge = Forge::new();
    let token = forge.token(&forge.header(), &Forge::claims());
    let parts: Vec<&str> = token.split('.').collect();
    let claims = URL_SAFE_NO_PAD.encode(
        json!({ "sub": "spiffe://east.example/admin", "aud": [AUDIENCE], "exp": NOW.seconds() + 9 })
            .to_string(),
    );
    let changed = format!("{}.{claims}.{}", parts[0], parts[2]);
    assert_eq!(believed(&forge.bundle, &changed).unwrap_err(), JwtError::Signature);
    for signature in ["", "AAAA", &"A".repeat(86)] {
        let changed = format!("{}.{}.{signature}", parts[0], parts[1]);
        assert_eq!(believed(&forge.bundle, &changed).unwrap_err(), JwtError::Signature, "{signature}");
    }
}

#[test]
fn the_size_is_bounded_before_work_is_done() {
    let forge = Forge::new();
    let large = forge.with_claim("note", json!("x".repeat(MAX_TOKEN_BYTES)));
    assert!(matches!(large, Err(JwtError::TooLarge(_))));
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let deep = forge.key.sign(&forge.header().to_string(), &format!("{{\"sub\":{deep}}}")).unwrap();
    assert!(matches!(believed(&forge.bundle, &deep), Err(JwtError::Claims(_))), "nesting is bounded");
}

#[test]
fn tokens_and_keys_do_not_show_themselves() {
    let key = jwt_key(&east());
    let bundle = jwt_bundle(&[&key]);
    let issued = key.issue(ticket(), &bundle, &audience(), None, NOW).unwrap();
    assert!(!format!("{issued:?}").contains("ey"));
    assert_eq!(format!("{key:?}"), format!("JwtKey {{ key_id: {:?}, .. }}", key.key_id()));
}
