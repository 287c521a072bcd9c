//! Tests of `validate`: each diagnostic, by its code.

use super::*;
use crate::catalog::{Export, Service, ServiceSummary};
use crate::change::{Change, PeerFact, PeerRecord};
use crate::policy::{locate, parse};

mod cors;

/// west with shop/reviews (exported, no endpoint) and shop/web; peers east (exports shop/reviews-v2) and north.
fn view() -> View {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    for (name, export) in [("shop/reviews", Some(Export::Everyone)), ("shop/web", None)] {
        view.apply(&Change::ServicePut(Service {
            name: name.parse().unwrap(),
            identities: BTreeSet::new(),
            export,
        }));
    }
    for peer in ["east", "north"] {
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: peer.parse().unwrap(),
            trust_domain: format!("{peer}.example").parse().unwrap(),
            endpoints: vec![],
            invite: String::new(),
            joined: Timestamp(1),
        }));
    }
    let summary = ServiceSummary {
        name: "shop/reviews-v2".parse().unwrap(),
        identities: BTreeSet::new(),
        localities: std::collections::BTreeMap::new(),
    };
    view.apply(&Change::PeerFact("east".parse().unwrap(), PeerFact::Service(summary)));
    view
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n{rules}\n"
    )
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n{rest}\n"
    )
}

/// Findings as `line:column code severity path | message | fix`, in the order of their place.
fn findings_in(view: &View, text: &str) -> Vec<String> {
    let documents = parse("f.yaml", text).expect("the shape is good");
    let mut diagnostics = validate(view, "f.yaml", &documents);
    locate(text, &mut diagnostics);
    let show = |d: &Diagnostic| {
        format!("{}:{} {} {:?} {} | {} | {}", d.line, d.column, d.code, d.severity, d.path, d.message, d.fix)
    };
    diagnostics.iter().map(show).collect()
}

fn findings(text: &str) -> Vec<String> {
    findings_in(&view(), text)
}

fn codes(text: &str) -> Vec<String> {
    let code = |finding: &String| finding.split(' ').nth(1).unwrap().to_owned();
    findings(text).iter().map(code).collect()
}

#[test]
fn good_documents_have_no_findings() {
    assert_eq!(
        findings(&route("  - { backendRefs: [{ name: reviews }, { name: web, weight: 2 }] }")),
        [""; 0]
    );
    let good = "  locality: { failover: [{ from: west, to: [east, north] }], openNextTierBelow: 70% }";
    assert_eq!(findings(&policy("p", good)), [""; 0]);
}

#[test]
fn a_missing_backend_is_told_with_effect_place_and_near_names() {
    let rules = "  - backendRefs:\n    - { name: reviews, weight: 90 }\n    - { kind: ServiceImport, group: multicluster.x-k8s.io, name: reviews-v9, weight: 10 }";
    assert_eq!(
        findings(&route(rules)),
        [
            "9:66 E4107 Error spec.rules[0].backendRefs[1].name | backend shop/reviews-v9 exists in no cluster; 10 % of \
          the rule's requests would get 503 (known in shop: reviews, reviews-v2, web) | did you mean reviews-v2? or, \
          in the cluster that has it: hanse service export shop/reviews-v9"
        ]
    );
}

#[test]
fn a_service_that_is_only_abroad_needs_an_import() {
    let found = findings(&route("  - { backendRefs: [{ name: reviews-v2 }] }"));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("E4107 Warning") && found[0].contains("ServiceImport to reach it in east"),
        "{found:?}"
    );
    let import =
        "  - { backendRefs: [{ kind: ServiceImport, group: multicluster.x-k8s.io, name: reviews-v2 }] }";
    assert_eq!(findings(&route(import)), [""; 0]);
}

#[test]
fn a_missing_parent_and_target_are_errors() {
    let rules = "  - { backendRefs: [{ name: reviews }] }";
    let found = findings(&route(rules).replacen("name: reviews", "name: review", 1));
    assert!(found[0].starts_with("5:39 E4101 Error spec.parentRefs[0].name"), "{found:?}");
    assert!(found[0].contains("did you mean reviews?"), "{found:?}");
    let found = findings(&policy("p", "").replace("name: reviews", "name: nowhere"));
    assert!(found[0].contains("E4101 Error spec.targetRefs[0].name"), "{found:?}");
}

#[test]
fn rules_that_cannot_work_are_told() {
    let backend = "backendRefs: [{ name: reviews }]";
    for (rules, expected) in [
        ("  - { backendRefs: [{ name: reviews, weight: 0 }] }".to_owned(), vec!["E4105"]),
        (format!("  - {{ timeouts: {{ request: 1s, backendRequest: 2s }}, {backend} }}"), vec!["E4110"]),
        (format!("  - {{ timeouts: {{ request: 1s, backendRequest: 0s }}, {backend} }}"), vec!["E4110"]),
        (format!("  - {{ timeouts: {{ request: 0s, backendRequest: 2s }}, {backend} }}"), vec![]),
        (format!("  - {{ matches: [{{ path: {{ value: a }} }}], {backend} }}"), vec!["E4005"]),
        (format!("  - {{ matches: [{{ path: {{ value: /a//b }} }}], {backend} }}"), vec!["E4005"]),
        (
            format!("  - {{ matches: [{{ path: {{ type: RegularExpression, value: '(' }} }}], {backend} }}"),
            vec!["E4005"],
        ),
        (
            format!(
                "  - {{ matches: [{{ headers: [{{ type: RegularExpression, name: a, value: '(\\w{{99}}){{99}}' }}] }}], {backend} }}"
            ),
            vec!["E4104"],
        ),
        ("  - { backendRefs: [{ name: reviews, namespace: other }] }".to_owned(), vec!["E4108", "E4107"]),
        ("  - { backendRefs: [{ name: reviews, kind: ServiceImport }] }".to_owned(), vec!["E4005"]),
        (
            format!("  - {{ {backend} }}\n  - {{ matches: [{{ path: {{ value: / }} }}], {backend} }}"),
            vec!["E4103"],
        ),
        (
            format!(
                "  - {{ matches: [{{ path: {{ value: /a }} }}], {backend} }}\n  - {{ matches: [{{ path: {{ value: /a/ }} }}, {{ method: GET }}], {backend} }}"
            ),
            vec![],
        ),
    ] {
        assert_eq!(codes(&route(&rules)), expected, "{rules}");
    }
}

#[test]
fn localities_that_cannot_work_are_told() {
    for (locality, expected) in [
        ("failover: [{ from: west, to: [eats] }]", vec!["E4111"]),
        ("failover: [{ from: south, to: [east] }]", vec!["E4111"]),
        ("failover: [{ from: west, to: [west] }]", vec!["E4112"]),
        ("failover: [{ from: west, to: [east, east] }]", vec!["E4112"]),
        ("failover: [{ from: west, to: [east] }, { from: west, to: [north] }]", vec!["E4112"]),
        ("mode: Distribute, distribute: [{ from: west, to: { west: 80, east: 21 } }]", vec!["E4114"]),
        ("mode: Distribute, distribute: [{ from: west, to: { west: 80, south: 20 } }]", vec!["E4111"]),
        ("mode: Distribute, distribute: [{ from: west, to: { west: 80, east: 20 } }]", vec![]),
        ("mode: Distribute", vec!["E4004"]),
        ("distribute: [{ from: west, to: { west: 80, east: 20 } }]", vec!["E4005"]),
        ("mode: Ignore, failover: [{ from: west, to: [east] }]", vec!["E4005"]),
        ("openNextTierBelow: 0%", vec!["E4115"]),
        ("mode: LocalOnly", vec!["E4113"]),
    ] {
        assert_eq!(codes(&policy("p", &format!("  locality: {{ {locality} }}"))), expected, "{locality}");
    }
    let found = findings(&policy("p", "  locality: { failover: [{ from: west, to: [eats] }] }"));
    assert!(found[0].ends_with("did you mean east?"), "{found:?}");
    assert_eq!(codes(&policy("p", "  scope: Federation")), ["E4125"]);
}

#[test]
fn two_policies_of_one_target_name_the_winner() {
    let found = findings(&format!("{}---\n{}", policy("b", ""), policy("a", "")));
    assert_eq!(found.len(), 2);
    assert!(
        found[0].contains("E4120 Warning")
            && found[0].contains("shop/b and shop/a both target Service shop/reviews: that one wins"),
        "{found:?}"
    );
    assert!(
        found[1].contains("shop/a and shop/b both target Service shop/reviews: this one wins"),
        "{found:?}"
    );
    // What is stored already is older than what comes in, whatever its name.
    let mut view = view();
    let (mut stored, _) = parse("f", &policy("b", "")).unwrap().remove(0);
    stored.created = Timestamp(7);
    view.apply(&Change::PolicyPut(Box::new(stored)));
    let found = findings_in(&view, &policy("a", ""));
    assert!(
        found[0].contains("shop/a and shop/b both target Service shop/reviews: that one wins"),
        "{found:?}"
    );
    assert!(found[0].ends_with("hanse policy delete BackendPolicy shop/a"), "{found:?}");
    // The same document again is no conflict with itself.
    assert_eq!(findings_in(&view, &policy("b", "")), [""; 0]);
}

/// Each with what is wrong with it; `filters` of a rule that has one prefix match and one backend.
#[test]
fn filters_that_contradict_themselves_or_each_other_are_told() {
    for (filters, expected) in [
        ("{ type: RequestRedirect }", "E4004 spec.rules[0].filters[0]"),
        (
            "{ type: URLRewrite, requestMirror: { backendRef: { name: web } } }",
            "E4004 spec.rules[0].filters[0]",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { hostname: a.b }, requestMirror: { backendRef: { name: web } } }",
            "E4005 spec.rules[0].filters[0].requestMirror",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { hostname: a.b } }, { type: URLRewrite, urlRewrite: { hostname: a.c } }",
            "E4005 spec.rules[0].filters[1].type",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replacePrefixMatch: /x } } }",
            "E4004 spec.rules[0].filters[0].urlRewrite.path",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: '' } } }",
            "E4005 spec.rules[0].filters[0].urlRewrite.path.replaceFullPath",
        ),
        (
            "{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: Host, value: x }] } }",
            "E4005 spec.rules[0].filters[0].requestHeaderModifier.set",
        ),
        (
            "{ type: RequestHeaderModifier, requestHeaderModifier: { add: [{ name: X_Forwarded_Client.Cert, value: x }] } }",
            "E4005 spec.rules[0].filters[0].requestHeaderModifier.add",
        ),
        (
            "{ type: ResponseHeaderModifier, responseHeaderModifier: { remove: [transfer-encoding] } }",
            "E4005 spec.rules[0].filters[0].responseHeaderModifier.remove",
        ),
        (
            "{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: A, value: x }], remove: [a] } }",
            "E4005 spec.rules[0].filters[0].responseHeaderModifier.remove",
        ),
        (
            "{ type: RequestMirror, requestMirror: { backendRef: { name: web }, percent: 5, fraction: { numerator: 1 } } }",
            "E4005 spec.rules[0].filters[0].requestMirror.percent",
        ),
        (
            "{ type: RequestMirror, requestMirror: { backendRef: { name: web }, fraction: { numerator: 3, denominator: 2 } } }",
            "E4005 spec.rules[0].filters[0].requestMirror.fraction.numerator",
        ),
        (
            "{ type: RequestMirror, requestMirror: { backendRef: { name: nobody } } }",
            "E4107 spec.rules[0].filters[0].requestMirror.backendRef.name",
        ),
    ] {
        let rule = format!("  - {{ filters: [{filters}], backendRefs: [{{ name: web }}] }}");
        let found = findings(&route(&rule));
        assert!(
            found.iter().any(|f| f.contains(&format!("{} Error {} |", &expected[..5], &expected[6..]))),
            "{filters}: {found:#?}"
        );
    }
    for (rule, expected) in [
        ("{ backendRefs: [] }", vec!["E4004"]),
        ("{ filters: [{ type: RequestRedirect, requestRedirect: { port: 81 } }] }", vec![]),
        (
            "{ filters: [{ type: RequestRedirect, requestRedirect: { port: 81 } }], backendRefs: [{ name: web }] }",
            vec!["E4005"],
        ),
        (
            "{ filters: [{ type: RequestRedirect, requestRedirect: { port: 81, statusCode: 304 } }] }",
            vec!["E4005"],
        ),
        ("{ filters: [{ type: RequestRedirect, requestRedirect: { statusCode: 301 } }] }", vec![]),
        ("{ filters: [{ type: RequestRedirect, requestRedirect: {} }] }", vec!["E4005"]),
        (
            "{ matches: [{ path: { type: Exact, value: /a } }], filters: [{ type: RequestRedirect, requestRedirect: \
             { path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } } }] }",
            vec!["E4005"],
        ),
        (
            "{ matches: [{ path: { value: /a } }, { path: { value: /b } }], filters: [{ type: RequestRedirect, \
             requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /c } } }] }",
            vec!["E4005"],
        ),
    ] {
        assert_eq!(codes(&route(&format!("  - {rule}"))), expected, "{rule}");
    }
}

#[test]
fn what_no_header_and_no_path_may_hold_is_refused_with_its_place() {
    for (filter, told) in [
        (
            r#"{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: "x\ny" }] } }"#,
            "value: a header's value",
        ),
        (
            r#"{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: "a b", value: x }] } }"#,
            "is not the name of a header",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: '/x?y' } } }",
            "no query",
        ),
        (
            "{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: 'x' } } }",
            "starts with /",
        ),
        ("{ type: URLRewrite, urlRewrite: { hostname: '*.example' } }", "without *"),
        ("{ type: ExternalAuth, externalAuth: {} }", "externalAuth is not supported by this version"),
        ("{ type: CORS, cors: { allowOrigins: [shop.example] } }", "is no origin"),
        ("{ type: CORS, cors: { allowOrigins: ['https://a.example/x'] } }", "is no origin"),
        ("{ type: CORS, cors: { allowMethods: [FETCH] } }", "cannot be"),
        ("{ type: CORS, cors: { maxAge: 0 } }", "has to be 1"),
    ] {
        let text = route(&format!("  - {{ filters: [{filter}], backendRefs: [{{ name: web }}] }}"));
        let found = parse("f.yaml", &text).expect_err(filter);
        assert!(found.iter().any(|d| d.message.contains(told) && d.line == 7), "{filter}: {found:#?}");
    }
}

#[test]
fn a_grpc_route_is_checked_like_an_http_route_and_says_what_it_replaces() {
    let grpc = |rules: &str| route(rules).replace("HTTPRoute", "GRPCRoute");
    assert_eq!(
        codes(&grpc("  - { matches: [{ method: { service: a.B } }], backendRefs: [{ name: web }] }")),
        [""; 0]
    );
    let found = findings(&grpc(
        "  - { matches: [{ method: { type: RegularExpression, service: '(' } }], backendRefs: [{ name: web }] }",
    ));
    assert!(found[0].contains("E4005 Error spec.rules[0].matches[0].method |"), "{found:#?}");
    assert_eq!(codes(&grpc("  - { matches: [{ method: {} }], backendRefs: [{ name: web }] }")), ["E4004"]);
    assert_eq!(codes(&grpc("  - { backendRefs: [{ name: nobody }] }")), ["E4107"]);
    let both = format!(
        "{}---\n{}",
        route("  - { backendRefs: [{ name: web }] }"),
        grpc("  - { backendRefs: [{ name: web }] }")
    );
    let found = findings(&both);
    assert!(
        found.len() == 1 && found[0].contains("E4121 Warning spec.parentRefs[0] | HTTPRoute shop/r"),
        "{found:#?}"
    );
}

fn fault(spec: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{ name: f, namespace: shop }}\nspec: {spec}\n"
    )
}

#[test]
fn a_fault_ends_does_something_and_has_one_status() {
    let good = "{ for: 15m, abort: { percent: 5, httpStatus: 503 } }";
    assert_eq!(codes(&fault(good)), [""; 0]);
    for (spec, code) in [
        ("{ abort: { percent: 5, httpStatus: 503 } }", "E4122"),
        ("{ for: 0s, abort: { percent: 5, httpStatus: 503 } }", "E4122"),
        ("{ for: 25h, abort: { percent: 5, httpStatus: 503 } }", "E4122"),
        ("{ for: 1m }", "E4004"),
        ("{ for: 1m, delay: { percent: 5, fixed: 0s } }", "E4005"),
        ("{ for: 1m, abort: { percent: 5 } }", "E4005"),
        ("{ for: 1m, abort: { percent: 5, httpStatus: 503, grpcStatus: 14 } }", "E4005"),
    ] {
        assert_eq!(codes(&fault(spec)), [code], "{spec}");
    }
}

#[test]
fn a_route_names_a_fault_that_is_there_and_spares_checks_of_health() {
    let filter = "filters: [{ type: ExtensionRef, extensionRef: { group: hanse.dev, kind: FaultInjection, name: f } }]";
    let rule = |more: &str| route(&format!("  - {{ backendRefs: [{{ name: reviews }}], {filter}{more} }}"));
    assert_eq!(codes(&rule("")), ["E4122"], "nothing of that name");
    let everybody = fault("{ for: 15m, abort: { percent: 5, httpStatus: 503 } }");
    let both = |rule: String, fault: &str| codes(&format!("{rule}---\n{fault}"));
    assert_eq!(both(rule(""), &everybody), ["E4123"]);
    let narrow = ", matches: [{ path: { type: PathPrefix, value: /shop } }]";
    assert_eq!(both(rule(narrow), &everybody), [""; 0]);
    let gated = "{ for: 15m, only: { header: { name: x-chaos, value: on-purpose } }, abort: { percent: 5, httpStatus: 503 } }";
    assert_eq!(both(rule(""), &fault(gated)), [""; 0]);
    let without = "  - { backendRefs: [{ name: reviews }], filters: [{ type: ExtensionRef }] }";
    assert_eq!(codes(&route(without)), ["E4004"]);
}
#[test]
fn balancing_health_and_limits_have_to_make_sense() {
    for (spec, expected) in [
        ("  loadBalancing: { algorithm: Maglev, hashOn: { header: x-user }, warmup: 30s }", &[][..]),
        ("  loadBalancing: { algorithm: RingHash, hashOn: { sourceIdentity: true } }", &[]),
        ("  loadBalancing: { algorithm: RingHash }", &["E4134"]),
        ("  loadBalancing: { hashOn: { header: x-user } }", &["E4134"]),
        ("  loadBalancing: { algorithm: Maglev, hashOn: { header: a, cookie: b } }", &["E4134"]),
        ("  loadBalancing: { algorithm: Maglev, hashOn: { sourceIdentity: false } }", &["E4134"]),
        ("  health: { outlier: { consecutive5xx: 1 } }", &["E4116"]),
        ("  health: { outlier: { consecutive5xx: 1, maxEjected: 50% } }", &[]),
        ("  health: { panicBelow: 100% }", &["E4116"]),
        ("  limits: { maxPending: 2, maxRequests: 2, maxRetries: 0 }", &[]),
        ("  limits: { maxPending: 3, maxRequests: 2 }", &["E4135"]),
        ("  limits: { connectTimeout: 0s, idleTimeout: 0s }", &["E4135", "E4135"]),
        ("  limits: { concurrency: {} }", &[]),
        ("  limits: { concurrency: { maxLimit: 2 } }", &[]),
        ("  limits: { concurrency: { minLimit: 3, maxLimit: 2, remeasure: 1s } }", &["E4135", "E4135"]),
        ("  limits: { concurrency: { priorities: [{ priority: Critical }] } }", &[]),
        (
            "  limits: { concurrency: { priorities: [{ priority: Exempt, to: { methods: [GET] } }] } }",
            &["E4135"],
        ),
        (
            "  limits: { concurrency: { priorities: [{ priority: Default, to: { ports: [1] } }] } }",
            &["E4135"],
        ),
        (
            "  limits: { concurrency: { priorities: [{ priority: Critical }, { priority: BestEffort }] } }",
            &["E4103"],
        ),
        (
            "  limits: { concurrency: { priorities: [{ priority: Critical, from: { identities: [all] } }] } }",
            &["E4005"],
        ),
        (
            "  limits: { concurrency: { priorities: [{ priority: Critical, to: { paths: [{ type: RegularExpression, \
             value: '(' }] } }] } }",
            &["E4005"],
        ),
        ("  health: { active: { http: { path: /health }, interval: 5s, failAfter: 3, passAfter: 2 } }", &[]),
        ("  health: { active: { grpc: {} } }", &[]),
        ("  health: { active: {} }", &["E4137"]),
        ("  health: { active: { tcp: {}, grpc: {} } }", &["E4137"]),
        ("  health: { active: { tcp: {}, interval: 99ms, timeout: 0s } }", &["E4137", "E4137"]),
        ("  sessionPersistence: {}", &[]),
        ("  sessionPersistence: { sessionName: s, absoluteTimeout: 1h, idleTimeout: 10m }", &[]),
        ("  sessionPersistence: { cookieConfig: { lifetimeType: Permanent } }", &["E4136"]),
        ("  sessionPersistence: { cookieConfig: { lifetimeType: Permanent }, absoluteTimeout: 1h }", &[]),
        ("  sessionPersistence: { type: Header, cookieConfig: {} }", &["E4136"]),
        ("  sessionPersistence: { type: Header, sessionName: x-hanse-s }", &["E4136"]),
        ("  sessionPersistence: { absoluteTimeout: 0s, idleTimeout: 0s }", &["E4136", "E4136"]),
    ] {
        assert_eq!(codes(&policy("p", spec)), expected, "{spec}");
    }
}

#[test]
fn a_request_authentication_has_keys_and_writes_headers_that_are_free() {
    let document = |rules: &str| {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n  jwtRules: [{rules}]\n"
        )
    };
    let key = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let rule = |more: &str| format!("{{ issuer: i, jwks: '{{\"keys\":[{key}]}}'{more} }}");
    assert_eq!(codes(&document(&rule(""))), [""; 0]);
    for bad in [
        "{ issuer: i, jwks: '{\"keys\":[]}' }".to_owned(),
        "{ issuer: i, jwks: nothing }".to_owned(),
        format!("{}, {}", rule(""), rule("")),
        "{ issuer: i, jwksUri: 'https://id.example/', jwksRoots: nothing }".to_owned(),
        rule(", fromHeaders: [{ name: Host }]"),
        rule(", outputClaimToHeaders: [{ header: x-hanse-user, claim: sub }]"),
        rule(", outputClaimToHeaders: [{ header: Authorization, claim: sub }]"),
        rule(", outputClaimToHeaders: [{ header: content-length, claim: sub }]"),
    ] {
        assert_eq!(codes(&document(&bad)), ["E4005"], "{bad}");
    }
    // Some tools write the key of a root beside it.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    let by = |roots: &str| {
        let roots = serde_json::to_string(roots).unwrap();
        document(&format!("{{ issuer: i, jwksUri: 'https://id.example/', jwksRoots: {roots} }}"))
    };
    assert_eq!(codes(&by(&root)), [""; 0]);
    let told = findings(&by(&format!("{root}{}", key.serialize_pem())));
    assert!(told.len() == 1 && told[0].contains("private key"), "{told:?}");
    let wants = "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: { name: a, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: reviews }]\n  action: Allow\n  rules: [{ from: { requestPrincipals: ['*'] } }]\n";
    assert_eq!(codes(wants), ["E4118"], "nobody reads tokens");
    assert_eq!(codes(&format!("{wants}---\n{}", document(&rule("")))), [""; 0]);
}

#[test]
fn a_limit_lets_something_through_and_names_its_header() {
    let document = |limits: &str| {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: RateLimit\nmetadata: {{ name: l, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n  limits: [{limits}]\n"
        )
    };
    assert_eq!(codes(&document("{ requests: 5, per: 1s }")), [""; 0]);
    for (bad, code) in [
        ("{ requests: 5, per: 0s }", "E4005"),
        ("{ requests: 5, per: 25h }", "E4005"),
        ("{ requests: 5, per: 1s, by: Header }", "E4004"),
        ("{ requests: 5, per: 1s, header: x-tenant }", "E4005"),
        ("{ name: a, requests: 5, per: 1s }, { name: a, requests: 5, per: 1m }", "E4005"),
    ] {
        assert_eq!(codes(&document(bad)), [code], "{bad}");
    }
}

#[test]
fn an_external_authorizer_is_one_and_nobody_on_the_way_reads_what_it_is_asked() {
    let document = |spec: &str| {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n{spec}"
        )
    };
    let asked = |external: &str| {
        document(&format!("  action: External\n  external: {{ {external} }}\n  rules: [{{}}]\n"))
    };
    assert_eq!(codes(&asked("address: '127.0.0.1:9191'")), [""; 0]);
    assert_eq!(codes(&asked("address: '[::1]:9191', timeout: 10s, failOpen: true")), [""; 0]);
    for bad in [
        "address: '10.0.0.1:9191'",
        "address: '127.0.0.1:0'",
        "address: '127.0.0.1:9191', timeout: 11s",
        "address: '127.0.0.1:9191', timeout: 0s",
        "failOpen: true",
        "address: '127.0.0.1:9191', backendRef: { name: nowhere }",
        "backendRef: { name: reviews }",
    ] {
        assert!(codes(&asked(bad)).contains(&"E4005".to_owned()), "{bad}: {:?}", codes(&asked(bad)));
    }
    assert_eq!(codes(&asked("backendRef: { name: nowhere }")), ["E4107"]);
    assert_eq!(codes(&document("  action: External\n  rules: [{}]\n")), ["E4004"]);
    let allow = "  action: Allow\n  external: { address: '127.0.0.1:9191' }\n  rules: [{}]\n";
    assert_eq!(codes(&document(allow)), ["E4005"]);
    let path = "  action: External\n  external: { address: '127.0.0.1:9191' }\n  rules: [{ to: { paths: [{ value: /a }] } }]\n";
    assert_eq!(codes(&document(path)), ["E4130"]);
}

#[test]
fn a_host_is_written_as_it_is_compared() {
    let document = |host: &str| {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: web }}]\n  action: Deny\n  \
             rules: [{{ to: {{ headers: [{{ name: Host, value: '{host}' }}] }} }}]\n"
        )
    };
    let found = |host: &str| {
        let found = codes(&document(host));
        found.into_iter().filter(|code| code == "E4005").count()
    };
    assert_eq!(found("api.payments.example"), 0);
    for host in ["API.payments.example", "api.payments.example.", "api.payments.example:443", "a b", ""] {
        assert_eq!(found(host), 1, "{host}");
    }
}

#[test]
fn a_condition_that_cannot_be_asked_or_shuts_by_a_path_is_refused() {
    let found = |action: &str, expression: &str| {
        let text = format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: a, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: reviews }}]\n  action: {action}\n  rules:\n  - when: {{ {expression} }}\n"
        );
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let documents = parse("test", &text).unwrap();
        let all = validate(&view, "test", &documents);
        all.into_iter()
            .filter(|d| d.severity == Severity::Error)
            .map(|d| (d.code, d.message))
            .collect::<Vec<_>>()
    };
    let good = "expression: \"request.path.startsWith('/x') && request.method == 'GET'\"";
    assert_eq!(found("Allow", good), []);
    for (action, expression, code) in [
        ("Deny", good, "E4130"),
        ("Allow", "expression: \"request.path != '/x'\"", "E4130"),
        ("Allow", "expression: \"request.pth == '/x'\"", "E4143"),
        ("Deny", "", "E4004"),
        ("Allow", "expression: \"source.namespace == 'shop'\"", "E4143"),
    ] {
        let found = found(action, expression);
        assert!(matches!(&found[..], [(found, _)] if found == code), "{action} {expression}: {found:?}");
    }
    for whose in ["source.namespace == 'shop' && source.cluster == 'east'", "source.namespace != 'shop'"] {
        let action = if whose.contains("cluster") { "Allow" } else { "Deny" };
        assert_eq!(found(action, &format!("expression: \"{whose}\"")), [], "{whose}");
    }
    let wrong = found("Deny", "expression: \"request.pth == '/x'\"");
    assert_eq!(wrong[0].1, "the condition at character 1: there is no attribute request.pth");
}
