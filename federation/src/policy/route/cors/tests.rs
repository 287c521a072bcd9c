//! CORS: whose pages may ask and read, in which words.

use super::*;

fn cors(origins: &[&str], credentials: bool) -> Written {
    Written {
        allow_origins: origins.iter().map(ToString::to_string).collect(),
        allow_credentials: Some(credentials),
        ..Written::default()
    }
}

fn asked(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}

fn said(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn origins_are_compared_by_scheme_host_and_port() {
    for (allowed, origin, expected) in [
        ("https://shop.example", "https://shop.example", true),
        ("https://shop.example", "HTTPS://Shop.Example:443", true),
        ("https://shop.example:443", "https://shop.example", true),
        ("https://shop.example", "http://shop.example", false),
        ("https://shop.example", "https://shop.example:8443", false),
        ("https://shop.example", "https://shop.example.evil.example", false),
        ("https://shop.example", "https://evil.example/https://shop.example", false),
        ("https://shop.example", "null", false),
        ("https://shop.example", "", false),
        ("https://*.shop.example", "https://a.shop.example", true),
        ("https://*.shop.example", "https://a.b.shop.example", true),
        ("https://*.shop.example", "https://shop.example", false),
        ("https://*.shop.example", "https://.shop.example", false),
        ("https://*.shop.example", "https://evilshop.example", false),
        ("https://*.shop.example", "https://a.shop.example@evil.example", false),
        ("http://*", "http://whoever.example", true),
        ("http://*", "http://whoever.example:81", false),
        ("http://*:81", "http://whoever.example:81", true),
        ("https://[::1]:8443", "https://[::1]:8443", true),
        ("https://*", "https://[::1]", true),
    ] {
        let filter = Cors::compile(&cors(&[allowed], false));
        let mut answer = HeaderMap::new();
        filter.edit_response(Some(&HeaderValue::from_static(origin)), &mut answer);
        let granted = said(&answer, header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(granted, if expected { origin } else { "" }, "{allowed} {origin}");
        assert_eq!(said(&answer, header::VARY), "Origin");
    }
    for wrong in [
        "shop.example",
        "ftp://shop.example",
        "https://",
        "https://*.*.example",
        "https://shop*",
        "https://*shop.example",
        "https://a.*.example",
        "https://*.",
        "https://[::1",
        "https://a/b",
        "https://a:0",
        "https://a:x",
    ] {
        assert!(Origin::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_star_is_said_only_where_no_credentials_are_allowed() {
    let wide = |credentials| {
        let any = || vec![ANY.to_owned()];
        Cors::compile(&Written {
            allow_methods: any(),
            allow_headers: any(),
            expose_headers: any(),
            max_age: Some(600),
            ..cors(&[ANY], credentials)
        })
    };
    let request = asked(&[
        ("origin", "https://a.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a, x-b"),
    ]);
    let say = |answer: &HeaderMap| {
        [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_ALLOW_METHODS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            header::ACCESS_CONTROL_MAX_AGE,
            header::VARY,
        ]
        .map(|name| said(answer, name).to_owned())
    };
    assert_eq!(say(&wide(false).preflight(&request)), ["*", "", "*", "x-a, x-b", "600", "Origin"]);
    let expected = ["https://a.example", "true", "PUT", "x-a, x-b", "600", "Origin"];
    assert_eq!(say(&wide(true).preflight(&request)), expected);
    let bare = asked(&[("origin", "https://a.example")]);
    assert_eq!(say(&wide(true).preflight(&bare))[2..4], ["", ""]);
    assert_eq!(say(&wide(false).preflight(&bare))[2..4], ["*", "*"]);
    // A star never stands for Authorization, and more may be asked about than is repeated.
    let name = header::ACCESS_CONTROL_REQUEST_HEADERS;
    let mut lines = asked(&[("origin", "https://a.example"), ("access-control-request-headers", "x-a")]);
    lines.append(&name, HeaderValue::from_static("authorization"));
    let echoed = |answer: &HeaderMap| {
        let lines = answer.get_all(header::ACCESS_CONTROL_ALLOW_HEADERS).iter();
        lines.map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for credentials in [false, true] {
        assert_eq!(echoed(&wide(credentials).preflight(&lines)), ["x-a", "authorization"]);
    }
    for _ in 0..100 {
        lines.append(&name, HeaderValue::from_static("x-b"));
    }
    assert_eq!(echoed(&wide(false).preflight(&lines)).len(), MAX_ASKED);
    let mut answer = HeaderMap::new();
    wide(true).edit_response(request.get(header::ORIGIN), &mut answer);
    assert_eq!(said(&answer, header::ACCESS_CONTROL_EXPOSE_HEADERS), "");
    wide(false).edit_response(request.get(header::ORIGIN), &mut answer);
    assert_eq!(said(&answer, header::ACCESS_CONTROL_EXPOSE_HEADERS), "*");
    // Kept by a cache for a request without an origin, it would say nothing to a page.
    let mut answer = HeaderMap::new();
    wide(false).edit_response(None, &mut answer);
    assert_eq!((answer.len(), said(&answer, header::VARY)), (1, "Origin"));
}

#[test]
fn what_is_named_beside_a_star_is_exposed_with_credentials() {
    let exposed = |credentials| {
        let expose_headers = [ANY, "x-total", "x-page"].map(str::to_owned).to_vec();
        let filter = Cors::compile(&Written { expose_headers, ..cors(&["https://a.example"], credentials) });
        let mut answer = HeaderMap::new();
        filter.edit_response(Some(&HeaderValue::from_static("https://a.example")), &mut answer);
        said(&answer, header::ACCESS_CONTROL_EXPOSE_HEADERS).to_owned()
    };
    assert_eq!((exposed(true).as_str(), exposed(false).as_str()), ("x-total, x-page", "*"));
}

#[test]
fn who_is_not_allowed_hears_nothing_and_the_app_says_nothing_beside() {
    let filter = Cors::compile(&Written {
        allow_methods: vec!["PUT".to_owned(), "DELETE".to_owned()],
        expose_headers: vec!["x-total".to_owned()],
        ..cors(&["https://a.example"], true)
    });
    let preflight =
        |origin| filter.preflight(&asked(&[("origin", origin), ("access-control-request-method", "PUT")]));
    let answer = preflight("https://a.example");
    assert_eq!(said(&answer, header::ACCESS_CONTROL_ALLOW_METHODS), "PUT, DELETE");
    assert_eq!(said(&answer, header::ACCESS_CONTROL_EXPOSE_HEADERS), "x-total");
    assert_eq!(said(&answer, header::ACCESS_CONTROL_MAX_AGE), "5");
    let answer = preflight("https://b.example");
    assert_eq!((answer.len(), said(&answer, header::VARY)), (1, "Origin"));
    let twice = asked(&[("origin", "https://a.example"), ("origin", "https://b.example")]);
    assert_eq!(filter.preflight(&twice).len(), 1);
    let mut answer = asked(&[("access-control-allow-origin", "*"), ("vary", "accept")]);
    filter.edit_response(Some(&HeaderValue::from_static("https://b.example")), &mut answer);
    assert_eq!(said(&answer, header::ACCESS_CONTROL_ALLOW_ORIGIN), "");
    filter.edit_response(Some(&HeaderValue::from_static("https://a.example")), &mut answer);
    assert_eq!(said(&answer, header::ACCESS_CONTROL_ALLOW_ORIGIN), "https://a.example");
    assert_eq!(said(&answer, header::ACCESS_CONTROL_EXPOSE_HEADERS), "x-total");
    assert!(answer.get_all(header::VARY).iter().any(|value| value == "accept"));
}
