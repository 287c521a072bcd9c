//! hanse-kubernetes: objects of Kubernetes turned into Commands. Pure: an object in, Commands out.
//!
//! Knows `ServiceExport` (MCS API), `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `TLSRoute` and `ReferenceGrant` (Gateway API v1), `BackendPolicy` and
//! `AccessPolicy`;
//! the documents mean exactly what they mean to `hanse policy apply`, because the same parser reads them. Watching an
//! API server is not part of this crate yet.

use hanse_control::command::Command;
use hanse_federation::Export;
use hanse_federation::policy::{Diagnostic, parse};
use hanse_identity::ServiceName;
use serde_json::Value;

/// Whether the object is there or has been deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Applied,
    Deleted,
}

/// Why an object yields no Command.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Untranslated {
    #[error("objects of {api_version} {kind} are not read by Hanse")]
    UnknownKind { api_version: String, kind: String },
    #[error("metadata.{0} is missing or not a valid name")]
    Metadata(&'static str),
    #[error("the document has {} error(s), the first: {}", .0.len(), .0.first().map_or("", |d| d.message.as_str()))]
    Invalid(Vec<Diagnostic>),
}

/// The Commands that bring the registry in line with this object.
pub fn commands(object: &Value, event: Event) -> Result<Vec<Command>, Untranslated> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    match (text("/apiVersion"), text("/kind")) {
        ("multicluster.x-k8s.io/v1alpha1" | "multicluster.x-k8s.io/v1beta1", "ServiceExport") => {
            let service = ServiceName::new(text("/metadata/namespace"), text("/metadata/name"))
                .map_err(|_| Untranslated::Metadata("name"))?;
            Ok(vec![match event {
                Event::Applied => Command::Export { service, to: Export::Everyone },
                Event::Deleted => Command::Unexport { service },
            }])
        }
        ("gateway.networking.k8s.io/v1", "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute")
        | ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "ReferenceGrant")
        | ("hanse.dev/v1alpha1", "BackendPolicy" | "AccessPolicy") => policy(object, event),
        (api_version, kind) => {
            Err(Untranslated::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() })
        }
    }
}

fn policy(object: &Value, event: Event) -> Result<Vec<Command>, Untranslated> {
    let mut document = object.clone();
    // The API server adds its own bookkeeping; the parser knows only what a user may write.
    if let Some(metadata) = document.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| key == "name" || key == "namespace");
    }
    if let Some(fields) = document.as_object_mut() {
        fields.remove("status");
    }
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("object").to_owned();
    let documents: Vec<_> = parse(&name, &document.to_string())
        .map_err(Untranslated::Invalid)?
        .into_iter()
        .map(|(document, _line)| document)
        .collect();
    Ok(vec![match event {
        Event::Applied => Command::PolicyApply { documents },
        Event::Deleted => Command::PolicyDelete { keys: documents.iter().map(|d| d.key()).collect() },
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn export(event: Event) -> Result<Vec<Command>, Untranslated> {
        let object = json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": { "name": "reviews", "namespace": "shop", "uid": "4" },
        });
        commands(&object, event)
    }

    #[test]
    fn a_service_export_exports_and_its_deletion_takes_it_back() {
        let service: ServiceName = "shop/reviews".parse().unwrap();
        let exported = Command::Export { service: service.clone(), to: Export::Everyone };
        assert_eq!(export(Event::Applied), Ok(vec![exported]));
        assert_eq!(export(Event::Deleted), Ok(vec![Command::Unexport { service }]));
    }

    #[test]
    fn an_http_route_is_read_by_the_parser_of_the_command_line() {
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "reviews", "namespace": "shop", "resourceVersion": "7", "generation": 2 },
            "spec": {
                "parentRefs": [{ "group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "reviews" }],
                "rules": [{ "backendRefs": [{ "kind": "Service", "name": "reviews-v1", "port": 80 }] }],
            },
            "status": { "parents": [] },
        });
        let applied = commands(&object, Event::Applied).unwrap();
        let [Command::PolicyApply { documents }] = applied.as_slice() else { panic!("{applied:?}") };
        let key = documents[0].key();
        assert_eq!(format!("{} {}", key.kind, key.name), "HTTPRoute shop/reviews");
        let deleted = commands(&object, Event::Deleted).unwrap();
        assert_eq!(deleted, vec![Command::PolicyDelete { keys: vec![documents[0].key()] }]);
    }

    #[test]
    fn a_reference_grant_is_read_in_both_versions_as_one_document() {
        let key = |version: &str| {
            let object = json!({
                "apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": "ReferenceGrant",
                "metadata": { "name": "shop", "namespace": "trial", "uid": "7" },
                "spec": {
                    "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop" }],
                    "to": [{ "group": "", "kind": "Service" }],
                },
            });
            let applied = commands(&object, Event::Applied).unwrap();
            let [Command::PolicyApply { documents }] = applied.as_slice() else { panic!("{applied:?}") };
            documents[0].key().to_string()
        };
        assert_eq!((key("v1").as_str(), key("v1beta1")), ("ReferenceGrant/trial/shop", key("v1")));
    }

    #[test]
    fn unknown_fields_and_kinds_are_errors() {
        let typo = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "reviews", "namespace": "shop" }, "spec": { "parentRef": [] },
        });
        assert!(matches!(commands(&typo, Event::Applied), Err(Untranslated::Invalid(_))));
        let pod = json!({ "apiVersion": "v1", "kind": "Pod" });
        assert!(matches!(commands(&pod, Event::Applied), Err(Untranslated::UnknownKind { .. })));
    }
}
