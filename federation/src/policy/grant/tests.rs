//! Tests of grants: what they permit, of whom, and what becomes of routes without one.

use super::*;
use crate::change::Change;
use crate::host::ServiceHost;
use crate::policy::{NoRoute, RequestParts, RouteTable, StreamRoutes, parse};

fn put(view: &mut View, text: &str) {
    for (document, _) in parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}")) {
        view.apply(&Change::PolicyPut(Box::new(document)));
    }
}

fn withdraw(view: &mut View) {
    view.policies.retain(|key, _| key.kind != PolicyKind::ReferenceGrant);
}

fn view() -> View {
    View::new("east".parse().unwrap(), "east.example".parse().unwrap())
}

fn grant(namespace: &str, from: &str, to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{ name: g, namespace: {namespace} }}\n\
         spec:\n  from: [{from}]\n  to: [{to}]\n"
    )
}

const FROM: &str = "{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }";
const TO: &str = "{ group: '', kind: Service, name: reviews }";

fn route(kind: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: web }}]\n  {rest}\n"
    )
}

fn web() -> ServiceHost {
    ServiceHost::parse("web.shop").unwrap()
}

/// Where a request goes, as `namespace/name`, or why nowhere; `random` at the given part of all weights.
fn to(view: &View, percent: u64) -> String {
    let (method, path) = ("POST", "/a.B/C");
    let parts = RequestParts { method, path, query: None, header: &|_| None, preflight: None };
    match RouteTable::build(view, &web()).route(&web(), &parts, u64::MAX / 100 * percent) {
        Ok(routed) => routed.backend.service.to_string(),
        Err(no) => format!("{no:?}"),
    }
}

#[test]
fn a_reference_is_permitted_by_namespace_group_kind_and_name_of_both_ends() {
    let permitted = |grants: &[(&str, &str, &str)], kind, service: &str| {
        let mut view = view();
        for (index, (namespace, from, to)) in grants.iter().enumerate() {
            put(&mut view, &grant(namespace, from, to).replace("name: g,", &format!("name: g{index},")));
        }
        let from = Referrer { kind: PolicyKind::HttpRoute, namespace: "shop" };
        from.may_name(&view, kind, &service.parse().unwrap())
    };
    let one = |namespace, from, to| permitted(&[(namespace, from, to)], RefKind::Service, "trial/reviews");
    assert!(!permitted(&[], RefKind::Service, "trial/reviews"), "denied without a word");
    assert!(permitted(&[], RefKind::Service, "shop/reviews"), "at home nothing has to be said");
    assert!(one("trial", FROM, TO));
    assert!(one("trial", FROM, "{ group: '', kind: Service }"), "without a name: all of them");
    assert!(one("trial", FROM, "{ group: core, kind: Service }"));
    assert!(!one("shop", FROM, TO), "only the owner's namespace has a say");
    assert!(!one("other", FROM, TO));
    assert!(!one("trial", FROM, "{ group: '', kind: Service, name: ratings }"));
    assert!(!one("trial", FROM, "{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }"));
    assert!(!one("trial", FROM, "{ group: apps, kind: Service, name: reviews }"), "another group's kind");
    for from in [
        "{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other }",
        "{ group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop }",
        "{ group: '', kind: HTTPRoute, namespace: shop }",
    ] {
        assert!(!one("trial", from, TO), "{from}");
    }
    // Several say more than one; each by itself.
    let other = "{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other }";
    let both = [("trial", other, TO), ("trial", FROM, TO), ("z", other, TO)];
    assert!(permitted(&both, RefKind::Service, "trial/reviews"));
    let apart = [("trial", other, TO), ("trial", FROM, "{ group: '', kind: Service, name: ratings }")];
    assert!(!permitted(&apart, RefKind::Service, "trial/reviews"), "from of one and to of another");
    let import = "{ group: multicluster.x-k8s.io, kind: ServiceImport }";
    assert!(permitted(&[("trial", FROM, import)], RefKind::ServiceImport, "trial/reviews"));
    let outside = "{ group: hanse.dev, kind: ExternalService, name: api }";
    assert!(permitted(&[("trial", FROM, outside)], RefKind::ExternalService, "trial/api"));
}

#[test]
fn a_backend_that_is_not_permitted_keeps_its_share_and_gets_nothing() {
    let rules =
        "rules: [{ backendRefs: [{ name: reviews, weight: 3 }, { name: reviews, namespace: trial }] }]";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let mut view = view();
        put(&mut view, &route(kind, rules));
        assert_eq!((to(&view, 10).as_str(), to(&view, 74).as_str()), ("shop/reviews", "shop/reviews"));
        assert_eq!(to(&view, 76), "RefNotPermitted");
        let refused: Vec<_> = refused(&view).map(|(key, to)| (key.to_string(), to)).collect();
        let [(key, reference)] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!(*key, format!("{kind}/shop/r"));
        assert_eq!(
            (reference.service.to_string().as_str(), reference.weight),
            ("trial/reviews", Some((1, 4)))
        );
        put(&mut view, &grant("trial", &FROM.replace("HTTPRoute", kind), TO));
        assert_eq!((to(&view, 74).as_str(), to(&view, 76).as_str()), ("shop/reviews", "trial/reviews"));
        assert_eq!(super::refused(&view).count(), 0);
        withdraw(&mut view);
        assert_eq!(to(&view, 76), "RefNotPermitted");
    }
}

#[test]
fn whom_the_route_may_not_name_gets_no_copies() {
    let rules = "rules: [{ filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: reviews, namespace: trial } } }], \
                 backendRefs: [{ name: reviews }] }]";
    let mut view = view();
    put(&mut view, &route("HTTPRoute", rules));
    let copies = |view: &View| {
        let (method, path) = ("GET", "/");
        let parts = RequestParts { method, path, query: None, header: &|_| None, preflight: None };
        let routed = RouteTable::build(view, &web()).route(&web(), &parts, 0).unwrap();
        routed.filters.map_or(0, |filters| filters.mirrors(|| 0).count())
    };
    assert_eq!((copies(&view), to(&view, 0).as_str()), (0, "shop/reviews"));
    assert_eq!(refused(&view).map(|(_, to)| to.weight).collect::<Vec<_>>(), [None]);
    put(&mut view, &grant("trial", FROM, TO));
    assert_eq!(copies(&view), 1);
}

#[test]
fn connections_are_not_led_where_the_route_may_not_name() {
    let backends = "rules: [{ backendRefs: [{ name: db, namespace: trial, port: 7 }] }]";
    for (kind, rest, name) in [
        ("TCPRoute", backends.to_owned(), None),
        ("TLSRoute", format!("hostnames: [db.example]\n  {backends}"), Some("db.example")),
    ] {
        let mut view = view();
        put(&mut view, &route(kind, &rest));
        let to = |view: &View| StreamRoutes::build(view, &web()).route(7, name, 0);
        assert_eq!(to(&view), Err(NoRoute::RefNotPermitted));
        let all = "{ group: '', kind: Service }";
        put(&mut view, &grant("trial", &FROM.replace("HTTPRoute", kind), all));
        let led = to(&view).unwrap().unwrap();
        assert_eq!(led.backend.service.to_string(), "trial/db");
        // What has led there is asked about again by itself, whatever has become of the route.
        let crossing = led.crossing.unwrap();
        view.policies.retain(|key, _| key.kind == PolicyKind::ReferenceGrant);
        assert!(crossing.is_granted(&view));
        withdraw(&mut view);
        assert!(!crossing.is_granted(&view));
        put(&mut view, &route(kind, &rest.replace(", namespace: trial", "")));
        assert_eq!(to(&view).unwrap().unwrap().crossing, None, "nobody has to grant what stays at home");
    }
}
