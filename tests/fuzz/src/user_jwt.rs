//! Tokens of end users and the key sets that they are checked by: no edit of a token is believed, and no key set that is
//! read believes a token of somebody else's.

use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_identity::Timestamp;
use hanse_identity::jwt::user::{JwkSet, Unverified};
use serde_json::{Value, json};

use crate::edit;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

struct Issued {
    keys: JwkSet,
    token: String,
}

fn issued() -> &'static Issued {
    static ISSUED: OnceLock<Issued> = OnceLock::new();
    ISSUED.get_or_init(|| {
        let key = Ed25519KeyPair::generate().expect("the system has random numbers");
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(key.public_key().as_ref()) });
        let keys = JwkSet::parse(&json!({ "keys": [jwk] }).to_string()).expect("a key set");
        let text = |value: Value| b64(value.to_string().as_bytes());
        let header = text(json!({ "alg": "EdDSA", "kid": "ed", "typ": "JWT" }));
        let claims = text(
            json!({ "iss": "https://id.example", "sub": "ann", "aud": "shop", "exp": NOW.seconds() + 60 }),
        );
        let signed = format!("{header}.{claims}");
        let token = format!("{signed}.{}", b64(key.sign(signed.as_bytes()).as_ref()));
        Issued { keys, token }
    })
}

pub fn run(bytes: &[u8]) -> bool {
    let Issued { keys, token } = issued();
    let believed = |text: &str, keys: &JwkSet| {
        let read = Unverified::read(text).and_then(|token| token.verify(keys, &["shop".to_owned()], NOW));
        if let Ok(user) = &read {
            assert_eq!(user.principal, "https://id.example/ann");
        }
        read.is_ok()
    };
    let Ok(text) = String::from_utf8(edit::edited(token.as_bytes(), bytes)) else { return false };
    assert_eq!(believed(&text, keys), text == *token, "{text} for {token}");
    let mut taken = text == *token;
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(text == token || !believed(text, keys), "{text}");
        if let Ok(others) = JwkSet::parse(text) {
            assert!(!believed(token, &others), "{text} for {token}");
            taken = true;
        }
    }
    taken
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = edit::seeds();
    seeds.extend(crate::texts(&[
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
        r#"{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
        r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#,
        "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUifQ.",
    ]));
    seeds
}
