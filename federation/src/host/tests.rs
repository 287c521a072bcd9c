//! Host names: what is read, what is refused, and that reading undoes writing.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(authority: &str, expected: Option<(&str, Reach)>) {
    let expected = expected.map(|(service, reach)| ServiceHost { service: service.parse().unwrap(), reach });
    assert_eq!(ServiceHost::parse(authority), expected, "{authority:?}");
}

#[test]
fn reads_the_three_forms() {
    let set = Some(("shop/reviews", Reach::ClusterSet));
    let cluster = Some(("shop/reviews", Reach::Cluster));
    check("reviews.shop", set);
    check("reviews.shop.svc.clusterset.local", set);
    check("reviews.shop.svc.cluster.local", cluster);
    check("reviews.shop.svc.cluster.local:80", cluster);
    check("reviews.shop:65535", set);
    check("reviews.shop.", set);
    check("reviews.shop.svc.clusterset.local.:9080", set);
    check("Reviews.SHOP.Svc.ClusterSet.Local", set);
    check("v2.reviews-2", Some(("reviews-2/v2", Reach::ClusterSet)));
    check("1.2.svc.cluster.local", Some(("2/1", Reach::Cluster)));
}

#[test]
fn refuses_what_is_not_ours() {
    for junk in [
        "",
        ".",
        "reviews",
        "localhost:80",
        "reviews.shop..",
        ".reviews.shop",
        "reviews..shop",
        "reviews.shop.svc",
        "reviews.shop.svc.local",
        "reviews.shop.svc.cluster",
        "reviews.shop.svc.cluster.local.x",
        "a.reviews.shop.svc.cluster.local",
        "reviews.shop.pod.cluster.local",
        "www.example.com",
        "127.0.0.1",
        "127.0.0.1:80",
        "10.1",
        "10.0x1",
        "[::1]",
        "[::1]:80",
        "::1",
        "user@reviews.shop",
        "user:secret@reviews.shop",
        "reviews.shop:",
        "reviews.shop:0",
        "reviews.shop:65536",
        "reviews.shop:+80",
        "reviews.shop:80:80",
        "reviews.shop:http",
        "reviews.shop/path",
        "reviews .shop",
        " reviews.shop",
        "reviews_1.shop",
        "-reviews.shop",
        "reviews-.shop",
        "réviews.shop",
        "reviews.shop\0",
        "http://reviews.shop",
    ] {
        check(junk, None);
    }
}

#[test]
fn refuses_what_is_too_long() {
    let label = "a".repeat(63);
    check(&format!("{label}.shop"), Some((&format!("shop/{label}"), Reach::ClusterSet)));
    check(&format!("a{label}.shop"), None);
    check(&"a.".repeat(200), None);
    check(&format!("reviews.shop:{}80", "0".repeat(300)), None);
}

proptest! {
    #[test]
    fn reading_undoes_writing(
        namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        far: bool,
        port in proptest::option::of(1u16..),
        dot: bool,
        shout: bool,
    ) {
        let reach = if far { Reach::ClusterSet } else { Reach::Cluster };
        let host = ServiceHost { service: ServiceName::new(&namespace, &name).unwrap(), reach };
        let mut text = host.to_host();
        if dot {
            text.push('.');
        }
        if shout {
            text.make_ascii_uppercase();
        }
        if let Some(port) = port {
            text.push_str(&format!(":{port}"));
        }
        prop_assert_eq!(ServiceHost::parse(&text), Some(host));
    }

    #[test]
    fn any_text_is_read_without_harm(text in ".{0,300}") {
        if let Some(host) = ServiceHost::parse(&text) {
            prop_assert_eq!(ServiceHost::parse(&host.to_host()), Some(host));
        }
    }
}
