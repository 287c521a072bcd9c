//! Tests of the documents' stored and user forms.

use super::*;

#[test]
fn stored_documents_refuse_fields_that_nobody_knows() {
    let stored = r#"{"name":"shop/a","spec":{"BackendPolicy":{"targetRefs":[],"retires":{}}}}"#;
    let error = serde_json::from_str::<PolicyDocument>(stored).unwrap_err().to_string();
    assert!(error.contains("unknown field `retires`"), "{error}");
}

#[test]
fn a_reference_without_namespace_is_in_the_documents_own() {
    let reference: TargetRef = serde_json::from_str(r#"{"kind":"Service","name":"a"}"#).unwrap();
    assert_eq!(reference.service("shop").to_string(), "shop/a");
    let reference: BackendRef = serde_json::from_str(r#"{"name":"a","namespace":"other"}"#).unwrap();
    assert_eq!((reference.kind, reference.weight), (RefKind::Service, 1));
    assert_eq!(reference.service("shop").to_string(), "other/a");
}

#[test]
fn kinds_are_read_in_any_case_and_written_as_kubernetes_does() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().to_lowercase().parse::<PolicyKind>().unwrap(), kind);
    }
    assert!("route".parse::<PolicyKind>().is_err());
    let key = PolicyKey { kind: PolicyKind::HttpRoute, name: "shop/a".parse().unwrap() };
    assert_eq!(key.to_string(), "HTTPRoute/shop/a");
}
