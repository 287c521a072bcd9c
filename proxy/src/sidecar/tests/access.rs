//! Who may call, through real sidecars: AccessPolicies as documents, decided by the destination for every request.

use hanse_federation::Change;
use hanse_federation::policy::{PolicyKey, PolicyKind, parse, validate};

use super::*;

/// The document's text as `hanse policy apply` takes it.
pub(super) fn apply(shop: &mut Shop, text: &str) {
    let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
    let findings: Vec<_> = validate(&shop.view, "test", &documents)
        .into_iter()
        // The shop of the tests has joined nobody.
        .filter(|finding| finding.code != "E4111")
        .collect();
    assert!(findings.is_empty(), "{findings:#?}");
    for (document, _) in documents {
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
}

pub(super) fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n  action: {action}\n  rules: {rules}\n"
    )
}

async fn status(shop: &Shop, method: &str, path: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("host", "reviews.shop");
    let answer = shop.product.request(request.body(Full::default()).unwrap()).await;
    (answer.status.as_u16(), answer.header("x-hanse-reason").to_owned())
}

fn not_allowed() -> (u16, String) {
    (403, "not-allowed".to_owned())
}

#[test]
fn the_example_lets_in_whom_it_names_for_what_it_names() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let ok = (200, String::new());
        assert_eq!(status(&shop, "POST", "/x").await, ok);
        let path = format!("{}/../deploy/examples/access-policy.yaml", env!("CARGO_MANIFEST_DIR"));
        apply(&mut shop, &std::fs::read_to_string(path).unwrap());
        assert_eq!(status(&shop, "GET", "/reviews/7").await, ok);
        for (method, path) in
            [("POST", "/reviews/7"), ("GET", "/admin"), ("GET", "/reviewsx"), ("DELETE", "/reviews")]
        {
            assert_eq!(status(&shop, method, path).await, not_allowed(), "{method} {path}");
        }
        for path in
            ["/reviews/../admin", "/reviews/%2e%2e/admin", "/reviews/..;/admin", "/reviews%2f..%2fadmin"]
        {
            assert_eq!(status(&shop, "GET", path).await, (400, "bad-request".to_owned()), "{path}");
        }
        // Whoever is not named is refused, on the connection that he may make.
        let other = plane_of(&shop.east.workload("other"), &shop.view);
        assert_eq!(
            call(&other, shop.reviews.inbound, "/reviews").await.unwrap().status,
            StatusCode::FORBIDDEN
        );
        let bot = plane_of(&shop.east.workload("bot"), &shop.view);
        assert_eq!(call(&bot, shop.reviews.inbound, "/reviews").await.unwrap().status, StatusCode::FORBIDDEN);
        let metrics = shop.reviews.plane.telemetry.to_text();
        assert!(
            metrics.contains("hanse_access_total{rule=\"shop/no-bots#0\",decision=\"denied\"} 1"),
            "{metrics}"
        );

        // Taken back, all is as it was, on the connections that live.
        for name in ["shop/reviews", "shop/no-bots"] {
            let key = PolicyKey { kind: PolicyKind::AccessPolicy, name: name.parse().unwrap() };
            shop.change(|view| view.apply(&Change::PolicyGone(key)));
        }
        assert_eq!(status(&shop, "POST", "/x").await, ok);
    });
}

#[test]
fn a_policy_holds_for_the_next_request_of_a_living_connection() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        assert_eq!(status(&shop, "GET", "/").await.0, 200);
        apply(&mut shop, &policy("nobody", "Allow", "[]"));
        assert_eq!(status(&shop, "GET", "/").await, not_allowed());
        let mut logged = shop.reviews.logged().await;
        while logged.response_code != 403 {
            logged = shop.reviews.logged().await;
        }
        assert_eq!(logged.source_spiffe, shop.east.id("productpage").to_string());
        apply(&mut shop, &policy("nobody", "Audit", "[{ name: all }]"));
        assert_eq!(status(&shop, "GET", "/").await.0, 200);
        let metrics = shop.reviews.plane.telemetry.to_text();
        assert!(
            metrics.contains("hanse_access_total{rule=\"shop/nobody#all\",decision=\"audited\"} 1"),
            "{metrics}"
        );
    });
}

#[test]
fn the_example_of_an_audit_tells_and_refuses_nobody() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        apply(&mut shop, &balancing::example("access-policy-audit"));
        assert_eq!(status(&shop, "GET", "/x").await.0, 200);
        assert_eq!(shop.reviews.logged().await.policy, "");
        assert_eq!(status(&shop, "DELETE", "/x").await.0, 200);
        assert_eq!(shop.reviews.logged().await.policy, "audit:shop/reviews-writes#writes");
        let metrics = shop.reviews.plane.telemetry.to_text();
        let line = "hanse_access_total{rule=\"shop/reviews-writes#writes\",decision=\"audited\"} 1";
        assert!(metrics.contains(line), "{metrics}");
        // And then in earnest.
        let text = balancing::example("access-policy-audit").replace("action: Audit", "action: Deny");
        apply(&mut shop, &text);
        assert_eq!(status(&shop, "GET", "/x").await.0, 200);
        assert_eq!(status(&shop, "DELETE", "/x").await, not_allowed());
    });
}

#[test]
fn the_example_of_namespaces_and_headers_wants_both() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let text = balancing::example("access-policy-headers");
        apply(&mut shop, &text);
        let asked = async |shop: &Shop, tenants: &[&str]| {
            let mut request = get(REVIEWS);
            for tenant in tenants {
                request.headers_mut().append("x-tenant", tenant.parse().unwrap());
            }
            shop.product.request(request).await.status.as_u16()
        };
        for (tenants, status) in
            [(&["acme"][..], 200), (&[], 403), (&["ACME"], 403), (&["acme/../x"], 403), (&["acme", "7"], 403)]
        {
            assert_eq!(asked(&shop, tenants).await, status, "{tenants:?}");
        }
        apply(&mut shop, &text.replace("namespaces: [shop]", "namespaces: [bank]"));
        assert_eq!(asked(&shop, &["acme"]).await, 403, "of another namespace");
    });
}

/// Another name for the same workload is no way around a policy.
#[test]
fn what_is_said_of_one_service_of_a_workload_holds_under_each_of_its_names() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let app = App::start("both").await;
        let both = Sidecar::start(
            Some(&shop.east.workload("reviews")),
            &["shop/other-name", "shop/reviews"],
            Some(app.address),
        );
        let (id, inbound) = (shop.east.id("reviews"), both.inbound);
        shop.change(|view| {
            add_service(view, "shop/other-name", std::slice::from_ref(&id), None);
            add_endpoint(view, "both", "shop/other-name", &id, inbound);
        });
        both.publish(&shop.view);
        let asked = async |shop: &Shop| shop.product.get("http://other-name.shop/x").await.status.as_u16();
        assert_eq!(asked(&shop).await, 200);
        apply(&mut shop, &policy("closed", "Deny", "[{ from: { namespaces: [shop] } }]"));
        both.publish(&shop.view);
        assert_eq!(asked(&shop).await, 403);
    });
}

#[test]
fn a_rule_on_the_host_is_about_what_the_app_gets() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        apply(
            &mut shop,
            &policy("hosts", "Deny", "[{ to: { headers: [{ name: Host, value: reviews.shop }] } }]"),
        );
        assert_eq!(status(&shop, "GET", "/x").await, not_allowed());
        apply(
            &mut shop,
            &policy("hosts", "Deny", "[{ to: { headers: [{ name: Host, value: admin.shop }] } }]"),
        );
        assert_eq!(status(&shop, "GET", "/x").await, (200, String::new()));
    });
}
