//! JWT-SVIDs: of all edits of a token that was issued, none is believed but the one that changes nothing.

use std::sync::OnceLock;
use std::time::Duration;

use hanse_identity::grant::{Evidence, Registration, Selector, grant};
use hanse_identity::jwt::validate;
use hanse_identity::{Bundle, JwtKey, Revocations, SpiffeId, Timestamp};

use crate::edit;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const AUDIENCE: &str = "spiffe://east.example/ns/shop/sa/ratings";

fn issued() -> &'static (Bundle, String) {
    static ISSUED: OnceLock<(Bundle, String)> = OnceLock::new();
    ISSUED.get_or_init(|| {
        let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().expect("a constant");
        let key = rcgen::KeyPair::generate().expect("the system has random numbers");
        let key = JwtKey::new(id.trust_domain(), key.try_into().expect("of the kind that it makes"));
        let mut bundle = Bundle::new(id.trust_domain().clone(), 1, Vec::new());
        bundle.jwt_authorities = vec![key.authority(NOW + Duration::from_secs(86_400))];
        let agent = "host-1".parse().expect("a constant");
        let evidence = Evidence { agent, selectors: [Selector::Uid(1)].into() };
        let registration = Registration::new(id.clone(), evidence.agent.clone(), [Selector::Uid(1)]);
        let none = Revocations::default();
        let ticket =
            grant(id.trust_domain(), [&registration], &none, &evidence, &id).expect("it is registered");
        let issued =
            key.issue(ticket, &bundle, &[AUDIENCE.to_owned()], None, NOW).expect("by its own authority");
        let token = issued.token.to_string();
        (bundle, token)
    })
}

pub fn run(bytes: &[u8]) -> bool {
    let (bundle, token) = issued();
    let none = Revocations::default();
    let believed = |text: &str| validate(|_| Some(bundle), &none, text, AUDIENCE, NOW).is_ok();
    let Ok(text) = String::from_utf8(edit::edited(token.as_bytes(), bytes)) else { return false };
    assert_eq!(believed(&text), text == *token, "{text} for {token}");
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(text == token || !believed(text), "{text}");
    }
    text == *token
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = edit::seeds();
    // {"alg":"none"}, which the library of the day once took.
    seeds.push(b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJzcGlmZmU6Ly9lYXN0LmV4YW1wbGUvYSJ9.".to_vec());
    seeds
}
