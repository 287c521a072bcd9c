//! End users through real sidecars: the example of RequestAuthentication, with the AccessPolicy beside it.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_federation::Change;
use hanse_federation::policy::{parse, validate};
use serde_json::{Value, json};

use super::*;
use crate::runtime::now;

/// The key of RFC 8037, Appendix A.1, whose public half is in the example.
const SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";

fn signed(claims: &Value) -> String {
    let seed = URL_SAFE_NO_PAD.decode(SEED).unwrap();
    signed_by(&Ed25519KeyPair::from_seed_unchecked(&seed).unwrap(), claims)
}

fn signed_by(key: &Ed25519KeyPair, claims: &Value) -> String {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let head = json!({ "alg": "EdDSA", "kid": "1" }).to_string();
    let text = format!("{}.{}", b64(head.as_bytes()), b64(claims.to_string().as_bytes()));
    format!("{text}.{}", b64(key.sign(text.as_bytes()).as_ref()))
}

/// What an issuer with that key publishes.
fn key_set(key: &Ed25519KeyPair) -> String {
    let x = URL_SAFE_NO_PAD.encode(aws_lc_rs::signature::KeyPair::public_key(key));
    json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "1", "x": x }] }).to_string()
}

fn claims(groups: Value) -> Value {
    json!({ "iss": "https://id.example", "sub": "ann", "aud": "reviews", "exp": now().seconds() + 60, "groups": groups })
}

async fn protected() -> Shop {
    protected_by_example("request-authentication").await
}

async fn protected_by_example(example: &str) -> Shop {
    let mut shop = Shop::open().await;
    let path = format!("{}/../deploy/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
    let documents = parse("test", &std::fs::read_to_string(path).unwrap()).unwrap();
    let findings = validate(&shop.view, "test", &documents);
    assert!(findings.is_empty(), "{findings:#?}");
    for (document, _) in documents {
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
    shop
}

async fn ask(shop: &Shop, method: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri("/x").header("host", "reviews.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    shop.product.request(request.body(Full::default()).unwrap()).await
}

#[test]
fn the_example_tells_end_users_from_one_another() {
    on_local_set(async {
        let shop = protected().await;
        let bearer = |claims: Value| format!("bearer {}", signed(&claims));
        let staff = bearer(claims(json!(["staff", "friends"])));
        let guest = bearer(claims(json!(["guests"])));
        // Nobody's word but the token's tells the app who asks, whatever the spelling.
        let forged = [
            ("x-user", "root"),
            ("X_User", "root"),
            ("x-groups", "staff"),
            ("authorization", staff.as_str()),
        ];
        for _ in 0..2 {
            let answer = ask(&shop, "POST", &forged).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let seen = answer.seen();
            let headers = seen["headers"].as_object().unwrap();
            assert_eq!((&headers["x-user"], &headers["x-groups"]), (&json!("ann"), &json!("staff,friends")));
            assert!(!headers.contains_key("authorization") && !headers.contains_key("x_user"), "{headers:?}");
        }
        for (headers, status) in [
            (&[("authorization", guest.as_str())][..], 403),
            (&[], 403),
            (&[("x-groups", "staff")], 403),
            (&[("authorization", "Basic YTpi")], 403),
        ] {
            assert_eq!(ask(&shop, "POST", headers).await.status.as_u16(), status, "{headers:?}");
        }
        // Reading needs no token, and what was forged is gone there too.
        let answer = ask(&shop, "GET", &[("x-user", "root"), ("authorization", "Basic YTpi")]).await;
        let headers = &answer.seen()["headers"];
        assert_eq!((answer.status.as_u16(), headers["x-user"].as_str()), (200, None));
        assert_eq!(headers["authorization"], "Basic YTpi", "what is no token stays");
        let mut logged = shop.reviews.plane.telemetry.to_text();
        logged.retain(|c| c != '\n');
        assert!(logged.contains("rule=\"\",decision=\"denied\"} 4"), "{logged}");
    });
}

#[test]
fn a_token_that_is_not_believed_stops_a_request_that_needs_none() {
    on_local_set(async {
        let mut shop = protected().await;
        let with = |name: &str, value: Value| {
            let mut claims = claims(json!([]));
            claims[name] = value;
            signed(&claims)
        };
        let good = signed(&claims(json!([])));
        let other = with("sub", json!("eve"));
        let broken = format!("{}{}", &good[..good.rfind('.').unwrap()], &other[other.rfind('.').unwrap()..]);
        for token in [
            with("aud", json!("bank")),
            with("iss", json!("https://evil.example")),
            with("exp", json!(now().seconds() - 60)),
            with("nbf", json!(now().seconds() + 60)),
            broken,
            "junk".to_owned(),
            String::new(),
        ] {
            let answer = ask(&shop, "GET", &[("authorization", &format!("Bearer {token}"))]).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("x-hanse-reason")),
                (401, "unauthenticated"),
                "{token}"
            );
            assert_eq!(answer.header("www-authenticate"), "Bearer error=\"invalid_token\"");
        }
        let good = format!("Bearer {good}");
        let two = [("authorization", good.as_str()), ("authorization", good.as_str())];
        assert_eq!(ask(&shop, "GET", &two).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(ask(&shop, "GET", &two[..1]).await.status, StatusCode::OK);
        // A call of gRPC is told in its own words.
        let call = [("authorization", "Bearer junk"), ("content-type", "application/grpc")];
        let answer = ask(&shop, "POST", &call).await;
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "16"));

        // Other keys, and whom the old ones have signed is believed no longer, remembered or not.
        let documents: Vec<_> = shop.view.policies.values().cloned().collect();
        for mut document in documents {
            if let hanse_federation::policy::PolicySpec::RequestAuthentication(spec) = &mut document.spec {
                spec.jwt_rules[0].jwks = Some(key_set(&Ed25519KeyPair::generate().unwrap()));
                shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
            }
        }
        assert_eq!(ask(&shop, "GET", &two[..1]).await.status, StatusCode::UNAUTHORIZED);
    });
}

const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// What the control nodes fetched is believed as soon as it is in the View, and a key that is gone from it no longer.
#[test]
fn keys_that_are_fetched_are_those_of_the_view() {
    on_local_set(async {
        let mut shop = protected_by_example("request-authentication-jwks-uri").await;
        let token = format!("Bearer {}", signed(&claims(json!([]))));
        let headers = [("authorization", token.as_str())];
        assert_eq!(
            ask(&shop, "GET", &[]).await.status,
            StatusCode::OK,
            "without a token nobody's keys are needed"
        );
        assert_eq!(ask(&shop, "GET", &headers).await.status, StatusCode::UNAUTHORIZED, "not fetched yet");
        let source = "https://id.example/.well-known/jwks.json".to_owned();
        let put = |keys: &str| Change::IssuerKeysPut(source.clone(), keys.to_owned());
        // Of another who has roots of their own there.
        let other = Change::IssuerKeysPut(format!("{source}#{}", "0".repeat(64)), KEYS.to_owned());
        shop.change(|view| view.apply(&other));
        assert_eq!(ask(&shop, "GET", &headers).await.status, StatusCode::UNAUTHORIZED);
        shop.change(|view| view.apply(&put(KEYS)));
        let answer = ask(&shop, "GET", &headers).await;
        assert_eq!((answer.status, &answer.seen()["headers"]["x-user"]), (StatusCode::OK, &json!("ann")));
        shop.change(|view| view.apply(&put(&KEYS.replace(r#""kid":"1""#, r#""kid":"2""#))));
        assert_eq!(ask(&shop, "GET", &headers).await.status, StatusCode::UNAUTHORIZED, "remembered or not");
    });
}

/// The example: the keys of one come along in a file, those of the other are in the document.
#[test]
fn of_two_issuers_each_is_believed_by_its_own_keys_alone() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let own = Ed25519KeyPair::generate().unwrap();
        let text = balancing::example("request-authentication-issuers");
        let mut documents = parse("test", &text).unwrap();
        for (document, _) in &mut documents {
            let hanse_federation::policy::PolicySpec::RequestAuthentication(spec) = &mut document.spec else {
                continue;
            };
            // As the control node does with the file that hanse policy apply sends.
            let rule = &mut spec.jwt_rules[0];
            assert_eq!(rule.jwks_file.take().as_deref(), Some("id.example.json"));
            rule.jwks = Some(key_set(&own));
        }
        let findings = validate(&shop.view, "test", &documents);
        assert!(findings.is_empty(), "{findings:#?}");
        for (document, _) in documents {
            shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
        }
        let of = |issuer: &str| {
            let mut claims = claims(json!([]));
            claims["iss"] = json!(issuer);
            claims
        };
        let (ours, partner) = (of("https://id.example"), of("https://partner.example"));
        for (method, token, status) in [
            ("GET", signed_by(&own, &ours), 200),
            ("POST", signed_by(&own, &ours), 200),
            ("GET", signed(&partner), 200),
            ("POST", signed(&partner), 403),
            // The other's keys, which have the same name.
            ("GET", signed(&ours), 401),
            ("GET", signed_by(&own, &partner), 401),
            ("GET", signed_by(&own, &of("https://third.example")), 401),
        ] {
            let answer = ask(&shop, method, &[("authorization", &format!("Bearer {token}"))]).await;
            assert_eq!(answer.status.as_u16(), status, "{method} {token}");
            if status == 200 {
                let headers = &answer.seen()["headers"];
                let issuer = if token == signed(&partner) { &partner["iss"] } else { &ours["iss"] };
                assert_eq!((&headers["x-user"], &headers["x-issuer"]), (&json!("ann"), issuer));
            }
        }
        assert_eq!(ask(&shop, "GET", &[]).await.status, StatusCode::FORBIDDEN, "of no issuer at all");
    });
}

#[test]
fn of_two_documents_with_one_issuer_none_makes_the_other_void() {
    on_local_set(async {
        let mut shop = protected().await;
        shop.apply(&format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{ name: stricter, namespace: shop }}\n\
             spec:\n  targetRefs: [{{ kind: Service, name: reviews }}]\n  jwtRules:\n  - issuer: https://id.example\n    \
             audiences: [payments]\n    jwks: '{KEYS}'\n"
        ));
        let asked = async |audience: Value| {
            let mut claims = claims(json!([]));
            claims["aud"] = audience;
            ask(&shop, "GET", &[("authorization", &format!("Bearer {}", signed(&claims)))])
                .await
                .status
                .as_u16()
        };
        assert_eq!(asked(json!("reviews")).await, 401);
        assert_eq!(asked(json!("payments")).await, 401);
        assert_eq!(asked(json!(["payments", "reviews"])).await, 200);
    });
}

#[test]
fn a_claim_that_is_no_text_escapes_no_deny() {
    on_local_set(async {
        let mut shop = protected().await;
        shop.apply(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: { name: no-contractors, namespace: shop }\n\
             spec:\n  targetRefs: [{ kind: Service, name: reviews }]\n  action: Deny\n  rules:\n  - when: { claims: [{ name: groups, values: [contractors] }] }\n",
        );
        for (groups, status) in [
            (json!(["staff"]), 200),
            (json!(["staff", "contractors"]), 403),
            (json!([{ "name": "contractors" }]), 403),
            (json!({ "contractors": true }), 403),
            (json!([["contractors"]]), 403),
            (Value::Null, 403),
        ] {
            let token = format!("Bearer {}", signed(&claims(groups.clone())));
            let answer = ask(&shop, "GET", &[("authorization", &token)]).await;
            assert_eq!(answer.status.as_u16(), status, "{groups}");
        }
    });
}

#[test]
fn the_example_of_conditions_decides_by_method_header_and_nested_claims() {
    on_local_set(async {
        let shop = protected_by_example("access-policy-condition").await;
        let token = |roles: Value, tenant: &str| {
            let mut claims = claims(json!([]));
            claims["realm_access"] = json!({ "roles": roles });
            claims["tenant"] = json!(tenant);
            format!("Bearer {}", signed(&claims))
        };
        let (editor, reader) = (token(json!(["editor"]), "acme"), token(json!(["reader"]), "acme"));
        let asked = async |method: &str, path: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(path).header("host", "reviews.shop");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            shop.product.request(request.body(Full::default()).unwrap()).await.status.as_u16()
        };
        let agent = ("user-agent", "curl/8");
        let (edits, acme) = (("authorization", editor.as_str()), ("x-tenant", "acme"));
        assert_eq!(asked("GET", "/x", &[]).await, 200);
        assert_eq!(asked("POST", "/reviews/7", &[edits, acme]).await, 200);
        assert_eq!(asked("DELETE", "/reviews/7", &[edits, acme, agent]).await, 200);
        for (method, path, headers) in [
            ("POST", "/other/7", &[edits, acme][..]),
            ("POST", "/reviews/7", &[edits]),
            ("POST", "/reviews/7", &[edits, ("x-tenant", "other")]),
            ("POST", "/reviews/7", &[edits, acme, acme]),
            ("POST", "/reviews/7", &[("authorization", reader.as_str()), acme]),
            ("POST", "/reviews/7", &[acme]),
            ("get", "/reviews/7", &[]),
            ("DELETE", "/reviews/7", &[edits, acme, ("user-agent", "GoogleBot")]),
            // Nothing is known of it: no way around a Deny.
            ("DELETE", "/reviews/7", &[edits, acme]),
        ] {
            assert_eq!(asked(method, path, headers).await, 403, "{method} {path} {headers:?}");
        }
        assert_eq!(asked("POST", "/reviews/../admin", &[edits, acme]).await, 400);
    });
}
