//! What peers and control nodes tell: Changes and PeerFacts are read as they were written, and Views take any of them.

use hanse_federation::change::{Change, PeerFact};
use hanse_federation::{View, wire};

pub fn run(bytes: &[u8]) -> bool {
    let mut taken = false;
    if let Ok(fact) = wire::decode::<PeerFact>("fact", bytes) {
        let again: PeerFact =
            wire::decode("fact", &wire::encode(&fact)).expect("what is written can be read");
        assert_eq!(again, fact);
        taken = true;
    }
    if let Ok(change) = wire::decode::<Change>("change", bytes) {
        let again: Change =
            wire::decode("change", &wire::encode(&change)).expect("what is written can be read");
        assert_eq!(again, change);
        let mut view =
            View::new("east".parse().expect("a constant"), "east.example".parse().expect("a constant"));
        view.apply(&change);
        let once = view.clone();
        view.apply(&change);
        // But for what a peer tells in the middle of a retelling, a fact twice is a fact.
        assert!(view == once || matches!(change, Change::PeerFact(..)), "{change:?}");
        taken = true;
    }
    taken
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        r#"{"serviceGone":"shop/reviews"}"#,
        r#"{"servicePut":{"name":"shop/reviews","identities":["spiffe://east.example/ns/shop/sa/reviews"],"export":"everyone"}}"#,
        r#"{"endpointGone":"reviews-1"}"#,
        r#"{"gatewayGone":"gateway-1"}"#,
        r#"{"peerPut":{"cluster":"west","trustDomain":"west.example","endpoints":["h:1"],"invite":"i","joined":5}}"#,
        r#"{"peerFact":["west",{"synced":7}]}"#,
        r#"{"peerFact":["west",{"serviceGone":"shop/reviews"}]}"#,
        r#"{"bundleGone":"east.example"}"#,
        r#"{"policyGone":{"kind":"HTTPRoute","name":"shop/reviews"}}"#,
        r#"{"endpoints":["h:1"]}"#,
        r#""begin""#,
    ])
}
