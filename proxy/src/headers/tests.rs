//! Tests of the header rules.

use http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::*;

/// Every spelling that reaches us: HTTP/1 keeps letter case, HTTP/2 has none, and separators vary.
fn spellings(words: &[&str]) -> Vec<String> {
    let separators = ["-", "_", ".", "~", "+"];
    let cases: [fn(&str) -> String; 4] = [
        str::to_owned,
        str::to_uppercase,
        |word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
                .unwrap_or_default()
        },
        |word| {
            let alternate = |(i, c): (usize, char)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c };
            word.chars().enumerate().map(alternate).collect()
        },
    ];
    let mut all = Vec::new();
    for separator in separators {
        for case in cases {
            all.push(words.iter().map(|word| case(word)).collect::<Vec<_>>().join(separator));
        }
    }
    // Mixed separators as well.
    all.push(format!("{}_{}", words[0], words[1..].join("-")));
    all.push(format!("{}-{}", words[0], words[1..].join("_")));
    all
}

#[test]
fn every_spelling_of_the_meshs_headers_is_removed() {
    let mut names = spellings(&["x", "forwarded", "client", "cert"]);
    for last in ["cluster", "tier", "reason", "answered-by", "anything"] {
        names.extend(spellings(&["x", "hanse", last]));
    }
    assert!(names.len() > 40);
    for name in names {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a token");
        headers.append(name.clone(), HeaderValue::from_static("forged"));
        headers.append(name.clone(), HeaderValue::from_static("twice"));
        headers.append("x-request-id", HeaderValue::from_static("kept"));
        strip_reserved(&mut headers);
        assert!(!headers.contains_key(&name), "{name} got through");
        assert_eq!(headers.len(), 1, "{name}: only the foreign header stays");
    }
}

#[test]
fn headers_that_only_look_alike_stay() {
    for name in [
        "x-forwarded-for",
        "x-forwarded-client-certificate",
        "x-forwarded-client-cer",
        "x-hanseatic",
        "hanse-x",
        "x-hans",
        "xx-hanse-a",
        "forwarded",
        "x-forwarded-host",
    ] {
        assert!(!is_reserved(name), "{name}");
    }
}

#[test]
fn hop_by_hop_headers_and_nominees_end_here() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "close, X-Nominated"),
        ("x-nominated", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-connection", "x"),
        ("accept", "*/*"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    strip_hop_by_hop(&mut headers);
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);

    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    strip_hop_by_hop(&mut headers);
    assert!(headers.contains_key(header::TE), "gRPC needs it");
    headers.append(header::TE, HeaderValue::from_static("gzip"));
    strip_hop_by_hop(&mut headers);
    assert!(!headers.contains_key(header::TE), "a second value ends here too");
}

/// JWT-SVID §5.2, §5.3: a token is between the caller and the app.
#[test]
fn j_8_a_bearer_token_goes_through_as_it_came() {
    let token = HeaderValue::from_static("Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly9lL2EifQ.c2ln");
    let mut headers = HeaderMap::new();
    headers.append(header::AUTHORIZATION, token.clone());
    headers.append(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    strip_reserved(&mut headers);
    strip_hop_by_hop(&mut headers);
    join_cookies(&mut headers);
    assert_eq!(headers.get_all(header::AUTHORIZATION).iter().collect::<Vec<_>>(), [&token]);
    assert_eq!(headers.len(), 1);
}

#[test]
fn a_body_that_two_readers_would_end_at_different_places_is_refused() {
    let framing = |fields: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        is_framing_plain(&headers)
    };
    assert!(
        framing(&[]) && framing(&[("content-length", "5")]) && framing(&[("transfer-encoding", "chunked")])
    );
    assert!(!framing(&[("content-length", "5"), ("content-length", "5")]));
    assert!(!framing(&[("content-length", "5"), ("transfer-encoding", "chunked")]));
    for coding in ["gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", ",chunked", "xchunked", ""] {
        assert!(!framing(&[("transfer-encoding", coding)]), "{coding}");
    }
    assert!(!framing(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
    assert!(!framing(&[("content_length", "5")]) && !framing(&[("transfer_encoding", "chunked")]));
}

#[test]
fn the_caller_is_named_as_envoy_does() {
    let by = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let caller = "spiffe://west.example/ns/shop/sa/product".parse().unwrap();
    assert_eq!(
        client_cert(&by, &"ab".repeat(32), &caller),
        format!(
            "By=spiffe://east.example/ns/shop/sa/reviews;Hash={};URI=spiffe://west.example/ns/shop/sa/product",
            "ab".repeat(32)
        )
    );
}

#[test]
fn values_with_blanks_around_them_are_malformed() {
    for (value, plain) in
        [("x y", true), ("", true), (" x", false), ("x ", false), ("\tx", false), (" ", false)]
    {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        assert_eq!(is_framing_plain(&headers), plain, "{value:?}");
    }
}

#[test]
fn a_host_that_cannot_be_read_is_told_as_no_text() {
    let told = |host: &str| {
        let request = Request::get("/").header("host", host).body(()).unwrap();
        let mut values = Vec::new();
        each_value(&request, "host", &mut |value| values.push(value.to_vec()));
        values
    };
    assert_eq!(told("Admin.Example:443"), [b"admin.example".to_vec()]);
    for host in ["admin.example:", "admin.example:99999", "x@admin.example", " admin.example"] {
        assert_eq!(told(host), [b"\xff".to_vec()], "{host}");
    }
}

#[test]
fn cookie_crumbs_are_joined() {
    let mut headers = HeaderMap::new();
    headers.append(header::COOKIE, HeaderValue::from_static("a=1"));
    headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
    join_cookies(&mut headers);
    assert_eq!(headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
}

#[test]
fn the_target_wins_over_the_host_header_and_two_hosts_are_refused() {
    let request = Request::get("http://a.shop/x").header("host", "b.shop").body(()).unwrap();
    assert_eq!(authority(&request), Ok(Some("a.shop")));
    let request = Request::get("/x").header("host", "b.shop:80").body(()).unwrap();
    assert_eq!(authority(&request), Ok(Some("b.shop:80")));
    assert_eq!(authority(&Request::get("/x").body(()).unwrap()), Ok(None));
    let request = Request::get("/x").header("host", "b.shop").header("host", "c.shop").body(()).unwrap();
    assert!(authority(&request).is_err());
}

#[test]
fn where_a_client_outside_comes_from_is_written_anew_in_every_spelling() {
    let mut headers = HeaderMap::new();
    for words in [&["x", "forwarded", "for"][..], &["x", "real", "ip"], &["x", "envoy", "peer"]] {
        for name in spellings(words) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_static("10.0.0.1"));
        }
    }
    headers.insert("x-mine", HeaderValue::from_static("stays"));
    forwarded_for(&mut headers, "192.0.2.9".parse().unwrap(), true);
    let mut left: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(left, [("x-forwarded-for", "192.0.2.9"), ("x-forwarded-proto", "https"), ("x-mine", "stays")]);
}
