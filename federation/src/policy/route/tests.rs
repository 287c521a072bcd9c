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
        self.table.route(&reviews(), &RequestParts { method, path, header: &header }, random)
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

#[test]
fn patterns_are_bounded_and_match_the_whole() {
    assert!(compile_pattern("/r/.*").unwrap().is_match("/r/7"));
    assert!(!compile_pattern("a|b").unwrap().is_match("ab"));
    assert_eq!(compile_pattern(&"a".repeat(MAX_PATTERN_BYTES + 1)).unwrap_err(), PatternError::TooLong);
    assert_eq!(compile_pattern("(\\w{100}){100}").unwrap_err(), PatternError::TooCostly);
    let nested = format!("{}{}", "(".repeat(100), ")".repeat(100));
    assert!(matches!(compile_pattern(&nested), Err(PatternError::Syntax(_))));
    let Err(PatternError::Syntax(why)) = compile_pattern("(") else { panic!("not a pattern") };
    assert!(why.contains("unclosed group"), "{why}");
}
