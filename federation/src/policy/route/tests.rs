//! Tests of matching, precedence and weights of routes.

use std::collections::BTreeMap;

use hanse_identity::Timestamp;

use super::*;
use crate::change::Change;
use crate::policy::parse;

fn host(text: &str, reach: Reach) -> ServiceHost {
    ServiceHost { service: text.parse().unwrap(), reach }
}

fn reviews() -> ServiceHost {
    host("shop/reviews", Reach::ClusterSet)
}

/// A View with one HTTPRoute per element, on the Service shop/reviews; `created` is the place in the list.
fn view(routes: &[(&str, &str)]) -> View {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    for (age, (name, rules)) in routes.iter().enumerate() {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n{rules}\n"
        );
        let (mut document, _) = parse("test", &text).unwrap().remove(0);
        document.created = Timestamp(100 - age as u64);
        view.apply(&Change::PolicyPut(Box::new(document)));
    }
    view
}

struct Ask<'a> {
    table: &'a RouteTable,
}

impl Ask<'_> {
    fn get(&self, path: &str) -> Result<Routed, NoRoute> {
        self.ask("GET", path, &[], 0)
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        random: u64,
    ) -> Result<Routed, NoRoute> {
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let parts = RequestParts { method, path, query, header: &header, preflight: None };
        self.table.route(&reviews(), &parts, random)
    }

    /// Whether this table answers the preflight, by which rule, and which service is its backend.
    fn preflight(&self, path: &str, wanted: &str, random: u64) -> (bool, String, String) {
        let (method, preflight) = ("OPTIONS", Some(wanted));
        let parts = RequestParts { method, path, query: None, header: &|_| None, preflight };
        let routed = self.table.route(&reviews(), &parts, random).unwrap();
        let answers = routed.filters.is_some_and(|filters| filters.cors().is_some());
        (answers, routed.rule.to_string(), routed.backend.service.to_string())
    }

    fn rule(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        match self.ask(method, path, headers, 0) {
            Ok(routed) => routed.rule.to_string(),
            Err(e) => format!("{e:?}"),
        }
    }
}

#[test]
fn a_service_without_routes_is_its_own_backend() {
    let table = RouteTable::build(&view(&[]), &reviews());
    let ask = Ask { table: &table };
    let routed = ask.get("/x").unwrap();
    assert_eq!((&*routed.backend, &*routed.route, routed.request_timeout), (&reviews(), "", None));
    let table = RouteTable::default();
    assert_eq!(*Ask { table: &table }.get("/x").unwrap().backend, reviews());
}

#[test]
fn precedence_is_that_of_gateway_api() {
    let rules = r#"
  - { name: any, backendRefs: [{ name: b }] }
  - { name: pattern, matches: [{ path: { type: RegularExpression, value: "/r/[0-9]+" } }], backendRefs: [{ name: b }] }
  - { name: short, matches: [{ path: { value: /r } }], backendRefs: [{ name: b }] }
  - { name: long, matches: [{ path: { value: /r/long/ } }], backendRefs: [{ name: b }] }
  - { name: exact, matches: [{ path: { type: Exact, value: /r/long } }], backendRefs: [{ name: b }] }
  - { name: header, matches: [{ path: { value: /h }, headers: [{ name: X-A, value: "1" }] }], backendRefs: [{ name: b }] }
  - { name: headers, matches: [{ path: { value: /h }, headers: [{ name: x-a, value: "1" }, { name: x-b, type: RegularExpression, value: "[a-z]+" }] }], backendRefs: [{ name: b }] }
  - { name: method, matches: [{ path: { value: /h }, method: POST }], backendRefs: [{ name: b }] }
  - { name: digits, matches: [{ path: { type: RegularExpression, value: "/[0-9]+" } }], backendRefs: [{ name: b }] }
"#;
    let table = RouteTable::build(&view(&[("a", rules)]), &reviews());
    let ask = Ask { table: &table };
    for (method, path, headers, rule) in [
        ("GET", "/", &[][..], "any"),
        ("GET", "", &[], "any"),
        ("OPTIONS", "*", &[], "any"),
        ("GET", "/r", &[], "short"),
        ("GET", "/r/", &[], "short"),
        ("GET", "/rx", &[], "any"),
        ("GET", "/r/7", &[], "short"),
        ("GET", "/r/long", &[], "exact"),
        ("GET", "/r/long/", &[], "long"),
        ("GET", "/r/longer", &[], "short"),
        ("GET", "/77", &[], "digits"),
        ("GET", "/77/", &[], "any"),
        ("GET", "/h", &[("x-a", "1")], "header"),
        ("GET", "/h", &[("x-a", "2")], "any"),
        ("GET", "/h", &[("x-a", "1"), ("x-b", "abc")], "headers"),
        ("GET", "/h", &[("x-a", "1"), ("x-b", "abc7")], "header"),
        ("POST", "/h", &[("x-a", "1"), ("x-b", "abc")], "method"),
    ] {
        assert_eq!(ask.rule(method, path, headers), rule, "{method} {path} {headers:?}");
    }
}

#[test]
fn the_older_route_wins_and_then_the_name() {
    let all = |name: &str| format!("  - {{ name: {name}, backendRefs: [{{ name: b }}] }}");
    let (young, old) = (all("young"), all("old"));
    let mut view = view(&[("a-young", &young), ("z-old", &old)]);
    let routed = Ask { table: &RouteTable::build(&view, &reviews()) }.get("/").unwrap();
    assert_eq!((&*routed.rule, &*routed.route), ("old", "shop/z-old"));
    view.policies.values_mut().for_each(|document| document.created = Timestamp(5));
    let routed = Ask { table: &RouteTable::build(&view, &reviews()) }.get("/").unwrap();
    assert_eq!(&*routed.rule, "young");
}

#[test]
fn weights_decide_in_proportion() {
    let rules = "  - backendRefs: [{ name: v1, weight: 90 }, { name: v2, weight: 0 }, { kind: ServiceImport, group: multicluster.x-k8s.io, name: v3, weight: 10 }]\n    timeouts: { request: 2s, backendRequest: 0s }";
    let table = RouteTable::build(&view(&[("a", rules)]), &reviews());
    let ask = Ask { table: &table };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for step in 0..1000u64 {
        let routed = ask.ask("GET", "/", &[], step.wrapping_mul(u64::MAX / 1000)).unwrap();
        assert_eq!(routed.request_timeout, Some(Duration::from_secs(2)));
        assert_eq!(routed.attempt_timeout, Some(NO_TIMEOUT));
        assert_eq!(&*routed.rule, "#0");
        let imported = routed.backend.service.name() == "v3";
        assert_eq!(routed.backend.reach, if imported { Reach::ClusterSet } else { Reach::Cluster });
        *counts.entry(routed.backend.service.to_string()).or_default() += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["shop/v1", "shop/v3"]);
    assert!(counts["shop/v1"].abs_diff(900) <= 1, "{counts:?}");
    assert!(ask.ask("GET", "/", &[], u64::MAX).is_ok());
}

#[test]
fn no_match_and_no_weight_are_told_apart() {
    let rules = "  - { matches: [{ path: { value: /a } }], backendRefs: [{ name: b }] }\n  - { matches: [{ path: { value: /z } }], backendRefs: [{ name: b, weight: 0 }] }";
    let table = RouteTable::build(&view(&[("a", rules)]), &reviews());
    let ask = Ask { table: &table };
    assert!(ask.get("/a/b").is_ok());
    assert_eq!(ask.get("/b"), Err(NoRoute::NoMatch));
    assert_eq!(ask.get("/z"), Err(NoRoute::NoBackend));
}

#[test]
fn a_service_parent_is_for_both_names_and_an_import_for_the_wide_one() {
    let rules = "  - { backendRefs: [{ name: b }] }";
    let mut view = view(&[("a", rules)]);
    assert!(!RouteTable::build(&view, &host("shop/reviews", Reach::Cluster)).is_empty());
    assert!(!RouteTable::build(&view, &reviews()).is_empty());
    assert!(RouteTable::build(&view, &host("shop/other", Reach::ClusterSet)).is_empty());
    assert!(RouteTable::build(&view, &host("other/reviews", Reach::ClusterSet)).is_empty());
    for document in view.policies.values_mut() {
        let PolicySpec::HttpRoute(route) = &mut document.spec else { unreachable!("only routes here") };
        route.parent_refs[0].kind = RefKind::ServiceImport;
    }
    assert!(RouteTable::build(&view, &host("shop/reviews", Reach::Cluster)).is_empty());
    assert!(!RouteTable::build(&view, &reviews()).is_empty());
}

/// The cases of Gateway API's conformance test HTTPRouteQueryParamMatching.
#[test]
fn query_parameters_match_by_their_first_value_decoded_once() {
    let rules = "
  - { name: whale, matches: [{ queryParams: [{ name: animal, value: whale }] }], backendRefs: [{ name: a }] }
  - { name: dolphin, matches: [{ queryParams: [{ name: animal, value: dolphin }] }], backendRefs: [{ name: a }] }
  - { name: both, matches: [{ queryParams: [{ name: animal, value: dolphin }, { name: color, value: blue }] }], backendRefs: [{ name: a }] }
  - { name: or, matches: [{ queryParams: [{ name: ANIMAL, value: Whale }] }, { queryParams: [{ name: animal, value: shark }] }], backendRefs: [{ name: a }] }
  - { name: regex, matches: [{ queryParams: [{ type: RegularExpression, name: id, value: '[0-9]+' }] }], backendRefs: [{ name: a }] }
  - { name: path, matches: [{ path: { value: /path5 }, queryParams: [{ name: animal, value: whale }] }], backendRefs: [{ name: a }] }
  - { name: blank, matches: [{ queryParams: [{ name: a b, value: c&d }] }], backendRefs: [{ name: a }] }";
    let view = view(&[("routes", rules)]);
    let table = RouteTable::build(&view, &reviews());
    let ask = Ask { table: &table };
    for (path, expected) in [
        ("/?animal=whale", "whale"),
        ("/?animal=dolphin", "dolphin"),
        ("/?animal=whale&otherparam=irrelevant", "whale"),
        ("/?animal=dolphin&color=yellow", "dolphin"),
        ("/?color=blue&animal=dolphin", "both"),
        ("/?ANIMAL=Whale", "or"),
        ("/?animal=shark", "or"),
        ("/?animal=shark&animal=whale", "or"),
        ("/?id=7", "regex"),
        ("/?id=7x", "NoMatch"),
        ("/path5?animal=whale", "path"),
        ("/path5?animal=dolphin", "dolphin"),
        ("/?%61nimal=wh%61le", "whale"),
        ("/?animal=wh%2561le", "NoMatch"),
        ("/?a%20b=c%26d", "blank"),
        ("/?animal", "NoMatch"),
        ("/?%zz&animal=whale", "whale"),
        ("/?animal=%ff", "NoMatch"),
        ("/?color=blue", "NoMatch"),
        ("/?animal=horse", "NoMatch"),
        ("/?animal=whaledolphin", "NoMatch"),
        ("/", "NoMatch"),
        ("/?", "NoMatch"),
    ] {
        assert_eq!(ask.rule("GET", path, &[]), expected, "{path}");
    }
}

#[test]
fn more_headers_go_before_more_query_parameters() {
    let rules = "
  - { name: queries, matches: [{ queryParams: [{ name: a, value: x }, { name: b, value: x }] }], backendRefs: [{ name: a }] }
  - { name: header, matches: [{ headers: [{ name: h, value: x }] }], backendRefs: [{ name: a }] }
  - { name: one, matches: [{ queryParams: [{ name: a, value: x }] }], backendRefs: [{ name: a }] }";
    let view = view(&[("routes", rules)]);
    let table = RouteTable::build(&view, &reviews());
    let ask = Ask { table: &table };
    assert_eq!(ask.rule("GET", "/?a=x&b=x", &[("h", "x")]), "header");
    assert_eq!(ask.rule("GET", "/?a=x&b=x", &[]), "queries");
    assert_eq!(ask.rule("GET", "/?a=x", &[]), "one");
}

#[test]
fn a_redirect_needs_no_backend_and_has_its_rules_name() {
    let rules = "
  - { name: moved, matches: [{ path: { value: /old } }], filters: [{ type: RequestRedirect, requestRedirect: { port: 81 } }] }
  - { name: rest, backendRefs: [{ name: a }] }";
    let view = view(&[("routes", rules)]);
    let table = RouteTable::build(&view, &reviews());
    let moved = Ask { table: &table }.get("/old/x").unwrap();
    assert_eq!((&*moved.rule, moved.filters.unwrap().redirect().is_some()), ("moved", true));
    let rest = Ask { table: &table }.get("/new").unwrap();
    assert_eq!((&*rest.rule, rest.filters), ("rest", None));
}

/// The cases of Gateway API's conformance tests GRPCExactMethodMatching and GRPCRouteHeaderMatching, and patterns.
#[test]
fn a_grpc_route_matches_services_methods_and_headers_and_decides_alone() {
    let rules = "
  - { name: echo, matches: [{ method: { service: grpcecho.Echo, method: Echo } }], backendRefs: [{ name: a }] }
  - { name: two, matches: [{ method: { service: grpcecho.Echo, method: EchoTwo } }], backendRefs: [{ name: a }] }
  - { name: service, matches: [{ method: { service: grpcecho.Other } }], backendRefs: [{ name: a }] }
  - { name: method, matches: [{ method: { method: Health.Check } }], backendRefs: [{ name: a }] }
  - { name: pattern, matches: [{ method: { type: RegularExpression, service: 'a|b', method: 'Get.+' } }], backendRefs: [{ name: a }] }
  - { name: header, matches: [{ headers: [{ name: version, value: one }] }], backendRefs: [{ name: a }] }";
    let mut view = view(&[("http", "  - { name: http, backendRefs: [{ name: a }] }")]);
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{ name: grpc, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n{rules}\n"
    );
    let (document, _) = parse("test", &text).unwrap().remove(0);
    assert_eq!(parse("again", &document.to_json().to_string()).unwrap()[0].0, document);
    view.apply(&Change::PolicyPut(Box::new(document)));
    let table = RouteTable::build(&view, &reviews());
    let ask = Ask { table: &table };
    for (path, headers, expected) in [
        ("/grpcecho.Echo/Echo", vec![], "echo"),
        ("/grpcecho.Echo/EchoTwo", vec![], "two"),
        ("/grpcecho.Echo/EchoThree", vec![], "NoMatch"),
        ("/grpcecho.Other/Anything", vec![], "service"),
        ("/grpcecho.Otherwise/Anything", vec![], "NoMatch"),
        ("/any.Service/Health.Check", vec![], "method"),
        ("/any.Service/HealthXCheck", vec![], "NoMatch"),
        ("/b/GetThis", vec![], "pattern"),
        ("/ab/GetThis", vec![], "NoMatch"),
        ("/a/Get", vec![], "NoMatch"),
        ("/any.Service/Any", vec![("version", "one")], "header"),
        ("/grpcecho.Echo/Echo", vec![("version", "one")], "echo"),
    ] {
        assert_eq!(ask.rule("POST", path, &headers), expected, "{path} {headers:?}");
    }
    assert_eq!(ask.rule("GET", "/grpcecho.Echo/Echo", &[]), "NoMatch", "a call is a POST");
}

#[test]
fn a_preflight_goes_by_precedence_for_either_method_and_by_no_dice() {
    let cors = "filters: [{ type: CORS, cors: { allowOrigins: ['https://a.example'] } }]";
    let rules = format!(
        "  - {{ name: asked, matches: [{{ path: {{ value: /own }}, method: OPTIONS }}], backendRefs: [{{ name: own }}] }}
  - {{ name: write, matches: [{{ method: PUT }}], {cors}, backendRefs: [{{ name: none, weight: 0 }}] }}
  - {{ name: bare, matches: [{{ method: DELETE }}], backendRefs: [{{ name: bare }}] }}
  - {{ name: rest, {cors}, backendRefs: [{{ name: some }}, {{ name: some, namespace: trial }}] }}"
    );
    let table = RouteTable::build(&view(&[("a", &rules)]), &reviews());
    let ask = Ask { table: &table };
    const MOST: u64 = u64::MAX;
    for (path, wanted, answers, rule, backend) in [
        ("/", "PUT", true, "write", "shop/reviews"),
        ("/", "PATCH", true, "rest", "shop/reviews"),
        ("/", "", true, "rest", "shop/reviews"),
        // A rule for what is asked about, without a filter: its app is asked.
        ("/", "DELETE", false, "bare", "shop/bare"),
        // One for OPTIONS that is more precise than those with a filter.
        ("/own", "PUT", false, "asked", "shop/own"),
        ("/own/x", "PATCH", false, "asked", "shop/own"),
    ] {
        for random in [0, MOST] {
            let expected = (answers, rule.to_owned(), backend.to_owned());
            assert_eq!(ask.preflight(path, wanted, random), expected, "{path} {wanted}");
        }
    }
    // The requests themselves have no such leave.
    assert_eq!(ask.ask("PUT", "/", &[], 0), Err(NoRoute::NoBackend));
    assert_eq!(ask.ask("PATCH", "/", &[], MOST), Err(NoRoute::RefNotPermitted));
    assert_eq!(ask.rule("OPTIONS", "/", &[]), "rest");
    assert_eq!(ask.rule("OPTIONS", "/own", &[]), "asked");
}
