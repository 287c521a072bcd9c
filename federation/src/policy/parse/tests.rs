//! Tests of `parse`: every mistake with its place and a way to mend it.

use super::*;
use crate::policy::document::*;

const CANARY: &str = r#"apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: reviews, namespace: shop }
spec:
  parentRefs:
  - { group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }
  rules:
  - name: beta-users
    matches:
    - headers: [{ name: x-beta, value: "yes" }]
    backendRefs:
    - { group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-v3, port: 9080 }
  - name: canary
    timeouts: { request: 2s }
    backendRefs:
    - { group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-v2, port: 9080, weight: 90 }
    - { group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews-v3, port: 9080, weight: 10 }
"#;

const FAILOVER: &str = r#"apiVersion: hanse.dev/v1alpha1
kind: BackendPolicy
metadata: { name: reviews, namespace: shop }
spec:
  targetRefs:
  - { group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }
  locality:
    mode: Failover
    prefer: [zone, region, cluster]
    failover:
    - { from: west, to: [east, north] }
    openNextTierBelow: 70%
    returnAfter: 30s
    distribute: [{ from: west, to: { west: 80, east: 20 } }]
  health:
    outlier: { consecutive5xx: 5, consecutiveGatewayErrors: 3, interval: 10s, ejectFor: 30s, maxEjected: 50% }
status:
  conditions: []
"#;

/// Every diagnostic as `line:column code path | message | fix`.
fn diagnose(text: &str) -> Vec<String> {
    let diagnostics = parse("f.yaml", text).expect_err("the text has mistakes");
    assert!(diagnostics.iter().all(|d| d.file == "f.yaml" && d.severity == Severity::Error));
    let show =
        |d: &Diagnostic| format!("{}:{} {} {} | {} | {}", d.line, d.column, d.code, d.path, d.message, d.fix);
    diagnostics.iter().map(show).collect()
}

#[test]
fn the_documents_of_the_plan_are_read() {
    let documents = parse("f.yaml", &format!("{CANARY}---\n{FAILOVER}")).unwrap();
    assert_eq!(documents.iter().map(|(_, line)| *line).collect::<Vec<_>>(), [1, 19]);
    let PolicySpec::HttpRoute(route) = &documents[0].0.spec else { panic!("an HTTPRoute") };
    assert_eq!(documents[0].0.name.to_string(), "shop/reviews");
    assert_eq!(route.parent_refs[0].kind, RefKind::ServiceImport);
    assert_eq!(route.rules[0].matches[0].headers[0].value, "yes");
    assert_eq!(route.rules[0].backend_refs[0].weight, 1);
    assert_eq!(route.rules[1].timeouts.unwrap().request.unwrap().to_string(), "2s");
    assert_eq!(route.rules[1].backend_refs[1].weight, 10);
    let PolicySpec::BackendPolicy(policy) = &documents[1].0.spec else { panic!("a BackendPolicy") };
    let locality = policy.locality.as_ref().unwrap();
    assert_eq!(
        locality.prefer.as_deref().unwrap(),
        [LocalityLabel::Zone, LocalityLabel::Region, LocalityLabel::Cluster]
    );
    assert_eq!(locality.open_next_tier_below.unwrap().permille(), 700);
    assert_eq!(locality.failover[0].to.len(), 2);
    assert_eq!(locality.distribute[0].to.values().sum::<u32>(), 100);
    let outlier = policy.health.as_ref().unwrap().outlier.as_ref().unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.max_ejected.unwrap().permille()), (Some(5), 500));
}

#[test]
fn the_users_form_is_written_and_read_again_as_json() {
    for (document, _) in parse("f", &format!("{CANARY}---\n{FAILOVER}")).unwrap() {
        let json = document.to_json();
        assert_eq!(json["metadata"]["namespace"], "shop");
        for text in [json.to_string(), serde_json::to_string_pretty(&json).unwrap()] {
            assert_eq!(parse("f.json", &text).unwrap()[0].0, document);
        }
        let stored = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<PolicyDocument>(&stored).unwrap(), document);
    }
}

#[test]
fn every_mistake_of_every_document_has_its_place_and_a_fix() {
    let text = r#"apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: reviews }
spec:
  parentRef:
  - { kind: Service, name: reviews }
  rules:
  - matches:
    - path: { type: Prefix, value: 7 }
      queryParams: [{ name: 7, value: x }]
    backendRefs:
    - { name: Reviews, wieght: 3, weight: -1 }
    timeouts: { request: 2 }
---
apiVersion: hanse.dev/v1
kind: BackendPolicy
metadata: { name: a }
spec: {}
---
kind: HttpRoute
apiVersion: x
metadata: {}
spec: {}
---
apiVersion: hanse.dev/v1alpha1
kind: BackendPolicy
metadata: { name: a }
spec:
  targetRefs: { kind: Service, name: a }
  limits: { maxPending: 2 }
  locality: { openNextTierBelow: 70, mode: Failovr, distribute: [{ from: west, to: { East: 50, north: 101 } }] }
  health: { active: { http: {} } }
"#;
    let expected = "\
5:3 E4001 spec.parentRef | unknown field \"parentRef\" | did you mean parentRefs?
9:21 E4005 spec.rules[0].matches[0].path.type | type cannot be \"Prefix\" | write one of: Exact, PathPrefix, RegularExpression
9:36 E4002 spec.rules[0].matches[0].path.value | value has to be a text, found the number 7 | put it in quotes: \"7\"
10:29 E4002 spec.rules[0].matches[0].queryParams[0].name | name has to be a text, found the number 7 | put it in quotes: \"7\"
12:15 E4005 spec.rules[0].backendRefs[0].name | name: \"Reviews\" is not a name: has a character outside a-z 0-9 - | 
12:24 E4001 spec.rules[0].backendRefs[0].wieght | unknown field \"wieght\" | did you mean weight?
12:43 E4005 spec.rules[0].backendRefs[0].weight | weight is -1; it has to be 0 to 1000000 | 
13:26 E4002 spec.rules[0].timeouts.request | request has to be a duration, found the number 2 | write 2s, or with another unit: ms, m, h
15:13 E4003 apiVersion | BackendPolicy has no version \"hanse.dev/v1\" here | write apiVersion: hanse.dev/v1alpha1
20:7 E4003 kind | unknown kind \"HttpRoute\" | did you mean HTTPRoute?
22:11 E4004 metadata.name | metadata has no name | add name
29:15 E4002 spec.targetRefs | targetRefs has to be a list, found an object | put a - before it
31:34 E4002 spec.locality.openNextTierBelow | openNextTierBelow has to be a percentage, found the number 70 | write 70%
31:44 E4005 spec.locality.mode | mode cannot be \"Failovr\" | did you mean Failover?
31:86 E4005 spec.locality.distribute[0].to.East | cluster name \"East\" has a character outside a-z 0-9 - | 
31:103 E4005 spec.locality.distribute[0].to.north | north is 101; it has to be 0 to 100 | 
32:29 E4004 spec.health.active.http.path | http has no path | add path";
    let found = diagnose(text);
    assert_eq!(found.join("\n"), expected);
}

#[test]
fn a_document_that_is_no_yaml_does_not_hide_the_next() {
    let found = diagnose("kind: [\n---\nkind: HTTPRoute\nspec: {}\n---\n}\n---\nkind: ServiceExport\n");
    assert!(found[0].contains("E4000"), "{found:#?}");
    assert!(found.iter().any(|d| d.starts_with("3:1 E4004 apiVersion")), "{found:#?}");
    assert!(found.iter().any(|d| d.starts_with("6:") && d.contains("E4000")), "{found:#?}");
    assert!(found.iter().any(|d| d.starts_with("8:7 E4125 kind")), "{found:#?}");
}

#[test]
fn the_same_document_twice_is_told() {
    let found = diagnose(&format!("{CANARY}---\n{CANARY}"));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("19:1 E4005"), "{found:?}");
    assert!(found[0].contains("HTTPRoute/shop/reviews is in this file twice"));
}

#[test]
fn a_key_twice_and_a_bare_yes_are_refused() {
    let found = diagnose("kind: HTTPRoute\nkind: HTTPRoute\n");
    assert!(found[0].contains("E4000") && found[0].contains("duplicate"), "{found:?}");
    let found = diagnose(&CANARY.replace("\"yes\"", "yes"));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("E4002"), "{found:?}");
}

#[test]
fn what_is_too_large_is_refused() {
    let large = format!("# {}\n", "x".repeat(tree::MAX_TEXT_BYTES));
    assert!(diagnose(&large)[0].contains("at most 1048576 are read"));
    let many = "kind: a\n---\n".repeat(tree::MAX_DOCUMENTS + 5);
    let found = diagnose(&many);
    assert!(found.iter().any(|d| d.starts_with("2001:1 E4000") && d.contains("more than 1000 documents")));
    assert!(found.iter().all(|d| !d.starts_with("2003:")));
    let deep = "[".repeat(200);
    assert!(diagnose(&deep)[0].contains("E4000"));
}

#[test]
fn an_alias_bomb_is_refused_in_bounded_work() {
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in
        ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        let aliases = vec![format!("*{before}"); 9].join(",");
        bomb += &format!("{name}: &{name} [{aliases}]\n");
    }
    let found = diagnose(&bomb);
    assert!(found[0].contains("E4000"), "{found:?}");
}

#[test]
fn aliases_and_nulls_are_as_if_written_out() {
    let text = CANARY.replace("timeouts: { request: 2s }", "timeouts: ~");
    let PolicySpec::HttpRoute(route) = parse("f", &text).unwrap().remove(0).0.spec else {
        panic!("an HTTPRoute")
    };
    assert_eq!(route.rules[1].timeouts, None);
    assert_eq!(parse("f", "").unwrap(), []);
    assert_eq!(parse("f", "---\n# nothing\n---\n").unwrap(), []);
}

#[test]
fn locate_finds_the_field_of_a_diagnostic() {
    let text = format!("# a comment\n{CANARY}");
    let mut diagnostics = vec![Diagnostic {
        code: "E4107".to_owned(),
        severity: Severity::Error,
        message: String::new(),
        file: "f".to_owned(),
        line: 2,
        column: 0,
        fix: String::new(),
        path: "spec.rules[1].backendRefs[1].name".to_owned(),
    }];
    locate(&text, &mut diagnostics);
    assert_eq!((diagnostics[0].line, diagnostics[0].column), (18, 66));
}

/// Whatever passes the shape is read by serde, so that no mistake is left without a place.
#[test]
fn shape_and_types_agree() {
    use crate::policy::schema::{Need, Shape};
    fn least(shape: &Shape, all: bool) -> serde_json::Value {
        match shape {
            Shape::Object(fields) => fields
                .iter()
                .filter(|f| matches!(f.need, Need::Required) || (all && matches!(f.need, Need::Optional)))
                .map(|f| (f.name.to_owned(), least(f.shape, all)))
                .collect(),
            Shape::Map { of, .. } => serde_json::json!({ "east": least(of, all) }),
            Shape::List { of, .. } => serde_json::json!([least(of, all)]),
            Shape::Text(test) => ["a", "2s", "50%", "/a", "192.0.2.1", "127.0.0.1:9", "*"]
                .into_iter()
                .find(|text| test(text).is_ok())
                .expect("one of them fits")
                .into(),
            Shape::OneOf(known) => known[0].into(),
            Shape::Integer { from, .. } => i64::try_from(*from).unwrap().into(),
            Shape::TextOrInteger { integer, .. } => least(integer, all),
            Shape::Any => serde_json::Value::Null,
            Shape::Truth => serde_json::Value::Bool(true),
        }
    }
    for all in [false, true] {
        serde_json::from_value::<HttpRoute>(least(&schema::HTTP_ROUTE, all)).unwrap();
        serde_json::from_value::<BackendPolicy>(least(&schema::BACKEND_POLICY, all)).unwrap();
        serde_json::from_value::<GrpcRoute>(least(&schema::GRPC_ROUTE, all)).unwrap();
        serde_json::from_value::<TcpRoute>(least(&schema::stream::TCP_ROUTE, all)).unwrap();
        serde_json::from_value::<TlsRoute>(least(&schema::stream::TLS_ROUTE, all)).unwrap();
        serde_json::from_value::<AccessPolicy>(least(&schema::ACCESS_POLICY, all)).unwrap();
        serde_json::from_value::<ExternalService>(least(&schema::edge::EXTERNAL_SERVICE, all)).unwrap();
        serde_json::from_value::<BackendTlsPolicy>(least(&schema::edge::BACKEND_TLS_POLICY, all)).unwrap();
        serde_json::from_value::<Gateway>(least(&schema::gateway::GATEWAY, all)).unwrap();
        serde_json::from_value::<MeshConfig>(least(&schema::edge::MESH_CONFIG, all)).unwrap();
        serde_json::from_value::<ReferenceGrant>(least(&schema::grant::REFERENCE_GRANT, all)).unwrap();
    }
    // And the other way: all that serde writes, the shape knows.
    let json = least(&schema::BACKEND_POLICY, true);
    let written =
        serde_json::to_value(serde_json::from_value::<BackendPolicy>(json.clone()).unwrap()).unwrap();
    assert_eq!(written, json);
    let json = least(&schema::HTTP_ROUTE, true);
    let written = serde_json::to_value(serde_json::from_value::<HttpRoute>(json.clone()).unwrap()).unwrap();
    assert_eq!(written, json);
    let json = least(&schema::stream::TLS_ROUTE, true);
    let written = serde_json::to_value(serde_json::from_value::<TlsRoute>(json.clone()).unwrap()).unwrap();
    assert_eq!(written, json);
    let json = least(&schema::ACCESS_POLICY, true);
    let written =
        serde_json::to_value(serde_json::from_value::<AccessPolicy>(json.clone()).unwrap()).unwrap();
    assert_eq!(written, json);
    let json = least(&schema::GRPC_ROUTE, true);
    let written = serde_json::to_value(serde_json::from_value::<GrpcRoute>(json.clone()).unwrap()).unwrap();
    assert_eq!(written, json);
}
