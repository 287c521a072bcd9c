//! Tests of filters: the tables of Gateway API v1 (HTTPPathModifier, HTTPRequestRedirectFilter), edits, shares of mirrors.

use super::*;
use crate::policy::document::{PolicySpec, RouteRule};
use crate::policy::parse;

const FROM: Referrer<'_> = Referrer { kind: crate::policy::PolicyKind::HttpRoute, namespace: "shop" };

/// The rule as a document would have it.
fn rule(text: &str) -> RouteRule {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ kind: Service, name: reviews }}]\n  rules: [{text}]\n"
    );
    let (document, _) = parse("test", &text).unwrap_or_else(|e| panic!("{text}\n{e:?}")).remove(0);
    let PolicySpec::HttpRoute(mut route) = document.spec else { panic!("an HTTPRoute") };
    route.rules.remove(0)
}

fn filters(filter: &str, prefix: &str) -> Arc<Filters> {
    let matches = format!("matches: [{{ path: {{ type: PathPrefix, value: {prefix:?} }} }}]");
    let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    Filters::compile(&rule(&format!("{{ {matches}, filters: [{filter}] }}")), FROM, &view).unwrap()
}

#[test]
fn a_prefix_is_replaced_as_the_table_of_gateway_api_says() {
    for (path, prefix, with, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/a/b", "/", "/x", "/x/a/b"),
        ("/", "/", "/x", "/x/"),
    ] {
        let path_modifier = format!("path: {{ type: ReplacePrefixMatch, replacePrefixMatch: {with:?} }}");
        let filters = filters(&format!("{{ type: URLRewrite, urlRewrite: {{ {path_modifier} }} }}"), prefix);
        let rewritten = filters.path_and_query(path, None);
        assert_eq!(rewritten.as_deref(), Some(expected), "{path} with {prefix} replaced by {with:?}");
        let with_query = filters.path_and_query(path, Some("a=%2F&b"));
        assert_eq!(with_query, Some(format!("{expected}?a=%2F&b")), "the query stays");
    }
}

#[test]
fn a_full_path_is_replaced_and_the_host_beside_it() {
    let rewrite = "{ type: URLRewrite, urlRewrite: { hostname: one.example, \
                   path: { type: ReplaceFullPath, replaceFullPath: /full/path } } }";
    let filters = filters(rewrite, "/");
    assert_eq!(filters.host(), Some("one.example"));
    assert_eq!(filters.path_and_query("/x/y", Some("q")).as_deref(), Some("/full/path?q"));
    let only_host = "{ type: URLRewrite, urlRewrite: { hostname: one.example } }";
    assert_eq!(super::tests::filters(only_host, "/").path_and_query("/x", None), None);
}

#[test]
fn a_redirect_says_where_to_and_leaves_out_what_goes_without_saying() {
    for (redirect, authority, path, status, expected) in [
        ("hostname: example.com", "reviews", "/p?x=1", 302, "http://example.com/p?x=1"),
        ("hostname: example.com, statusCode: 301", "reviews", "/", 301, "http://example.com/"),
        ("scheme: https", "reviews:9080", "/p", 302, "https://reviews/p"),
        ("scheme: https, port: 443", "reviews:9080", "/p", 302, "https://reviews/p"),
        ("scheme: https, port: 8443", "reviews:9080", "/p", 302, "https://reviews:8443/p"),
        ("scheme: http, port: 80", "reviews:9080", "/p", 302, "http://reviews/p"),
        ("scheme: http", "reviews:9080", "/p", 302, "http://reviews/p"),
        ("port: 8083", "reviews", "/p", 302, "http://reviews:8083/p"),
        ("port: 80", "reviews:9080", "/p", 302, "http://reviews/p"),
        ("hostname: example.com", "reviews:9080", "/p", 302, "http://example.com:9080/p"),
        ("hostname: example.com", "[::1]:9080", "/p", 302, "http://example.com:9080/p"),
        ("statusCode: 308, port: 81", "[::1]", "/p", 308, "http://[::1]:81/p"),
        (
            "path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }",
            "r",
            "/old/a",
            302,
            "http://r/new/a",
        ),
        ("path: { type: ReplaceFullPath, replaceFullPath: /new }", "r", "/old/a?q", 302, "http://r/new?q"),
    ] {
        let prefix = if path.starts_with("/old") { "/old" } else { "/" };
        let filters =
            filters(&format!("{{ type: RequestRedirect, requestRedirect: {{ {redirect} }} }}"), prefix);
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let compiled = filters.redirect().unwrap();
        assert_eq!(
            compiled.location(false, authority, path, query),
            expected,
            "{redirect} of {authority}{path}"
        );
        assert_eq!(compiled.status, status, "{redirect}");
    }
}

#[test]
fn headers_are_set_added_and_removed() {
    let edits = "requestHeaderModifier: { set: [{ name: X-Set, value: new }], add: [{ name: x-add, value: more }], \
                 remove: [X-Gone] }";
    let filters = filters(&format!("{{ type: RequestHeaderModifier, {edits} }}"), "/");
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-set", "a"), ("x-set", "b"), ("x-add", "one"), ("x-gone", "1"), ("x-kept", "k")]
    {
        headers.append(name, HeaderValue::from_static(value));
    }
    filters.edit_request(&mut headers);
    let values = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(values("x-set"), ["new"], "both earlier ones are replaced");
    assert_eq!(values("x-add"), ["one", "more"]);
    assert!(values("x-gone").is_empty());
    assert_eq!(values("x-kept"), ["k"]);
    let before = headers.clone();
    filters.edit_response(&mut headers);
    assert_eq!(headers, before, "edits of the request are none of the answer");
}

#[test]
fn mirrors_take_the_share_that_is_said() {
    let share = |text: &str| {
        let filter =
            format!("{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: copy }}{text} }} }}");
        let filters = filters(&filter, "/");
        // Evenly spread over all that can be drawn.
        let steps = 10_000;
        let width = u64::MAX / steps;
        (0..steps).filter(|step| filters.mirrors(|| width * step + width / 2).count() == 1).count()
    };
    assert_eq!(share(""), 10_000);
    assert_eq!(share(", percent: 100"), 10_000);
    assert_eq!(share(", percent: 0"), 0);
    assert_eq!(share(", percent: 20"), 2_000);
    assert_eq!(share(", fraction: { numerator: 1, denominator: 1000 }"), 10);
    assert_eq!(share(", fraction: { numerator: 50 }"), 5_000);
    let two = "{ type: RequestMirror, requestMirror: { backendRef: { name: a } } }, \
               { type: RequestMirror, requestMirror: { backendRef: { name: b } } }";
    let filters = filters(two, "/");
    let names: Vec<_> = filters.mirrors(|| 0).map(|to| to.service.to_string()).collect();
    assert_eq!(names, ["shop/a", "shop/b"]);
}
