//! x509-limbo through our verifier: nothing is believed that should not be, and every difference is one that we know.
//!
//! The corpus is x509-limbo's (Apache-2.0), 92 cases of its core, without the private keys of its leaves.

use std::path::Path;

use hanse_identity::Timestamp;
use hanse_tests::limbo::{Comparison, Outcome, cost, read};

fn outcomes() -> Vec<Outcome> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/limbo.json");
    let text = std::fs::read_to_string(file).unwrap();
    // For the cases that say no time: any within the life of their certificates.
    let now = Timestamp::from_seconds(1_767_225_600);
    read(&text, now).unwrap().iter().map(|case| case.run()).collect()
}

#[test]
fn x_8_differences_are_the_ones_we_know() {
    let outcomes = outcomes();
    assert_eq!(outcomes.len(), 92);
    let different = |wanted| -> Vec<&str> {
        outcomes.iter().filter(|o| o.comparison == wanted).map(|o| o.id.as_str()).collect()
    };
    assert_eq!(different(Comparison::WrongAccept), WRONG_ACCEPTS);
    assert_eq!(different(Comparison::WrongReject), WRONG_REJECTS);
    let unexplained = outcomes.iter().filter(|o| o.comparison != Comparison::Agree && o.known.is_none());
    assert_eq!(unexplained.map(|o| &o.id).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn x_9_a_certificate_of_the_web_is_no_svid() {
    assert!(outcomes().iter().all(|o| !o.believed_as_svid));
}

#[test]
fn hostile_chains_are_refused_and_good_ones_believed() {
    for cost in cost::measure(1) {
        assert_eq!(cost.believed, cost.what.starts_with("leaf,"), "{}", cost.what);
    }
}

const WRONG_ACCEPTS: &[&str] = &[
    "pathlen::max-chain-depth-0-exhausted",
    "pathlen::max-chain-depth-1-exhausted",
    "rfc5280::san::ip-in-dns",
    "rfc5280::ski::root-missing-ski",
    "webpki::aki::root-with-aki-missing-keyidentifier",
    "webpki::aki::root-with-aki-authoritycertissuer",
    "webpki::aki::root-with-aki-authoritycertserialnumber",
    "webpki::cn::ipv4-hex-mismatch",
    "webpki::cn::ipv4-leading-zeros-mismatch",
    "webpki::cn::ipv6-non-rfc5952-mismatch",
    "webpki::cn::punycode-not-in-san",
    "webpki::cn::not-in-san",
    "webpki::eku::ee-critical-eku",
    "webpki::san::mismatch-subdomain-san",
    "webpki::san::mismatch-subdomain-apex-san",
    "webpki::san::mismatch-apex-subdomain-san",
    "webpki::san::public-suffix-multi-label-wildcard-san",
    "webpki::san::public-suffix-private-namespace-wildcard-san",
    "webpki::san::wildcard-embedded-leftmost-san",
    "webpki::san::wildcard-not-in-leftmost-san",
    "webpki::san::wildcard-match-across-labels-san",
    "webpki::san::wildcard-embedded-ulabel-san",
    "webpki::san::no-san",
];

const WRONG_REJECTS: &[&str] = &[
    "cve::cve-2024-0567",
    "pathlen::max-chain-depth-1-self-issued",
    "rfc5280::nc::permitted-self-issued",
    "rfc5280::nc::nc-permits-email-literal-double-asterisk",
    "rfc5280::root-and-intermediate-swapped",
];
