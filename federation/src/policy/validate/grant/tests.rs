//! What is told of references without a grant, and of grants that permit nothing.

use std::collections::BTreeSet;

use hanse_identity::ServiceName;

use crate::catalog::Service;
use crate::change::Change;
use crate::policy::{Severity, parse, validate};
use crate::view::View;

/// west with shop/web, trial/reviews and trial/db.
fn view() -> View {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    for name in ["shop/web", "trial/reviews", "trial/db"] {
        let name: ServiceName = name.parse().unwrap();
        view.apply(&Change::ServicePut(Service { name, identities: BTreeSet::new(), export: None }));
    }
    view
}

fn put(view: &mut View, text: &str) {
    for (document, _) in parse("f.yaml", text).unwrap() {
        view.apply(&Change::PolicyPut(Box::new(document)));
    }
}

/// Warnings as `code path | message | fix`; there are no errors.
fn told(view: &View, text: &str) -> Vec<String> {
    let documents = parse("f.yaml", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
    let found = validate(view, "f.yaml", &documents);
    assert!(found.iter().all(|d| d.severity == Severity::Warning), "{found:#?}");
    found.into_iter().map(|d| format!("{} {} | {} | {}", d.code, d.path, d.message, d.fix)).collect()
}

fn route(kind: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: web }}]\n  {rest}\n"
    )
}

fn grant(from: &str, to: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {{ name: g, namespace: trial }}\nspec:\n  from: [{from}]\n  to: [{to}]\n"
    )
}

const FROM: &str = "{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }";
const TO: &str = "{ group: '', kind: Service, name: reviews }";
const SPLIT: &str =
    "rules: [{ backendRefs: [{ name: web, weight: 9 }, { name: reviews, namespace: trial }] }]";

#[test]
fn a_reference_without_a_grant_is_taken_and_told_with_the_grant_to_write() {
    let alone = route("HTTPRoute", SPLIT);
    assert_eq!(
        told(&view(), &alone),
        [
            "E4108 spec.rules[0].backendRefs[1].namespace | RefNotPermitted: no ReferenceGrant in trial lets a HTTPRoute of \
             shop name Service trial/reviews: 10 % of the rule's requests would get 500 | apply a ReferenceGrant in \
             namespace trial with from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }], to: \
             [{ group: \"\", kind: Service, name: reviews }]"
        ]
    );
    assert_eq!(told(&view(), &format!("{alone}{}", grant(FROM, TO))), [""; 0], "together, in whatever order");
    let mut granted = view();
    put(&mut granted, &grant(FROM, TO));
    assert_eq!(told(&granted, &alone), [""; 0]);
    let mirror = "rules: [{ filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: reviews, namespace: trial } } }], \
                  backendRefs: [{ name: web }] }]";
    let found = told(&view(), &route("GRPCRoute", mirror));
    assert!(found.len() == 1 && found[0].contains("requestMirror.backendRef.namespace | "), "{found:?}");
    assert!(
        found[0].contains("GRPCRoute of shop") && found[0].contains("nobody would get a copy"),
        "{found:?}"
    );
    let found =
        told(&view(), &route("TCPRoute", "rules: [{ backendRefs: [{ name: db, namespace: trial }] }]"));
    assert!(found.len() == 1 && found[0].contains("100 % of the connections would be reset"), "{found:?}");
}

#[test]
fn what_a_route_is_for_is_in_its_own_namespace_whatever_is_granted() {
    let text = format!(
        "{}{}",
        route("HTTPRoute", SPLIT).replace("name: web }]\n", "name: db, namespace: trial }]\n"),
        grant(FROM, "{ group: '', kind: Service }")
    );
    let found = validate(&view(), "f.yaml", &parse("f.yaml", &text).unwrap());
    let found: Vec<_> = found.iter().map(|d| (d.code.as_str(), d.severity, d.path.as_str())).collect();
    assert_eq!(found, [("E4108", Severity::Error, "spec.parentRefs[0].namespace")]);
}

#[test]
fn a_grant_that_permits_nothing_here_or_takes_away_is_told() {
    for (from, to, expected) in [
        (FROM, TO, None),
        (FROM, "{ group: multicluster.x-k8s.io, kind: ServiceImport }", None),
        (FROM, "{ group: '', kind: Secret, name: www.example }", Some("E4125 spec.to[0] | ")),
        (FROM, "{ group: '', kind: Servic }", Some("did you mean Service")),
        (FROM, "{ group: '', kind: ServiceImport }", Some("E4125 spec.to[0] | ")),
        (
            "{ group: gateway.networking.k8s.io, kind: Gateway, namespace: shop }",
            TO,
            Some("E4125 spec.from[0] | "),
        ),
        ("{ group: '', kind: HTTPRoute, namespace: shop }", TO, Some("in group gateway.networking.k8s.io")),
        (&FROM.replace("shop", "trial"), TO, Some("E4125 spec.from[0].namespace | ")),
    ] {
        let found = told(&view(), &grant(from, to));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{from} {to}: {found:?}");
        assert!(expected.is_none_or(|expected| found[0].contains(expected)), "{from} {to}: {found:?}");
    }
    let wrong = parse("f.yaml", &grant(FROM, "{ group: '', kind: Service, name: Reviews }")).unwrap_err();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].message.contains("\"Reviews\" is not the name of an object"), "{wrong:?}");
    let mut view = view();
    put(&mut view, &format!("{}{}", grant(FROM, TO), route("HTTPRoute", SPLIT)));
    let narrower = grant(FROM, "{ group: '', kind: Service, name: db }");
    let found = told(&view, &narrower);
    assert!(found.len() == 1 && found[0].starts_with("E4108 spec | RefNotPermitted: "), "{found:?}");
    assert!(found[0].contains("HTTPRoute/shop/r to Service trial/reviews"), "{found:?}");
    let another = grant(FROM, TO).replace("name: g,", "name: h,");
    assert_eq!(told(&view, &format!("{narrower}{another}")), [""; 0], "another grant says the same");
}
