//! Tests of end users' tokens: each algorithm that key sets have, and each way of being no good.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

struct Issuer {
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { ec, ed: Ed25519KeyPair::generate().unwrap() }
    }

    fn ec_jwk(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "x": b64(&point[1..33]), "y": b64(&point[33..]) })
    }

    fn ed_jwk(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": b64(self.ed.public_key()) })
    }

    fn keys(&self) -> JwkSet {
        let other = json!({ "kty": "later", "kid": "unknown" });
        let sealing = json!({ "use": "enc", "kid": "enc", "kty": "EC" });
        JwkSet::parse(&json!({ "keys": [self.ec_jwk(), self.ed_jwk(), other, sealing] }).to_string()).unwrap()
    }

    fn token(&self, header: Value, claims: Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = match header["alg"].as_str() {
            Some("EdDSA") => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
            _ => self.ec.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        format!("{signed}.{}", b64(signature))
    }
}

fn claims() -> Value {
    json!({ "iss": "https://id.example", "sub": "ann", "aud": ["shop"], "exp": NOW.seconds() + 60, "groups": ["staff"] })
}

fn verify(token: &str, keys: &JwkSet) -> Result<UserToken, UserJwtError> {
    Unverified::read(token)?.verify(keys, &["shop".to_owned()], NOW)
}

#[test]
fn tokens_of_each_kind_of_key_are_believed() {
    let issuer = Issuer::new();
    for header in
        [json!({ "alg": "ES256", "kid": "ec", "typ": "at+JWT" }), json!({ "alg": "EdDSA", "kid": "ed" })]
    {
        let token = verify(&issuer.token(header, claims()), &issuer.keys()).unwrap();
        assert_eq!(
            (token.principal.as_str(), &token.claims["groups"]),
            ("https://id.example/ann", &json!(["staff"]))
        );
    }
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let number = |bytes: &[u8]| b64(bytes);
    let public = rsa.public_key();
    let jwk = json!({
        "kty": "RSA", "kid": "rsa", "alg": "RS256",
        "n": number(public.modulus().big_endian_without_leading_zero()),
        "e": number(public.exponent().big_endian_without_leading_zero()),
    });
    let keys = JwkSet::parse(&json!({ "keys": [jwk] }).to_string()).unwrap();
    // Without a kid the only key is meant.
    let signed = format!("{}.{}", b64(json!({ "alg": "RS256" }).to_string()), b64(claims().to_string()));
    let mut signature = vec![0; rsa.public_modulus_len()];
    let padding = &aws_lc_rs::signature::RSA_PKCS1_SHA256;
    rsa.sign(padding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    let token = format!("{signed}.{}", b64(&signature));
    assert_eq!(verify(&token, &keys).unwrap().principal, "https://id.example/ann");
    assert_eq!(verify(&token, &issuer.keys()), Err(UserJwtError::UnknownKey));
}

#[test]
fn what_is_wrong_with_a_token_is_told_and_nothing_of_it_believed() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        issuer.token(json!({ "alg": "ES256", "kid": "ec" }), claims)
    };
    let good = issuer.token(json!({ "alg": "ES256", "kid": "ec" }), claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    let header = |header: Value| verify(&issuer.token(header, claims()), &keys);
    assert_eq!(header(json!({ "alg": "none" })), Err(UserJwtError::Algorithm("none".to_owned())));
    assert_eq!(
        header(json!({ "alg": "HS256", "kid": "secret" })),
        Err(UserJwtError::Algorithm("HS256".to_owned()))
    );
    assert_eq!(header(json!({ "alg": "ES256", "kid": "ed" })), Err(UserJwtError::UnknownKey));
    assert_eq!(header(json!({ "alg": "ES256" })), Err(UserJwtError::UnknownKey), "of two keys none is meant");
    assert_eq!(header(json!({ "alg": "ES256", "kid": "ec", "crit": ["b64"] })), Err(UserJwtError::Critical));
    let logout = header(json!({ "alg": "ES256", "kid": "ec", "typ": "logout+jwt" }));
    assert_eq!(logout, Err(UserJwtError::Type("logout+jwt".to_owned())));
    assert_eq!(verify(&format!("{signed}."), &keys), Err(UserJwtError::Signature));
    let other = Issuer::new().token(json!({ "alg": "ES256", "kid": "ec" }), claims());
    assert_eq!(verify(&other, &keys), Err(UserJwtError::Signature));
    assert_eq!(verify(&with("aud", json!("bank")), &keys), Err(UserJwtError::Audience));
    assert_eq!(verify(&with("aud", Value::Null), &keys), Err(UserJwtError::Audience));
    let seconds = NOW.seconds();
    assert!(matches!(verify(&with("exp", json!(seconds - 30)), &keys), Err(UserJwtError::Expired(_))));
    assert!(verify(&with("exp", json!(seconds - 29)), &keys).is_ok(), "clocks differ");
    assert!(matches!(verify(&with("nbf", json!(seconds + 31)), &keys), Err(UserJwtError::NotYetValid(_))));
    assert!(matches!(verify(&with("iat", json!(seconds + 31)), &keys), Err(UserJwtError::NotYetValid(_))));
    for absent in [Value::Null, json!("soon"), json!(-1)] {
        assert!(matches!(verify(&with("exp", absent), &keys), Err(UserJwtError::Claims(_))));
    }
    for junk in ["", "a", "a.b", "a.b.c.d", &format!("{good}="), &format!("{good}.x"), "..", "e30.e30."] {
        assert!(matches!(verify(junk, &keys), Err(UserJwtError::Shape(_))), "{junk}");
    }
    assert_eq!(verify(&"a".repeat(16 * 1024 + 1), &keys), Err(UserJwtError::TooLarge(16 * 1024 + 1)));
}

#[test]
fn a_key_set_has_keys_that_verify_and_not_too_many() {
    let issuer = Issuer::new();
    let parse = |keys: Value| JwkSet::parse(&json!({ "keys": keys }).to_string()).map(|set| set.keys.len());
    assert_eq!(parse(json!([issuer.ec_jwk()])), Ok(1));
    assert_eq!(parse(json!([])), Err(JwksError::NoKey));
    let mut small = issuer.ec_jwk();
    small["x"] = json!("AAAA");
    assert_eq!(parse(json!([small])), Err(JwksError::NoKey), "no point of the curve");
    let mut sealing = issuer.ec_jwk();
    sealing["key_ops"] = json!(["deriveKey"]);
    assert_eq!(parse(json!([sealing])), Err(JwksError::NoKey));
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth"] {
        let mut private = issuer.ed_jwk();
        private[member] = json!("AAAA");
        assert_eq!(parse(json!([issuer.ec_jwk(), private])), Err(JwksError::Private), "{member}");
    }
    // Of kinds that are passed over too: whoever verifies by the first could sign.
    for other in [json!({ "kty": "oct", "k": "AAAA", "kid": "1" }), json!({ "kty": "AKP", "priv": "AAAA" })] {
        assert_eq!(parse(json!([issuer.ec_jwk(), other])), Err(JwksError::Private), "{other}");
    }
    assert_eq!(parse(json!(vec![issuer.ec_jwk(); 65])), Err(JwksError::TooMany(65)));
    assert!(matches!(JwkSet::parse("[]"), Err(JwksError::Shape(_))));
    assert!(matches!(JwkSet::parse(&" ".repeat(256 * 1024 + 1)), Err(JwksError::TooLarge(_))));
}
