//! Names on the wire (SNI, Host, SPIFFE IDs, patterns of them): what is read can be written, and reads the same.

use hanse_federation::host::ServiceHost;
use hanse_federation::policy::access::IdPattern;
use hanse_federation::sni::Sni;
use hanse_identity::SpiffeId;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut taken = false;
    if let Some(sni) = Sni::parse(text) {
        assert_eq!(sni.to_name().as_deref(), Some(text));
        taken = true;
    }
    if let Some(host) = ServiceHost::parse(text) {
        let written = host.to_host();
        assert_eq!(ServiceHost::parse(&written).as_ref(), Some(&host));
        // Another reader of authorities finds the same host in it.
        let authority: http::uri::Authority = text.parse().expect("a host of ours is an authority");
        let plain = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let name = format!("{}.{}", host.service.name(), host.service.namespace());
        assert!(plain == name || plain == written, "{text:?} is {plain} and {written}");
        for other in [text.to_ascii_uppercase(), text.to_ascii_lowercase()] {
            assert_eq!(ServiceHost::parse(&other).as_ref(), Some(&host));
        }
        taken = true;
    }
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert!(text.is_ascii() && text.len() <= 2048, "{text:?}");
        assert!(id.path().split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")), "{text:?}");
        let exactly = IdPattern::parse(text).expect("an ID is a pattern");
        assert!(exactly.matches(&id), "{text:?}");
        taken = true;
    }
    if let Ok(pattern) = IdPattern::parse(text) {
        // What it matches is of its shape: `*` is one part, and no part goes missing.
        let example = text.strip_suffix("/**").map_or(text.to_owned(), |open| format!("{open}/x"));
        let example: SpiffeId = example.replace('*', "x").parse().expect("a pattern is an ID with gaps");
        assert!(pattern.matches(&example), "{text:?} and {example}");
        taken = true;
    }
    taken
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        "gateway-1.gateway.east.hanse",
        "reviews.shop.service.east.hanse",
        "reviews.shop.svc.clusterset.local",
        "Reviews.shop.svc.cluster.local.:8080",
        "reviews.shop",
        "10.0x1",
        "user@reviews.shop:80",
        "spiffe://east.example/ns/shop/sa/reviews",
        "spiffe://*/ns/shop/sa/*",
        "spiffe://east.example/ns/**",
        "spiffe://east.example/../sa",
    ])
}
