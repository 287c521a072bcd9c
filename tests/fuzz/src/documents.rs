//! Bundle documents (JWK sets) and Bundle Maps: what is read is what is written, and reads the same again.

use std::time::Duration;

use hanse_identity::bundle::{BundleDocument, parse_bundle_map};
use hanse_identity::{Authority, Bundle, JwtKey, Serial, Timestamp, TrustDomain};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn trust_domain() -> TrustDomain {
    "east.example".parse().expect("a constant")
}

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut taken = false;
    if let Ok(document) = Bundle::from_jwks(&trust_domain(), text) {
        let BundleDocument { bundle, .. } = &document;
        assert_eq!(bundle.trust_domain, trust_domain());
        let again =
            Bundle::from_jwks(&trust_domain(), &bundle.to_jwks(60)).expect("what is written can be read");
        assert_eq!(again.bundle, *bundle);
        taken = true;
    }
    if let Ok(documents) = parse_bundle_map(text) {
        let mut names: Vec<_> = documents.iter().map(|d| d.bundle.trust_domain.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), documents.len(), "one bundle for each trust domain");
        taken = true;
    }
    taken
}

pub fn seeds() -> Vec<Vec<u8>> {
    let domain = trust_domain();
    let new_key = || rcgen::KeyPair::generate().expect("the system has random numbers");
    let (day, node) = (Duration::from_secs(86_400), "node-1".parse().expect("a constant"));
    let serial = Serial::from_random([1; 16]);
    let authority =
        Authority::create(&domain, &node, new_key(), serial, NOW - day, 30 * day).expect("a new authority");
    let jwt = JwtKey::new(&domain, new_key().try_into().expect("of the kind that it makes"));
    let mut bundle = Bundle::new(domain.clone(), 7, vec![authority.certificate().clone()]);
    bundle.jwt_authorities = vec![jwt.authority(NOW + day)];
    let whole = bundle.to_jwks(300);
    let map = format!(r#"{{"trust_domains":{{"east.example":{whole}}}}}"#);
    let mut seeds = crate::texts(&[&whole, &map, r#"{"keys":[]}"#, r#"{"trust_domains":{}}"#]);
    bundle.authorities.clear();
    seeds.push(bundle.to_jwks(300).into_bytes());
    seeds
}
