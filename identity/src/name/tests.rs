//! Tests of names; the SPIFFE rules ID-1 to ID-5, each by its label.

use proptest::prelude::*;

use super::*;

fn refused(text: &str) -> &'static str {
    match text.parse::<SpiffeId>() {
        Ok(id) => panic!("{text:?} was read as {id}"),
        Err(error) => error.rule(),
    }
}

#[test]
fn id_1_scheme_is_spiffe_and_trust_domain_is_there() {
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    assert_eq!(id.trust_domain().as_str(), "east.example");
    assert_eq!(id.path(), "/ns/shop/sa/reviews");
    for text in
        ["", "east.example/a", "https://east.example/a", "spiffe:/east.example/a", " spiffe://east.example/a"]
    {
        assert_eq!(refused(text), "does not start with spiffe://", "{text:?}");
    }
    assert_eq!(refused("spiffe://"), "is empty");
    assert_eq!(refused("spiffe:///a"), "is empty");
}

#[test]
fn id_1_no_query_and_no_fragment() {
    for text in [
        "spiffe://east.example/a?b=c",
        "spiffe://east.example/a#b",
        "spiffe://east.example?b",
        "spiffe://east.example#b",
    ] {
        refused(text);
    }
}

#[test]
fn id_2_no_userinfo_no_port_no_ipv6() {
    for text in ["spiffe://me@east.example/a", "spiffe://east.example:443/a", "spiffe://[::1]/a"] {
        assert_eq!(refused(text), "has a character outside a-z 0-9 . - _", "{text:?}");
    }
}

#[test]
fn id_2_trust_domain_characters() {
    for text in [
        "spiffe://East.example/a",
        "spiffe://east%2eexample/a",
        "spiffe://öst.example/a",
        "spiffe://east\0example/a",
    ] {
        assert_eq!(refused(text), "has a character outside a-z 0-9 . - _", "{text:?}");
    }
    let id: SpiffeId = "spiffe://127.0.0.1/a".parse().unwrap();
    assert_eq!(id.trust_domain().as_str(), "127.0.0.1");
    assert!("spiffe://a_b-c.d/x".parse::<SpiffeId>().is_ok());
}

#[test]
fn id_3_path_segments() {
    let hostile = [
        "/", "//", "/a/", "/a//b", "/.", "/..", "/a/../b", "/a/./b", "/a%2fb", "/a%00", "/a\0", "/a b",
        "/a\n", "/ä", "/a\\b", "/a:b", "/a@b", "/a~b",
    ];
    for path in hostile {
        refused(&format!("spiffe://east.example{path}"));
    }
    for path in ["/...", "/.a", "/a.", "/A-Z_0.9", "/ns/shop/sa/reviews"] {
        assert!(format!("spiffe://east.example{path}").parse::<SpiffeId>().is_ok(), "{path:?}");
    }
}

#[test]
fn id_4_lengths() {
    let of_length = |length: usize| format!("spiffe://td/{}", "a".repeat(length - "spiffe://td/".len()));
    assert!(of_length(2048).parse::<SpiffeId>().is_ok());
    assert_eq!(refused(&of_length(2049)), "is longer than 2048 bytes");
    assert!(format!("spiffe://{}/a", "a".repeat(255)).parse::<SpiffeId>().is_ok());
    assert_eq!(refused(&format!("spiffe://{}/a", "a".repeat(256))), "is longer than 255 bytes");
}

#[test]
fn id_5_only_lower_case_is_read_and_paths_keep_their_case() {
    refused("SPIFFE://east.example/a");
    refused("spiffe://EAST.example/a");
    let upper: SpiffeId = "spiffe://east.example/A".parse().unwrap();
    let lower: SpiffeId = "spiffe://east.example/a".parse().unwrap();
    assert_ne!(upper, lower);
}

#[test]
fn errors_show_a_bounded_part_of_the_text() {
    let error = "x".repeat(100_000).parse::<SpiffeId>().unwrap_err();
    assert!(error.to_string().len() < 200);
}

#[test]
fn members_are_known_by_role_and_trust_domain() {
    let east: TrustDomain = "east.example".parse().unwrap();
    let west: TrustDomain = "west.example".parse().unwrap();
    let id = SpiffeId::member(&east, MemberRole::Gateway, &"gateway-1".parse().unwrap());
    assert_eq!(id.to_string(), "spiffe://east.example/hanse/gateway/gateway-1");
    assert_eq!(id.as_member(), Some((MemberRole::Gateway, "gateway-1")));
    assert!(id.is_member(&east, MemberRole::Gateway));
    assert!(!id.is_member(&west, MemberRole::Gateway));
    assert!(!id.is_member(&east, MemberRole::Node));
    assert_eq!("spiffe://east.example/hanse/king/x".parse::<SpiffeId>().unwrap().as_member(), None);
    assert_eq!("spiffe://east.example/x/hanse/node/x".parse::<SpiffeId>().unwrap().as_member(), None);
}

#[test]
fn labels_are_dns_labels() {
    for text in ["a", "a-b", "0", &"a".repeat(63)] {
        assert_eq!(text.parse::<ClusterName>().unwrap().as_str(), text);
    }
    for text in ["", "-a", "a-", "A", "a.b", "a_b", "a/b", "ä", &"a".repeat(64)] {
        assert!(text.parse::<NodeName>().is_err(), "{text:?}");
    }
}

#[test]
fn services_have_a_namespace_and_a_name() {
    let service: ServiceName = "shop/reviews".parse().unwrap();
    assert_eq!((service.namespace(), service.name()), ("shop", "reviews"));
    for text in ["shop", "shop/", "/reviews", "shop/reviews/v1", "Shop/reviews"] {
        assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
    }
}

#[test]
fn serde_reads_names_through_the_same_door() {
    let id: SpiffeId = serde_json::from_str("\"spiffe://east.example/a\"").unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://east.example/a\"");
    assert!(serde_json::from_str::<SpiffeId>("\"spiffe://east.example/a/../b\"").is_err());
    assert!(serde_json::from_str::<ServiceName>("\"shop\"").is_err());
}

proptest! {
    #[test]
    fn valid_ids_are_read_and_written_the_same(
        text in "spiffe://[a-z0-9._-]{1,40}(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}){0,5}"
    ) {
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(id.to_string(), text);
    }

    #[test]
    fn whatever_is_read_is_written_the_same(text in "(spiffe://)?\\PC{0,60}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text.clone());
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() && b != b'%'));
            prop_assert!(!text.ends_with('/'));
        }
    }
}
