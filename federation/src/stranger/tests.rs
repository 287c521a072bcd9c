//! The rules of SPIFFE Federation that need no socket.

use super::*;

fn url(text: &str) -> Result<EndpointUrl, UrlError> {
    text.parse()
}

fn bundle(sequence: u64, authorities: usize) -> Bundle {
    let mut bundle = Bundle::new("north.example".parse().unwrap(), sequence, Vec::new());
    // Two bundles differ by their keys; what the keys are does not matter to the order.
    bundle.authorities = (0..authorities)
        .map(|number| hanse_identity::AuthorityCertificate {
            der: vec![number as u8],
            key_id: hanse_identity::KeyId([number as u8; 32]),
            subject: format!("CN={number}"),
            not_after: Timestamp(u64::MAX),
            state: hanse_identity::AuthorityState::Active,
        })
        .collect();
    bundle
}

#[test]
fn f_2_the_hint_is_followed_within_bounds() {
    let seconds = Duration::from_secs;
    assert_eq!(interval(Some(seconds(60))), seconds(60));
    assert_eq!(interval(Some(seconds(0))), SHORTEST_INTERVAL);
    assert_eq!(interval(Some(seconds(u64::MAX / 2))), LONGEST_INTERVAL);
}

#[test]
fn b_8_without_a_hint_a_bundle_is_fetched_every_five_minutes() {
    assert_eq!(interval(None), Duration::from_secs(300));
}

#[test]
fn f_3_bundles_are_ordered_by_sequence() {
    assert_eq!(compare(None, &bundle(7, 1)), Ok(Freshness::Newer));
    let kept = bundle(7, 1);
    assert_eq!(compare(Some(&kept), &bundle(8, 2)), Ok(Freshness::Newer));
    assert_eq!(compare(Some(&kept), &bundle(8, 1)), Ok(Freshness::Newer), "so that 7 cannot come back");
    assert_eq!(compare(Some(&kept), &bundle(7, 1)), Ok(Freshness::Same));
    assert_eq!(
        compare(Some(&kept), &bundle(6, 2)),
        Err(Stale::LowerSequence { kept: 7, fetched: 6 }),
        "a bundle that was replaced does not come back"
    );
    assert_eq!(compare(Some(&kept), &bundle(7, 2)), Err(Stale::SameSequence(7)));
    assert_eq!(
        compare(Some(&kept), &bundle(0, 2)),
        Err(Stale::LowerSequence { kept: 7, fetched: 0 }),
        "leaving the sequence out is no way back"
    );
    let uncounted = bundle(0, 1);
    assert_eq!(compare(Some(&uncounted), &bundle(0, 2)), Ok(Freshness::Newer));
    assert_eq!(compare(Some(&uncounted), &bundle(0, 1)), Ok(Freshness::Same));
}

#[test]
fn f_3_the_order_of_keys_says_nothing() {
    let jwt_authority = |key_id: &str| hanse_identity::JwtAuthority {
        key_id: key_id.to_owned(),
        spki_der: key_id.as_bytes().to_vec(),
        not_after: None,
        state: hanse_identity::AuthorityState::Active,
    };
    for sequence in [0, 7] {
        let mut kept = bundle(sequence, 2);
        kept.jwt_authorities = vec![jwt_authority("a"), jwt_authority("b")];
        let mut fetched = kept.clone();
        fetched.authorities.reverse();
        fetched.jwt_authorities.reverse();
        assert_ne!(fetched, kept);
        assert_eq!(compare(Some(&kept), &fetched), Ok(Freshness::Same));
        fetched.jwt_authorities[1] = jwt_authority("c");
        let other = if sequence == 0 { Ok(Freshness::Newer) } else { Err(Stale::SameSequence(7)) };
        assert_eq!(compare(Some(&kept), &fetched), other);
    }
}

#[test]
fn f_5_neither_trust_domain_nor_profile_is_guessed_from_the_url() {
    let without = |name: &str| {
        let mut whole = serde_json::json!({
            "trustDomain": "north.example",
            "url": "https://bundles.example:8443/",
            "profile": { "https_spiffe": { "endpointSpiffeId": "spiffe://north.example/spire/server" } },
        });
        whole.as_object_mut().unwrap().remove(name);
        serde_json::from_value::<Federation>(whole)
    };
    let whole = without("nothing").unwrap();
    assert_ne!(whole.url.host(), whole.trust_domain.as_str());
    for name in ["trustDomain", "url", "profile"] {
        assert!(without(name).is_err(), "{name} was guessed");
    }
    let no_id = serde_json::json!({ "https_spiffe": {} });
    assert!(serde_json::from_value::<Profile>(no_id).is_err(), "the endpoint's SPIFFE ID was guessed");
}

#[test]
fn f_6_the_url_is_https_without_user_information() {
    for (text, host, port, path) in [
        ("https://north.example", "north.example", 443, "/"),
        ("https://north.example/", "north.example", 443, "/"),
        ("https://north.example:8443/bundle?x=1", "north.example", 8443, "/bundle?x=1"),
        ("https://127.0.0.1:8443", "127.0.0.1", 8443, "/"),
        ("https://[::1]:8443/b", "::1", 8443, "/b"),
        ("https://north.example?x", "north.example", 443, "/?x"),
    ] {
        let read = url(text).unwrap();
        assert_eq!((read.host(), read.port(), read.path()), (host, port, path), "{text}");
        assert_eq!(read.to_string(), text);
    }
    for wrong in [
        "",
        "http://north.example/",
        "HTTPS://north.example/",
        "https://",
        "https:///bundle",
        "https://user@north.example/",
        "https://user:password@north.example/",
        "https://north.example:0/",
        "https://north.example:99999/",
        "https://north.example:/",
        "https://[::1/",
        "https://[north]/",
        "https://::1/",
        "https://north.example/#fragment",
        "https://north.example/a b",
        "https://north.example/\r\nx: y",
        "https://nörth.example/",
        "spiffe://north.example",
    ] {
        assert!(url(wrong).is_err(), "{wrong:?}");
    }
    assert!(url(&format!("https://north.example/{}", "x".repeat(MAX_URL_BYTES))).is_err());
}

#[test]
fn f_7_a_redirect_leads_only_to_a_url_that_could_have_been_configured() {
    let from = url("https://north.example:8443/bundle").unwrap();
    for (location, to) in [
        ("/other", "https://north.example:8443/other"),
        ("//elsewhere.example/x", "https://elsewhere.example/x"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
    ] {
        assert_eq!(from.redirected(location).unwrap().to_string(), to);
    }
    for wrong in
        ["http://north.example/", "https://user@north.example/", "other", "", "file:///etc/passwd", "/a#b"]
    {
        assert!(from.redirected(wrong).is_err(), "{wrong:?}");
    }
}
